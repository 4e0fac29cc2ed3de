"""The command line that makes a run again, from what its args.yaml says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..config import ONCE, OPTIONS, Config, default, flag, from_yaml, recipe_values, resolve


def command_line(arguments: Mapping[str, Any]) -> str:
    """`neutreno adapt` with every option that is not the recipe's or the default.

    Args:
        arguments: An args.yaml; a key that is no option is passed over.
    """
    config = from_yaml(arguments)
    usual = {item.name: default(item) for item in fields(Config) if item.name in OPTIONS}
    recipe = "digits" if config.data in (None, "demo") else "finetune"
    usual |= {"recipe": recipe, **recipe_values(config.recipe or recipe, config.task)}
    usual["lr"] = resolve(Config(task=config.task, recipe=config.recipe, batch_size=config.batch_size)).lr
    words = ["neutreno", "adapt"]
    for name, option in OPTIONS.items():
        value = getattr(config, name)
        if option.resume != ONCE and value != usual[name]:
            words += _words(name, value)
    return shlex.join(words)


def _words(name: str, value: Any) -> list[str]:
    """An option as one types it."""
    if isinstance(value, bool):
        return [flag(name) if value else flag(f"no_{name}")]
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in (flag(name), f"{key}={item}")]
    if isinstance(value, list):
        return [word for item in value for word in (flag(name), str(item))]
    return [flag(name), f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]
