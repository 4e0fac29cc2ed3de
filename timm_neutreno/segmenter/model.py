"""Segmenter: a ViT of timm as encoder, a mask transformer as decoder; saved and loaded by huggingface_hub's mixin."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.models._input import get_model_args, get_model_input_config
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ..hub import card
from ..hub.save import patch_arguments
from ..hub.segmentation_card import segmenter as segmenter_card
from ..names import METHOD_ARGUMENTS, PREFIX, base_name
from ..neutreno_vit import ALIASES
from ..sizes import check_size, shapes_in
from ..surgery import is_patched, patch
from . import checks
from .decoder import MaskTransformer
from .inference import Size, predict

PARTS = ("encoder", "decoder")
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Segmenter(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="timm_neutreno",
    pipeline_tag="image-segmentation",
    tags=["image-segmentation", "timm", "neutreno"],
):
    """A score of every class at every pixel: (B, 3, H, W) -> (B, K, H, W), K classes.

    `patch(model)` patches encoder and decoder, each with first-layer values of its own; `patch(model.encoder)` or
    `patch(model.decoder)` one of them. `save_pretrained`, `push_to_hub` and `Segmenter.from_pretrained` keep that.

    Args:
        encoder: A ViT that `timm.create_model` made, whose head is taken off, or its name, plain or `neutreno_*`.
        num_classes: K.
        pretrained: Load the weights that timm knows for the name.
        encoder_args: For `timm.create_model` beside the name, such as img_size.
        decoder_depth: Blocks of the decoder.
        decoder_dim: Its channels; None for the encoder's.
        decoder_heads: Heads of each of its blocks; None for one per 64 channels.
        dropout: In the decoder.
        drop_path: Stochastic depth rate of the decoder's last block.
        window: Height and width in pixels of the windows that `segment` cuts larger images into; None for the encoder's
            input size.
        stride: Step from one window to the next, in pixels; None for the window.
        mean: Of the pixels that the model was trained with, in [0, 1]; None for the encoder's.
        std: Their standard deviation; None for the encoder's.
        class_names: By index; None if they have none.
        methods: {"encoder" or "decoder": arguments of `patch`}, as a saved model's config.json has them.

    Raises:
        ValueError: If the encoder gives no map of features, or a number or name of a part is wrong.
        TypeError: If the encoder is neither a model nor a name.
    """

    def __init__(
        self,
        encoder: str | nn.Module,
        num_classes: int,
        *,
        pretrained: bool = False,
        encoder_args: Mapping[str, Any] | None = None,
        decoder_depth: int = 2,
        decoder_dim: int | None = None,
        decoder_heads: int | None = None,
        dropout: float = 0.1,
        drop_path: float = 0.0,
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        methods: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes is {num_classes!r}: a Segmenter tells one class or more apart.")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class_names for num_classes {num_classes}: give one for each.")
        self.encoder = without_head(create(encoder, pretrained, encoder_args or {}))
        about: Any = self.encoder.feature_info[-1]
        encoder_dim = about.get("num_chs_norm", about["num_chs"])
        dim = decoder_dim or encoder_dim
        self.num_classes, self.patch_size = num_classes, int(about["reduction"])
        self.decoder = MaskTransformer(
            num_classes, encoder_dim, dim, decoder_depth, decoder_heads or max(1, dim // 64), dropout, drop_path
        )
        data = resolve_model_data_config(self.encoder)
        size = tuple(get_model_input_config(self.encoder)["input_size"][1:])
        self.window: Size = checks.sides("window", window or size)
        self.stride: Size = checks.sides("stride", stride or self.window)
        self.mean = checks.channels("mean", mean or data["mean"])
        self.std = checks.channels("std", std or data["std"], above=0)
        if isinstance(cfg := getattr(self.encoder, "pretrained_cfg", None), dict):  # for who uses the encoder alone
            self.encoder.pretrained_cfg = self.encoder.default_cfg = {**cfg, "mean": self.mean, "std": self.std}
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self._arguments = {"decoder_depth": decoder_depth, "decoder_dim": decoder_dim, "decoder_heads": decoder_heads,
                           "dropout": dropout, "drop_path": drop_path}  # fmt: skip
        for part, options in (methods or {}).items():
            if part not in PARTS:
                raise ValueError(f"methods has {part!r}: the parts of a Segmenter are encoder and decoder.")
            patch(getattr(self, part), **options)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores at the images' own size, (B, 3, H, W) -> (B, K, H, W); H and W may be any.

        They are padded to the patch size with zeros, and the scores are cropped.

        Raises:
            ValueError: If the encoder takes one size only, and the images have another.
        """
        H, W = images.shape[-2:]
        if self.fixed_size not in (None, (H, W)):
            raise ValueError(
                f"this encoder takes images of {self.fixed_size} pixels only, and got {(H, W)}: segment() and "
                "predict() cut windows of its size."
            )
        images = pad(images, (0, -W % self.patch_size, 0, -H % self.patch_size))
        features = self.encoder.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[-1]
        scores = interpolate(self.decoder(features), size=images.shape[-2:], mode="bilinear", align_corners=False)
        return scores[..., :H, :W]

    def segment(self, images: Tensor, **how: Any) -> Tensor:
        """The class of every pixel, (B, H, W) int64. Arguments as of `predict`: windows, scales, flip.

        Args:
            images: (B, 3, H, W), normalised with `mean` and `std`.
        """
        return predict(self, images, **how).argmax(1)

    @property
    def fixed_size(self) -> Size | None:
        """The only height and width that the encoder takes; None if it takes any."""
        embed = getattr(self.encoder, "patch_embed", None)
        return tuple(embed.img_size) if getattr(embed, "strict_img_size", False) else None  # type: ignore[union-attr]

    # --- what timm's optimizers and trainers ask of a model

    def no_weight_decay(self) -> set[str]:
        own = getattr(self.encoder, "no_weight_decay", set)
        return {f"encoder.{name}" for name in own()} | {"decoder.cls_emb"}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Layers for layer-wise learning rates: the encoder's own, and the decoder as one above them."""
        matcher: Any = self.encoder.group_matcher(coarse)
        layers = group_parameters(self.encoder, matcher, reverse=True)
        last = max(layers.values()) + 1
        return lambda name: layers.get(name.removeprefix("encoder."), last)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)
        self.decoder.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The decoder: what is new beside the encoder."""
        return self.decoder

    # --- files

    def config(self) -> dict[str, Any]:
        """config.json: the arguments that build the model again.

        Raises:
            ValueError: If timm cannot build the encoder by a name, or layers have different constant strengths.
        """
        name = (getattr(self.encoder, "pretrained_cfg", None) or {}).get("architecture")
        if not name or not timm.is_model(name):
            raise ValueError(
                f"Cannot save a Segmenter around {type(self.encoder).__name__}: timm does not know its architecture "
                f"{name!r}, so it could not be built again. Save its state_dict() instead."
            )
        arguments, parts = get_model_args(self.encoder), {name: getattr(self, name) for name in PARTS}
        left_out = ("num_classes", "global_pool", "pretrained", "dynamic_img_size", *METHOD_ARGUMENTS)
        return {
            "architecture": f"{PREFIX if is_patched(self) else ''}segmenter",
            "encoder": base_name(name),
            "encoder_args": {key: value for key, value in arguments.items() if key not in left_out},
            "num_classes": self.num_classes,
            **self._arguments,
            **{key: list(getattr(self, key)) for key in ("window", "stride", "mean", "std")},
            "class_names": self.class_names,
            "methods": {name: patch_arguments(part) for name, part in parts.items() if is_patched(part)},
        }

    def _save_pretrained(self, save_directory: Path) -> None:
        """config.json and model.safetensors; called by `save_pretrained`."""
        (save_directory / CONFIG).write_text(json.dumps(self.config(), indent=2) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, save_directory / WEIGHTS)
        # safetensors writes for its owner alone, but people share run directories
        (save_directory / WEIGHTS).chmod((save_directory / CONFIG).stat().st_mode)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, revision: str | None = None,
        cache_dir: str | Path | None = None, force_download: bool = False, local_files_only: bool = False,
        token: str | bool | None = None, **arguments: Any,
    ) -> Segmenter:  # fmt: skip
        """The model in eval mode; called by `from_pretrained`, which reads config.json.

        Raises:
            SizeError: If config.json describes a far larger model than the weights are of.
        """
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            downloaded = hf_hub_download(
                model_id, WEIGHTS, revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
            )  # fmt: skip
            path = Path(downloaded)
        check_size(lambda: cls(**arguments), arguments, shapes_in(path), str(path))
        model = cls(**arguments)
        model.load_state_dict(load_file(path, device=str(map_location)), strict=strict)
        return model.eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A card without figures; called by `save_pretrained` and `push_to_hub`."""
        repo_id = kwargs.get("repo_id") or "OWNER/NAME"
        return ModelCard(card.render(repo_id, self.config(), describe=segmenter_card), ignore_metadata_errors=True)


