"""Pushing to the Hugging Face Hub: rights are checked first, every push is one commit, every failure one sentence."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_download

from .errors import PushError, asked_wait, explain, may_pass, understood

QUICK = (1.0, 2.0)  # seconds between tries before a run: a wrong setting must show at once
PATIENT = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # after a run, whose result is worth waiting for
SILENCE = 30.0  # seconds in which nothing came of an answer; the client itself would wait for ever
LONGEST = 300.0  # the Hub's window for rate limits
# files of a repository that holds no model yet
HARMLESS = re.compile(r"\.git(attributes|ignore)|(README|LICENSE|NOTICE)(\.\w+)?", re.IGNORECASE)

_logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Target:
    """Where to push.

    Attributes:
        repo_id: OWNER/NAME, or NAME for the token's own account.
        private: Make the repository private, if it is made.
        revision: A branch, made if missing; None for main.
        create_pr: Open a pull request against main instead of committing to it.
    """

    repo_id: str
    private: bool = False
    revision: str | None = None
    create_pr: bool = False


def check_target(target: Target) -> None:
    """Refuse what the Hub could never accept, without asking it.

    Raises:
        ValueError: With what is wrong with the name.
    """
    part = r"(?!.*(--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?"
    if re.fullmatch(r"hf_[A-Za-z0-9]{20,}", target.repo_id):
        raise ValueError("That is a token, not a repository: give OWNER/NAME, and revoke the token if others saw it.")
    if not re.fullmatch(f"(?:{part}/)?{part}", target.repo_id, re.ASCII) or target.repo_id.endswith(".git"):
        raise ValueError(
            f"{target.repo_id!r} is not a name for a repository: give OWNER/NAME, of letters, digits, '-', '_' and '.'"
            ", such as me/neutreno-deit-tiny."
        )
    if target.create_pr and target.revision:
        raise ValueError("A pull request is opened against main: give create_pr or a revision, not both.")


def prepare(target: Target, architecture: str, waits: tuple[float, ...] = QUICK) -> Target:
    """Check token, rights and name, and create the repository (and branch).

    Args:
        target: Where to push.
        architecture: Of the model that will be pushed; a repository with another one is refused.
        waits: Seconds between tries.

    Returns:
        The target with its full OWNER/NAME.

    Raises:
        PushError: If a push there cannot succeed.
        ValueError: If the name is none.
    """
    check_target(target)
    with understood():
        return _prepare(target, architecture, waits)


def _prepare(target: Target, architecture: str, waits: tuple[float, ...]) -> Target:
    api = HfApi(library_name="timm_neutreno")
    account = retried(api.whoami, target, waits)
    if "/" not in target.repo_id:
        target = replace(target, repo_id=f"{account['name']}/{target.repo_id}")
    _check_rights(account, target)

    def create() -> Any:
        api.create_repo(target.repo_id, private=target.private or None, exist_ok=True)
        if not target.create_pr and "write" in inspect.signature(api.auth_check).parameters:
            api.auth_check(target.repo_id, write=True)
        if target.revision and not target.revision.startswith("refs/"):
            api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
        return api.model_info(target.repo_id, revision=target.revision)

    info = retried(create, target, waits)
    if target.private and info.private is False:
        raise PushError(
            f"{target.repo_id} exists and is public: pushing would publish the model. Make it private in its settings "
            "on the Hub, choose another name, or leave --private out."
        )
    if not target.create_pr:
        files = {sibling.rfilename for sibling in info.siblings or ()}
        _refuse_other_models(target, files, architecture, waits)
    return target


def _check_rights(account: dict[str, Any], target: Target) -> None:
    """What the token says about itself; creating the repository shows the rest."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    role = token.get("role")
    if role == "read" or (role == "fineGrained" and "write" not in json.dumps(token.get("fineGrained", {}))):
        kind = "is read-only" if role == "read" else "is fine-grained, without the right to write to repositories"
        raise PushError(
            f"the Hugging Face token of {account['name']} {kind}. Make one that may write to {target.repo_id} at "
            "https://huggingface.co/settings/tokens, then `hf auth login` or set HF_TOKEN."
        )
    owner = target.repo_id.partition("/")[0]
    names = [account["name"], *(org["name"] for org in account.get("orgs") or ())]
    if owner not in names and not target.create_pr:
        raise PushError(
            f"{target.repo_id} belongs to {owner}, and the token is of {', '.join(names)}. Push to "
            f"{account['name']}/{target.repo_id.partition('/')[2]}, or offer it to {owner} with --create-pr."
        )


