"""`neutreno env`: versions and devices, for a bug report."""

from __future__ import annotations

import json
import os
import platform
from typing import Annotated, Any

import typer

PACKAGES = (
    "timm-neutreno",
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "typer",
    "transformers",
    "peft",
)
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WORLD_SIZE", "SLURM_NTASKS")


def env(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False) -> None:
    """Print versions and devices, to be pasted into a bug report. No name, path or token of yours is in it."""
    found = describe()
    print(json.dumps(found) if as_json else "\n".join(f"{name:<24} {value}" for name, value in found.items()))


def describe() -> dict[str, Any]:
    """Name -> version or device; a package that is not installed is "not installed"."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cpu cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": torch.version.cuda or "not built in",
        "gpus": ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none",
        "mps": "available" if torch.backends.mps.is_available() else "none",
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow, and --help comes by here

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
