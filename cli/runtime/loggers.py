"""Where a run's figures go: metrics.jsonl and metrics.csv always, TensorBoard, W&B and trackio if asked for."""

from __future__ import annotations

import csv
import difflib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import UsageError, one_line
from . import files, records

JSONL, CSV = "metrics.jsonl", "metrics.csv"
FIRST = ("arm", "epoch", "step")  # say where a figure belongs; the other keys of a record are figures
PROJECT = "timm-neutreno"


class Loggers:
    """Writes records, each at once: what was logged survives the process.

    A record has `arm`, `epoch`, perhaps `step`, and figures. Lists go to metrics.jsonl only. The horizontal axis of
    curves is the step, or the epoch where a record has none.

    Args:
        directory: Of the run or arm; records that are there already are kept (see `rewind`).
        names: Of `AVAILABLE`, checked with `check`.
        run_name: As TensorBoard, W&B and trackio shall call the run.
        config: What the run was asked to do, for W&B and trackio.

    Raises:
        OutputError: If metrics.jsonl or metrics.csv cannot be written.
    """

    def __init__(self, directory: Path, names: list[str], run_name: str, config: dict[str, Any]):
        self.directory = directory
        self.records = rewind(directory, lambda record: True)
        self.others: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            with self._optional(name):
                self.others[name] = AVAILABLE[name](directory, run_name, config, self.records)

    def log(self, record: dict[str, Any]) -> None:
        """Write one record everywhere.

        Raises:
            OutputError: If metrics.jsonl or metrics.csv cannot be written.
        """
        self.records.append(record)
        path = self.directory / JSONL
        with files.writing(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            files.sync(path)
        _write_csv(self.directory, self.records)
        for name, other in list(self.others.items()):
            with self._optional(name):
                other.log(record)

    def close(self) -> None:
        """Let the others finish what they still have to send."""
        for name, other in list(self.others.items()):
            with self._optional(name):
                other.close()
        self.others = {}

    @contextmanager
    def _optional(self, name: str) -> Iterator[None]:
        """A network that fails must not end a run of days; and stdout is the result's, whatever a library greets."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except Exception as error:
            self.others.pop(name, None)
            print(
                f"warning: --log {name} failed and is off from here: {one_line(error)[:300]} The figures are in "
                f"{self.directory / JSONL}.",
                file=sys.stderr,
            )


def check(names: list[str]) -> None:
    """Refuse before anything starts what cannot work.

    Raises:
        UsageError: If a name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in AVAILABLE:
            near = difflib.get_close_matches(name, AVAILABLE, n=1)
            hint = f"Did you mean: {near[0]}?" if near else f"Choose from: {', '.join(AVAILABLE)}."
            raise UsageError(f"--log: unknown {name!r}. {hint}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # without an origin it is a folder of that name, such as W&B leaves
            raise UsageError(f"--log {name} needs the package {name}: pip install {name}")


def rewind(directory: Path, keep: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Forget the records that a resumed run will write again, and a line that was cut off half-written.

    Args:
        directory: With metrics.jsonl; without it nothing happens.
        keep: Says of a record whether it stays.

    Returns:
        The records that stay.

    Raises:
        OutputError: If the files cannot be written; they are as they were.
    """
    path = directory / JSONL
    if not path.exists():
        return []
    kept = [record for record in records.read_lines(path, {"arm": str, "epoch": int}) if keep(record)]
    files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    _write_csv(directory, kept)
    return kept


def _write_csv(directory: Path, records: list[dict[str, Any]]) -> None:
    """All records anew: a later one may have a figure that the earlier ones had not, and so a column."""
    plain = [{key: value for key, value in record.items() if not isinstance(value, list | dict)} for record in records]
    columns = dict.fromkeys([key for key in FIRST if any(key in record for record in plain)])
    columns |= dict.fromkeys(key for record in plain for key in record)

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(columns), restval="")
            table.writeheader()
            table.writerows(plain)

    files.write_atomic(directory / CSV, write)


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key not in FIRST and isinstance(value, int | float)}


def _position(record: dict[str, Any]) -> int:
    return record.get("step", record["epoch"])


class TensorBoard:
    """Event files in tensorboard/<arm>, so that the arms' curves lie over each other."""

    def __init__(self, directory: Path, run_name: str, config: dict[str, Any], records: list[dict[str, Any]]):
        self.directory = directory / "tensorboard"
        self.last = {record["arm"]: _position(record) for record in records}
        self.writers: dict[str, Any] = {}

    def log(self, record: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        arm = record["arm"]
        if arm not in self.writers:
            after = self.last[arm] + 1 if arm in self.last else None  # what was logged later than this is purged
            self.writers[arm] = SummaryWriter(str(self.directory / arm), purge_step=after)
        for key, value in _figures(record).items():
            self.writers[arm].add_scalar(key, value, _position(record))
        self.writers[arm].flush()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb:
    """One W&B run; its id lies in the directory, so that a resumed run goes on with the same one."""

    def __init__(self, directory: Path, run_name: str, config: dict[str, Any], records: list[dict[str, Any]]):
        import wandb

        path = directory / "wandb_id"
        if not path.exists():
            files.write_text(path, uuid.uuid4().hex[:12])
        number = path.read_text(encoding="utf-8")
        self.run = wandb.init(
            project=PROJECT, name=run_name, config=config, dir=str(directory), id=number, resume="allow"
        )
        self.run.define_metric("*", step_metric="step")  # W&B's own counter cannot go back when a run is resumed

    def log(self, record: dict[str, Any]) -> None:
        figures = {f"{record['arm']}/{key}": value for key, value in _figures(record).items()}
        self.run.log({**figures, "epoch": record["epoch"], "step": _position(record)})

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """One run of trackio's local store, found again by its name."""

    def __init__(self, directory: Path, run_name: str, config: dict[str, Any], records: list[dict[str, Any]]):
        import trackio

        self.run = trackio.init(project=PROJECT, name=run_name, config=config, resume="allow")

    def log(self, record: dict[str, Any]) -> None:
        figures = {f"{record['arm']}/{key}": value for key, value in _figures(record).items()}
        self.run.log({**figures, "epoch": record["epoch"]}, step=_position(record))

    def close(self) -> None:
        self.run.finish()


AVAILABLE: dict[str, Callable[..., Any]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
