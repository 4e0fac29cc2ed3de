"""Loading what `save_pretrained` of a patched model wrote.

config.json then has the arguments of `patch` and attn_implementation="timm_neutreno.hf". transformers knows no such
implementation, so that its own from_pretrained raises; once timm_neutreno.hf is imported it builds the model, whose
first forward pass raises. Nobody gets the model without its method by accident, unless from_pretrained is given
another attn_implementation.
"""

from __future__ import annotations

import os
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedModel

from ..methods import STRENGTHS
from ..names import CONFIG_KEY
from .surgery import patch

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def load(
    path: str | os.PathLike[str], model_class: type[PreTrainedModel] | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load a patched model that was saved by `save_pretrained`, `Trainer` or `push_to_hub`, with its method.

    Args:
        path: A folder, or a repository on the Hub.
        model_class: A model class, or one of the Auto classes; None for the class that was saved.
        **kwargs: As the class's from_pretrained takes them: dtype, device_map, revision, ...

    Returns:
        The model, patched, in eval mode.

    Raises:
        ValueError: If the config names no method, or learned strengths are not in the weights.
        OSError: As of from_pretrained.
    """
    config = AutoConfig.from_pretrained(path, **{name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs})
    arguments = getattr(config, CONFIG_KEY, None)
    if arguments is None:
        raise ValueError(
            f"{path} has no {CONFIG_KEY!r} in its config.json: it was not saved from a model that timm_neutreno.hf "
            "patched. Load it with from_pretrained, then call timm_neutreno.hf.patch(model)."
        )
    config._attn_implementation = None
    plain = _class(config, model_class)
    loaded: Any = _patching(plain, arguments).from_pretrained(path, config=config, **kwargs, output_loading_info=True)
    model, info = loaded
    model.__class__ = plain
    if lost := sorted(key for key in info["missing_keys"] if key.rpartition(".")[2] in STRENGTHS):
        raise ValueError(f"{path} has no weights for learned strengths: {', '.join(lost)}.")
    return model


def _class(config: Any, model_class: Any) -> type[PreTrainedModel]:
    if model_class is None:
        return getattr(transformers, config.architectures[0])
    mapping = getattr(model_class, "_model_mapping", None)
    return model_class if mapping is None else mapping[type(config)]


def _patching(plain: type[PreTrainedModel], arguments: dict[str, Any]) -> type[PreTrainedModel]:
    """A model class that patches itself when it is built, so that learned strengths are there to be loaded into."""

    def __init__(self, config, *args, **kwargs):
        plain.__init__(self, config, *args, **kwargs)
        patch(self, **arguments)

    names = {"__init__": __init__, "__module__": plain.__module__, "__qualname__": plain.__qualname__}
    return type(plain.__name__, (plain,), names)
