"""What config.json and checkpoints record beside the weights: of the types that timm expects, or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HFValidationError

from ..errors import CheckpointError, CliError, one_line
from ..runtime import records

# what may be said of a model, and what it then must be
KINDS = {
    "architecture": str, "num_classes": int, "input_size": list[int], "mean": list[float], "std": list[float],
    "crop_pct": float, "crop_mode": str, "interpolation": str, "license": str | None,
    "label_names": list[str] | dict[str, str] | None, "classifier": str | list[str] | None, "method": str,
}  # fmt: skip


def check_kinds(said: Mapping[str, Any]) -> None:
    """Refuse values of other types.

    Raises:
        ValueError: With the first of them.
    """
    known = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items() if key in KINDS}
    if fault := records.misfit(known, {key: KINDS[key] for key in known}):
        raise ValueError(fault)


@contextmanager
def config_errors(what: str, kind: type[CliError] = CheckpointError) -> Iterator[None]:
    """Turn what reading `what` raises, if it is damaged or was edited, into a sentence.

    Raises:
        CliError: Of that kind, with the cause.
    """
    try:
        yield
    except HFValidationError:  # of a repository's name
        raise
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError, OSError) as error:
        if isinstance(error, OSError) and type(error).__module__ != "builtins":  # the Hub client's own, said elsewhere
            raise
        cause = f"{one_line(error)} is missing" if isinstance(error, KeyError) else one_line(error)[:200]
        raise kind(f"cannot read {what}: {cause}.") from error
