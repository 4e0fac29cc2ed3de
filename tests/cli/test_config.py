"""--config: where a value comes from, what is refused, and a run that is repeated from its own args.yaml."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import torch
import typer
import yaml
from PIL import Image
from timm_neutreno_cli import config as settings
from timm_neutreno_cli.commands.adapt import FILE
from timm_neutreno_cli.commands.options import takes_config
from timm_neutreno_cli.config import FREE, ONCE, OPTIONS, SAME, Config
from timm_neutreno_cli.engine import resume
from timm_neutreno_cli.errors import CheckpointError, UsageError
from timm_neutreno_cli.main import adapt_app, adapt_main

COMMAND = typer.main.get_command(adapt_app)


def parsed(*arguments: object) -> dict:
    """What `neutreno-adapt` would run with."""
    return COMMAND.make_context("neutreno-adapt", list(map(str, arguments))).params


@pytest.fixture
def file(tmp_path):
    """Writes a YAML file; returns its path."""

    def write(text: str) -> Path:
        (tmp_path / "run.yaml").write_text(text)
        return tmp_path / "run.yaml"

    return write


@pytest.fixture
def fails(monkeypatch, capsys):
    """Runs `neutreno-adapt`, which must exit with 2; returns its one line."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["neutreno-adapt", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            adapt_main()
        printed = capsys.readouterr()
        assert stop.value.code == 2, printed.err
        (line,) = printed.err.splitlines()
        return line.removeprefix("error: ")

    return run


# --- where a value comes from


def test_command_line_then_environment_then_file_then_default(file, monkeypatch):
    path = file("epochs: 3\nbatch-size: 3\nseed: 3\n")
    monkeypatch.setenv("NEUTRENO_BATCH_SIZE", "2")
    monkeypatch.setenv("NEUTRENO_SEED", "2")
    values = parsed("--config", path, "--seed", 1)
    assert [values[name] for name in ("seed", "batch_size", "epochs", "fidelity_warmup")] == [1, 2, 3, 0.0]


def test_order_on_the_command_line_does_not_matter(file):
    assert parsed("--epochs", 1, "--config", file("epochs: 3"))["epochs"] == 1


def test_environment_without_a_file(monkeypatch):
    monkeypatch.setenv("NEUTRENO_CONTROL", "false")
    monkeypatch.setenv("NEUTRENO_JSON", "1")
    monkeypatch.setenv("NEUTRENO_MODEL_KWARGS", "depth=2 embed_dim=24")
    values = parsed()
    assert (values["control"], values["json"]) == (False, True)
    assert list(values["model_kwargs"]) == ["depth=2", "embed_dim=24"]  # a tuple in older versions of Typer


def test_environment_names_the_file(file, monkeypatch):
    monkeypatch.setenv("NEUTRENO_CONFIG", str(file("epochs: 3")))
    assert parsed()["epochs"] == 3


def test_variables_that_are_no_options(monkeypatch):
    monkeypatch.setenv("NEUTRENO_VERSION", "0.1.0")
    monkeypatch.setenv("NEUTRENO_DEBUG", "1")
    assert not parsed()["version"]
    assert "debug" not in parsed()


def test_yaml_values(file):
    values = parsed(
        "--config",
        file("amp: off\ncontrol: no\njson: true\nlr: 1e-3\ndata: null\nseed: '7'\nmodel-kwargs:\n- depth=2\n# end\n"),
    )
    names = ("amp", "control", "json", "lr", "data", "seed")
    assert [values[name] for name in names] == [False, False, True, 1e-3, None, 7]
    assert list(values["model_kwargs"]) == ["depth=2"]


def test_an_empty_file_says_nothing(file):
    assert parsed("--config", file("# nothing yet\n"))["epochs"] is None


