"""What is said of an epoch: a record for the loggers, a line for the terminal, and the time that is left."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

NAMES = {"top1": "top-1", "miou": "mIoU"}  # the main figure of each task


@dataclass
class Pace:
    """Of the part of an epoch that was trained without a break: seconds, those spent waiting for data, and steps."""

    seconds: float
    waited: float
    steps: int


class TimeLeft:
    """Extrapolates from the steps of this start, with the evaluations between them, but for the first, which is slow.

    Args:
        steps: Of a training.
    """

    def __init__(self, steps: int):
        self.steps = steps
        self.first: tuple[int, float] | None = None

    def after(self, step: int, trainings: int) -> tuple[float | None, float | None]:
        """Seconds that are left, of this training and with so many more of the same length; None if not known yet."""
        now = time.perf_counter()
        if self.first is None:
            self.first = step, now
        first, start = self.first
        if step <= first:
            return None, None
        pace = (now - start) / (step - first)
        return pace * (self.steps - step), pace * (self.steps * (1 + trainings) - step)


def record(
    arm: str, epoch: int, figures: dict[str, Any], pace: Pace, batch_size: int, evaluations: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """An epoch as metrics.jsonl has it.

    Args:
        arm: Its name.
        epoch: From 1.
        figures: Of training, by name.
        pace: How long it took; without a step there is no speed.
        batch_size: Images per step.
        evaluations: "raw" and, if weights are averaged, "ema".
    """
    return {
        "arm": arm,
        "epoch": epoch,
        **figures,
        "images_per_second": pace.steps * batch_size / pace.seconds if pace.steps else None,
        "data_wait_share": pace.waited / pace.seconds if pace.steps else None,
        **{name: figures["mean_abs"] for name, figures in evaluations["raw"]["strengths"].items()},
        **{f"val_{key}": value for key, value in evaluations["raw"].items()},
        **{f"val_ema_{key}": value for key, value in evaluations.get("ema", {}).items()},
    }


def line(record: dict[str, Any], epochs: int) -> str:
    """An epoch in one line."""
    key = next(key for key in NAMES if f"val_{key}" in record)
    averaged = f"  EMA {record[f'val_ema_{key}']:.2f}" if f"val_ema_{key}" in record else ""
    rate = f"  {record['images_per_second']:,.0f} images/s" if record["images_per_second"] else ""
    return (
        f"{record['arm']:>8}  {record['epoch']:>{len(str(epochs))}}/{epochs}  loss {record['train_loss']:.4f}  "
        f"val loss {record['val_loss']:.4f}  {NAMES[key]} {record[f'val_{key}']:.2f}{averaged}{rate}"
    )


def waiting(record: dict[str, Any]) -> str:
    """What to do about a loader that is too slow; "" if it is not."""
    share = record["data_wait_share"] or 0.0
    if share <= 0.2:
        return ""
    return (
        f"{100 * share:.0f} % of the time went into waiting for data. More --workers, fewer augmentations, or images "
        "stored at a smaller size would help."
    )
