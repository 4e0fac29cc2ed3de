"""The result of a run: what results.json holds, by machine keys, and how it is shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import CheckpointError
from ..runtime import files, processes, records
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
        task: "classification" or "segmentation".
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
    task: str = "classification"

    @classmethod
    def read(cls, directory: Path) -> RunResult | None:
        """The result of a run that is finished; None if it is not."""
        path = directory / RESULTS
        if not path.exists():
            return None
        document = records.read_json(path, KINDS)
        _check_rows(document["models"], path)
        arms = [*document["arms"], document["main"], tables.CHECKPOINT]
        if missing := [name for name in arms if name not in document["models"]]:
            raise CheckpointError(f"{path}: models has no {missing[0]}. Repair it, or start anew.")
        return cls(**{name: document[name] for name in KINDS})

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
        if self.task == "segmentation":
            call = f"Segmenter.from_pretrained({json.dumps(self.output, ensure_ascii=False)})"
            return ["from timm_neutreno import Segmenter", f"model = {call}"]
        return [
            "import timm, timm_neutreno",
            f"model = timm.create_model({json.dumps('local-dir:' + self.output, ensure_ascii=False)}, pretrained=True)",
        ]


KINDS = get_type_hints(RunResult)
ROW = {
    "images": int, "strengths": dict[str, dict[str, float]], "similarity": list[float], "similarity_error": float,
}  # fmt: skip
OPTIONAL = {"miou_multi_scale", "decoder_similarity"}  # figures that not every run of the task has


def _check_rows(rows: dict[str, Any], path: Path) -> None:
    """Refuse rows that `evaluate` cannot have given.

    Raises:
        CheckpointError: With the first of them.
    """
    for name, row in rows.items():
        fault = records.misfit(row, _kinds(row)) if isinstance(row, dict) else "it is no mapping"
        fault = fault or _impossible(row)
        if fault:
            raise CheckpointError(f"{path}: of {name}, {fault}. Repair it, or start anew.")


def _kinds(row: dict[str, Any]) -> dict[str, Any]:
    """What the row of a task must hold."""
    task = "segmentation" if "miou" in row else "classification"
    return {**dict.fromkeys(tables.METRICS[task].keys() - OPTIONAL, float), **ROW}


def _whole_numbers(value: Any) -> Iterator[int]:
    """All of them in a document."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)


def _impossible(row: dict[str, Any]) -> str:
    """What no evaluation gives, in words; "" if nothing."""
    if not row["similarity"]:
        return "similarity is empty"
    if not 0 < row["images"] < 10**12:
        return f"images cannot be {row['images']}"
    if any(abs(number) > 10**300 for number in _whole_numbers(row)):
        return "a whole number in it is too large"
    for metric in tables.metrics_of([row]).keys() - {"loss", *tables.LAST_BLOCK}:  # a loss may overflow
        if not abs(row[metric]) <= 100:
            return f"{metric} cannot be {row[metric]}"
    for strength, figures in row["strengths"].items():
        if {"mean_abs", "min", "max"} - figures.keys():
            return f"the figures of {strength} are incomplete"
    return ""


class Evaluations:
    """The run's evaluations, kept in a file as they come: a resumed run does not make them again.

    Args:
        directory: Of the run.
        writes: Whether this process is the one that writes; the others know what it knows.
    """

    def __init__(self, directory: Path, writes: bool):
        self.path, self.writes = directory / EVALUATIONS, writes
        known = records.read_json(self.path, {}) if writes and self.path.exists() else {}
        _check_rows(known, self.path)
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
