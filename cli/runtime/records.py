"""Small files of a run that are read again: each is checked before anything uses it, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from ..errors import CheckpointError, one_line

ROOM = 10 * 2**20  # bytes; ours have some thousand, and a parser takes a hundred times its text
_WAY_OUT = "The file is damaged or was edited: repair it, or start anew with another --output."


def read_json(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping in a file.

    Args:
        path: The file.
        kinds: The keys that it must have, each with the type of its value, such as list[str] or int | None.

    Raises:
        CheckpointError: If it cannot be read, is no JSON, or has a key of another kind or none.
    """
    return _checked(path, _parsed(path, json.loads, "JSON"), kinds)


def read_yaml(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping in a file; arguments and errors as of `read_json`."""
    return _checked(path, _parsed(path, parse_yaml, "YAML"), kinds)


def parse_yaml(text: str) -> Any:
    """What YAML text says, without tags that make objects.

    Raises:
        ValueError: If it is no YAML, nested too deeply, or has a number without end.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)[:200]) from error


def _parsed(path: Path, parse: Callable[[str], Any], kind: str) -> Any:
    try:
        return parse(read_text(path))
    except RecursionError:
        raise CheckpointError(f"cannot read {path}: it is nested too deeply. {_WAY_OUT}") from None
    except ValueError as error:
        raise CheckpointError(f"cannot read {path}, which is no {kind}: {one_line(error)[:200]}. {_WAY_OUT}") from error


def read_text(path: Path) -> str:
    """The text of a small file, as UTF-8.

    Raises:
        CheckpointError: If it cannot be read.
        ValueError: If it is not UTF-8, or too large to be one of ours.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"cannot read {path}: there is no such file.")
        if path.stat().st_size > ROOM:
            raise ValueError(f"it has more than {ROOM // 2**20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from error


def read_lines(path: Path, kinds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The mappings of a file with one a line. A last line without its end is left out: it was being written.

    Raises:
        CheckpointError: As `read_json`, with the line.
    """
    try:
        lines = read_text(path).split("\n")
    except ValueError as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}. {_WAY_OUT}") from error
    for number, line in enumerate(lines[:-1], 1):
        try:
            yield _checked(path, json.loads(line), kinds)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}, line {number}: {one_line(error)[:200]}. Repair or remove it.") from error


def _checked(path: Path, value: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, no mapping. {_WAY_OUT}")
    if fault := misfit(value, kinds):
        raise CheckpointError(f"{path}: {fault}. {_WAY_OUT}")
    return value


def misfit(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> str:
    """What of the keys is missing or of another kind, in words; "" if nothing."""
    for key, kind in kinds.items():
        if key not in values:
            return f"{key} is missing"
        if not fits(values[key], kind):
            name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
            return f"{key} must be of the kind {name}, got {str(values[key])[:60]!r}"
    return ""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value that JSON or YAML gave is of a type, such as int, str | None or dict[str, list[float]]."""
    if kind is Any:
        return True
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(fits(item, inner[0]) for item in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if kind in (None, NoneType):
        return value is None
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
