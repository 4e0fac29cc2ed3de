"""Run by test_faults.py: forks runs from one process that has torch loaded, and kills them at random instants.

    python killed_run.py IMAGES WEIGHTS FOLDER SEED KILLS OPTIONS...

Prints one JSON document: the runs (FOLDER/killed-0, and more if one ended before it was killed KILLS times), the moment
of each kill, and how the last run ended.
"""

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


def fork(argv: list[str], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
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
    images, weights, folder, seed, kills, *options = sys.argv[1:]
    root, draw, moments = Path(folder), random.Random(int(seed)), []
    log = root / "log.txt"
    argv = small_run.command(Path(images), Path(weights), *options)
    start = time.monotonic()
    whole = wait(fork([*argv, "--output", str(root / "whole")], log), 120)
    length = time.monotonic() - start
    runs = ["killed-0"]
    while True:
        pid = fork([*argv, "--output", str(root / runs[-1]), "--resume", "auto"], log)
        # often before its first save, so that a run is killed many times although each attempt gets further
        instant = draw.uniform(0.02, 0.5) * length if len(moments) < int(kills) else 120
        status = wait(pid, instant)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            moments.append(round(instant, 3))
        elif status or len(moments) == int(kills):
            break
        else:  # the machine has become faster than while `length` was measured
            runs.append(f"killed-{len(runs)}")
    report = {"whole": whole, "status": status, "runs": runs, "kills": moments, "length": length}
    print(json.dumps(report | {"log": log.read_text()}))


main()
