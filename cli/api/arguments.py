"""From keyword arguments to a Config: names, defaults and help are those of config.py's table, as in the commands."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from .. import config as settings
from ..config import OPTIONS, Config
from ..errors import UsageError

TYPES = get_type_hints(Config)
NOT_HERE = {"json"}  # the result is a Python object already


def takes_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function `(..., **options)` the signature and the help of these fields of Config; of all without names."""
    shown = [item for item in fields(Config) if item.name in (names or OPTIONS) and item.name not in NOT_HERE]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *map(_parameter, shown)])  # type: ignore[attr-defined]
        lines = "\n".join(f"        {item.name}: {OPTIONS[item.name].help}" for item in shown)
        function.__doc__ = (function.__doc__ or "").rstrip() + f"\n\n    Options:\n{lines}\n"
        return function

    return decorate


def _parameter(item: Any) -> inspect.Parameter:
    default = None if OPTIONS[item.name].recipe else settings.default(item)
    return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=TYPES[item.name])


def to_config(options: Mapping[str, Any], function: Callable[..., Any]) -> Config:
    """The config of what was given; None counts as not given, and nothing is printed unless `quiet=False` is.

    Args:
        options: By names of Config's fields.
        function: Made by `takes_options`, whose names are allowed.

    Raises:
        UsageError: If a name is unknown, or a value has another type.
    """
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known or name not in OPTIONS:
            near = difflib.get_close_matches(name, [each for each in known if each in OPTIONS], n=3)
            hint = f"Did you mean: {', '.join(near)}?" if near else f"help({function.__name__}) lists them."
            raise UsageError(f"{function.__name__} has no option {name!r}. {hint}")
    given = {name: _typed(name, value) for name, value in options.items() if value is not None}
    config = settings.from_given({"quiet": True, **given})
    return settings.replace(config, given=frozenset(given))


def _typed(name: str, value: Any) -> Any:
    """A value as the field has it: numbers of NumPy, paths and single words are as good as int, str and a list."""
    kinds = [kind for kind in get_args(TYPES[name]) or [TYPES[name]] if kind is not NoneType]
    kind = TYPES[name] if get_origin(TYPES[name]) in (list, dict) else kinds[0]
    if isinstance(value, bool) or kind is bool:
        if isinstance(value, bool) and kind is bool:
            return value
    elif kind is int and isinstance(value, Integral):
        return int(value)
    elif kind is float and isinstance(value, Real):
        return float(value)
    elif kind is str and isinstance(value, str | Path | Real):
        return str(value)
    elif get_origin(kind) is list and isinstance(value, str | list | tuple):
        return [value] if isinstance(value, str) else list(map(str, value))
    elif get_origin(kind) is dict and isinstance(value, Mapping):
        return dict(value)
    takes = getattr(get_origin(kind) or kind, "__name__", str(kind))
    raise UsageError(f"{name} takes {'an' if takes[0] in 'aeiou' else 'a'} {takes}, got {value!r}.")
