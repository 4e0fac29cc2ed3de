"""Opening a saved Segmenter, with errors for the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from timm_neutreno import Segmenter

from ..errors import CheckpointError, one_line
from .load_errors import hub_errors

# what building from a damaged config.json, and reading its weights, raise
DAMAGED = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError,
           FileNotFoundError, SafetensorError)  # fmt: skip


def is_segmenter(folder: Path) -> bool:
    """Whether a folder holds a saved Segmenter."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged: said by who reads more of it
        return False
    return isinstance(config, dict) and str(config.get("architecture", "")).endswith("segmenter")


def open_segmenter(name: str) -> Any:
    """A Segmenter of a folder or of the Hub ("hf-hub:OWNER/NAME"), in eval mode.

    Raises:
        CheckpointError: If it is none, or cannot be read.
        HubError: If it is on the Hub and cannot be had.
    """
    on_hub = name.startswith(("hf-hub:", "hf_hub:"))
    place = name.partition(":")[2] if on_hub else name.removeprefix("local-dir:")
    if not on_hub and not is_segmenter(Path(place)):
        raise CheckpointError(f"{place} is no saved Segmenter: its folder needs a config.json that says so.")
    repo, _, revision = place.partition("@") if on_hub else (place, "", "")
    with hub_errors(name):
        try:
            return Segmenter.from_pretrained(repo, revision=revision or None)
        except DAMAGED as error:
            raise CheckpointError(f"cannot read the Segmenter in {place}: {one_line(error)[:300]}") from error
