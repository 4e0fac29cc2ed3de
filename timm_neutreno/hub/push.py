"""Pushing a model, or what a run left, to the Hugging Face Hub: one commit with a card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import HfApi
from safetensors import SafetensorError, safe_open
from torch import nn

from . import card, client, segmentation_card
from .errors import PushError
from .save import save_pretrained

PLOTS = ("similarity.png", "examples.png")
SENT = ("model.safetensors", "config.json", *PLOTS)  # args.yaml and results.json stay: they hold paths of this machine


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
    contents = _contents(Path(directory))
    target = client.Target(repo_id, private, revision, create_pr)
    target = client.prepare(target, contents.config["architecture"])
    license = _license(contents.config, contents.results)

    def write_card(old: str | None) -> str:
        return _card(contents, target.repo_id, license, old)

    name = contents.config["architecture"]
    return client.upload(target, contents.files, write_card, f"NeuTRENO model {name}")


def preview(directory: str | os.PathLike[str], repo_id: str) -> tuple[str, list[Path]]:
    """The card and the files that `push_folder` would push, without asking the Hub for anything.

    The licence is not looked up, and a README.md that is there already is not merged.

    Raises:
        PushError: If the card cannot be written.
    """
    contents = _contents(Path(directory))
    license = (
        contents.results["license"] if contents.results else contents.config.get("pretrained_cfg", {}).get("license")
    )
    return _card(contents, repo_id, license, None), list(contents.files.values())


class _Contents(NamedTuple):
    """What a folder has: config.json, results.json and args.yaml as far as they are there, and the files that go."""

    config: dict[str, Any]
    results: dict[str, Any] | None
    arguments: dict[str, Any] | None
    files: dict[str, Path]


def _contents(directory: Path) -> _Contents:
    for name in SENT:
        check_file(directory / name)
    config = _read(directory / "config.json", json.loads)
    results = arguments = None
    if (directory / "results.json").is_file():
        results = _read(directory / "results.json", json.loads)
        if (directory / "args.yaml").is_file():
            arguments = _read(directory / "args.yaml", yaml.safe_load)
    files = {name: directory / name for name in SENT if (results or name not in PLOTS) and (directory / name).is_file()}
    return _Contents(config, results, arguments, files)


def _card(contents: _Contents, repo_id: str, license: str | None, old: str | None) -> str:
    describe = segmentation_card.segmenter if contents.config["architecture"].endswith("segmenter") else card.classifier
    try:
        return card.render(repo_id, contents.config, contents.results, contents.arguments, license, old, describe)
    except ValueError as error:
        raise PushError(f"{repo_id}: {error}") from error


def check_file(path: Path) -> None:
    """Look into a file before it is sent.

    Raises:
        PushError: If it is a link out of its folder, whose target nobody asked to publish, or damaged weights.
    """
    if path.exists() and path.resolve().parent != path.parent.resolve():
        raise PushError(f"{path} is a link to {path.resolve()}: copy the file, if that is what shall be published.")
    if path.suffix == ".safetensors" and path.exists():
        try:
            with safe_open(path, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise PushError(f"{path} is damaged, no safetensors file: {' '.join(str(error).split())[:200]}") from error


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise PushError(f"cannot read {path}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise PushError(f"cannot read {path}: it holds a {type(found).__name__}, no mapping.")
    return found


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
