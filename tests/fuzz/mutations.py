"""Seeded damage: bytes that are cut, flipped and mixed, and values of JSON and YAML that become something else."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "a",
    "\0", "\n|<b>`", "ü" * 300, "../..", "/dev/zero", "~nouser/x", "hf-hub:", [], [[]], {}, [None], {"": None},
    ["a"] * 50,
    {"a": {"b": [1, 2]}}, "9" * 5000, [224], [3, 224], [3.5, "x", None],
]  # fmt: skip


def damaged_bytes(draw: Random, data: bytes) -> bytes:
    """One to four kinds of damage, one after another."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(found) + 1), draw.choice([1, 2, 8, 200])
        kind = draw.choice(["flip", "cut", "insert", "zero", "repeat", "replace"])
        if kind == "flip" and place < len(found):
            found[place] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del found[place:]
        elif kind == "insert":
            found[place:place] = draw.randbytes(length)
        elif kind == "zero":
            found[place : place + length] = bytes(min(length, len(found) - place))
        elif kind == "repeat":
            found[place:place] = found[place : place + length] * draw.randint(1, 5)
        elif kind == "replace":
            found[place : place + length] = draw.randbytes(min(length, max(len(found) - place, 0)))
    return bytes(found)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def damaged_value(draw: Random, value: Any) -> Any:
    """A document with one to three of its values, or keys, replaced, dropped or made deep."""
    found = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = _places(found)
        if not places:
            return draw.choice(ODD)
        container, key = draw.choice(places)
        kind = draw.choice(["replace", "replace", "replace", "drop", "deep", "rename", "wrap"])
        if kind == "replace":
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif kind == "drop":
            del container[key]
        elif kind == "wrap":
            container[key] = [container[key]]
        elif kind == "deep":
            for _ in range(draw.choice([3, 60])):
                container[key] = {"a": container[key]}
        elif isinstance(container, dict):
            container[draw.choice(["", "a", "architecture", f"{key}s", "__class__"])] = container.pop(key)
    return found


def damaged_text(draw: Random, value: Any, dump: Any = json.dumps) -> bytes:
    """A document in a file: mostly another document, sometimes damaged bytes, rarely what no parser ends."""
    roll = draw.random()
    if roll < 0.75:
        return dump(damaged_value(draw, value)).encode("utf-8", "surrogatepass")
    if roll < 0.95:
        return damaged_bytes(draw, dump(value).encode())
    return draw.choice(
        [b"[" * 100_000, b"9" * 100_000, b"\xff\xfe\x00", b"", b"null", b"&a [*a]", b"!!python/name:os.system"]
    )
