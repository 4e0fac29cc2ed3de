"""The processes of one run: launching them, finding oneself among them, and speaking with one voice.

torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) says who a process is; SLURM's is
translated into it. `--gpus N` starts torchrun's own launcher.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import CliError, UsageError, one_line

# what ends a run. SLURM sends SIGTERM, or what --signal names: mostly USR1. A lost terminal sends HUP.
SIGNALS = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        rank: Over all machines; 0 writes and speaks.
        local_rank: On this machine, which is the index of its GPU.
        size: Number of all processes.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, from torchrun's own or SLURM's; empty for a single process.

    In a batch script outside `srun` SLURM sets SLURM_PROCID too: only a step has SLURM_STEP_NUM_TASKS.
    """
    if "RANK" in variables and "WORLD_SIZE" in variables:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: variables[name] for name in names if name in variables}
    if _number(variables, "SLURM_STEP_NUM_TASKS", 1) < 2:
        return {}
    port = 20000 + _number(variables, "SLURM_JOB_ID", 0) % 20000
    return {
        "RANK": str(_number(variables, "SLURM_PROCID")),
        "LOCAL_RANK": str(_number(variables, "SLURM_LOCALID")),
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "MASTER_ADDR": variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": variables.get("MASTER_PORT") or str(port),
    }


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A number that the launcher has set.

    Raises:
        UsageError: If it is none, or missing without a default.
    """
    value = variables.get(name, default)
    if value is None or not re.fullmatch(r"\d{1,9}", str(value)):
        raise UsageError(
            f"the launcher's variable {name} is {value or 'missing'}, no number: start with torchrun or srun."
        )
    return int(value)


def first_host(nodelist: str) -> str:
    """The first machine of SLURM's notation: gpu[07-09,12],login1 -> gpu07."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodelist)
    if match is None:
        raise UsageError(f"the launcher's variable SLURM_STEP_NODELIST is {nodelist or 'missing'}: start with srun.")
    return "".join(part or "" for part in match.groups())


def rank() -> int:
    """Of this process, also before `init`; 0 where the launcher's variables are wrong, which `init` says."""
    try:
        return _number(environment(os.environ), "RANK", 0)
    except UsageError:
        return 0


def in_worker() -> bool:
    """Whether a launcher has started this process among others."""
    try:
        return bool(environment(os.environ))
    except UsageError:
        return False


def end_with_parent() -> None:
    """In a worker: stop as by SIGTERM when the launcher is gone, which could not say so if it was killed."""
    if not in_worker():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)  # as long as torch's launcher leaves a worker to save
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def init(device: str | None) -> World:
    """Meet the other processes, if there are some.

    Raises:
        UsageError: If the launcher's environment is incomplete, or there are more processes than GPUs.
    """
    variables = environment(os.environ)
    if _number(variables, "WORLD_SIZE", 1) < 2:
        return World()
    missing = {"MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"} - set(variables)
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set, but not {', '.join(sorted(missing))}. Start with torchrun, srun or --gpus."
        )
    import torch
    import torch.distributed as dist

    found = World(*(_number(variables, name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))
    if found.rank >= found.size:
        raise UsageError(f"the launcher says RANK {found.rank} of WORLD_SIZE {found.size}: ranks count from 0.")
    port = _number(variables, "MASTER_PORT")
    on_gpu = not (device or "").startswith("cpu") and torch.cuda.is_available()
    if on_gpu:
        if found.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{found.local_rank + 1} processes on this machine, but {torch.cuda.device_count()} GPUs: start as "
                "many processes as GPUs, or pass --device cpu."
            )
        torch.cuda.set_device(found.local_rank)
    os.environ.update(variables)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=30),
            device_id=torch.device("cuda", found.local_rank) if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{variables['MASTER_ADDR']}:{port}"
        taken = "another program has it: set another MASTER_PORT. " if "EADDRINUSE" in str(error) else ""
        raise UsageError(f"the processes cannot meet at {where}: {taken}{one_line(error)[:160]}") from error
    return found


