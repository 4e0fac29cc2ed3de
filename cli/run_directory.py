"""The run directory: never overwritten, and whatever is written is whole or not there."""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .errors import DEAD_WORKER, CheckpointError, OutputError, UsageError

LAST, PREVIOUS, BEST = "last.pth.tar", "previous.pth.tar", "best.pth.tar"
SAVING = ".saving"  # where a model is written before it is moved to its place


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
        if DEAD_WORKER in str(error):  # raised by a signal, wherever Python happens to be
            raise
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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that survives a crash of the machine."""

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    if path.name == LAST and path.exists():
        keep = path.with_name(f".{PREVIOUS}.{os.getpid()}")
        keep.unlink(missing_ok=True)
        try:
            os.link(path, keep)  # a second name: at no instant is there no whole checkpoint under LAST
        except OSError:  # a file system without links
            keep = path
        with writing(path):
            keep.replace(path.with_name(PREVIOUS))
    write_whole(path, write)


def load_checkpoint(directory: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest whole checkpoint of an arm, and a sentence about those that are damaged.

    Every byte is compared with the checksums that torch.save wrote.

    Returns:
        (state, warning); (None, None) if there is none yet.

    Raises:
        CheckpointError: If there are some and none is whole.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if fault := _fault(path):
            damaged.append(f"{path} is damaged ({fault})")
            continue
        state = torch.load(path, map_location="cpu", weights_only=True)
        warning = (
            f"{'; '.join(damaged)}: going on from {path}, after {state['epoch'] + 1} whole epochs." if damaged else None
        )
        return state, warning
    if damaged:
        raise CheckpointError(f"{' and '.join(damaged)}. Nothing can be resumed; start anew with another --output.")
    return None, None


def _fault(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as file:
            bad = file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error) or "truncated"
    return f"wrong checksum of {bad}" if bad else None


def sweep(directory: Path) -> None:
    """Remove what a killed process had half written."""
    for half in (*directory.glob(".*.pth.tar.*"), *directory.glob(".*.json.*"), *directory.glob(".*.csv.*")):
        half.unlink()
    shutil.rmtree(directory / SAVING, ignore_errors=True)
