"""What loading weights, and the Hub's client, raise: in a user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ..errors import CheckpointError, HubError, UsageError, one_line


@contextmanager
def weight_errors(label: str, arch: str) -> Iterator[None]:
    """Turn what loading weights raises into a sentence."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{label} is truncated or not a safetensors file: {one_line(error)}.") from error
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        if "state_dict" not in str(error):
            raise CheckpointError(f"cannot load {label} as {arch}: {one_line(error)[:300]}") from error
        raise CheckpointError(
            f"the weights in {label} are not those of {arch}: {_first_mismatch(str(error))} "
            "Name the right architecture with --arch, and constructor arguments with --model-kwargs key=value."
        ) from error
    except TypeError as error:
        raise UsageError(f"{arch} does not take these --model-kwargs: {one_line(error)[:300]}.") from error


def _first_mismatch(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()[1:] if line.strip()]
    return lines[0][:160].rstrip(". ") + "." if lines else ""


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the Hub client's exceptions into a sentence; its HTTP library's are matched by module, since it changes."""
    instead = "A file or folder of weights, or demo, the embedded model, needs no network."
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{what} is not in the local cache and the Hugging Face Hub cannot be reached. {instead}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{what} has no such revision: after the @ goes a branch, a tag or a commit of it.") from error
    except HfHubHTTPError as error:
        raise HubError(f"the Hugging Face Hub does not give {what}: {one_line(error)[:200]} {instead}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "requests", "urllib")):
            raise
        raise HubError(
            f"no connection to the Hugging Face Hub for {what} ({one_line(error)[:100]}). {instead}"
        ) from error
