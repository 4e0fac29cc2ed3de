"""Run by test_faults.py: forks runs from one process that has torch loaded, and kills them again and again.

    python killed_run.py IMAGES WEIGHTS FOLDER SEED KILLS AIM OPTIONS...

AIM is "instants", at random, or "operations": before or after a file is opened for writing, synced, renamed, linked or
removed, so that in the course of the run every kind of them is the last one of a process.

Prints one JSON document: the runs (FOLDER/killed-0, and more if one ended before it was killed KILLS times), the moment
of each kill, and how the last run ended.
"""

import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import timm_neutreno_cli.engine.run  # noqa: F401 - imported once, so that a fork starts at once
from integration import small_run
from timm_neutreno_cli.main import adapt_main


def die_at(operation: int, after: bool) -> None:
    """Make this process kill itself at its n-th operation on files."""
    done = [0]

    def counted(function):
        def call(*args, **kwargs):
            writes = function is not io.open or set("wax+") & set(str(kwargs.get("mode", (*args, "r", "r")[1])))
            done[0] += bool(writes)
            last = writes and done[0] == operation
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for module, name in [(os, "replace"), (os, "fsync"), (os, "link"), (os, "unlink"), (os, "rename"), (io, "open")]:
        setattr(module, name, counted(getattr(module, name)))


def fork(argv: list[str], log: Path, operation: int = 0, after: bool = False) -> int:
    pid = os.fork()
    if pid:
        return pid
    if operation:
        die_at(operation, after)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = argv
    code = 99
    try:
        adapt_main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status, or None if it still runs after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    return None


def main() -> None:
    images, weights, folder, seed, kills, aim, *options = sys.argv[1:]
    root, draw, moments = Path(folder), random.Random(int(seed)), []
    log = root / "log.txt"
    argv = small_run.command(Path(images), Path(weights), *options)
    start = time.monotonic()
    whole = wait(fork([*argv, "--output", str(root / "whole")], log), 240)
    length = time.monotonic() - start
    runs = ["killed-0"]
    while True:
        # often before its first save, so that a run is killed many times although each attempt gets further
        more = len(moments) < int(kills)
        instant = draw.uniform(0.02, 0.5) * length if more and aim == "instants" else 240
        operation = draw.randint(8, 45) if more and aim == "operations" else 0
        after = draw.random() < 0.5
        pid = fork([*argv, "--output", str(root / runs[-1]), "--resume", "auto"], log, operation, after)
        status = wait(pid, instant)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            moments.append(round(instant, 3))
        elif status == signal.SIGKILL and operation:
            moments.append(f"{operation}{'+' * after}")
        elif status or not more:
            break
        else:  # the machine has become faster than while `length` was measured, or the run has ended before
            runs.append(f"killed-{len(runs)}")
    report = {"whole": whole, "status": status, "runs": runs, "kills": moments, "length": length}
    print(json.dumps(report | {"log": log.read_text()}))


main()