def _refuse_other_models(target: Target, files: set[str], architecture: str, waits: tuple[float, ...]) -> None:
    others = sorted(name for name in files if not HARMLESS.fullmatch(name))
    instead = "Nothing is overwritten: choose another name, another --revision, or --create-pr."
    if "config.json" in files:
        text = retried(lambda: _remote_text(target, "config.json", target.revision), target, waits)
        try:
            found = json.loads(text).get("architecture")
        except (ValueError, AttributeError):
            found = None
        if found != architecture:
            raise PushError(
                f"{target.repo_id} holds another model ({found or 'unknown'}, this is {architecture}). {instead}"
            )
    elif others:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise PushError(f"{target.repo_id} has other files in it ({shown}) and no NeuTRENO model. {instead}")


def upload(
    target: Target,
    files: dict[str, Path],
    card: Callable[[str | None], str],
    message: str,
    waits: tuple[float, ...] = PATIENT,
) -> str:
    """Push files and README.md as one commit; what is there already is not sent again.

    Args:
        target: What `prepare` gave.
        files: By their name in the repository.
        card: Makes README.md from the text of the one that is there, if there is one.
        message: Of the commit; a pull request of this title that is still open is updated.
        waits: Seconds between tries.

    Returns:
        Address of the repository, branch or pull request.

    Raises:
        PushError: If it did not succeed; the repository is as it was.
    """
    api = HfApi(library_name="timm_neutreno")

    def attempt() -> str:
        open_pr = _open_pull_request(api, target, message) if target.create_pr else None
        revision = open_pr or target.revision
        there = {sibling.rfilename for sibling in api.model_info(target.repo_id, revision=revision).siblings or ()}
        old = _remote_text(target, "README.md", revision) if "README.md" in there else None
        contents: dict[str, Path | bytes] = {**files, "README.md": card(old).encode()}
        # made anew for every try: the client marks them
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        done = api.create_commit(
            target.repo_id, operations, commit_message=message, revision=revision,
            create_pr=target.create_pr and not open_pr,
        )  # fmt: skip
        address = f"{api.endpoint}/{target.repo_id}"
        if open_pr:
            return f"{address}/discussions/{open_pr.rpartition('/')[2]}"
        return done.pr_url or (f"{address}/tree/{target.revision}" if target.revision else address)

    with understood():
        return retried(attempt, target, waits)


def _open_pull_request(api: HfApi, target: Target, title: str) -> str | None:
    """The ref of our own pull request from an earlier push, so that pushing twice does not open two."""
    account = api.whoami(cache=True)["name"]
    for discussion in api.get_repo_discussions(target.repo_id, author=account, discussion_type="pull_request"):
        if discussion.status in ("open", "draft") and discussion.title == title and discussion.author == account:
            return discussion.git_reference
    return None


def _remote_text(target: Target, name: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = hf_hub_download(target.repo_id, name, revision=revision, cache_dir=os.path.join(folder, "cache"))
        return Path(path).read_text(encoding="utf-8")


def limit_waiting() -> None:
    """Give every request of the Hub's client a timeout, where it has none."""
    session = get_session()
    if _limit not in session.event_hooks["request"]:
        session.event_hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limit]}


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: given.get(kind) or SILENCE for kind in kinds}


def retried(call: Callable[[], Result], target: Target, waits: tuple[float, ...]) -> Result:
    """Call until it succeeds; rate limits, server errors and lost connections are tried again.

    Raises:
        PushError: When no more waits are left, or trying again cannot help.
    """
    for wait in (*waits, None):
        limit_waiting()
        try:
            return call()
        except Exception as error:
            sentence = explain(error, target.repo_id, target.revision)
            if sentence is None:
                raise
            if wait is None or not may_pass(error):
                raise PushError(sentence) from error
            seconds = max(wait, min(asked_wait(error), LONGEST))
            _logger.warning("The Hugging Face Hub did not answer as it should; next try in %.0f s.", seconds)
            time.sleep(seconds)
    raise AssertionError("the last wait is None")
