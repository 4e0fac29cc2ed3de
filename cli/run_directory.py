"""The run directory: never overwritten, and whatever is written is whole or not there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .errors import OutputError, UsageError

LAST, BEST = "last.pth.tar", "best.pth.tar"


def choose(output: str | None, model_name: str) -> Path:
    """The directory a run will make: the given one, or runs/<time>-<model>.

    Raises:
        UsageError: If it exists and has something in it.
    """
    if output is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path("runs") / f"{stamp}-{model_name}"
        number = 1
        while path.exists():
            number += 1
            path = Path("runs") / f"{stamp}-{model_name}-{number}"
        return path
    path = Path(output)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"the output {path} exists and is not empty. Nothing is overwritten: choose another --output.")
    return path


def create(path: Path) -> Path:
    """Make the directory, and those above it."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write into one sentence.

    Raises:
        OutputError: If the disk is full, the file too large, or the folder not writable.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        cause = getattr(error, "strerror", None) or "the disk is full, or the file is too large"
        raise OutputError(
            f"cannot write {path}: {cause}. What was saved before is still there. Free some space, or choose another "
            "--output."
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a file beside `path`, then rename it: `path` is the old one or the new one, never half.

    Raises:
        OutputError: If it cannot be written; `path` is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            write(beside)
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda beside: beside.write_text(text))


def append_metrics(directory: Path, record: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl."""
    path = directory / "metrics.jsonl"
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    write_whole(path, lambda beside: torch.save(state, beside))