# --- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "unknown key 'epoch'. Did you mean: epochs?"),
        ("batchsize: 3", "Did you mean: batch_size?"),
        ("xyzzy: 3", "unknown key 'xyzzy'. Its keys are the options of neutreno-adapt --help."),
        ("help: true", "unknown key 'help'"),
        ("config: other.yaml", "unknown key 'config'"),
        ("data_config: {}", "unknown key 'data_config'"),  # in args.yaml it is passed over
        ("epochs: many", r"epochs: .*got many\."),
        ("epochs: 2.5", "epochs: .*got '2.5'"),
        ("epochs: 0", "epochs: .*got '0'"),
        ("epochs: true", r"epochs takes one value, got true\."),
        ("epochs: [1, 2]", r"epochs takes one value, got \[1, 2\]"),
        ("control: maybe", "control: .*got maybe"),
        ("model_kwargs: depth=2", "model_kwargs takes a list, got depth=2"),
        ("checkpoint: {name: demo}", "checkpoint takes one value"),
        ("batch-size: 3\nbatch_size: 4", "'batch_size' is given twice"),
        ("- epochs", "has a list, no mapping"),
        ("epochs", "has a str, no mapping"),
        ("epochs: [", "is not YAML"),
    ],
)
def test_one_line_names_file_and_key(file, fails, text, words):
    path = file(text)
    line = fails("--config", path)
    assert str(path) in line
    assert re.search(words, line), line


def test_file_that_cannot_be_read(fails, tmp_path):
    assert f"{tmp_path / 'none.yaml'} cannot be read: No such file" in fails("--config", tmp_path / "none.yaml")
    assert "Is a directory" in fails("--config", tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert "is not YAML" in fails("--config", tmp_path / "bytes")


LIGHT = """
import sys
from timm_neutreno_cli.main import main
sys.argv = ["neutreno", "adapt", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    print(f"exit {stop.code}, torch {'torch' in sys.modules}")
"""


@pytest.mark.parametrize(("text", "arguments", "code"), [("epochs: 3", ["--help"], 0), ("epoch: 3", [], 2)])
def test_neither_help_nor_a_wrong_file_waits_for_torch(file, text, arguments, code):
    """`neutreno adapt`, as `neutreno-adapt` above."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "--config", str(file(text)), *arguments],
        env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"exit {code}, torch False", done.stderr
    assert "NEUTRENO_EPOCHS" not in done.stdout


# --- what resuming does with every option

COLLECTED: list[Config] = []


@takes_config()
def collect(config: Config, config_path: Annotated[str | None, FILE] = None) -> None:
    COLLECTED.append(config)


COLLECT = typer.Typer()
COLLECT.command()(collect)


def config_of(*arguments: object) -> Config:
    """What a command line makes of the table."""
    COLLECT(list(map(str, arguments)), standalone_mode=False)
    return COLLECTED.pop()


def two_values(name: str) -> tuple[object, object]:
    """The option's default (or, where that cannot be typed, another value), and one more."""
    default, kind = getattr(Config(), name), get_type_hints(Config)[name]
    kind = next(kind for kind in (get_args(kind) or [kind]) if kind is not type(None))
    if OPTIONS[name].choices:
        others = [choice for choice in OPTIONS[name].choices if choice != default]
        return ([others[1]], [others[0]]) if isinstance(default, list) else (default or others[1], others[0])
    if name == "recipe":
        return "finetune", "deit"
    if isinstance(default, list | dict):
        return (["one"], ["two"]) if isinstance(default, list) else ({"one": 1}, {"two": 2})
    one, two = {
        bool: (True, default is not None and not default),
        int: (3, 5),
        float: (0.5, 0.75),
        str: ("one", "two"),
    }[kind]
    return one if default is None else default, two


def given(name: str, value: object, monkeypatch) -> Config:
    """The option on the command line; a flag as a variable, since not every flag can be typed off."""
    words = [settings.flag(name), value]
    if isinstance(value, bool):
        monkeypatch.setenv(f"NEUTRENO_{name.upper()}", str(value).lower())
        words = []
    elif isinstance(value, dict):
        words[1] = "=".join(map(str, *value.items()))
    elif isinstance(value, list):
        words[1] = value[0]
    return config_of(*words)


def written(name: str, value: object) -> str:
    """The args.yaml of a run that was started with an option."""
    own = settings.to_yaml(replace(Config(recipe="finetune"), **{name: value}))
    return yaml.safe_dump({**own, "versions": {}})


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "resume"])
def test_an_option_on_resume_is_refused_or_obeyed_as_its_field_says(name, tmp_path, monkeypatch):
    """Given with its default, in a run that was made with another value."""
    now, then = two_values(name)
    config = given(name, now, monkeypatch)
    assert getattr(config, name) == now
    assert name in config.given
    (tmp_path / "args.yaml").write_text(written(name, then))
    config = replace(config, resume=str(tmp_path))
    if OPTIONS[name].resume == SAME:
        with pytest.raises(UsageError, match=re.escape(f"{settings.flag(name)} {then} in the run, {now} now")):
            resume.find_run(config)
        config = replace(config, allow_changes=True)
    assert getattr(resume.find_run(config), name) == now


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "resume"])
def test_an_option_that_is_not_given_on_resume_is_the_runs_or_starts_anew(name, tmp_path):
    then = two_values(name)[1]
    (tmp_path / "args.yaml").write_text(written(name, then))
    found = resume.find_run(config_of("--resume", tmp_path))
    assert getattr(found, name) == (getattr(Config(), name) if OPTIONS[name].resume == ONCE else then)


