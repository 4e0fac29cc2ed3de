"""A limit of what this process may allocate: input that makes it take the machine's memory fails, and nothing dies."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory", "MemoryError")


@contextmanager
def at_most(more: int = 4 * 2**30) -> Iterator[None]:
    """Within it, the address space grows by `more` bytes at most; torch then says one of OUT_OF_MEMORY."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
