"""What --data names: folders of every shape, held-out parts, unreadable images, and what tells data from other data."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from integration import small_run
from PIL import Image
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.data.sources import check_equal, fingerprint, open_datasets, subsample
from timm_neutreno_cli.errors import DataError


@pytest.fixture
def images(tmp_path) -> Path:
    return small_run.make(tmp_path, train=8, val=2)[0]


def test_a_folder_with_its_own_split(images):
    found = open_datasets(Config(data=str(images)))
    assert (len(found.train), len(found.val), found.num_classes, found.class_names) == (16, 4, 2, ["blue", "red"])
    (images / "val").rename(images / "validation")
    assert len(open_datasets(Config(data=str(images))).val) == 4


def test_a_folder_without_one_is_split_by_class_with_the_seed(images):
    config = Config(data=str(images / "train"), val_split="0.25", seed=4)
    found = open_datasets(config)
    for part, count in ((found.train, 6), (found.val, 2)):
        assert [sum(target == label for _, target in part.reader.samples) for label in (0, 1)] == [count] * 2
    assert not set(found.train.reader.samples) & set(found.val.reader.samples)
    assert fingerprint(open_datasets(config)) == fingerprint(found)
    assert fingerprint(open_datasets(replace(config, seed=5))) != fingerprint(found)
    assert fingerprint(open_datasets(replace(config, seed=5, split_seed=4))) == fingerprint(found)
    assert len(open_datasets(replace(config, val_split="validation")).val) == 2  # a tenth, at least one of each class


def test_the_fingerprint_is_of_names_and_classes_and_not_of_the_place(images, tmp_path):
    before = fingerprint(open_datasets(Config(data=str(images))))
    images.rename(tmp_path / "moved")
    config = Config(data=str(tmp_path / "moved"))
    assert fingerprint(open_datasets(config)) == before
    (tmp_path / "moved" / "train" / "red" / "0.jpg").rename(tmp_path / "moved" / "train" / "blue" / "z.jpg")
    assert fingerprint(open_datasets(config)) != before


def test_an_unreadable_image_is_named_or_passed_over(images):
    bad = images / "train" / "blue" / "0.jpg"
    bad.write_bytes(b"no image")
    index = 0
    with pytest.raises(DataError, match=f"cannot read the image {bad}"):
        open_datasets(Config(data=str(images))).train[index]
    found = open_datasets(Config(data=str(images), skip_bad_images=True))
    assert found.train[index][1] == found.train[index + 1][1]
    assert found.skipped == 1


def test_in_val_it_is_left_out_so_that_no_other_counts_twice(images):
    (images / "val" / "red" / "0.jpg").write_bytes(b"no image")
    found = open_datasets(Config(data=str(images), skip_bad_images=True))
    assert (len(found.val), found.skipped) == (3, 1)


def test_subsample_keeps_every_class(images):
    found = open_datasets(Config(data=str(images)))
    subsample(found.train, 4)
    assert [target for _, target in found.train.reader.samples] == [0, 0, 1, 1]
    subsample(found.train, 400)
    assert len(found.train) == 4


@pytest.mark.parametrize("name", ["wds/imagenet", "hfids/cifar10", "tfds/mnist"])
def test_a_stream_is_refused_before_anything_is_asked_of_it(name):
    with pytest.raises(DataError, match=r"is a stream: .* Use a folder of images, torch/NAME or hfds/NAME"):
        open_datasets(Config(data=name))


def test_a_source_of_timm(tmp_path):
    """A folder in the layout of torchvision's ImageFolder, asked for by its scheme."""
    pytest.importorskip("torchvision")
    with pytest.raises(DataError, match="cannot open torch/no_such_set, split 'train'"):
        open_datasets(Config(data="torch/no_such_set", data_dir=str(tmp_path)))


def test_classes_that_differ(images):
    (images / "val" / "red").rename(images / "val" / "green")
    with pytest.raises(DataError, match=r"only in val/: green; only in train/: red"):
        open_datasets(Config(data=str(images)))


def test_one_image_of_a_class_cannot_be_split(images):
    for path in sorted((images / "train" / "red").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"class 'red' in .* has too few images"):
        open_datasets(Config(data=str(images / "train")))


@pytest.mark.parametrize("suffix", [".webp", ".gif", ".tif", ".tiff", ".bmp"])
def test_images_of_every_format_are_used(images, suffix):
    for part, count in (("train", 16), ("val", 4)):
        paths = sorted((images / part).rglob("*.jpg"))
        for path in paths[::2]:
            Image.open(path).save(path.with_suffix(suffix))
            path.unlink()
        assert len(getattr(open_datasets(Config(data=str(images))), part)) == count


def test_val_images_from_test_are_said(images):
    (images / "val").rename(images / "test")
    assert open_datasets(Config(data=str(images))).label == f"{images} (val: its test/)"


def test_a_pipe_among_the_images_is_named_and_not_waited_for(images):
    path = images / "train" / "blue" / "0.jpg"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"cannot read the image {path}: it is a pipe, no file"):
        open_datasets(Config(data=str(images))).train[0]
    assert open_datasets(Config(data=str(images), skip_bad_images=True)).train[0]


def test_other_data_in_another_process_is_refused(images):
    here = fingerprint(open_datasets(Config(data=str(images))))
    check_equal([here, dict(here)])
    (images / "train" / "red" / "0.jpg").rename(images / "train" / "red" / "other.jpg")
    there = fingerprint(open_datasets(Config(data=str(images))))
    with pytest.raises(DataError, match="process 2 has other data than process 0: train names are"):
        check_equal([here, here, there])


@pytest.mark.parametrize(
    ("link", "target", "words"),
    [
        ("val/blue/up", ".", "up/val is a link|is a link to a folder that it stands in"),
        ("val/blue/also", "val", "is a link to a folder that it stands in"),
        ("train/green", "nowhere", "green is a link to nothing"),
        ("train/loop", "train/loop", "loop is a link to nothing"),
    ],
)
def test_links_that_count_images_many_times_or_lose_a_class(images, link, target, words):
    """A folder linked into itself made 1,534 images of 14, and a class whose folder had moved was not missed."""
    (images / link).symlink_to(images / target)
    with pytest.raises(DataError, match=words):
        open_datasets(Config(data=str(images)))


def test_a_linked_folder_of_images_is_used(images, tmp_path):
    (images / "train" / "blue").rename(tmp_path / "elsewhere")
    (images / "train" / "blue").symlink_to(tmp_path / "elsewhere")
    assert len(open_datasets(Config(data=str(images))).train) > 0


def test_a_link_to_no_image_is_said(images):
    (images / "val" / "blue" / "z.jpg").symlink_to("/nowhere.jpg")
    found = open_datasets(Config(data=str(images))).val
    with pytest.raises(DataError, match=r"z\.jpg: it is a link to nothing"):
        list(found)
