"""The training options of `neutreno-adapt`: what each does, and that they go together or say why not."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import pytest
import timm
import torch
from integration import small_run
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine.evaluate_model import evaluate_model
from timm_neutreno_cli.main import adapt_main, main
from timm_neutreno_cli.runtime.console import Console

from timm_neutreno.hub import save_pretrained

SPEED = {
    "compile": ([], ["--compile"]),
    "checkpointing": ([], ["--grad-checkpointing"]),
    "accumulate": ([], ["--accumulate", 2]),
    "averaging": ([], ["--ema-decay", 0.9]),
    "precision": ([], ["--amp"], ["--amp", "--amp-dtype", "float16"]),
    "processes": ([], ["--gpus", 2], ["--gpus", 2, "--fsdp"]),
}

# every pair of settings that is allowed; by column of SPEED, the index of the options
PAIRWISE = [
    (0, 0, 1, 1, 0, 1),
    (0, 1, 0, 0, 1, 2),
    (1, 0, 1, 0, 2, 0),
    (1, 1, 0, 1, 0, 0),
    (0, 1, 0, 1, 2, 1),
    (1, 1, 1, 0, 1, 1),
    (0, 0, 0, 1, 1, 0),
    (0, 0, 1, 0, 0, 2),
]


def refused(row: tuple[int, ...]) -> bool:
    """Sharding goes with neither compiling nor averaging nor float16."""
    return row[5] == 2 and (row[0] == 1 or row[3] == 1 or row[4] == 2)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    return small_run.make(tmp_path_factory.mktemp("small"))


@pytest.fixture
def adapt(small, tmp_path, monkeypatch, capsys):
    """Runs in this process; returns the JSON document (or the error line), the folder and stderr."""

    def run(
        *options: object, code: int = 0, name: str = "run", checkpoint: Path | None = None, data: Path | None = None
    ):
        images, weights = small
        argv = small_run.command(data or images, weights, "--output", tmp_path / name, "--json", *options)
        if checkpoint:
            argv[2] = str(checkpoint)
            del argv[3 : argv.index("--data")]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return (json.loads(out) if not code else err.splitlines()[-1]), tmp_path / name, err

    return run


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "arms" / "neutreno" / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, key: str = "state_dict") -> dict:
    return torch.load(folder / "arms" / "neutreno" / "last.pth.tar")[key]


def test_the_table_has_every_pair():
    sizes = [range(len(options)) for options in SPEED.values()]
    for one, other in combinations(range(len(sizes)), 2):
        there = {(row[one], row[other]) for row in PAIRWISE}
        wanted = {(a, b) for a in sizes[one] for b in sizes[other]}
        assert wanted - there == {
            (a, b) for a, b in wanted if other == 5 and b == 2 and (one, a) in {(0, 1), (3, 1), (4, 2)}
        }
    assert not any(map(refused, PAIRWISE))


@pytest.fixture(scope="module")
def plain_loss(small, tmp_path_factory) -> float:
    folder = tmp_path_factory.mktemp("plain") / "run"
    argv = small_run.command(*small, "--output", folder, "--no-control", "--drop-path", 0, "--fidelity-warmup", 1)
    small_run.finish(small_run.in_a_process(argv))
    return log(folder)[-1]["train_loss"]


@pytest.mark.parametrize("row", PAIRWISE, ids=lambda row: "".join(map(str, row)))
def test_options_of_speed_go_together_and_change_nothing(small, plain_loss, tmp_path, row):
    """In real processes, two threads of compilation at most: the same losses, and a model that loads."""
    options = [option for name, index in zip(SPEED, row, strict=True) for option in SPEED[name][index]]
    argv = small_run.command(
        *small, "--output", tmp_path / "run", "--no-control", "--drop-path", 0, "--fidelity-warmup", 1, *options
    )
    out, err = small_run.finish(small_run.in_a_process(argv, TORCHINDUCTOR_COMPILE_THREADS="1"), timeout=600)
    assert "recompile_limit" not in err
    # float16's loss scale starts too high, so that the first steps are skipped
    close = (1e-4, 2e-2, 0.1)[row[4]]
    assert log(tmp_path / "run")[-1]["train_loss"] == pytest.approx(plain_loss, rel=close)
    assert ("neutreno, adapted, EMA" in out) == (row[3] == 1)
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True)
    assert model.blocks[1].attn.fidelity == 0.2


@pytest.mark.parametrize("options", [["--channels-last"], ["--no-tf32"], ["--workers", 2]])
def test_where_and_how_fast_changes_nothing(adapt, options):
    document, *_ = adapt("--no-control", "--random-erasing", 0.5, "--mixup", 0.5, *options)
    plain, *_ = adapt("--no-control", "--random-erasing", 0.5, "--mixup", 0.5, name="plain")
    assert document["models"]["neutreno"]["loss"] == pytest.approx(plain["models"]["neutreno"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "options", [["--compile"], ["--ema-decay", 0.9], ["--amp", "--amp-dtype", "float16"], ["--teacher", "deit_tiny"]]
)
def test_what_sharding_does_not_go_with(adapt, options):
    line, folder, _ = adapt("--fsdp", *options, code=2)
    assert "--fsdp" in line
    assert not folder.exists()


def test_sharding_alone_is_refused(adapt):
    line, *_ = adapt("--fsdp", code=2)
    assert "--gpus" in line


def test_averaged_weights_are_evaluated_beside_the_raw_ones(adapt):
    document, folder, _ = adapt("--ema-decay", 0.5, "--epochs", 3)
    assert {"neutreno/ema", "control/ema"} <= document["models"].keys()
    raw, averaged = weights(folder), weights(folder, "state_dict_ema")
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)
    model = timm.create_model(f"local-dir:{folder / 'arms' / 'neutreno' / 'ema'}", pretrained=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, averaged[name], rtol=0, atol=0)
    assert all(record["val_ema_loss"] != record["val_loss"] for record in log(folder))


@pytest.mark.parametrize(
    ("what", "more", "moving"),
    [
        ("head", [], lambda name: name.startswith("head.")),
        ("attention", [], lambda name: ".attn." in name or name.startswith("head.")),
        ("fidelity", ["--learnable-fidelity", "head", "--no-control"], lambda name: name.endswith("fidelity")),
        ("all", [], lambda name: True),
    ],
)
def test_what_is_trained(adapt, what, more, moving):
    _, folder, _ = adapt("--trainable", what, "--weight-decay", 0, *more)
    _, untouched, _ = adapt("--trainable", what, "--lr", 1e-12, *more, name="untouched")
    before, after = weights(untouched), weights(folder)
    for name, value in after.items():
        if not moving(name):
            assert torch.equal(value, before[name]), name
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved
    assert all(map(moving, moved))


def test_adapters_are_merged_in_what_is_saved(adapt, small):
    """The control's too: under timm's own names, computing what was evaluated."""
    document, folder, _ = adapt("--trainable", "lora", "--lora-targets", "attn.qkv", "--lr", 0.03)
    assert any(".lora_B." in name for name in weights(folder))
    before = torch.load(small[1])
    for arm in ("neutreno", "control"):
        model = timm.create_model(f"local-dir:{folder / 'arms' / arm}", pretrained=True)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == {f"blocks.{index}.attn.qkv.weight" for index in range(3)} | {"head.weight", "head.bias"}
        found = evaluate_model(str(folder / "arms" / arm), Config(), Console(quiet=True))
        assert found["loss"] == pytest.approx(document["models"][arm]["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "1", "--batch-size", "24", "--fidelity-warmup", "0.5"], "--fidelity-warmup 0.5 ends after"),
        (["--trainable", "tail"], "all, attention, lora, strengths, fidelity, head"),
        (["--trainable", "fidelity"], "--learnable-fidelity"),
        (["--lora-rank", "4"], "--lora-rank is for --trainable lora"),
        (["--trainable", "lora", "--fsdp"], "adapters are for one GPU"),
        (["--trainable", "lora", "--lora-targets", "attn.query"], "--lora-targets attn.query: Target modules"),
        (["--trainable", "fidelity", "--learnable-fidelity", "layer"], "--no-control"),
        (["--amp-dtype", "float8"], "bfloat16, float16"),
        (["--time-limit", "-1"], "--time-limit"),
        (["--distill-weight", "2"], "--distill-weight"),
        (["--ema-decay", "1"], "--ema-decay"),
        (["--seeds", "2", "--push-to-hub", "me/it"], "--seeds"),
        (["--log", "tensorbord"], "tensorboard"),
        (["--mixup", "0.8", "--batch-size", "7"], "pairs"),
    ],
)
def test_options_that_make_no_sense(adapt, options, words):
    line, folder, _ = adapt(*options, code=2)
    assert words in line
    assert not folder.exists()


def test_a_teacher_pulls_the_student(adapt, tmp_path):
    """A teacher of our own, in the loss with its whole weight: the student's labels do not matter."""
    _, teacher, _ = adapt("--no-control", "--epochs", 8, "--lr", 3e-3, name="teacher")
    distil = ["--teacher", f"local-dir:{teacher}", "--distill-weight"]
    _, taught, _ = adapt("--no-control", *distil, 1, name="taught")
    _, again, _ = adapt("--no-control", *distil, 1, "--label-smoothing", 0.4, name="again")
    _, alone, _ = adapt("--no-control", name="alone")
    assert log(taught)[-1]["train_loss"] == log(again)[-1]["train_loss"]
    assert log(taught)[-1]["train_loss"] != log(alone)[-1]["train_loss"]


