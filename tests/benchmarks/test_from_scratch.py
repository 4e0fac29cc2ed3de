"""benchmarks/from_scratch.py: that variants are paired, that strength 0 is plain, and what it claims of its runs."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import timm_neutreno
from timm_neutreno.eigen import RANGES

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    return importlib.import_module("from_scratch")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Ten classes that differ in brightness."""
    folder, random = tmp_path_factory.mktemp("cifar"), torch.Generator().manual_seed(0)
    for part, number in (("train", 8), ("val", 7)):
        for label in range(10):
            (folder / part / f"class{label}").mkdir(parents=True)
            for index in range(number):
                pixels = (25 * label + torch.randint(25, (32, 32, 3), generator=random)).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / f"class{label}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def recipe(script):
    given = ["--data", "x", "--output", "x", "--quick", "--device", "cpu", "--batch-size", "16"]
    return script.recipe_of(script.arguments(given))


@pytest.fixture(scope="module")
def images(script, cifar, recipe, tmp_path_factory):
    return script.image_tensors.cifar10(cifar, recipe, tmp_path_factory.mktemp("kept"))


def test_images_come_with_their_classes_and_once_an_epoch(script, images):
    train, test = images
    assert train.pixels.shape == (64, 3, 32, 32)
    assert test.labels.shape == (64,)
    assert (train.pixels.float().mean(dim=(1, 2, 3)) // 25 == train.labels).all()
    for shift, flip in ((0, False), (4, True)):
        batches = [script.image_tensors.batch(train, 16, 3, step, shift=shift, flip=flip) for step in range(8)]
        for first in (0, 4):  # two epochs, each with every image once
            pixels, labels = (torch.cat(part) for part in zip(*batches[first : first + 4], strict=True))
            assert torch.equal(labels.bincount(minlength=10), train.labels.bincount(minlength=10))
            inner = pixels[:, :, 4:-4, 4:-4].mean(dim=(1, 2, 3)).add(1).mul(127.5)  # shifts bring in zeros at the edges
            assert (inner // 25 == labels).all()
        assert not torch.equal(batches[0][0], batches[4][0])
    pixels, labels = script.image_tensors.batch(train, 16, 3, 1, shift=0, flip=False)
    every = script.image_tensors.normalized(train.pixels)
    assert all((image == every).all(dim=(1, 2, 3)).any() for image in pixels)


def test_shifts_and_flips_move_whole_images(script):
    pixels = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5).repeat(200, 3, 1, 1)
    images = script.image_tensors.Images(pixels, torch.zeros(200, dtype=torch.int64))
    got, _ = script.image_tensors.batch(images, 200, 0, 0, shift=1, flip=True)
    padded = torch.nn.functional.pad(pixels[0], (1,) * 4)
    cuts = [padded[:, y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    allowed = script.image_tensors.normalized(torch.stack([*cuts, *(cut.flip(2) for cut in cuts)]))
    which = (got[:, None] == allowed).all(dim=(2, 3, 4))
    assert (which.sum(1) == 1).all()
    assert which.any(0).all()  # all eighteen come up


def test_every_variant_of_a_seed_has_the_same_weights_and_sees_the_same_batches(script, recipe, images, monkeypatch):
    """Three layers of each; the batches are recorded where they are made, and training is the real one."""
    made = script.image_tensors.batch
    seen: dict[str, list[torch.Tensor]] = {}
    plain = script.build(script.Variant(3), 1, recipe).state_dict()
    for name, variant in script.EXPERIMENTS["methods"].variants.items():
        model = script.build(variant._replace(depth=3), 1, recipe)
        weights = model.state_dict()
        assert plain.keys() <= weights.keys()
        assert all(torch.equal(weights[key], value) for key, value in plain.items())

        def recorded(*given, name=name, **places):
            pixels, labels = made(*given, **places)
            seen.setdefault(name, []).append(pixels)
            return pixels, labels

        monkeypatch.setattr(script.image_tensors, "batch", recorded)
        torch.rand(len(seen) + 1)  # whatever a variant draws while it is made does not change its batches
        script.train(model, images[0], 1, recipe)
        assert (model.state_dict()["norm.weight"] != plain["norm.weight"]).any()
        if isinstance(strength := model.state_dict().get("blocks.1.attn.featscale_low"), torch.Tensor):
            assert strength.any()
    assert {len(batches) for batches in seen.values()} == {4}
    assert all(torch.equal(a, b) for batches in seen.values() for a, b in zip(batches, seen["plain"], strict=True))
    other = script.build(script.Variant(3), 2, recipe).state_dict()
    assert not torch.equal(other["blocks.0.attn.qkv.weight"], plain["blocks.0.attn.qkv.weight"])


def test_eigen_weights_begin_with_what_plain_has_and_stay_in_their_range(script, recipe, images):
    plain = script.build(script.Variant(3), 1, recipe).state_dict()
    for kind, (low, high) in RANGES.items():
        model = script.build(script.Variant(3, eigen=kind), 1, recipe)
        weights = model.state_dict()
        same = {key for key in plain.keys() & weights.keys() if torch.equal(plain[key], weights[key])}
        assert {key for key in plain if not key.endswith(("attn.qkv.weight", "attn.proj.weight"))} == same
        before = weights["blocks.0.attn.proj.parametrizations.weight.original"].clone()
        script.train(model, images[0], 1, recipe)
        assert (model.state_dict()["blocks.0.attn.proj.parametrizations.weight.original"] != before).any()
        for layer in script.spectrum(model):
            assert layer.layer.real.min() > low - 1e-4
            assert layer.layer.real.max() < high + 1e-4


def test_every_variant_trains_in_bfloat16_as_on_a_gpu(script, recipe, images):
    """Here by the CPU's autocast. The losses of four steps, which differ from that of a model that learned nothing."""
    variants = {
        v._replace(depth=3)
        for name in ("methods", "kernel", "eigen")
        for v in script.EXPERIMENTS[name].variants.values()
    }
    for variant in variants:
        losses = []
        for precision in ("float32", "bfloat16"):
            model, used = script.build(variant, 1, recipe), {**recipe, "precision": precision, "lr": 1e-2}
            script.train(model, images[0], 1, used)
            losses.append(script.measure(model, images[1], used)["loss"])
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], abs=0.02), variant
        assert abs(losses[0] - 2.3026) > 0.05, variant


def test_strength_0_is_plain_bit_for_bit(script, recipe, images):
    plain, zero = (script.build(script.Variant(3), 1, recipe) for _ in range(2))
    timm_neutreno.patch(zero, "neutreno+value_residual", fidelity=0.0, value_residual=0.0)
    for model in (plain, zero):
        script.train(model, images[0], 1, recipe)
    weights = zero.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in plain.state_dict().items())
    found = [script.measure(model, images[1], recipe) for model in (plain, zero)]
    assert found[0] == found[1]


