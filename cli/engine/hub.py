"""A run's way to the Hugging Face Hub: what is checked before it trains, and the push after it."""

from __future__ import annotations

import shlex
from pathlib import Path

from timm_neutreno.hub import PushError, client, push_folder
from timm_neutreno.hub.client import Target

from ..config import Config
from ..errors import CheckpointError, HubError, UsageError, one_line
from ..runtime import records
from .checkpoint import seeds_refused
from .segmenter import is_segmenter


def target(config: Config) -> Target:
    """Where a run's --push-to-hub goes."""
    assert config.push_to_hub
    return Target(config.push_to_hub, config.private, config.revision, config.create_pr)


def push(directory: Path, target: Target, quiet: bool = False) -> str:
    """Push, and return the address.

    Raises:
        UsageError: If the repository's name is none.
        CheckpointError: If the directory has no NeuTRENO model.
        HubError: If it did not succeed, with the command that tries again.
    """
    check_model(directory)
    check_target(target)
    from huggingface_hub.utils import disable_progress_bars

    if quiet:
        disable_progress_bars()
    repo, private, revision, create_pr = target.repo_id, target.private, target.revision, target.create_pr
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


def preview(directory: Path, target: Target) -> tuple[str, list[Path]]:
    """The card as a push would write it, and the files that would go with it. The Hub is not asked.

    Raises:
        UsageError, CheckpointError: As of `push`.
        HubError: If the card cannot be written.
    """
    from timm_neutreno.hub.push import preview

    check_model(directory)
    check_target(target)
    try:
        return preview(directory, target.repo_id)
    except PushError as error:
        raise HubError(one_line(error)) from error


def check_model(directory: Path) -> None:
    """The directory must hold a finished NeuTRENO model."""
    seeds_refused(directory)
    missing = [name for name in ("model.safetensors", "config.json") if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} has no {' and no '.join(missing)}, so it is no finished run. Give the --output of a run of "
            "neutreno-adapt that ended, or a folder of timm_neutreno.hub.save_pretrained."
        )
    kinds = {"architecture": str, "num_classes": int} | ({} if is_segmenter(directory) else {"pretrained_cfg": dict})
    architecture = records.read_json(directory / "config.json", kinds)["architecture"]
    if not architecture.startswith("neutreno_"):
        raise CheckpointError(f"{directory} holds {architecture}, which is no NeuTRENO model. Adapt it first.")


def check_target(target: Target) -> None:
    """What can be refused without asking the Hub."""
    try:
        client.check_target(target)
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def prepare(target: Target, architecture: str) -> None:
    """Before a run: token, rights and name must do, and the repository is made.

    Raises:
        HubError: If a push after the run could not succeed.
    """
    try:
        client.prepare(target, architecture)
    except PushError as error:
        raise HubError(
            f"{one_line(error)} Nothing was trained; without --push-to-hub the Hub is not needed."
        ) from error
