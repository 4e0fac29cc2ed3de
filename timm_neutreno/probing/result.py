"""What probing gives back: scores with intervals that save to JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Score:
    """What one probe scores, in per cent.

    Attributes:
        choice: Ridge strength or number of neighbours, best on val.
        val: Score on val.
        test: Score on test.
        difference: Test score minus the reference's; None for the reference itself.
        low: Lower end of the difference's 95 % interval (paired bootstrap over test images).
        high: Upper end.
    """

    choice: float
    val: float
    test: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One model under one setting.

    Attributes:
        model: Its name.
        method: The method's name; empty for the model as it is.
        strengths: Name -> value.
        layers: Blocks that have the method; None for all.
        label: The setting in print.
        similarity: Mean cosine similarity of different patch tokens of the last block, over test images.
        scores: Probe ("linear", "knn") -> score on the last block's tokens.
        by_block: If asked for: "similarity", "linear", "knn" -> one test value per block, first block first.
    """

    model: str
    method: str
    strengths: dict[str, float]
    layers: list[int] | None
    label: str
    similarity: float
    scores: dict[str, Score]
    by_block: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """One comparison: of the strengths of a family, the best on val against the reference, on test.

    Attributes:
        model: The model's name.
        family: Method and blocks; "as it is" where a model is compared with the first one.
        probe: "linear" or "knn".
        row: Index of the setting in `ProbeResult.rows`.
        on_val: Its val score minus the reference's.
        difference: Its test score minus the reference's.
        low: Lower end of the difference's interval, at `ProbeResult.level`.
        high: Upper end.
        outcome: "better", "worse" or "open", as the interval lies above, below or around 0.
        sentence: All this in words.
    """

    model: str
    family: str
    probe: str
    row: int
    on_val: float
    difference: float
    low: float
    high: float
    outcome: str
    sentence: str


@dataclass(frozen=True)
class ProbeResult:
    """Everything that came out of one call.

    Attributes:
        task: "classification" or "segmentation".
        metric: "top1" or "miou".
        images: Numbers of "train", "val" and "test" images.
        protocol: How it was done: sentences by topic.
        rows: The settings; a model as it is comes before its settings.
        level: Of the verdicts' intervals: 95 % over all of them together (Bonferroni).
        verdicts: What can be told.
    """

    task: str
    metric: str
    images: dict[str, int]
    protocol: dict[str, str]
    rows: list[Row]
    level: float
    verdicts: list[Verdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, as `save` writes them."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ProbeResult:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not such a result.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [
                Row(**{**row, "scores": {probe: Score(**score) for probe, score in row["scores"].items()}})
                for row in saved.pop("rows")
            ]
            verdicts = [Verdict(**verdict) for verdict in saved.pop("verdicts")]
            return cls(**saved, rows=rows, verdicts=verdicts)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a saved probing result: {error}.") from None
