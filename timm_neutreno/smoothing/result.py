"""What a measurement gives back: numbers per layer that save to JSON and plot themselves."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Smoothing:
    """Measurements of one model.

    Attributes:
        model: Its name, for legends.
        images: How many images they are the mean of.
        values: Metric name -> one value per layer, first layer first: the mean over images.
        spread: Metric name -> standard deviation over images, likewise.
    """

    model: str
    images: int
    values: dict[str, list[float]]
    spread: dict[str, list[float]]

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Smoothing:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not such a result.
        """
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved smoothing result: {error}.") from None

    def plot(self, path: str | Path, metric: str = "block_similarity") -> None:
        """Plot one metric by layer into a .png, .svg or .pdf file.

        Raises:
            ValueError: If the metric was not measured.
        """
        plot_results([self], path, metric)


def plot_results(results: list[Smoothing], path: str | Path, metric: str = "block_similarity") -> None:
    """Plot one metric of several models side by side; see `plot_similarity`.

    Raises:
        ValueError: If the metric was not measured on one of the models.
    """
    from .metrics import METRICS
    from .plots import plot_similarity

    for result in results:
        if metric not in result.values:
            raise ValueError(f"{metric!r} was not measured on {result.model}; there are: {', '.join(result.values)}.")
    curves = {result.model: result.values[metric] for result in results}
    plot_similarity(curves, path, ylabel=METRICS[metric].label)
