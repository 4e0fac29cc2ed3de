"""Being asked to stop: Ctrl-C, SIGTERM, SLURM's pre-emption signal, or a time limit."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import processes

SIGNALS = [getattr(signal, name) for name in processes.SIGNALS]


class Interruption:
    """Whether Ctrl-C came while nobody else had taken it: before a run begins, or in a command that saves nothing."""

    def __init__(self) -> None:
        self.came = False
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self.receive)

    def receive(self, number: int, frame: object) -> None:
        self.came = True
        raise KeyboardInterrupt


class StopSignal:
    """Whether the run has been asked to stop, and by what.

    Args:
        time_limit: Hours; None for none.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + 3600 * time_limit
        self.time_limit = time_limit
        self.signal: str | None = None

    @property
    def reason(self) -> str | None:
        """Why to stop at the next step; None to go on."""
        if self.signal:
            return f"interrupted by {self.signal}"
        if self.deadline is not None and time.monotonic() > self.deadline:
            return f"stopped by --time-limit {self.time_limit:g}"
        return None

    def receive(self, number: int, frame: object) -> None:
        """A signal handler: the first signal asks, a second one does not wait for the step to end."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if processes.rank():  # rank 0 saves; if the launcher asks again, this process has nothing to lose
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals, and give them back. One that is ignored (nohup, a background job) stays ignored.

        Only a program's main thread can take them: in another one nothing is taken.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.receive) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def init_loader_worker(index: int) -> None:
    """Ctrl-C reaches every process of the terminal: the main one decides when a loader worker ends.

    By SIGTERM, for which the worker has torch's own handler: with another one torch would take its end for a death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS:
        if number not in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
