"""Measuring a model on a stream of images: one pass, memory independent of how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .layers import of_transformers
from .metrics import SIMILARITIES
from .result import Smoothing
from .watch import watch


def measure(
    model: nn.Module,
    batches: Iterable,
    metrics: Iterable[str] = SIMILARITIES,
    *,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Smoothing:
    """Measure a model on images, in one pass, in eval mode and without gradients; the mode is put back.

    Args:
        model: A timm ViT-like model, patched or not, on any device and in any floating dtype.
        batches: Image batches (B, 3, height, width), or tuples that start with one; moved to the model.
        metrics: Names from `METRICS`.
        name: The model's name in the result.
        progress: Called after each batch with the number of images so far.

    Raises:
        ValueError: If there are no images, they are no batches, a metric is unknown, or a value is not finite.
        UnsupportedModelError: If the model has no layers to measure.
    """
    model = getattr(model, "_orig_mod", model)  # hooks do not fire in a compiled model
    with watch(model, metrics, name=name) as recorder, evaluating(model):
        for batch in batches:
            _ = model(**prepare_inputs(model, batch)) if of_transformers(model) else model(prepare(model, batch))
            if progress:
                progress(recorder.images)
    return recorder.result()


def prepare(model: nn.Module, batch: object) -> Tensor:
    """The images of a batch, on the model's device and in its dtype; of a language model, the token ids.

    Raises:
        ValueError: If there are none.
    """
    images = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if getattr(model, "is_causal", False) and isinstance(images, Tensor):
        return images.to(next(model.parameters()).device)
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise ValueError(
            f"each batch must be images (B, 3, height, width), or a tuple that starts with them, got {got}. For one "
            "image, give [image[None]]."
        )
    weight = next(p for p in model.parameters() if p.is_floating_point())
    return images.to(weight.device, weight.dtype)


def prepare_inputs(model: Any, batch: object) -> dict[str, Any]:
    """The inputs of a model of transformers by name, on its device: a dictionary of them, token ids, or images.

    Raises:
        ValueError: As of `prepare`, or if tokens of padding would be measured.
    """
    batch = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point():
        batch = {"input_ids": batch}
    if not isinstance(batch, Mapping):
        return {model.main_input_name: prepare(model, batch)}
    mask = batch.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise ValueError(
            "the batch is padded, and padding would be measured as tokens: give batches of one length, such as pieces "
            "of a long text."
        )
    return {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def token_similarity(model: nn.Module, batches: Iterable, *, of: str = "block", tokens: str = "all") -> list[float]:
    """Mean cosine similarity of different tokens, by layer: mean over images of `tokens.cosine_similarity`.

    Args:
        model: A timm ViT-like model, patched or not, or a model of transformers.
        batches: Image batches (B, 3, height, width), or tuples that start with one; moved to the model. For a model of
            transformers also token ids, (B, N), or dictionaries of its inputs, without padding.
        of: "block" (the residual stream after each block) or "attention" (the attention module's output).
        tokens: "all", or "patch" to leave out class, distillation and register tokens. Models of transformers are
            measured with of="block" and tokens="all" only.

    Returns:
        One value per layer, first layer first, each in [-1, 1].

    Raises:
        ValueError: As `measure`, or if `of` or `tokens` is unknown.
    """
    if of not in ("block", "attention"):
        raise ValueError(f"of must be 'block' or 'attention', got {of!r}.")
    if tokens not in ("all", "patch"):
        raise ValueError(f"tokens must be 'all' or 'patch', got {tokens!r}.")
    name = f"{of}_similarity" + ("_patch" if tokens == "patch" else "")
    return measure(model, batches, [name]).values[name]
