"""Before memory is taken for a checkpoint's model: is it of the size of the weights that it is to have?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models._hub import _EXT_PRIORITY, _PREFERRED_FILES, hf_split

from timm_neutreno.sizes import Shapes, SizeError, check_size, shapes_in

from ..errors import CheckpointError

OWN = {"num_classes", "drop_path_rate", "dynamic_img_size"}  # arguments that leave a model of timm as large as it was


def compare(source: Any, arguments: Mapping[str, Any], overlay: Mapping[str, Any]) -> None:
    """Refuse a model that is far larger than its weights, whoever said so: config.json, a checkpoint or an option.

    A size that differs by less is found when the weights are loaded. Models that timm knows by name, and to which
    nothing is added, are not asked.

    Args:
        source: The `checkpoint.Source`.
        arguments: Of the model's constructor, without those of `patch`.
        overlay: Of its pretrained cfg, without weights.

    Raises:
        CheckpointError: With the file, the parameter and both shapes.
    """
    cfg = source.pretrained_cfg if isinstance(source.pretrained_cfg, dict) else {}
    if source.weights is None and not cfg and OWN.issuperset(arguments):
        return
    described = {key: cfg[key] for key in ("num_classes", "input_size") if key in cfg} | dict(arguments)
    where, shapes = _weights(source, cfg)
    if shapes is None:
        return

    def build() -> Any:
        return timm.create_model(
            source.arch, pretrained_cfg=source.pretrained_cfg, pretrained_cfg_overlay=dict(overlay) or None, **arguments
        )

    try:
        check_size(build, described, shapes, where)
    except SizeError as error:
        said = "config.json" if cfg else "--arch"
        raise CheckpointError(
            f"{source.label} is not built as {source.arch}: {error}. Is {said} of the same model as the weights, and "
            "are --model-kwargs and --img-size right?"
        ) from error


def _weights(source: Any, cfg: Mapping[str, Any]) -> tuple[str, Shapes | None]:
    """The file with the weights, and the shapes in it; None if timm will say that there is none."""
    if source.weights is not None:
        tensors = {**source.weights, **source.learned}
        return source.overlay.get("file", source.label), {name: tuple(value.shape) for name, value in tensors.items()}
    if not cfg:  # timm's own weights are those of the model that it knows by this name
        with torch.device("meta"):
            own = timm.create_model(source.arch).state_dict()
        return f"timm's {source.arch}", {name: tuple(value.shape) for name, value in own.items()}
    path = _on_hub(cfg) if cfg.get("source") == "hf-hub" else _in_folder(Path(cfg.get("file") or ""))
    return str(path), None if path is None else shapes_in(path)


def _in_folder(folder: Path) -> Path | None:
    """As timm chooses it."""
    found = [folder / name for name in _PREFERRED_FILES]
    found += [path for ending in _EXT_PRIORITY for path in sorted(folder.glob(f"*{ending}"))]
    return next(filter(Path.exists, found), None)


def _on_hub(cfg: Mapping[str, Any]) -> Path | None:
    """Downloaded, as timm would: it finds the file in the cache then."""
    repo, revision = hf_split(cfg["hf_hub_id"])
    for name in [cfg.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin"]:
        try:
            if name:
                return Path(hf_hub_download(repo, name, revision=revision))
        except EntryNotFoundError:
            continue
    return None
