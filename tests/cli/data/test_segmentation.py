"""Images with masks: together through every transform, the same for every seed, and split as the folder says."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from integration import small_run
from PIL import Image
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.data import segmentation
from timm_neutreno_cli.data.segmentation import VOID, Crop, open_datasets
from timm_neutreno_cli.data.sources import fingerprint
from timm_neutreno_cli.errors import DataError
from timm_neutreno_cli.runtime.processes import World

CPU = torch.device("cpu")
DATA_CONFIG = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return small_run.make_masks(tmp_path_factory.mktemp("small"))[0]


def config(folder: Path, **more) -> Config:
    return Config(
        **{"task": "segmentation", "data": str(folder), "ignore_label": 255, "workers": 0, "batch_size": 4, **more}
    )


def test_image_and_mask_are_never_apart():
    """An image that shows its own mask: after every transform it still does, away from edges and filling."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 5, (6, 9), generator=draw).repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = (mask * 50).to(torch.uint8).expand(3, -1, -1)
    crop = Crop(40, (0.5, 2.0), 0.5, 0.0, (0.5,) * 3, (0.5,) * 3)
    shapes, filled, compared = set(), 0, 0
    for seed in range(30):
        torch.manual_seed(seed)
        x, y = crop(image, mask)
        assert x.shape == (3, 40, 40)
        assert y.shape == (40, 40)
        assert type(x) is type(y) is torch.Tensor
        grey = (x[0] + 1) / 2 * 255
        expected = torch.where(y == VOID, 128, y * 50)
        agrees = (grey - expected).abs() < 3
        around = [torch.nn.functional.max_pool2d(sign * y.float()[None], 7, 1, 3)[0] for sign in (1, -1)]
        inner = (around[0] == -around[1])[3:-3, 3:-3]  # one class all around; edges are mixed
        compared += int(inner.sum())
        assert agrees[3:-3, 3:-3][inner].all(), seed
        shapes.add(tuple(torch.unique_consecutive(y[20]).shape))
        filled += int((y == VOID).any())
    assert compared > 30 * 40 * 40 // 20
    assert len(shapes) > 3
    assert 0 < filled < 30  # small scales are filled up, with void


def test_colours_change_the_image_alone():
    mask = torch.zeros(20, 20, dtype=torch.long)
    image = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    pairs = [Crop(20, (1.0, 1.0), 0.0, 0.5, (0.5,) * 3, (0.5,) * 3)(image, mask) for _ in range(8)]
    assert len({float(x.mean()) for x, _ in pairs}) > 3
    assert all(torch.equal(y, mask) for _, y in pairs)


def test_a_crop_of_almost_one_class_is_drawn_anew():
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[:, 48:] = 1
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    crop, shares = Crop(16, (4.0, 4.0), 0.0, 0.0, (0.5,) * 3, (0.5,) * 3), []
    for seed in range(40):
        torch.manual_seed(seed)
        shares.append(float((crop(image, mask)[1] == 1).float().mean()))
    mixed = sum(0.25 < share < 0.75 for share in shares)
    assert mixed > 20  # one draw in six would be