def test_a_teacher_with_other_classes(adapt, tmp_path):

    save_pretrained(timm.create_model("neutreno_deit_tiny", num_classes=5), tmp_path / "teacher")
    line, *_ = adapt("--teacher", f"local-dir:{tmp_path / 'teacher'}", code=4)
    assert "5 classes" in line
    line, *_ = adapt("--teacher", "no_such_model", code=4)
    assert "no_such_model" in line


def test_a_distilled_student_learns_through_its_token(adapt, tmp_path):
    shape = ["--model-kwargs", "img_size=16", "--model-kwargs", "patch_size=8", "--model-kwargs", "embed_dim=24",
             "--model-kwargs", "depth=3", "--model-kwargs", "num_heads=2"]  # fmt: skip
    _, teacher, _ = adapt("--no-control", name="teacher")
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 2}
    torch.save(timm.create_model("deit_tiny_distilled_patch16_224", **kwargs).state_dict(), tmp_path / "student.pth")
    _, folder, _ = adapt(
        "--no-control", "--arch", "deit_tiny_distilled_patch16_224", *shape, "--teacher", f"local-dir:{teacher}",
        checkpoint=tmp_path / "student.pth", name="student",
    )  # fmt: skip
    state = weights(folder)
    before = torch.load(tmp_path / "student.pth")
    assert not torch.equal(state["head_dist.weight"], before["head_dist.weight"])


