"""`neutreno push`: a run directory to the Hugging Face Hub; `neutreno adapt --push-to-hub` ends with the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import CheckpointError, HubError, UsageError, one_line


def push(
    run: Annotated[str, typer.Argument(help="Run directory of neutreno-adapt, or a saved model's folder.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub, or NAME of your own; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; made if missing. (default: main)")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
) -> None:
    """Push a run's model, with a model card, to the Hugging Face Hub."""
    print(pushed(Path(run), repo, private, revision, create_pr))


def pushed(
    directory: Path, repo: str, private: bool, revision: str | None, create_pr: bool, quiet: bool = False
) -> str:
    """Push, and return the address.

    Raises:
        UsageError: If the repository's name is none.
        CheckpointError: If the directory has no NeuTRENO model.
        HubError: If it did not succeed, with the command that tries again.
    """
    check_model(directory)
    check_name(repo, private, revision, create_pr)
    from huggingface_hub.utils import disable_progress_bars

    from timm_neutreno.hub import push_folder
    from timm_neutreno.hub_errors import PushError

    if quiet:
        disable_progress_bars()
    try:
        return push_folder(directory, repo, private=private, revision=revision, create_pr=create_pr)
    except PushError as error:
        again = shlex.join(
            ["neutreno", "push", str(directory), repo]
            + ["--private"] * private
            + (["--revision", revision] if revision else [])
            + ["--create-pr"] * create_pr
        )
        raise HubError(f"{one_line(error)} The model is whole in {directory}. To push it later: {again}") from error


def check_model(directory: Path) -> None:
    """The directory must hold a finished NeuTRENO model."""
    missing = [name for name in ("model.safetensors", "config.json") if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} has no {' and no '.join(missing)}, so it is no finished run. Give the --output of a run of "
            "neutreno-adapt that ended, or a folder of timm_neutreno.hub.save_pretrained."
        )
    try:
        architecture = json.loads((directory / "config.json").read_text())["architecture"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {directory / 'config.json'}: {one_line(error)}.") from error
    if not architecture.startswith("neutreno_"):
        raise CheckpointError(f"{directory} holds {architecture}, which is no NeuTRENO model. Adapt it first.")


def check_name(repo: str, private: bool, revision: str | None, create_pr: bool) -> None:
    """What can be refused without asking the Hub."""
    from timm_neutreno.hub_client import Target, check_target

    try:
        check_target(Target(repo, private, revision, create_pr))
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def prepare(repo: str, private: bool, revision: str | None, create_pr: bool, architecture: str) -> None:
    """Before a run: token, rights and name must do, and the repository is made.

    Raises:
        HubError: If a push after the run could not succeed.
    """
    from timm_neutreno import hub_client
    from timm_neutreno.hub_errors import PushError

    try:
        hub_client.prepare(hub_client.Target(repo, private, revision, create_pr), architecture)
    except PushError as error:
        raise HubError(
            f"{one_line(error)} Nothing was trained; without --push-to-hub the Hub is not needed."
        ) from error
