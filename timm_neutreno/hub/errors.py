"""What the Hugging Face client raises, as one sentence: what, where, what next. Never with a token or a signed URL."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

TOKENS = "https://huggingface.co/settings/tokens"
PASSING = (408, 409, 412, 429, 500, 502, 503, 504)  # 409 and 412: somebody else's commit came first


class PushError(RuntimeError):
    """A push that did not succeed, in one sentence."""


@contextmanager
def understood() -> Iterator[None]:
    """Within it, an answer that the Hub would not give is one sentence.

    Raises:
        PushError: If what came is no JSON, or another document than the Hub's.
    """
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise PushError(
            f"what answers at {constants.ENDPOINT} is not the Hugging Face Hub ({type(error).__name__}). Check "
            "HF_ENDPOINT, and whether a proxy or a login page answers."
        ) from error


def status_of(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) if isinstance(error, HfHubHTTPError) else None


def is_lost_connection(error: BaseException) -> bool:
    """The client's HTTP library changes between versions, so its exceptions are matched by module."""
    if isinstance(error, LocalEntryNotFoundError):  # a download that found no Hub
        return True
    return not isinstance(error, HfHubHTTPError) and type(error).__module__.startswith(("httpx", "requests", "urllib"))


def may_pass(error: BaseException) -> bool:
    """Whether trying again can help."""
    return is_lost_connection(error) or status_of(error) in PASSING


def asked_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait: `retry-after`, or t= in its `ratelimit` header; 0 if it does not."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    found = re.fullmatch(r"\d+", headers.get("retry-after", "")) or re.search(
        r"\bt=(\d+)", headers.get("ratelimit", "")
    )
    return float(re.sub(r"\D", "", found.group())) if found else 0.0


def explain(error: BaseException, repo_id: str, revision: str | None = None) -> str | None:
    """The sentence for an exception of the Hub's client; None if it is none of those."""
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on, so nothing can be pushed. Unset HF_HUB_OFFLINE."
    if isinstance(error, LocalTokenNotFoundError):
        return (
            f"not logged in to the Hugging Face Hub. Run `hf auth login`, or set HF_TOKEN to a write token ({TOKENS})."
        )
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is not a name for a repository: give OWNER/NAME."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}. Give a branch, which is made if missing, or leave it out."
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"the Hub does not accept the metadata at the top of README.md in {repo_id}: {_words(str(error))}"
    if is_lost_connection(error):
        return f"no connection to the Hugging Face Hub ({type(error).__name__}). Check the network and HF_ENDPOINT."
    if isinstance(error, HfHubHTTPError):
        return _explain_status(status_of(error), _words(error.server_message or ""), repo_id, asked_wait(error))
    return None


def _explain_status(status: int | None, said: str, repo_id: str, wait: float) -> str:
    if status == 401:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "`hf auth login`"
        return f"the Hugging Face Hub does not accept the token from {source}: wrong or expired. Make one at {TOKENS}."
    if status == 402:
        return f"the storage of {repo_id.partition('/')[0]} on the Hub is used up. {said}".strip()
    if status == 403:
        return (
            f"the token may not write to {repo_id}. Give it that right at {TOKENS}, or offer the model with "
            f"--create-pr. The Hub says: {said or 'forbidden'}"
        )
    if status == 404:
        return (
            f"{repo_id} is missing on the Hub, or the token cannot see it. Check the name, and the token at {TOKENS}."
        )
    if status in (409, 412):
        return f"{repo_id} was changed by somebody else at the same time. Push again."
    if status == 429:
        return f"the Hub's rate limit is reached. Push again in {wait or 300:.0f} seconds."
    if status and status >= 500:
        return (
            f"the Hugging Face Hub has an error of its own ({status}). Push again later; https://status.huggingface.co"
        )
    return f"the Hugging Face Hub refuses {repo_id} ({status}): {said or 'without a reason'}"


def _words(text: str) -> str:
    """One short line, without tokens and without the queries of signed addresses."""
    text = re.sub(r"hf_\w{8,}", "hf_...", " ".join(text.split()))
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", text)[:200]