def shutdown() -> None:
    """After a run that ended well: everybody is done, so the group can go."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def broadcast(value: Any) -> Any:
    """Rank 0's value, in every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def claims_first_error() -> bool:
    """Whether this process is the first to report an error, so that one error of 64 processes is one line."""
    if "torch" not in sys.modules:
        return rank() == 0
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return rank() == 0
    try:
        return dist.distributed_c10d._get_default_store().add("neutreno/error", 1) == 1
    except RuntimeError:  # the store has gone with another process
        return rank() == 0


def is_peer_failure(error: BaseException) -> bool:
    """Whether the error only says that another process ended."""
    import torch.distributed as dist

    kinds = tuple(getattr(dist, name) for name in ("DistBackendError", "DistNetworkError") if hasattr(dist, name))
    words = ("closed by peer", "Connection reset", "Broken pipe", "Connection refused", "gloo/transport")
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


def count_gpus(wanted: str, device: str | None) -> int:
    """What --gpus says: a number, or all.

    Raises:
        UsageError: If it is neither, or there are not so many.
    """
    if not re.fullmatch(r"all|[1-9]\d*", wanted):
        raise UsageError(f"--gpus takes a number of at least 1, or all; got {wanted!r}.")
    if (device or "").startswith("cpu"):
        return os.cpu_count() or 1 if wanted == "all" else int(wanted)
    import torch

    there = torch.cuda.device_count()
    count = there if wanted == "all" else int(wanted)
    if count > there or not there:
        raise UsageError(f"--gpus {wanted}, but this machine has {there}. Try --device cpu, or fewer.")
    return count


def launch(count: int, arguments: list[str], logs: Path | None = None, echo: bool = False) -> int:
    """Run `neutreno-adapt` with these arguments in `count` processes on this machine; returns the exit code.

    What they print goes through or, with `logs`, into files in that folder, and on stderr too with `echo`. If one of
    them fails, torch's launcher ends the others, after 30 s by force.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # the launcher's warnings say less than the worker's own line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    ignored = {name for name in SIGNALS if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN}  # nohup
    passed_on = [name for name in SIGNALS if name not in ignored]
    specs = DefaultLogsSpecs(str(logs), Std.ALL, Std.ERR if echo else Std.NONE) if logs else DefaultLogsSpecs()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id="neutreno", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, logs_specs=specs,
        signals_to_handle=",".join(passed_on),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "timm_neutreno_cli.main", *arguments)
    except ChildFailedError as error:
        return _exit_code([failure.exitcode for failure in error.failures.values()])
    except SignalException:
        return 130
    return 0


def launch_with(options: Mapping[str, Any], count: int, echo: bool) -> str:
    """Run `neutreno-adapt` with these options, by name, in `count` processes on this machine; returns what it prints.

    Args:
        options: As --config takes them.
        count: Of processes.
        echo: Let what they say on stderr through.

    Raises:
        CliError: What one of them ended with, with its sentence.
    """
    import yaml

    with tempfile.TemporaryDirectory(prefix="neutreno-") as folder:
        path = Path(folder) / "options.yaml"
        path.write_text(yaml.safe_dump(dict(options)), encoding="utf-8")
        variables = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("NEUTRENO_")}
        try:  # the command would read options from them, which go before a file's
            code = launch(count, ["neutreno-adapt", "--config", str(path)], Path(folder), echo)
        finally:
            os.environ.update(variables)
        printed, said = (
            "".join(file.read_text(encoding="utf-8") for file in sorted(Path(folder).rglob(name)))
            for name in ("stdout.log", "stderr.log")
        )
    if code:
        kinds = {kind.exit_code: kind for kind in CliError.__subclasses__()}
        lines = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
        raise kinds.get(code, CliError)(lines[0] if lines else f"a process ended with exit code {code}.")
    return printed


def _exit_code(codes: list[int]) -> int:
    """The code of the worker whose error was the cause: those that it took along end with 1 or by a signal."""
    own = [code for code in codes if code > 1]
    if own:
        return own[0]
    killed = [-code for code in codes if code < 0]
    if killed and not any(code > 0 for code in codes):
        raise CliError(
            f"a worker process was killed by signal {killed[0]}, mostly because memory ran out. Use a smaller "
            "--batch-size, more --accumulate or fewer --workers; what was saved before is still there."
        )
    return 1
