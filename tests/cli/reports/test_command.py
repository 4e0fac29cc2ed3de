"""The command that makes a run again: read by the command line, it gives the same config."""

from __future__ import annotations

import shlex

import pytest
import typer
from timm_neutreno_cli import config as settings
from timm_neutreno_cli.commands.options import takes_config
from timm_neutreno_cli.config import Config, to_yaml
from timm_neutreno_cli.reports.command import command_line


@pytest.fixture
def parsed(monkeypatch):
    """The config that a command line gives."""

    def read(line: str) -> Config:
        found = []
        app = typer.Typer()
        app.command()(takes_config()(lambda config: found.append(config)))
        app(shlex.split(line)[2:], standalone_mode=False)
        return found[0]

    return read


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"checkpoint": "deit_tiny", "data": "my photos", "method": ["neutreno", "gfsa"], "epochs": 3, "lr": 1.25e-4},
        {"control": False, "set": {"fidelity": 0.4, "learnable_fidelity": "head"}, "amp": False, "mixup": 0.8},
        {"recipe": "deit", "epochs": 100, "ema_decay": 0.999, "fidelity_warmup": 2.0, "img_size": 96, "tf32": False},
        {
            "model_kwargs": {"embed_dim": 24, "qk_norm": True},
            "seeds": 3,
            "log": ["tensorboard", "wandb"],
            "patience": 2,
        },
    ],
)
def test_it_gives_the_same_config(parsed, given):
    config = settings.resolve(settings.from_given(given))
    again = settings.resolve(parsed(command_line(to_yaml(config))))
    assert to_yaml(again) == to_yaml(config)


def test_what_is_usual_is_left_out():
    config = settings.resolve(settings.from_given({"data": "photos", "batch_size": 128}))
    assert command_line(to_yaml(config)) == "neutreno adapt --data photos --batch-size 128"


def test_what_holds_for_one_start_is_left_out():
    config = Config(output="x", push_to_hub="me/it", recipe="digits")
    assert not {"x", "me/it"} & set(command_line(to_yaml(config)).split())
