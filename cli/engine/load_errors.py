"""What loading weights, and the Hub's client, raise: in a user's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from ..errors import CheckpointError, HubError, UsageError, one_line

QUICK = 5.0  # seconds
HTTP_LIBRARIES = ("httpx", "httpcore", "requests", "urllib", "socket", "ssl")


@contextmanager
def weight_errors(label: str, arch: str, asked: Sequence[str] = ()) -> Iterator[None]:
    """Turn what building a model and loading its weights raise into a sentence; `asked` are given --model-kwargs."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{label} is truncated or not a safetensors file: {one_line(error)}.") from error
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        if "state_dict" not in str(error):
            raise CheckpointError(f"cannot load {label} as {arch}: {one_line(error)[:300]}") from error
        raise CheckpointError(
            f"the weights in {label} are not those of {arch}: {_first_mismatch(str(error))} "
            "Name the right architecture with --arch, and constructor arguments (where the command takes them) with "
            "--model-kwargs key=value."
        ) from error
    except (TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        if asked:
            raise UsageError(f"{arch} does not take these --model-kwargs: {one_line(error)[:300]}.") from error
        raise CheckpointError(f"{arch} cannot be built as {label} says: {one_line(error)[:300]}.") from error


def _first_mismatch(message: str) -> str:
    lines = [line.strip() for line in message.splitlines()[1:] if line.strip()]
    return lines[0][:160].rstrip(". ") + "." if lines else ""


@cache
def hub_answers() -> bool:
    """Whether the Hub says anything within some seconds: its client would try for a minute, and say so line by line."""
    try:
        get_session().head(constants.ENDPOINT, timeout=QUICK)
    except Exception as error:
        return not type(error).__module__.startswith(HTTP_LIBRARIES)
    return True


@contextmanager
def offline_if_silent() -> Iterator[None]:
    """Within it, a Hub that does not answer is not asked again: what the cache has is used."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the Hub client's exceptions into a sentence; its HTTP library's are matched by module, since it changes."""
    instead = "A file or folder of weights, or demo, the embedded model, needs no network."
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(f"{what} is no name of a repository: give hf-hub:OWNER/NAME.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise HubError(
            f"{what} is not in the local cache and the Hugging Face Hub cannot be reached. {instead}"
        ) from error
    except RevisionNotFoundError as error:
        raise HubError(f"{what} has no such revision: after the @ goes a branch, a tag or a commit of it.") from error
    except HfHubHTTPError as error:
        raise HubError(f"the Hugging Face Hub does not give {what}: {one_line(error)[:200]} {instead}") from error
    except Exception as error:
        if not type(error).__module__.startswith(HTTP_LIBRARIES):
            raise
        raise HubError(
            f"no connection to the Hugging Face Hub for {what} ({one_line(error)[:100]}). {instead}"
        ) from error
