import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepmetric.errors import InputError
from deepmetric.training import HardnessController


def test_too_hard_raises_the_offset_and_too_easy_lowers_it():
    controller = HardnessController(target=0.5, gain=0.4, smoothing=0.0, offset=0.5)
    controller.update()
    assert controller.offset == 0.5  # nothing was observed
    controller.observe(0.75)
    controller.update()
    assert controller.offset == pytest.approx(0.6)
    controller.update()  # integral: the deviation goes on to count
    assert controller.offset == pytest.approx(0.7)
    controller.observe(0.0)
    controller.update()
    assert controller.offset == pytest.approx(0.5)


def test_it_is_clipped_and_leaves_the_bound_at_once():
    controller = HardnessController(gain=10.0, smoothing=0.0)
    for signal, bound in ((1.0, 1.0), (0.0, 0.0), (1.0, 1.0)):
        controller.observe(signal)
        for _ in range(3):
            controller.update()
            assert controller.offset == bound


def test_it_acts_on_a_smoothed_signal():
    controller = HardnessController(target=0.5, smoothing=0.9)
    controller.observe(1.0)
    assert controller.mean == pytest.approx(0.55)
    for step in range(200):
        controller.observe(step % 2)
    assert abs(controller.mean - 0.5) < 0.06


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_it_finds_the_offset_at_which_the_signal_is_on_target(target, start):
    """Where the signal falls with the offset, as it does for triplets."""
    controller = HardnessController(target, gain=0.3, smoothing=0.5, offset=start)
    for _ in range(200):
        controller.observe(1 - controller.offset)
        controller.observe(1 - controller.offset)
        controller.update()
    assert controller.offset == pytest.approx(1 - target, abs=1e-3)


@pytest.mark.parametrize("wrong", [{"gain": 0.0}, {"smoothing": 1.0}, {"offset": 1.5}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        HardnessController(**wrong)
