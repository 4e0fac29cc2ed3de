"""The result of a run: what results.json holds, by machine keys, and how it is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..runtime import files, processes
from ..runtime.console import fold, width
from . import tables, verdict
from .tables import count

RESULTS, EVALUATIONS = "results.json", "evaluations.json"  # where the first is, the run is finished
REPORT = "report.html"


@dataclass
class RunResult:
    """What one run, of one seed, has measured.

    Attributes:
        seed: Of data order, augmentation and dropout.
        checkpoint: What was adapted, as it was named.
        data: Name of the data.
        output: Folder of the run.
        epochs: Passes over the train images.
        device: Where it ran last.
        processes: How many took part last.
        skipped_images: Reads of unreadable images that were passed over.
        new_head: Whether the checkpoint's head was initialised anew.
        seconds: Duration of the last start.
        base_model: Its repository on the Hub; None if it is not known.
        license: The base model's; None if it is not known.
        epochs_before: The numbers of epochs that the run was planned for before it was made longer.
        arms: Their names in the order of training: "control", and the methods' own strings.
        main: The arm whose model lies in the run's root.
        models: Evaluations by row: "checkpoint", ARM/start before training, ARM, ARM/ema.
    """

    seed: int
    checkpoint: str
    data: str
    output: str
    epochs: int
    device: str
    processes: int
    skipped_images: int
    new_head: bool
    seconds: float
    base_model: str | None
    license: str | None
    epochs_before: list[int]
    arms: list[str]
    main: str
    models: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, directory: Path) -> RunResult | None:
        """The result of a run that is finished; None if it is not."""
        path = directory / RESULTS
        if not path.exists():
            return None
        document = json.loads(path.read_text())
        return cls(**{item.name: document[item.name] for item in fields(cls)})

    @property
    def methods(self) -> list[str]:
        return [name for name in self.arms if name != verdict.CONTROL]

    @property
    def sentences(self) -> list[str]:
        return verdict.of_run(self.models, self.methods)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return tables.cells(self.models, self.new_head)

    def document(self) -> dict[str, Any]:
        """As --json prints it."""
        outcomes = verdict.outcomes(self.models, self.methods)
        return {**asdict(self), "outcomes": outcomes, "verdict": self.sentences}

    def text(self) -> str:
        """For the terminal: the table, the verdict, and how to load the model."""
        columns, lines = width(), [*self.sentences]
        if self.skipped_images:
            lines.append(f"Unreadable images were passed over {count(self.skipped_images, 'time')}.")
        return "\n".join(
            [
                f"\n{tables.plain(self.rows, columns)}\n",
                *(fold(line, columns) for line in lines),
                f"\n{self.seconds:.0f} s. Report: {self.output}/{REPORT}\nLoad {self.main} with:\n",
                *self.load_lines(),
            ]
        )

    def load_lines(self) -> list[str]:
        return ["import timm, timm_neutreno", f'model = timm.create_model("local-dir:{self.output}", pretrained=True)']


class Evaluations:
    """The run's evaluations, kept in a file as they come: a resumed run does not make them again.

    Args:
        directory: Of the run.
        writes: Whether this process is the one that writes; the others know what it knows.
    """

    def __init__(self, directory: Path, writes: bool):
        self.path, self.writes = directory / EVALUATIONS, writes
        known = json.loads(self.path.read_text()) if writes and self.path.exists() else {}
        self.rows: dict[str, dict[str, Any]] = processes.broadcast(known)

    def add(self, key: str, evaluation: dict[str, Any]) -> None:
        """Keep the figures of a row."""
        self.rows[key] = evaluation
        if self.writes:
            files.write_text(self.path, json.dumps(self.rows, indent=2) + "\n")

    def in_order(self, arms: list[str]) -> dict[str, dict[str, Any]]:
        """The rows as tables have them: the checkpoint, arms before training, arms."""
        keys = [tables.CHECKPOINT, *(arm + tables.START for arm in arms)]
        keys += [key for arm in arms for key in (arm, arm + tables.EMA)]
        return {key: self.rows[key] for key in keys if key in self.rows}