def test_every_field_is_an_option_and_says_what_resuming_does():
    assert {item.name for item in fields(Config)} - OPTIONS.keys() == {"given"}
    assert {option.resume for option in OPTIONS.values()} == {SAME, FREE, ONCE}
    assert all(option.help and option.panel for option in OPTIONS.values())


def test_help_names_every_method_and_recipe():
    from timm_neutreno import METHODS

    assert all(name in OPTIONS["method"].help for name in METHODS)
    assert all(name in OPTIONS["recipe"].help for recipes in settings.RECIPES.values() for name in recipes)
    assert set(settings.RECIPES) == set(settings.TASKS)


def test_two_values_of_one_option_are_refused():
    settings.check(Config(fidelity=0.4, set={"fidelity": 0.4}))
    with pytest.raises(UsageError, match=r"--fidelity 0.3 and --set fidelity=0.4: give one"):
        settings.check(Config(fidelity=0.3, set={"fidelity": 0.4}))


def test_another_recipe_brings_its_own_values_but_those_that_are_given(tmp_path):
    own = settings.to_yaml(Config(recipe="finetune", lr=0.5))
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({**own, "versions": {}}))
    config = config_of("--resume", tmp_path, "--recipe", "deit", "--epochs", 7, "--allow-changes")
    found = resume.find_run(config)
    assert (found.epochs, found.batch_size, found.mixup, found.lr) == (7, 1024, 0.8, None)


def test_a_run_of_a_development_version_is_not_resumed(tmp_path):
    (tmp_path / "args.yaml").write_text("{recipe: {name: deit, lr: 1}, versions: {}}")
    with pytest.raises(CheckpointError, match="development version"):
        resume.find_run(Config(resume=str(tmp_path)))


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.range])
def test_a_number_outside_its_range_is_refused(name):
    low, high = (float(end) for end in OPTIONS[name].range[1:-1].split(","))
    for value in (low - 1, high + 1, float("nan"), float("inf")):
        if not low <= value <= high or value == float("inf"):
            with pytest.raises(UsageError, match=f"^{settings.flag(name)} must be a finite number"):
                settings.check(Config(**{name: value}))


# --- a run's own args.yaml


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("output: /elsewhere", "output holds for one start"),
        ("push_to_hub: me/model", "push_to_hub holds for one start"),
        ("quiet: true", "quiet holds for one start"),
        ("epcohs: 3", "unknown key 'epcohs'. Did you mean: epochs?"),
    ],
)
@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_nothing_that_was_written_into_a_runs_arguments_is_passed_over(tmp_path, fails, option, line, words):
    """Neither folder nor voice nor publication of an earlier run: and whoever asks for it there is told."""
    path = tmp_path / "args.yaml"
    path.write_text(f"{yaml.safe_dump({**settings.to_yaml(Config(recipe='finetune')), 'versions': {}})}{line}\n")
    assert f"{path}: {words}" in fails(option, path if option == "--config" else tmp_path)