def test_batches_are_a_function_of_seed_and_step(folder):
    def train(epoch=0, step=0, **more):
        now = config(folder, **more)
        loader = segmentation.train_loader(open_datasets(now), DATA_CONFIG, now, CPU, World())
        loader.sampler.set_position(epoch, step)
        return list(loader.batches)

    one, other = train(), train(workers=2)
    assert [tuple(x.shape) for x, _ in one] == [(4, 3, 16, 16)] * 2
    for (x, y), (a, b) in zip(one, other, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert torch.equal(train(1, 1)[0][0], train(1)[1][0])
    assert not torch.equal(train(1)[0][0], one[0][0])
    assert not torch.equal(train(seed=1)[0][0], one[0][0])


def test_val_is_the_whole_image_and_its_mask_as_it_is(folder):
    now = config(folder)
    loader = segmentation.val_loader(open_datasets(now), 3, DATA_CONFIG, now, CPU, World())
    batches = list(loader.batches)
    assert [len(images) for images, _ in batches] == [3, 2]
    assert batches[0][0][0].shape == (3, 16, 21)  # the short side is the window's
    assert batches[0][1][0].shape == (24, 32)
    on_disk = np.asarray(Image.open(folder / "annotations" / "val" / "0.png")).astype(int)
    assert batches[0][1][0].tolist() == np.where(on_disk == 255, VOID, on_disk).tolist()


def test_ade20k_names_and_its_zero_label(folder, tmp_path):
    for kind in ("images", "annotations"):
        shutil.copytree(folder / kind / "train", tmp_path / kind / "training")
        shutil.copytree(folder / kind / "val", tmp_path / kind / "validation")
    plain = open_datasets(config(tmp_path))
    reduced = open_datasets(config(tmp_path, reduce_zero_label=True))
    assert (plain.class_names, reduced.class_names) == (["0", "1", "2"], ["1", "2"])
    mask, less = plain.val[0][1], reduced.val[0][1]
    assert torch.equal(less, torch.where(mask > 0, mask - 1, torch.tensor(VOID)))
    counted = open_datasets(config(tmp_path, reduce_zero_label=True, num_classes=2))
    assert counted.class_names == ["1", "2"]
    assert open_datasets(config(tmp_path, num_classes=7)).num_classes == 7


def test_without_val_a_part_of_train_is_held_out_by_seed(folder, tmp_path):
    for kind in ("images", "annotations"):
        shutil.copytree(folder / kind / "train", tmp_path / kind)
    found = open_datasets(config(tmp_path, val_split="0.25"))
    assert (len(found.train), len(found.val)) == (6, 2)
    files = {path for part in (found.train, found.val) for path, _ in part.reader.samples}
    assert len(files) == 8
    again = open_datasets(config(tmp_path, val_split="0.25"))
    assert fingerprint(again) == fingerprint(found)
    assert fingerprint(open_datasets(config(tmp_path, val_split="0.25", seed=3))) != fingerprint(found)


def test_names_of_classes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\ntree\nvoid\n")
    assert open_datasets(config(tmp_path / "data")).class_names == ["sky", "road", "tree"]
    assert open_datasets(config(tmp_path / "data", reduce_zero_label=True)).class_names == ["road", "tree"]
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(DataError, match="names 2 labels, and the masks have labels up to 2"):
        open_datasets(config(tmp_path / "data"))


def test_bad_images_are_passed_over_if_asked(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "images" / "val" / "2.png").write_bytes(b"no picture")
    Image.new("RGB", (32, 24)).save(tmp_path / "data" / "annotations" / "val" / "3.png")
    found = open_datasets(config(tmp_path / "data", skip_bad_images=True))
    assert len(found.val) == 3
    assert found.skipped == 2


def test_a_hub_data_set(folder, tmp_path, monkeypatch):
    """A local one of the datasets library; it is opened by its folder as it would be by its name."""
    datasets = pytest.importorskip("datasets", reason="hfds/ needs the datasets library")
    for split, part in (("train", "train"), ("validation", "val")):
        rows = {
            kind: [str(path) for path in sorted((folder / place / part).iterdir())]
            for kind, place in (("image", "images"), ("annotation", "annotations"))
        }
        table = datasets.Dataset.from_dict(rows)
        table = table.cast_column("image", datasets.Image()).cast_column("annotation", datasets.Image())
        (tmp_path / "set" / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet"))
    now = replace(config(folder), data=f"hfds/{tmp_path / 'set'}", data_dir=str(tmp_path / "cache"), num_classes=3)
    found, same = open_datasets(now), open_datasets(config(folder))
    assert (len(found.train), len(found.val)) == (8, 5)
    for ours, theirs in zip(found.val[1], same.val[1], strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(DataError, match="Say it with --num-classes"):
        open_datasets(replace(now, num_classes=None))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        open_datasets(now)


def test_no_such_folder():
    with pytest.raises(DataError, match="no such folder: /nowhere"):
        open_datasets(config(Path("/nowhere")))


def test_names_and_numbers_that_are_none(folder):
    with pytest.raises(DataError, match="more than 65,536 classes"):
        open_datasets(replace(config(folder), num_classes=2_000_000_000))
    (folder / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*classes\.txt: .* It is a text in UTF-8, a name a line"):
        open_datasets(config(folder))
