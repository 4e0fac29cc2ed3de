"""Folders: which images are train, val and test, and what is said of those that cannot be probed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from probing.data import model, write_classes, write_scenes

from timm_neutreno.probing import DataError, loaders, open_folder
from timm_neutreno.probing.images import Images

ALL = {"train": 10, "val": 4, "test": 3}


def numbers(folder) -> dict[str, int]:
    return {part: len(samples) for part, samples in folder.samples.items()}


def test_three_parts_are_taken_as_they_are(tmp_path):
    found = open_folder(write_classes(tmp_path / "d", ALL))
    assert (found.task, numbers(found), found.classes) == (
        "classification", {"train": 30, "val": 12, "test": 9}, ["a", "b", "c"],
    )  # fmt: skip


@pytest.mark.parametrize("second", ["val", "test", "validation"])
def test_of_two_parts_the_second_is_test_and_val_comes_from_train(tmp_path, second):
    found = open_folder(write_classes(tmp_path / "d", {"train": 10, second: 4}))
    assert numbers(found) == {"train": 24, "val": 6, "test": 12}
    assert not set(found.samples["train"]) & set(found.samples["val"])
    assert [label for _, label in found.samples["val"]].count(1) == 2  # of every class
    assert {path.parent.parent.name for path, _ in found.samples["test"]} == {second}
    again = open_folder(tmp_path / "d")
    assert again.samples == found.samples


def test_of_one_part_a_fifth_is_val_and_a_fifth_test(tmp_path):
    found = open_folder(write_classes(tmp_path / "d", {"": 10}))
    assert numbers(found) == {"train": 18, "val": 6, "test": 6}
    assert len({path for samples in found.samples.values() for path, _ in samples}) == 30


def test_a_limit_is_spread_over_the_classes(tmp_path):
    found = open_folder(write_classes(tmp_path / "d", ALL), limit=6)
    assert [label for _, label in found.samples["train"]] == [0, 0, 1, 1, 2, 2]


def test_masks_are_read_at_their_own_size_with_void(tmp_path):
    folder = open_folder(write_scenes(tmp_path / "d", ALL), ignore_label=3)
    assert (folder.task, folder.classes, numbers(folder)) == ("segmentation", ["0", "1", "2"], ALL)
    splits, size = loaders(folder, model(), batch_size=4, ignore_label=3)
    images, masks = next(iter(splits.train))
    assert (images.shape, size) == ((4, 3, 32, 32), (32, 32))
    expected = np.array(Image.open(tmp_path / "d" / "annotations" / "train" / "0.png")).astype(int)
    expected[expected == 3] = -1
    assert masks[0].tolist() == expected.tolist()


def test_label_0_may_be_void_as_in_ade20k(tmp_path):
    folder = open_folder(write_scenes(tmp_path / "d", ALL), ignore_label=0, num_labels=4)
    assert folder.classes == ["1", "2", "3"]
    mask = Images(folder, "train", lambda image: torch.zeros(3, 8, 8), 0)[0][1]
    labels = np.array(Image.open(folder.samples["train"][0][1])).astype(int)
    assert mask.tolist() == (labels - 1).tolist()


def test_images_are_the_whole_picture_squashed_to_the_models_size(tmp_path):
    folder = open_folder(write_scenes(tmp_path / "d", ALL), ignore_label=3)
    splits, _ = loaders(folder, model(), ignore_label=3)
    image = Image.open(folder.samples["test"][0][0]).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    expected = (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(next(iter(splits.test))[0][0], expected)


def another_size(folder):
    Image.new("L", (10, 10)).save(folder / "annotations" / "train" / "1.png")


def coloured(folder):
    Image.new("RGB", (40, 24)).save(folder / "annotations" / "train" / "1.png")


def beyond(folder):
    Image.new("L", (40, 24), 9).save(folder / "annotations" / "test" / "1.png")


def broken_mask(folder):
    (folder / "annotations" / "train" / "1.png").write_bytes(b"no picture")


def broken_image(folder):
    (folder / "images" / "train" / "1.png").write_bytes(b"no picture")


def one_label(folder):
    for mask in folder.glob("annotations/*/*.png"):
        Image.new("L", (40, 24)).save(mask)


BAD_SCENES = {
    "no annotations": (lambda f: shutil.rmtree(f / "annotations"), r"has images/ but no annotations/"),
    "no masks": (lambda f: [m.unlink() for m in (f / "annotations" / "val").iterdir()], r"no masks in .*val"),
    "one missing": (lambda f: (f / "annotations/test/2.png").unlink(), r"1 of 3 images have no mask in .*2.png"),
    "another size": (another_size, r"1.png has 10 x 10 pixels and its image .*1.png 40 x 24"),
    "coloured": (coloured, r"1.png is a picture of mode RGB"),
    "beyond": (beyond, r"has the label 9, beyond the 3 labels that are known \(0 to 2\)"),
    "broken mask": (broken_mask, r"cannot read the mask .*1.png"),
    "broken image": (broken_image, r"cannot read the image .*1.png"),
    "one label": (one_label, r"has only one label \(0\)"),
}


@pytest.mark.parametrize("case", BAD_SCENES)
def test_bad_scenes(case, tmp_path):
    damage, message = BAD_SCENES[case]
    damage(write_scenes(tmp_path / "d", ALL))
    with pytest.raises(DataError, match=message):
        read_all(tmp_path / "d")


def read_all(path):
    for part in loaders(open_folder(path, ignore_label=3), model(), ignore_label=3)[0][2:]:
        list(part)


BAD_CLASSES = {
    "no folder": (lambda f: shutil.rmtree(f), "is not a folder"),
    "classes differ": (lambda f: (f / "val" / "a").rename(f / "val" / "z"), "differ between its parts: a, z"),
    "empty class": (lambda f: [p.unlink() for p in (f / "train" / "b").iterdir()], r"no images in .*b"),
    "one class": (lambda f: [shutil.rmtree(p) for p in f.glob("*/[bc]")], r"only one class \(a\)"),
    "no classes": (lambda f: [shutil.rmtree(p) for p in f.glob("train/*")], "has no class folders"),
}


@pytest.mark.parametrize("case", BAD_CLASSES)
def test_bad_classes(case, tmp_path):
    damage, message = BAD_CLASSES[case]
    damage(write_classes(tmp_path / "d", ALL))
    with pytest.raises(DataError, match=message):
        open_folder(tmp_path / "d")


def test_too_few_images_to_split(tmp_path):
    with pytest.raises(DataError, match=r"1 images .* are too few to split"):
        open_folder(write_classes(tmp_path / "d", {"": 1}))