def test_the_whole_script_and_what_it_says(script, cifar, tmp_path, monkeypatch, capsys):
    words = ["--data", str(cifar), "--output", str(tmp_path), "--quick", "--device", "cpu", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["from_scratch.py", *words, "--experiments", "eigen", "kernel"])
    script.main()
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(runs) == 2 * 5  # plain is shared
    for name in ("eigen", "kernel"):
        document = json.loads((tmp_path / f"from_scratch_{name}.json").read_text())
        page = (tmp_path / f"from_scratch_{name}.md").read_text()
        assert page == script.from_scratch_report.markdown(document)
        assert "figures say nothing" in page
        assert str(tmp_path) not in json.dumps(document)
        assert (tmp_path / f"from_scratch_{name}.svg").read_text().startswith("<?xml")
        for row in document["comparisons"]:
            mine, other = (document["variants"][row[side]]["top1"] for side in ("variant", "reference"))
            assert row["top1"]["values"] == [a - b for a, b in zip(mine, other, strict=True)]
            assert row["images"]["mean"] == pytest.approx(row["top1"]["mean"])
    script.main()  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == runs
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--lr", "0.5"])
    with pytest.raises(SystemExit, match=r"other options \(lr\)"):
        script.main()


def test_some_methods_and_what_is_left_to_compare(script):
    depth = script.only(script.EXPERIMENTS["depth"], ["plain", "neutreno"])
    assert [v.depth for v in depth.variants.values()] == [12, 12, 24, 24, 48, 48]
    assert depth.pairs == [
        *((f"neutreno, {n} layers", f"plain, {n} layers") for n in (12, 24, 48)),
        *((f"plain, {n} layers", "plain, 12 layers") for n in (24, 48)),
    ]
    with pytest.raises(SystemExit, match="leaves nothing to compare"):
        script.only(script.EXPERIMENTS["kernel"], ["plain", "nonsense"])


