"""The embedded data set: really different classes, really different instances, always the same."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from deepmetric.data import ClassSplit, GlyphsDataset
from deepmetric.data.glyph_drawing import FACES, characters_of, draw, outline
from deepmetric.data.glyph_set import CODEPOINTS
from deepmetric.errors import InputError

SCRIPT = Path(__file__).parents[2] / "scripts" / "choose_glyphs.py"


@pytest.fixture(scope="module")
def small(glyph_cache) -> GlyphsDataset:
    return GlyphsDataset(instances=4, size=24)


@pytest.fixture(scope="module")
def choose_glyphs():
    if not SCRIPT.is_file():
        pytest.skip("scripts/ is not here")
    spec = importlib.util.spec_from_file_location("choose_glyphs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the characters


def test_there_are_enough_classes_and_instances():
    assert len(CODEPOINTS) >= 800
    assert len(set(CODEPOINTS)) == len(CODEPOINTS)
    assert GlyphsDataset.__init__.__defaults__ is not None
    assert GlyphsDataset.__init__.__defaults__[0] >= 16


def test_no_two_characters_have_nearly_the_same_shape(choose_glyphs):
    """As drawn all with all; under every deformation a third with each other, which is a ninth of the work."""
    for characters, variants in (
        (CODEPOINTS, choose_glyphs.AS_DRAWN),
        (CODEPOINTS[::3], choose_glyphs.VARIANTS),
    ):
        near = choose_glyphs.similarity(characters, variants).numpy()
        np.fill_diagonal(near, -1)
        assert near.max() <= choose_glyphs.LIMIT


def test_the_measure_finds_lookalikes_and_tells_letters_apart(choose_glyphs):
    """Alpha and A, small and capital c, hyphen and underscore; but not a and A, nor M and N."""

    def near(a: str, b: str) -> float:
        return float(choose_glyphs.similarity([ord(a), ord(b)], choose_glyphs.VARIANTS)[0, 1])

    for pair in ("AΑ", "AА", "cC", "sS", "oO", "oο", "O0", "-_", "éè", "EF", "/|", "|l"):
        assert near(*pair) > choose_glyphs.LIMIT, pair
    for pair in ("aA", "MN", "nm", "gG", "∈∋", "⊂⊆"):
        assert near(*pair) <= choose_glyphs.LIMIT, pair


def test_lookalikes_are_merged():
    there = set(CODEPOINTS)
    for group in ("BΒВ", "AΑАᎪ", "OΟОoοо", "cCсС", "sSѕЅ", "-_–—", "/\\|lI1"):
        assert sum(ord(character) in there for character in group) <= 1, group
    assert {ord(character) for character in "BDEKNRabde2456"} <= there


def test_faces_agree_on_every_character(choose_glyphs):
    """No blank, no empty box, no face (of TeX's encoding, say) that shows something else under the code point."""
    assert min(choose_glyphs.agreement(codepoint) for codepoint in CODEPOINTS[::7]) >= choose_glyphs.AGREEMENT
    tex = [c for c in CODEPOINTS if c in characters_of("cmr10")]
    assert len(tex) > 30
    assert min(choose_glyphs.agreement(codepoint) for codepoint in tex) >= choose_glyphs.AGREEMENT


def test_characters_are_marks_on_paper():
    assert {unicodedata.category(chr(codepoint))[0] for codepoint in CODEPOINTS} <= set("LNPS")
    for codepoint in CODEPOINTS:
        assert sum(codepoint in characters_of(face) for face in FACES) >= 2


def test_an_outline_is_centred_and_scaled():
    for character in ".-W|":
        drawn = outline("DejaVuSans", ord(character), 64)
        assert drawn is not None
        rows, columns = np.flatnonzero(drawn.max(1) > 63), np.flatnonzero(drawn.max(0) > 63)
        assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - 48) <= 1
        assert abs(rows.mean() - 31.5) <= 1
        assert abs(columns.mean() - 31.5) <= 1
    assert outline("DejaVuSans", 0x20, 64) is None


# ---- the data set


def test_items(small):
    n = len(CODEPOINTS)
    assert len(small) == 4 * n
    assert small.classes == [f"U+{codepoint:04X}" for codepoint in CODEPOINTS]
    assert small.ids[4 * small.classes.index("U+0042") + 3] == "U+0042/03"
    assert np.array_equal(small.labels, np.repeat(np.arange(n), 4))
    image = small.read(5)
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.uint8
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])


def test_classes_are_disjoint_and_shared_out(small):
    assert small.shared_classes() == {}
    count = {name: len(np.unique(small.split(name).labels)) for name in ("train", "val", "test")}
    n = len(CODEPOINTS)
    assert count == {
        "train": n - round(0.15 * n) - round(0.25 * n),
        "val": round(0.15 * n),
        "test": round(0.25 * n),
    }
    other = GlyphsDataset(instances=4, size=24, split=ClassSplit(test=100, val=0))
    assert len(np.unique(other.split("test").labels)) == 100


