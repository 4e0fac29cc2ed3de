"""Being asked to stop: by signals, which are given back, and by a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from timm_neutreno_cli.runtime.signals import SIGNALS, StopSignal


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_does_not_wait(number):
    before = signal.getsignal(number)
    if before is signal.SIG_IGN:
        pytest.skip(f"{number!r} is ignored by whoever started the tests")
    stop = StopSignal()
    with stop.installed():
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == f"interrupted by {signal.Signals(number).name}"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        stop = StopSignal()
        with stop.installed():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.reason is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_time_limit_in_hours():
    assert StopSignal(1.0).reason is None
    assert StopSignal(1e-12).reason == "stopped by --time-limit 1e-12"


AT_ONCE = "import os, signal; from timm_neutreno_cli import start; os.kill(os.getpid(), signal.SIGINT)"
WHILE_TORCH_IS_IMPORTED = """
import os, signal, sys, threading, time
from timm_neutreno_cli.start import adapt_main

def interrupt():
    while "torch" not in sys.modules:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
sys.argv = ["neutreno-adapt", "--data", "none"]
adapt_main()
"""


@pytest.mark.parametrize("code", [AT_ONCE, WHILE_TORCH_IS_IMPORTED])
def test_ctrl_c_in_the_first_seconds_is_one_line(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (130, "error: interrupted.\n")