def run_of(hits: str, loss: float = 1.0) -> dict:
    curves = {name: [0.5, 0.5] for name in ("block_similarity", "attention_similarity", "block_hfc_lfc")}
    return {"hits": hits, "top1": 100 * hits.count("1") / len(hits), "loss": loss, "curves": curves}


def test_a_difference_counts_only_beyond_seeds_and_images(script):
    """By hand: d of n images with hits that differ, the same ones in every seed."""
    report = script.from_scratch_report
    base = [run_of("0" * 100), run_of("0" * 100)]
    few, many = ([run_of("1" * k + "0" * (100 - k))] * 2 for k in (2, 30))
    assert report.verdict(report.compared(few, base, 1)) == 0  # seeds agree; over images 2 +- 1.96 * 1.407
    row = report.compared(few, base, 1)
    assert row["images"]["high"] - 2 == pytest.approx(1.96 * 14.0705 / 10, abs=1e-3)
    assert report.verdict(report.compared(many, base, 1)) == 1
    assert report.verdict(report.compared(base, many, 1)) == -1
    unsure = [run_of("1" * 50 + "0" * 50), run_of("1" * 10 + "0" * 90)]  # 50 and 10: over seeds 30 +- 254
    assert report.verdict(report.compared(unsure, base, 1)) == 0
    named = {"variant": "a", "reference": "b"}
    assert report.hints([{**named, **report.compared(unsure, base, 1)}]) == ["a against b (+30.00)"]
    assert not report.hints([{**named, **report.compared(side, base, 1)} for side in (few, many)])
    wide = report.compared(many, base, 8)["images"]
    assert wide["high"] - wide["mean"] == pytest.approx(2.734 * 46.057 / 10, abs=1e-2)  # z of 1 - 0.025 / 8


def test_what_readme_says_is_what_counts(script):
    report = script.from_scratch_report
    none, few, many = ([run_of("1" * k + "0" * (100 - k))] * 2 for k in (0, 2, 30))
    rows = [("neutreno", few, none), ("gain", many, none), ("loss", none, many)]
    compared = [{"variant": v, "reference": "plain", **report.compared(a, b, 1)} for v, a, b in rows]
    text = report.readme({"comparisons": compared, "seeds": 2})
    assert "better by more than chance in gain against plain (+30.00 [" in text
    assert "worse in loss against plain (-30.00 [" in text
    assert "NeuTRENO alone changes the plain model's top-1 by +2.00 [" in text


@pytest.mark.parametrize("words", [["--seeds", "1"], ["--experiments", "nonsense"]])
def test_options_that_make_no_sense_are_refused(script, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.arguments(["--data", "x", "--output", "x", *words])
    assert stopped.value.code == 2


def test_documents_of_the_repository_are_what_their_json_says(script):
    for path in sorted(FOLDER.glob("from_scratch_*.json")):
        assert path.with_suffix(".md").read_text() == script.from_scratch_report.markdown(json.loads(path.read_text()))
