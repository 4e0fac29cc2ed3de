"""The command line, made from config.py's table; and `--config run.yaml`, options from a file.

Command line, then NEUTRENO_<OPTION>, then the file, then the default: Typer looks in that order by itself, this only
tells it the prefix and reads the file into its `default_map`. A run's own args.yaml is such a file too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from .. import config as settings
from ..config import MAIN, OPTIONS, Config
from ..errors import UsageError, one_line
from ..runtime import records
from .completion import COMPLETIONS, words

# a dozen options need fewer parts than all of them
FEW_PANELS = {
    **dict.fromkeys((settings.MODEL, settings.DATA), "Checkpoint and data"),
    **dict.fromkeys((settings.SPEED, settings.LONG, settings.HUB), settings.RUN),
}
TYPES = get_type_hints(Config)
WRITTEN_BY_A_RUN = "versions"  # the key by which args.yaml is known from a file that a person wrote


def takes_config(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a Typer command of a function `(config, **own)`: it gets an option for each field of Config.

    Args:
        names: Only these fields; all of them if there are none.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def command(ctx: typer.Context, **values: Any) -> None:
            known = {name: value for name, value in values.items() if name in OPTIONS and value is not None}
            given = {name: value for name, value in known.items() if is_given(ctx, name)}
            parsed = {name: parse(value) if (parse := OPTIONS[name].parse) else value for name, value in given.items()}
            function(settings.from_given(parsed), **{item.name: values[item.name] for item in own})

        parameters = [_parameter(item, names) for item in fields(Config) if item.name in (names or OPTIONS)]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        # Typer reads names, types and defaults from the signature
        own = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own]
        command.__signature__ = inspect.Signature([context, *own, *parameters])  # type: ignore[attr-defined]
        command.__doc__, command.__name__ = function.__doc__, function.__name__
        return command

    return decorate


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option's value comes from a person: command line, environment or file."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _parameter(item: Any, shown: tuple[str, ...]) -> inspect.Parameter:
    """A field as Typer wants it; --help shows it if it is one of `shown`, or of MAIN if there are none."""
    option, kind, default = OPTIONS[item.name], TYPES[item.name], settings.default(item)
    if get_origin(kind) in (list, dict):
        kind, default = list[str] | None, None
    elif option.recipe:
        kind, default = kind | None, None
    flags = option.flags or ((settings.flag(item.name),) if kind is bool and default is False else ())
    low = int(option.range[1:].split(",")[0]) if option.range and int in (kind, *get_args(kind)) else None
    takes = "" if bool in (kind, *get_args(kind)) else "<int>" if low is not None else None
    if option.choices and len("|".join(option.choices)) < 12:  # a long one would leave no room for the words
        takes = "|".join(option.choices)
    made = typer.Option(
        *flags, help=option.help, rich_help_panel=FEW_PANELS.get(option.panel, option.panel), show_envvar=False,
        min=low, metavar=takes, hidden=item.name not in (shown or MAIN),
        show_default="(default: " not in option.help,
        autocompletion=words(option.choices) if option.choices else COMPLETIONS.get(item.name),
    )  # fmt: skip
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, made]
    )


def show_all(ctx: typer.Context, asked: bool) -> None:
    """Callback of --help-all: --help with the options that it leaves out."""
    if asked:
        for option in ctx.command.params:
            option.hidden = False  # type: ignore[attr-defined]
            if option.name in OPTIONS:
                option.rich_help_panel = OPTIONS[option.name].panel  # type: ignore[attr-defined]
        print(ctx.get_help())
        raise typer.Exit


def read_file(ctx: typer.Context, path: str | None) -> str | None:
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
    known = _options(ctx)
    values = _read(path)
    if WRITTEN_BY_A_RUN in values:
        values = settings.recorded(values, path)
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}.{settings.suggestion(key, known)}")
        if value is not None:
            values[key] = _checked(ctx, known[key], key, value, path)
    given = {known[key].name: value for key, value in values.items() if value is not None}
    ctx.default_map = {**(ctx.default_map or {}), **given}
    return path


def _options(ctx: typer.Context) -> dict[str, Any]:
    """Typer's option for every key. Eager ones (--help, --config) act while the file is read: they are no keys."""
    return {
        name.removeprefix("--").replace("-", "_"): option
        for option in ctx.command.params
        for name in option.opts
        if name.startswith("--") and not option.is_eager
    }


def _read(path: str) -> dict[str, Any]:
    try:
        content = records.parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}. Give a YAML file of options.") from error
    except ValueError as error:
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
