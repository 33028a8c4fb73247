import math

import pytest
import torch

from deepmetric.errors import InputError
from deepmetric.training.schedules import CosineSchedule, PlateauSchedule, Schedule, StepSchedule


def optimizer_of(rates=(1.0,)):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates])


def rates(schedule, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_linearly_then_stays():
    optimizer = optimizer_of()
    found = rates(Schedule(optimizer, 8, warmup_steps=4), optimizer, 8)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_cosine_goes_from_full_to_final():
    optimizer = optimizer_of()
    schedule = CosineSchedule(optimizer, 12, warmup_steps=2, final_factor=0.1)
    found = rates(schedule, optimizer, 12)
    want = [0.5, 1.0] + [0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert found == pytest.approx(want)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_steps_fall_at_milestones_of_the_run():
    optimizer = optimizer_of()
    found = rates(StepSchedule(optimizer, 6, milestones=[4, 2], gamma=0.5, warmup_steps=1), optimizer, 6)
    assert found == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])


def test_plateau_falls_after_patience_without_a_better_score():
    optimizer = optimizer_of()
    schedule = PlateauSchedule(optimizer, 100, factor=0.1, patience=2)
    seen = []
    for score in [0.5, 0.6, 0.6, 0.59, 0.7, 0.1, 0.1, 0.1]:
        schedule.on_score(score)
        optimizer.step()
        schedule.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_each_group_keeps_its_own_rate():
    optimizer = optimizer_of((1.0, 0.01))
    schedule = CosineSchedule(optimizer, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.005])


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineSchedule(o, 20, warmup_steps=5),
        lambda o: PlateauSchedule(o, 20, patience=1),
    ],
)
def test_saved_and_restored_goes_on_alike(make):
    def advance(optimizer, schedule, start, stop):
        found = []
        for step in range(start, stop):
            optimizer.step()
            schedule.on_score(math.sin(step))
            schedule.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    whole = optimizer_of()
    expected = advance(whole, make(whole), 0, 20)

    first = optimizer_of()
    schedule = make(first)
    head = advance(first, schedule, 0, 9)
    second = optimizer_of()
    restored = make(second)
    second.load_state_dict(first.state_dict())
    restored.load_state_dict(schedule.state_dict())
    assert head + advance(second, restored, 9, 20) == expected


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="between 0 and the 10 steps"):
        Schedule(optimizer_of(), 10, warmup_steps=11)
    with pytest.raises(InputError, match="final_factor"):
        CosineSchedule(optimizer_of(), 10, final_factor=-0.1)
    with pytest.raises(InputError, match="gamma"):
        StepSchedule(optimizer_of(), 10, milestones=[5], gamma=1.5)
    with pytest.raises(InputError, match="patience"):
        PlateauSchedule(optimizer_of(), 10, patience=0)
    with pytest.raises(InputError, match="factor"):
        PlateauSchedule(optimizer_of(), 10, factor=1.5)
