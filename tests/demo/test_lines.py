"""The embedded segmentation task: lines of digits with masks, and a short run of the default command on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from integration import small_run
from PIL import Image

from timm_neutreno.demo import lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return lines.write_lines(tmp_path_factory.mktemp("lines") / "here")


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_sizes_classes_and_strokes(folder):
    for part, count in lines.LINES.items():
        images = sorted((folder / "images" / part).iterdir())
        assert [path.name for path in images] == [p.name for p in sorted((folder / "annotations" / part).iterdir())]
        assert len(images) == count
    seen = np.zeros(11)
    for path in sorted((folder / "images" / "val").iterdir()):
        pixels, mask = read(path), read(folder / "annotations" / "val" / path.name)
        assert pixels.shape == (32, 128, 3)
        assert mask.shape == (32, 128)
        assert (mask[pixels[..., 0] >= lines.STROKE] > 0).all()  # a stroke is never background
        assert (pixels[..., 0][mask == 0] < lines.STROKE).all()
        for left in range(0, 128, 32):
            assert len(set(mask[:, left : left + 32].ravel()) - {0}) == 1  # one digit in each place
        seen += np.bincount(mask.ravel(), minlength=11)
    assert (seen > 0).all()
    assert 0.3 < seen[0] / seen.sum() < 0.6  # background is no easy answer
    assert (folder / "classes.txt").read_text().split() == list(lines.NAMES)


def test_always_the_same_and_an_incomplete_folder_is_refused(folder, tmp_path):
    again = lines.write_lines(tmp_path / "again")
    for path in sorted(folder.rglob("*.png"))[::97]:
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert lines.write_lines(again) == again
    next(again.rglob("*.png")).unlink()
    with pytest.raises(RuntimeError, match="should hold 2304 pictures and holds 2303: remove it"):
        lines.write_lines(again)


def test_the_command_without_an_argument_learns(tmp_path):
    """An eighth of its epochs: already more than background alone, which is below 6 % of mIoU."""
    argv = ["neutreno-adapt", "--task", "segmentation", "--epochs", "3", "--no-control", "--workers", "0", "--json",
            "--output", str(tmp_path / "run")]  # fmt: skip
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    document = json.loads(small_run.finish(small_run.in_a_process(argv, **cache))[0])
    row = document["models"]["neutreno"]
    assert row["images"] == lines.LINES["val"]
    assert row["miou"] > 20
