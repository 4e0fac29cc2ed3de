"""What a report was made by: the command that was typed, the versions, and the date."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from pathlib import Path

PACKAGES = ("torch", "timm", "timm-neutreno")


def facts() -> list[tuple[str, str]]:
    """Of this process."""
    from importlib.metadata import version  # slow, and --help comes by here

    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    typed = Path(sys.argv[0]).stem in ("neutreno", "__main__")  # else it was called from Python, by another program
    return [
        *([("Command", shlex.join(["neutreno", *sys.argv[1:]]))] if typed else []),
        ("Versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
        ("Date", date()),
    ]


def date() -> str:
    return time.strftime("%Y-%m-%d %H:%M")
