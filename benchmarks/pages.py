"""How the pages of several benchmarks write the same things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stated(document: Mapping[str, Any]) -> str:
    """Hardware, versions and date, as `machine.described` found them."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return f"{document['hardware']}, {versions}, {document['date']}"


def interval(difference: Mapping[str, Any], digits: int) -> str:
    """A mean difference and the ends of its interval: +0.12 [-0.03, +0.27]."""
    mean, low, high = (f"{difference[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
