"""Contract 4, across processes: DDP and FSDP2 on two gloo processes give the gradients of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from integration.distributed_worker import CONFIGURATIONS

WORKER = Path(__file__).with_name("distributed_worker.py")


def test_gradients_equal_one_process(tmp_path):
    """One test and one group of two processes for all configurations: starting it costs more than all of them."""
    path = tmp_path / "results.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*torchrun, str(WORKER), str(path)], capture_output=True, text=True, timeout=300, env=env)
    assert run.returncode == 0, run.stderr[-4000:]
    results = json.loads(path.read_text())
    assert set(results) == set(CONFIGURATIONS)
    wrong = {name: result for name, result in results.items() if not result.get("error", 1.0) < 1e-10}
    assert not wrong, "\n".join(f"{name}: {r.get('exception', r)}" for name, r in wrong.items())
