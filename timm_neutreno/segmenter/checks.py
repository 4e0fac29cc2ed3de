"""Numbers that a Segmenter is given, by a caller or by a config.json that may have been edited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def sides(name: str, value: Any) -> tuple[int, int]:
    """(height, width) in pixels.

    Raises:
        ValueError: If these are not two whole numbers, 1 or larger.
    """
    found = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(found) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in found):
        raise ValueError(f"{name} is {value!r}: give height and width in pixels, two whole numbers.")
    return found[0], found[1]


def channels(name: str, value: Any, above: float = -math.inf) -> tuple[float, ...]:
    """One finite number for each of the three colours.

    Raises:
        ValueError: If they are something else, or not larger than `above`.
    """
    found = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    numbers = [isinstance(one, int | float) and above < one < math.inf for one in found]
    if numbers != [True] * 3:
        raise ValueError(f"{name} is {value!r}: give three numbers{f' above {above:g}' if above == 0 else ''}.")
    return found
