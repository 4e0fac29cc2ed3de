"""What a figure needs beside it to mean something: where, with what, when, and by which command it was made."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def described(device: str) -> dict[str, Any]:
    """Hardware, versions, date and command of this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = f"{cpu_name()}, CPU cores: {cores}"
    if device.startswith("cuda"):
        hardware = f"{torch.cuda.get_device_name(device)}; {hardware}"
    return {
        "hardware": hardware,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "timm", "timm-neutreno", "pillow")},
        "date": time.strftime("%Y-%m-%d"),
        # an absolute path is this machine's; its last part says what it was
        "command": shlex.join(["python", *(Path(a).name if os.path.isabs(a) else a for a in sys.argv)]),
    }


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(": ")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
