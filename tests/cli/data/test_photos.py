"""Photos of a folder: found, spread, read, and wrong folders named."""

from __future__ import annotations

import os

import pytest
import torch
from hosts import build
from PIL import Image
from timm_neutreno_cli.data.photos import find_photos, photo_batches
from timm_neutreno_cli.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a/1.jpg", "a/2.PNG", "b/3.jpeg", "b/c/4.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 48), (90, 90, 90)).convert("L" if "2" in name else "RGB").save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_all_images_below_are_found_and_a_limit_spreads_over_them(folder):
    assert [path.name for path in find_photos(folder)] == ["1.jpg", "2.PNG", "3.jpeg", "4.webp"]
    assert [path.name for path in find_photos(folder, 2)] == ["1.jpg", "3.jpeg"]
    assert len(find_photos(folder, 100)) == 4


def test_batches_have_the_models_size_and_a_smaller_last_one(folder):
    shapes = [tuple(batch.shape) for batch in photo_batches(find_photos(folder), build("vit"), batch_size=3)]
    assert shapes == [(3, 3, 32, 32), (1, 3, 32, 32)]


def test_batches_are_normalised_as_the_model_says(folder):
    batch = next(photo_batches(find_photos(folder, 1), build("vit")))
    mean, std = (torch.tensor(build("vit").pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(batch[0] * std + mean, torch.full((3, 32, 32), 90 / 255), atol=0.02)


def test_wrong_folders_and_images_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"there are no images \(\.bmp"):
        find_photos(tmp_path)
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"cannot read the image .*a\.tif: it is a pipe, no file"):
        list(photo_batches(find_photos(tmp_path), build("vit")))
    (tmp_path / "a.tif").unlink()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.jpg"):
        list(photo_batches(find_photos(tmp_path), build("vit")))