def test_every_image_shows_dark_on_light(small):
    images = small._images.reshape(len(small), -1).astype(float)
    assert (images.std(1) > 8).all()
    edge = np.concatenate([small._images[:, 0], small._images[:, -1]], 1).mean(1)
    centre = np.sort(images, 1)[:, :10].mean(1)
    assert (edge > centre + 20).all()


def test_instances_differ(small):
    images = small._images.reshape(len(CODEPOINTS), 4, -1).astype(int)
    for a in range(4):
        for b in range(a):
            assert (np.abs(images[:, a] - images[:, b]).mean(1) > 3).all()


def test_seed_character_and_instance_make_the_image(small):
    """Alone or among others, an image is the same; another seed gives another."""
    for codepoint in (0x23, CODEPOINTS[500]):
        row = 4 * CODEPOINTS.index(codepoint)
        alone = draw([codepoint], 6, 24, 0)
        assert np.array_equal(alone[:4], small._images[row : row + 4])
        assert not np.array_equal(draw([codepoint], 6, 24, 1), alone)


def test_another_process_makes_the_same_images(small):
    code = (
        "import hashlib; from deepmetric.data.glyph_drawing import draw;"
        "print(hashlib.sha256(draw([0x23, 0x41], 4, 24, 0).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import hashlib

    assert done.stdout.strip() == hashlib.sha256(draw([0x23, 0x41], 4, 24, 0).tobytes()).hexdigest()


def test_a_simple_classifier_is_better_than_chance_and_far_from_right(small):
    """Nearest neighbour on raw pixels: what an embedding has to beat."""
    test = small.split("test")
    rows = torch.from_numpy(small._images[test._rows].reshape(len(test), -1)).float()
    rows = torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True))
    near = rows @ rows.T
    near.fill_diagonal_(-1)
    labels = torch.from_numpy(test.labels)
    recall = float((labels[near.argmax(1)] == labels).float().mean())
    assert 0.02 < recall < 0.5


@pytest.mark.parametrize("bad", [{"instances": 0}, {"size": 4}, {"seed": -1}])
def test_wrong_arguments(bad, glyph_cache):
    with pytest.raises(InputError, match="GlyphsDataset"):
        GlyphsDataset(**bad)


# ---- the cache


def cached(folder: Path, instances=4) -> Path:
    (file,) = folder.glob(f"glyphs/{instances}x24px-seed0-*.npz")
    return file


def test_the_cache_is_used(small, glyph_cache, monkeypatch):
    assert cached(glyph_cache)
    monkeypatch.setattr("deepmetric.data.glyph_drawing.draw", None)
    assert np.array_equal(GlyphsDataset(instances=4, size=24)._images, small._images)


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "other", "flag"])
def test_a_damaged_cache_is_made_again(small, glyph_cache, damage, monkeypatch):
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return small._images

    monkeypatch.setattr("deepmetric.data.glyph_drawing.draw", count)
    file = cached(glyph_cache)
    content = file.read_bytes()
    middle, directory = len(content) // 2, content.rindex(b"PK\1\2")
    entry = content[directory : directory + 9]
    if damage == "other":
        np.savez(file, images=small._images[:-1])
    else:
        file.write_bytes(
            {
                "cut": content[:middle],
                "emptied": b"",
                # "encrypted", in the archive's table of contents
                "flag": content.replace(entry, entry[:-1] + bytes([entry[-1] | 1])),
                "changed": content[:middle] + b"\0\1" * 9 + content[middle + 18 :],
            }[damage]
        )
    assert np.array_equal(GlyphsDataset(instances=4, size=24)._images, small._images)
    assert len(calls) == 1
    GlyphsDataset(instances=4, size=24)
    assert len(calls) == 1
    assert not list(file.parent.glob(".*"))  # no temporary file stays


def test_the_cache_follows_the_environment(monkeypatch, tmp_path: Path):
    from deepmetric.data.cache import cache_folder

    monkeypatch.setenv("DEEPMETRIC_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("DEEPMETRIC_CACHE")
    assert cache_folder() == Path("/b/deepmetric")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/deepmetric"


def test_no_place_for_a_cache_is_no_reason_to_stop(small, monkeypatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEEPMETRIC_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("deepmetric.data.glyph_drawing.draw", lambda *_: small._images)
    with pytest.warns(UserWarning, match="cannot keep the glyphs"):
        assert len(GlyphsDataset(instances=4, size=24)) == len(small)


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path: Path):
    from deepmetric.data.cache import replacing

    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
