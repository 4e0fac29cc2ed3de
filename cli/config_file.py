"""`--config run.yaml`: options from a file. Command line, then NEUTRENO_<OPTION>, then the file, then the default.

Typer looks options up in that order by itself; this only tells it the prefix and reads the file into its `default_map`.
A run's own args.yaml is such a file too, so that a run can be repeated.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import typer

from .errors import UsageError, one_line

WRITTEN_BY_A_RUN = "versions"  # the key by which args.yaml is known from a file that a person wrote
# a repeated run has its own folder, says what it is asked to say, and publishes nothing that it was not asked to
NOT_REPEATED = {"output", "quiet", "json", "resume", "dry_run", "push_to_hub", "private", "revision", "create_pr"}


def load(ctx: typer.Context, path: str | None) -> str | None:
    """Callback of --config, which is eager: the file's values become the defaults of the options that follow.

    Args:
        ctx: The command that is about to read its options.
        path: Of the file; None if --config was not given.

    Raises:
        UsageError: If the file cannot be read, or has a key or value that no option takes.
    """
    ctx.auto_envvar_prefix = "NEUTRENO"  # here and not in the app's settings, where --help would list a variable a line
    if path is None or ctx.resilient_parsing:
        return path
    options = _options(ctx)
    values = _read(path)
    if WRITTEN_BY_A_RUN in values:
        values = {key: value for key, value in flatten(values).items() if key in options}
    for key, value in values.items():
        if key not in options:
            raise UsageError(f"{path}: unknown key {key!r}.{_suggestion(key, list(options))}")
        if value is not None:
            values[key] = _checked(ctx, options[key], key, value, path)
    given = {options[key].name: value for key, value in values.items()}
    ctx.default_map = {**(ctx.default_map or {}), **given}
    return path


def flatten(arguments: dict[str, Any]) -> dict[str, Any]:
    """The options that repeat the run which wrote these arguments; what no option takes is still among them."""
    values = {key: value for key, value in arguments.items() if key not in NOT_REPEATED}
    recipe = values.pop("recipe", None)
    if isinstance(recipe, dict):
        # recipe.lr is for a batch of 512 and belongs to the recipe's name; the option --lr is the rate of this run
        values |= {key: value for key, value in recipe.items() if key not in ("name", "lr")}
        values["recipe"] = recipe.get("name")
    if "val_fraction" in values and values.get("val_split") == "validation":
        values["val_split"] = values["val_fraction"]  # one option, --val-split, is the name or the fraction
    return values


def _options(ctx: typer.Context) -> dict[str, Any]:
    """Typer's option for every key. Eager ones (--help, --config) act while the file is read: they are no keys."""
    return {
        name.removeprefix("--").replace("-", "_"): option
        for option in ctx.command.params
        for name in option.opts
        if name.startswith("--") and not option.is_eager
    }


def _read(path: str) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}. Give a YAML file of options.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path} is not YAML: {one_line(error)[:300]}. Write one option: value a line."
        ) from error
    if content is None:  # an empty file, or one with comments only
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"--config {path} has a {type(content).__name__}, no mapping. Write one option: value a line.")
    values: dict[str, Any] = {}
    for name, value in content.items():
        key = str(name).replace("-", "_")
        if key in values:
            raise UsageError(f"{path}: {key!r} is given twice, with - and with _. Keep one.")
        values[key] = value
    return values


def _suggestion(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3)
    return f" Did you mean: {', '.join(near)}?" if near else " Its keys are the options of neutreno-adapt --help."


def _checked(ctx: typer.Context, option: Any, key: str, value: Any, path: str) -> Any:
    """The value as the command line would have it, accepted by the option itself."""
    value = _as_typed(option, value)
    wrong = isinstance(value, dict) or isinstance(value, list) != bool(option.multiple)
    if wrong or (isinstance(value, bool) and not option.is_flag):
        takes = "a list" if option.multiple else "true or false" if option.is_flag else "one value"
        raise UsageError(f"{path}: {key} takes {takes}, got {_inline(value)}.")
    try:
        option.process_value(ctx, value)
    except typer.BadParameter as error:
        raise UsageError(f"{path}: {key}: {one_line(error)}, got {_inline(value)}.") from error
    return value


def _as_typed(option: Any, value: Any) -> Any:
    """Numbers as a person types them: Typer reads them, and a 1e-3 that YAML took for a string is one again."""
    if option.multiple and isinstance(value, dict):  # --model-kwargs embed_dim=64, in args.yaml a mapping
        return [f"{name}={_inline(item)}" for name, item in value.items()]
    if option.multiple and isinstance(value, list):
        return [str(item) for item in value]
    return value if isinstance(value, bool | list | dict) else str(value)


def _inline(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").strip()
