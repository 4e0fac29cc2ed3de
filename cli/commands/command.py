"""A command of the command line: it knows what other tools call its options, and its help fits a narrow terminal."""

from __future__ import annotations

import shutil
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ..errors import UsageError

# the name in timm's train.py, transformers or a paper -> ours; what is near in letters is suggested by Typer itself
OTHER_NAMES = {
    "--learning-rate": "--lr", "--base-lr": "--lr", "--bs": "--batch-size", "--wd": "--weight-decay",
    "--per-device-train-batch-size": "--batch-size", "--num-epochs": "--epochs", "--num-train-epochs": "--epochs",
    "--model": "--checkpoint", "--model-name": "--checkpoint", "--pretrained": "--checkpoint",
    "--initial-checkpoint": "--checkpoint", "--dataset": "--data", "--data-path": "--data", "--input": "--data",
    "--out": "--output", "--output-dir": "--output", "--num-workers": "--workers", "--lambda": "--fidelity",
    "--lam": "--fidelity", "--alpha": "--fidelity", "--no-baseline": "--no-control", "--model-ema": "--ema-decay",
    "--ema": "--ema-decay", "--grad-accum-steps": "--accumulate", "--gradient-accumulation-steps": "--accumulate",
    "--clip": "--clip-grad", "--reprob": "--random-erasing", "--aa": "--auto-augment", "--torchcompile": "--compile",
    "--fp16": "--amp", "--bf16": "--amp", "--hub-model-id": "--push-to-hub", "--early-stopping": "--patience",
    "--nproc": "--gpus", "--num-gpus": "--gpus", "--wandb": "--log wandb", "--tensorboard": "--log tensorboard",
    "--report-to": "--log", "--cpu": "--device cpu", "--cuda": "--device cuda", "--random-seed": "--seed",
    "--continue": "--resume",
}  # fmt: skip


NARROW = 60  # columns; in fewer, Typer's boxes cut the names of options


def fit(command: Any) -> None:
    """Let a command or group print its help without boxes, if the terminal is narrow."""
    if shutil.get_terminal_size().columns < NARROW:
        command.rich_markup_mode = None
        command.help = (command.help or "").replace("\n\n# ", "\n\n\b\n# ")  # keeps the examples' lines


class Group(TyperGroup):
    """The commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        fit(self)
        super().format_help(ctx, formatter)


class Command(TyperCommand):
    """One command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        fit(self)
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse an unknown option that has another name here.

        Raises:
            UsageError: With that name.
        """
        known = {name for option in self.params for name in (*option.opts, *option.secondary_opts)}
        for word in args:
            name = word.partition("=")[0].replace("_", "-")
            ours = OTHER_NAMES.get(name, "")
            if name not in known and ours.split(" ")[0] in known:
                raise UsageError(f"there is no option {name}: here it is {ours}.")
        return super().parse_args(ctx, args)
