"""What a report was made by: the command that was typed, the versions, and the date."""

from __future__ import annotations

import platform
import shlex
import sys
import time

PACKAGES = ("torch", "timm", "timm-neutreno")


def facts() -> list[tuple[str, str]]:
    """Of this process."""
    from importlib.metadata import version  # slow, and --help comes by here

    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return [
        ("Command", shlex.join(["neutreno", *sys.argv[1:]])),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("Date", date()),
    ]


def date() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