def test_a_runs_arguments_hold_what_the_next_start_takes(file):
    facts = {"class_names": [], "data_config": {}, "versions": {}, "output": None, "private": False}
    values = parsed(
        "--config", file(yaml.safe_dump({**settings.to_yaml(Config(recipe="finetune", epochs=3)), **facts}))
    )
    assert values["epochs"] == 3
    assert not {name for name, option in OPTIONS.items() if option.resume == ONCE} & settings.to_yaml(Config()).keys()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: three", "epochs must be of the kind int"),
        ("mixup: [1]", "mixup must be of the kind float"),
        ("control: 1", "control must be of the kind bool"),
        ("method: neutreno", r"method must be of the kind list\[str\]"),
        ("data_fingerprint: 3", "data_fingerprint must be"),
        ("resumed: 3", "resumed must be"),
        ("[" * 5000, "nested too deeply"),
        (f"epochs: {'9' * 5000}", "limit|Exceeds"),
        ("epochs: \0", "cannot read"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(tmp_path, text, words):
    (tmp_path / "args.yaml").write_text(text if text.startswith("[") else f"versions: {{}}\n{text}")
    with pytest.raises(CheckpointError, match=words) as refused:
        resume.find_run(Config(resume=str(tmp_path)))
    assert str(tmp_path / "args.yaml") in str(refused.value)


@pytest.mark.parametrize("text", ["[" * 5000, f"epochs: {'9' * 5000}"])
def test_a_file_of_options_that_no_parser_can_end(file, fails, text):
    assert "is not YAML" in fails("--config", file(text))
    assert "--set take key=value" in fails("--set", f"fidelity={text}")


def test_places_are_recorded_so_that_they_are_found_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "w.pth").touch()
    monkeypatch.chdir(tmp_path)
    config = config_of("--data", "images", "--checkpoint", "w.pth", "--data-dir", "none")
    recorded = settings.to_yaml(config)
    assert (recorded["data"], recorded["checkpoint"]) == (str(tmp_path / "images"), str(tmp_path / "w.pth"))
    assert recorded["data_dir"] == "none"
    old = settings.from_yaml({"data": "images"})  # as earlier versions recorded it: the same place, no other data
    assert settings.changes(config, replace(old, checkpoint=config.checkpoint, recipe=config.recipe)) == {}
    assert config_of("--checkpoint", "demo", "--data", "torch/cifar10").data == "torch/cifar10"


def test_model_kwargs_come_back_as_they_were(file):
    from timm_neutreno_cli.config import parse_pairs

    kwargs = {"depth": 2, "eps": 1e-5, "qk_norm": True, "pool": None, "name": "on", "sizes": [1, {"a": 2}]}
    values = parsed("--config", file(yaml.safe_dump({"model_kwargs": kwargs, "versions": {}})))
    assert parse_pairs(values["model_kwargs"]) == kwargs


def test_a_run_is_repeated_from_its_own_arguments(tmp_path):
    """Real runs: every value but the folder comes from args.yaml, and the figures are the same."""
    import timm

    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=2, **shape).state_dict(), tmp_path / "w.pth")
    for index in range(24):
        folder = tmp_path / "images" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()).save(folder / f"{index}.png")

    def run(name: str, *arguments: object) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", "from timm_neutreno_cli.main import adapt_main; adapt_main()",
             *map(str, arguments), "--output", str(tmp_path / name), "--json", "--quiet"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    kwargs = [part for key, value in shape.items() for part in ("--model-kwargs", f"{key}={value}")]
    first = run(
        "first", "--checkpoint", tmp_path / "w.pth", "--arch", "vit_tiny_patch16_224", *kwargs, "--workers", 0,
        "--data", tmp_path / "images", "--val-split", 0.25, "--epochs", 2, "--batch-size", 6, "--fidelity", 0.4,
        "--device", "cpu", "--no-control", "--mixup", 0.2, "--seed", 5,
    )  # fmt: skip
    second = run("second", "--config", tmp_path / "first" / "args.yaml")
    assert second["models"] == first["models"]
    arguments = [yaml.safe_load((tmp_path / name / "args.yaml").read_text()) for name in ("first", "second")]
    differing = {key for key in arguments[0] if arguments[0][key] != arguments[1][key]}
    assert differing <= {"output"}
