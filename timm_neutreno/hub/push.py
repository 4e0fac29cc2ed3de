"""Pushing a model, or what a run left, to the Hugging Face Hub: one commit with a card."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi
from torch import nn

from . import card, client, segmentation_card
from .errors import PushError
from .save import save_pretrained


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    **kwargs: Any,
) -> str:
    """Push a model as one commit: model.safetensors, config.json, and a card if there is none of ours.

    `import timm_neutreno, timm; timm.create_model(f"hf-hub:{repo_id}", pretrained=True)` loads it.

    Args:
        model: A `neutreno_*` model, or a registered timm model after `patch`.
        repo_id: OWNER/NAME, or NAME for the token's own account. Made if missing.
        private: Make the repository private, if it is made.
        revision: A branch to push to, made if missing; None for main.
        create_pr: Open a pull request against main instead.
        **kwargs: As of `save_pretrained`.

    Returns:
        Address of the repository, branch or pull request.

    Raises:
        PushError: If it did not succeed; the repository is as it was.
        ValueError: As `save_pretrained`, or if the name is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **kwargs)
        return push_folder(folder, repo_id, private=private, revision=revision, create_pr=create_pr)


def push_folder(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Push a run directory, or what `save_pretrained` wrote. Arguments, result and errors as of `push_to_hub`."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    target = client.Target(repo_id, private, revision, create_pr)
    target = client.prepare(target, config["architecture"])
    results = arguments = None
    if (directory / "results.json").is_file():
        results = json.loads((directory / "results.json").read_text())
        if (directory / "args.yaml").is_file():
            arguments = yaml.safe_load((directory / "args.yaml").read_text())
    license = _license(config, results)
    describe = segmentation_card.segmenter if config["architecture"].endswith("segmenter") else card.classifier

    def write_card(old: str | None) -> str:
        try:
            return card.render(target.repo_id, config, results, arguments, license, old, describe)
        except ValueError as error:
            raise PushError(f"{target.repo_id}: {error}") from error

    # args.yaml and results.json stay here: they hold paths of this machine
    names = ("model.safetensors", "config.json", *(("similarity.png", "examples.png") if results else ()))
    files = {name: directory / name for name in names if (directory / name).is_file()}
    return client.upload(target, files, write_card, f"NeuTRENO model {config['architecture']}")


def _license(config: dict[str, Any], results: dict[str, Any] | None) -> str | None:
    """The base model's; asked of the Hub where the base is there and its config.json does not say."""
    license = results["license"] if results else config.get("pretrained_cfg", {}).get("license")
    if not license and results and results.get("base_model"):
        try:
            data = HfApi().model_info(results["base_model"]).card_data
        except Exception:  # the push is worth more than this line of the card
            return None
        license = data and (data.get("license_name") or data.get("license"))
    return license or None
