"""The commands of this Python's own environment, for benchmarks that call them as a user does."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Where it lies; the bare name if it is only to be found on PATH, or nowhere."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which(name, path=search) or name