class DecoderInPlace(nn.Module):
    """A Segmenter whose layers are those of its decoder, for measurements that look at one group of blocks."""

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter
        self.pretrained_cfg = self.default_cfg = {
            "input_size": (3, *segmenter.window), "mean": segmenter.mean, "std": segmenter.std, "crop_pct": 1.0,
            "interpolation": "bilinear",
        }  # fmt: skip

    @property
    def blocks(self) -> nn.ModuleList:
        return self.segmenter.decoder.blocks

    def forward(self, images: Tensor) -> Tensor:
        return self.segmenter(images)


def create(encoder: str | nn.Module, pretrained: bool, arguments: Mapping[str, Any]) -> Any:
    """The encoder as timm makes it, for images of any size where its class can."""
    if isinstance(encoder, nn.Module):
        return encoder
    if not isinstance(encoder, str):
        raise TypeError(f"the encoder is a {type(encoder).__name__}: give a model of timm, or its name.")
    encoder = ALIASES.get(encoder, encoder)
    sized = {"dynamic_img_size": True} if takes_any_size(encoder, arguments) else {}
    return timm.create_model(encoder, pretrained=pretrained, num_classes=0, **{**sized, **arguments})


def takes_any_size(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether timm's constructor of a model can be asked to resample position embeddings in every forward pass."""
    try:
        with torch.device("meta"):
            timm.create_model(name, **{**arguments, "dynamic_img_size": True})
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return False
    return True


def without_head(encoder: Any) -> Any:
    """The encoder without what only a classifier needs, in place. A norm after pooling becomes that of the tokens."""
    if not hasattr(encoder, "forward_intermediates") or not getattr(encoder, "feature_info", None):
        raise ValueError(
            f"a {type(encoder).__name__} gives no map of features: an encoder is a ViT of timm with "
            "forward_intermediates. timm_neutreno.supported_models() lists them."
        )
    norm, pooled = getattr(encoder, "norm", None), getattr(encoder, "fc_norm", None)
    encoder.prune_intermediate_layers(1, prune_head=True)
    if isinstance(norm, nn.Identity) and isinstance(pooled, nn.Module):
        encoder.norm = pooled
    return encoder