def test_repeated_augmentation_runs(adapt):
    document, *_ = adapt("--repeated-aug", 3, "--no-control")
    assert document["models"]


def test_early_stopping(adapt):
    document, folder, err = adapt("--no-control", "--epochs", 30, "--lr", 1e-9, "--patience", 2)
    assert len(log(folder)) == 3  # the first is the best, and two are no better
    assert "stopped early" in err
    assert document["models"]["neutreno"]["similarity"]


def test_dry_run_writes_nothing_and_tells_the_plan(adapt, monkeypatch, capsys, small, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    document, folder, _ = adapt("--dry-run", "--epochs", 5, "--batch-size", 12)
    assert sorted(tmp_path.rglob("*")) == before
    assert document["steps"] == 5 * (24 // 12)
    assert document["num_classes"] == 2
    assert document["seconds"] > 0
    assert str(folder / "model.safetensors") in document["files"]
    monkeypatch.setattr(sys, "argv", small_run.command(*small, "--dry-run"))
    with pytest.raises(SystemExit):
        adapt_main()
    out = capsys.readouterr().out
    assert "Nothing was written" in out
    assert "learning rate" in out


def test_the_files_of_the_plan_are_the_files_of_the_run(adapt):
    plan, *_ = adapt("--dry-run", "--epochs", 2)
    _, folder, _ = adapt("--epochs", 2)
    there = {str(path) for path in folder.rglob("*") if path.is_file()}
    assert set(plan["files"]) == there


def test_several_seeds_are_paired_with_their_controls(adapt):
    document, folder, _ = adapt("--seeds", 2, "--seed", 5)
    assert document["seeds"] == [5, 6]
    runs = [json.loads((folder / f"seed-{seed}" / "results.json").read_text()) for seed in (5, 6)]
    differences = [run["models"]["neutreno"]["loss"] - run["models"]["control"]["loss"] for run in runs]
    assert document["differences"]["neutreno"]["loss"]["values"] == pytest.approx(differences)
    assert "seed 5" in (folder / "README.md").read_text()


def test_several_seeds_hold_out_the_same_images(adapt, small, tmp_path):
    _, folder, _ = adapt("--seeds", 2, "--data", small[0] / "train", "--val-split", 0.25, "--no-control")
    import yaml

    prints = [
        yaml.safe_load((folder / f"seed-{seed}" / "args.yaml").read_text())["data_fingerprint"] for seed in (0, 1)
    ]
    assert prints[0] == prints[1]


def test_evaluate_gives_the_runs_figures_to_the_last_digit(adapt, monkeypatch, capsys):
    document, folder, _ = adapt("--ema-decay", 0.5)
    places = {"neutreno": "", "neutreno/ema": "arms/neutreno/ema", "control": "arms/control"}
    for row, place in places.items():
        monkeypatch.setattr(sys, "argv", ["neutreno", "evaluate", str(folder / place), "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        found = json.loads(capsys.readouterr().out)
        for key in ("images", "top1", "top5", "loss", "similarity", "similarity_error"):
            assert found[key] == document["models"][row][key], (row, key)


def test_evaluate_by_hand_and_its_errors(adapt, small, tmp_path, monkeypatch, capsys):
    """Another batch size: the same figures but for rounding. Other classes, no model: refused."""
    images, _ = small
    document, folder, _ = adapt("--no-control")

    def evaluate(*options: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["neutreno", "evaluate", *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert (stop.value.code or 0) == code, printed.err
        return printed.out or printed.err

    figures = json.loads(evaluate(f"local-dir:{folder}", "--data", images, "--batch-size", 3, "--json"))
    assert figures["loss"] == pytest.approx(document["models"]["neutreno"]["loss"], rel=1e-5)
    assert "top-1" in evaluate(folder)
    assert "classes" in evaluate(folder, "--data", "demo", code=4)
    (folder / "model.safetensors").unlink()
    assert "not finished" in evaluate(folder, code=4)


def test_compiled_warmup_does_not_compile_every_step_anew(small, tmp_path):
    """A number that changes would be compiled anew eight times, and then not at all."""
    argv = small_run.command(
        *small, "--output", tmp_path / "run", "--no-control", "--epochs", 5, "--fidelity-warmup", 4, "--compile"
    )
    environment = {"TORCH_LOGS": "recompiles", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    _, err = small_run.finish(small_run.in_a_process(argv, **environment), timeout=600)
    assert err.count("triggered by the following guard failure") <= 2, err
