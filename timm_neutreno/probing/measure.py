"""Probing one model under one setting: fit on train, choose on val, count on test; each image passes once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import classification, segmentation
from .errors import DataError, FeatureError
from .features import Tokens, check_image_size, extract, find_vit, patch_similarity
from .neighbors import NEIGHBORS, PATCHES, Bank
from .ridge import STRENGTHS, Ridge
from .settings import Setting, applied

TASKS: dict[str, Any] = {"classification": classification, "segmentation": segmentation}  # two modules, same functions
PROBES = ("linear", "knn")
ROWS = 256  # rows of features that are scored at once


class Splits(NamedTuple):
    """The images, as three loaders that give the same batches in the same order each time.

    Attributes:
        task: "classification" or "segmentation".
        num_classes: Classes 0 to num_classes - 1.
        train: Batches of images (B, 3, height, width) and targets: class indices (B,), or for segmentation masks of
            class indices, each (H, W) of any size, -1 where a pixel does not count.
        val: Likewise; ridge strength, number of neighbours and setting are chosen on it.
        test: Likewise; only scored.
    """

    task: str
    num_classes: int
    train: Iterable
    val: Iterable
    test: Iterable


class Options(NamedTuple):
    """How to probe.

    Attributes:
        pool: For classification: "class" for the class token (mean patch token where there is none), or "mean".
        blocks: Probe the tokens of every block, not only the last.
        ridge: Ridge strengths to choose from, each per train row.
        neighbors: Numbers of neighbours to choose from.
        patches: Train patches, drawn at random, that k-NN compares with; of images it takes all.
        seed: Of that draw, and of the bootstrap.
    """

    pool: str = "class"
    blocks: bool = False
    ridge: tuple[float, ...] = STRENGTHS
    neighbors: tuple[int, ...] = NEIGHBORS
    patches: int = PATCHES
    seed: int = 0


DEFAULTS = Options()


@dataclass(frozen=True)
class Outcome:
    """One probe on the tokens of one block.

    Attributes:
        choice: The ridge strength or number of neighbours that was best on val.
        val: Its score there, in per cent.
        test: Counts of every test image, (n, S); the task's `score` makes a score of their sum.
    """

    choice: float
    val: float
    test: Tensor


@dataclass(frozen=True)
class Measured:
    """One model under one setting.

    Attributes:
        model: Its name.
        setting: The setting.
        similarity: Block -> mean cosine similarity of different patch tokens, over test images.
        outcomes: Probe -> block -> what came out.
        images: Numbers of train, val and test images.
        fingerprint: Hash of the test targets in their order: only equal ones can be paired.
    """

    model: str
    setting: Setting
    similarity: dict[int, float]
    outcomes: dict[str, dict[int, Outcome]]
    images: tuple[int, int, int]
    fingerprint: str


@torch.no_grad()
def measure(
    model: nn.Module, setting: Setting, splits: Splits, options: Options = DEFAULTS, name: str = "model"
) -> Measured:
    """Probe a model under a setting; the model is left as it was.

    Raises:
        DataError: If images or targets are wrong: see `Splits`.
        FeatureError: If a feature is not finite, or the patches do not cover the images.
        UnsupportedModelError, ValueError: As `settings.applied`.
    """
    from ..smoothing.measure import evaluating

    task = TASKS[splits.task]
    depth = len(find_vit(model).blocks)
    blocks = range(depth) if options.blocks else [depth - 1]
    with evaluating(model), applied(model, setting) as patched:
        patched.eval()
        try:
            probes, trained = _fit(patched, splits, task, blocks, options)
            chosen, validated = _choose(patched, splits, task, probes, options)
            counts, similarity, tested, fingerprint = _test(patched, splits, task, chosen, blocks, options)
        except FeatureError as error:
            raise FeatureError(f"{name}, {setting.label}: {error}") from None
    outcomes: dict[str, dict[int, Outcome]] = {probe: {} for probe in PROBES}
    for (probe, block), (_, choice, val) in chosen.items():
        outcomes[probe][block] = Outcome(choice, val, counts[probe, block])
    return Measured(name, setting, similarity, outcomes, (trained, validated, tested), fingerprint)


def _tokens(model: nn.Module, batches: Iterable, blocks: Iterable[int]) -> Iterator[tuple[dict[int, Tokens], Any]]:
    """Features and targets of every batch."""
    from ..smoothing.measure import prepare

    first = True
    for batch in batches:
        images = prepare(model, batch)
        if first:
            check_image_size(model, *images.shape[-2:])
            first = False
        if len(images) != len(batch[1]):
            raise DataError(f"a batch has {len(images)} images and {len(batch[1])} targets; give a target for each.")
        yield extract(model, images, list(blocks)), batch[1]


def _fit(model, splits: Splits, task, blocks, options: Options) -> tuple[dict, int]:
    """(probe, block) -> predictor of all candidates, and the number of train images."""
    images = 0
    ridges = {block: Ridge() for block in blocks}
    banks = {block: Bank(options.patches if splits.task == "segmentation" else None, options.seed) for block in blocks}
    for tokens, targets in _tokens(model, splits.train, blocks):
        images += len(targets)
        for block, each in tokens.items():
            y = task.soft_targets(targets, each.patches.shape[1:3], splits.num_classes).flatten(0, 1)
            x = task.inputs(each, options.pool).flatten(0, 1)
            labelled = y.sum(1) > 0
            ridges[block].update(x[labelled], y[labelled])
            banks[block].update(x[labelled], y[labelled])
    if not images:
        raise DataError("there are no train images.")
    probes: dict[tuple[str, int], Any] = {}
    for block in blocks:
        shares = ridges[block].mean[ridges[block].features :] if ridges[block].rows else torch.zeros(0)
        if int((shares > 0).sum()) < 2:
            raise DataError("the train images show fewer than two classes, so there is nothing to tell apart.")
        probes["linear", block] = ridges[block].solve(options.ridge)
        probes["knn", block] = banks[block].solve(options.neighbors)
    return probes, images


def _count(tokens: dict[int, Tokens], targets, task, probes: dict, options: Options) -> dict[tuple[str, int], Tensor]:
    """(probe, block) -> counts (L, B, S) of a batch, a few images at a time, all candidates of a block together."""
    counts: dict[tuple[str, int], Tensor] = {}
    for block, each in tokens.items():
        x = task.inputs(each, options.pool)
        predictors = {key: predictor for key, predictor in probes.items() if key[1] == block}
        parts, at_once = [], max(1, ROWS // x.shape[1])
        for start in range(0, len(x), at_once):
            rows = x[start : start + at_once]
            found = [predictor(rows.flatten(0, 1)) for predictor in predictors.values()]
            scores = torch.cat(found).unflatten(1, rows.shape[:2])
            parts.append(task.count(scores, targets[start : start + at_once], tuple(each.patches.shape[1:3])))
        counts.update(zip(predictors, torch.cat(parts, 1).split([len(scores) for scores in found]), strict=True))
    return counts


def _choose(model, splits: Splits, task, probes: dict, options: Options) -> tuple[dict, int]:
    """(probe, block) -> what is best on val, its ridge strength or k, its score; and the number of images."""
    sums: dict[tuple[str, int], Tensor] = {}
    images = 0
    for tokens, targets in _tokens(model, splits.val, sorted({block for _, block in probes})):
        images += len(targets)
        for key, counts in _count(tokens, targets, task, probes, options).items():
            sums[key] = sums.get(key, 0) + counts.sum(1)
    if not images:
        raise DataError("there are no val images to choose on.")
    chosen = {}
    for (probe, block), predictor in probes.items():
        scores = task.score(sums[probe, block])
        best = max(range(len(scores)), key=lambda index: (float(scores[index]), index))  # of equals the smoothest
        choice = (options.ridge if probe == "linear" else options.neighbors)[best]
        chosen[probe, block] = (predictor.choose(best), choice, float(scores[best]))
    return chosen, images


def _test(model, splits: Splits, task, chosen: dict, blocks, options: Options):
    """(probe, block) -> counts of every test image; token similarity by block; number of images; hash of targets."""
    counts: dict[tuple[str, int], list[Tensor]] = {key: [] for key in chosen}
    similarity: dict[int, list[Tensor]] = {block: [] for block in blocks}
    probes = {key: predictor for key, (predictor, _, _) in chosen.items()}
    seen = hashlib.blake2b(digest_size=8)
    images = 0
    for tokens, targets in _tokens(model, splits.test, blocks):
        images += len(targets)
        for target in targets:
            seen.update(torch.as_tensor(target).numpy().tobytes())
        for block, each in tokens.items():
            similarity[block].append(patch_similarity(each))
        for key, (found,) in _count(tokens, targets, task, probes, options).items():
            counts[key].append(found)
    if not images:
        raise DataError("there are no test images.")
    means = {block: float(torch.cat(parts).mean()) for block, parts in similarity.items()}
    return {key: torch.cat(parts) for key, parts in counts.items()}, means, images, seen.hexdigest()
