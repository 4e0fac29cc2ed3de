"""What `adapt`, `evaluate` and `probe` return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..reports import tables

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Result:
    """Printed, it is what the command prints; as the last line of a notebook's cell it is a table.

    Attributes:
        rows: The figures of each row of the table, by its machine key: "checkpoint", "neutreno/start", "control",
            "neutreno", ...; of a probe, by model and setting.
        verdict: What the figures show and what they cannot show, in sentences.
        paths: What was written, by name: "output" is the folder of all of it.
        document: All of the above as plain dicts, lists and numbers: what the command prints with --json.
        text: As the command prints it.
        cells: The table, header first.
        models: The models that `model` can give, by name; the first is the main one.
    """

    rows: Mapping[str, Any]
    verdict: Sequence[str]
    paths: Mapping[str, Path]
    document: Mapping[str, Any]
    text: str = field(repr=False)
    cells: tables.Cells = field(default=(), repr=False)
    models: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict, repr=False)

    def model(self, name: str | None = None) -> nn.Module:
        """One of the models, on the CPU and in eval mode, as timm makes it from the saved files.

        Args:
            name: Of `models`: "neutreno", "control", "neutreno/ema", "checkpoint", ...; None for the main one.

        Raises:
            UsageError: If there is no such model.
            CheckpointError: If its files are gone.
        """
        if not self.models or (name is not None and name not in self.models):
            raise UsageError(f"no model {name!r} here. There are: {', '.join(self.models) or 'none'}.")
        return self.models[name if name is not None else next(iter(self.models))]().eval()

    def __str__(self) -> str:
        return self.text.strip()

    def _repr_html_(self) -> str:
        """For notebooks."""
        sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.verdict)
        return (tables.html(self.cells) if self.cells else f"<pre>{escape(str(self))}</pre>") + sentences
