"""Files of a run: never overwritten, and whatever is written is complete or not there."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DEAD_WORKER, OutputError, UsageError

SAVING = ".saving"  # folder where a model is written before it is moved to its place
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # what the system says then
PART = ".part"  # how the name of a file ends while it is written


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
    with writing(path):
        taken = path.exists() and (not path.is_dir() or not all(map(_is_ours, path.iterdir())))
    if taken:
        raise UsageError(f"the output {path} exists and is not empty. Nothing is overwritten: choose another --output.")
    return path


def _is_ours(path: Path) -> bool:
    """Whether a run that was killed before it had written anything whole may have left this."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(PART))


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

    Also if the machine loses its power: the file is on the disk before it has its name.

    Raises:
        OutputError: If it cannot be written; `path` is as it was.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        with writing(path):
            write(beside)
            put_in_place(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def put_in_place(beside: Path, path: Path) -> None:
    """Rename a file to where it belongs, once its bytes are on the disk."""
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8, whatever the locale; a name that the locale could not read comes out with its own bytes."""
    write_atomic(path, lambda beside: beside.write_text(text, encoding="utf-8", errors="surrogateescape"))


def remove_partial(directory: Path) -> None:
    """Remove what a killed run had half written, in all its folders. Only the run's one writer may ask for it."""
    for half in directory.rglob(f".*{PART}"):
        half.unlink(missing_ok=True)
    for folder in directory.rglob(SAVING):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Be the one that writes into a run's folder. The lock goes with the process, however that ends.

    A lock of the process and not of the open file (flock): loader processes, which outlive a killed run for some
    seconds, do not inherit it.

    Raises:
        OutputError: If another process is writing there, with its number.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    path = directory / LOCK
    while True:
        with writing(path):
            file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise OutputError(
                f"{directory} is being written by {file.read(100).strip() or 'another process'}: two runs in one "
                "folder would mix. Wait for it, end it, or choose another --output."
            ) from None
        except OSError:  # a file system without locks
            break
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            break  # else its owner has removed it since it was opened
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
