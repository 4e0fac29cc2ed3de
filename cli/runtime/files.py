"""Files of a run: never overwritten, and whatever is written is complete or not there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DEAD_WORKER, OutputError, UsageError

SAVING = ".saving"  # folder where a model is written before it is moved to its place


def choose_directory(output: str | None, model_name: str) -> Path:
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


def make_directory(path: Path) -> Path:
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
    except Exception as error:
        full = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"  # on a full disk
        if not full or DEAD_WORKER in str(error):  # torch raises this one by a signal, wherever Python happens to be
            raise
        cause = getattr(error, "strerror", None) or "the disk is full, or the file is too large"
        raise OutputError(
            f"cannot write {path}: {cause}. What was saved before is still there. Free some space, or choose another "
            "--output."
        ) from error


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
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
    write_atomic(path, lambda beside: beside.write_text(text))


def remove_partial(directory: Path) -> None:
    """Remove what a killed process had half written."""
    for half in (*directory.glob(".*.pth.tar.*"), *directory.glob(".*.json.*"), *directory.glob(".*.csv.*")):
        half.unlink()
    shutil.rmtree(directory / SAVING, ignore_errors=True)
