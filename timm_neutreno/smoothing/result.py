"""What a measurement gives back: numbers per layer that save to JSON."""

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
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Smoothing:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not such a result.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a saved smoothing result: {error}.") from None
