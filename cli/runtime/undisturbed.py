"""Leaving a caller's process as it was: a command may set what it likes, a function called from a notebook may not."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .signals import SIGNALS


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put back at the end: random numbers, torch's threads and precision, signal handlers, logging, OMP_NUM_THREADS."""
    import numpy as np
    import torch

    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    precision, silenced = torch.get_float32_matmul_precision(), logging.root.manager.disable
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    variable = os.environ.get("OMP_NUM_THREADS")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        logging.disable(silenced)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if variable is None:
            os.environ.pop("OMP_NUM_THREADS", None)
