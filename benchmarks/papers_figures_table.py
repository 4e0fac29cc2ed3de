"""What the papers' figures say, as claims with a sign, and what the measurements of papers_figures.py say of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist, correlation, fmean, stdev
from typing import Any, NamedTuple

Images = list[dict[str, list[float]]]  # image by image: metric -> a value per layer
PAIRS = {"patched": "plain", "adapted": "control"}  # with NeuTRENO -> without
WORDS = {
    "plain": "real weights as they are",
    "patched": "real weights, NeuTRENO put in, nothing trained",
    "control": "adapted, control",
    "adapted": "adapted, NeuTRENO",
}
LOG = ("functional_softmax", "functional_exp", "block_hfc_lfc")  # as log10: they differ by powers of ten over images


class Claim(NamedTuple):
    figure: str
    metric: str  # of `neutreno analyze --metrics`
    shows: str  # what the paper shows, in words
    quantity: Callable[[list[float]], float]  # of one image's values, layer by layer
    reads: str  # what that is
    sign: int  # of the quantity, or of its change by NeuTRENO, if the claim holds
    compares: bool  # with NeuTRENO against without; else the models without NeuTRENO, one by one
    but: str  # what keeps the row from saying more
    threshold: float = 0.0
    refutable: bool = True  # whether one model that does otherwise speaks against it
    robust: bool = True  # whether another reading of the claim gives the same verdict


def depth(values: list[float]) -> float:
    """Spearman's correlation with the layer's number: 1 if the values rise at every layer, -1 if they fall."""
    ranks = [sorted(values).index(value) for value in values]
    return correlation(ranks, range(len(values)))


def last(values: list[float]) -> float:
    return values[-1]


def last_but_one(values: list[float]) -> float:
    return values[-2]


TREND = "rank correlation with depth"
RISES = "tokens grow more alike with depth, to about 0.9 in the last two layers"
LOWER = "less alike with NeuTRENO in the last layers"
FALLS = "J(u) falls with depth"
NOT_INEVITABLE = "smoothing with depth is not inevitable, even in pre-trained models (abstract)"
THE_RISE = "of the direction only: see the two values for the 0.9"
OURS = "u = v and the kernel are our choice, the paper does not say"
FRAGILE = "last minus first layer says otherwise of one of the models"
SPIKES = "not monotone: the largest score decides J, which jumps by powers of ten"
NO_TRAINING = "see the notes on training below"
ONE_MODEL = "one model that smooths is no counterexample, one that does not is an example"
BLOCK, ATTENTION = "block_similarity", "attention_similarity"
SECOND = "2401.04301, Fig. 2"
CLAIMS = (
    Claim("Fig. 1, block outputs", BLOCK, RISES, depth, TREND, 1, False, THE_RISE),
    Claim("Fig. 1, block outputs", BLOCK, LOWER, last, "last layer", -1, True, NO_TRAINING),
    Claim("Fig. 1, block outputs", BLOCK, LOWER, last_but_one, "last layer but one", -1, True, NO_TRAINING),
    Claim("Fig. 1, attention outputs", ATTENTION, RISES, depth, TREND, 1, False, FRAGILE, robust=False),
    Claim("Fig. 1, attention outputs", ATTENTION, LOWER, last, "last layer", -1, True, NO_TRAINING),
    Claim("Fig. 1, attention outputs", ATTENTION, LOWER, last_but_one, "last layer but one", -1, True, NO_TRAINING),
    Claim("Fig. 3, softmax as kernel", "functional_softmax", FALLS, depth, TREND, -1, False, OURS),
    Claim("Fig. 3, exp as kernel", "functional_exp", FALLS, depth, TREND, -1, False, SPIKES, robust=False),
    Claim("Fig. 5", "map_cosine", "maps of successive layers are less alike with NeuTRENO", fmean, "mean over layers",
          -1, True, "that the paper's curves say so is our reading"),
    Claim("Fig. 5, as the authors' code", "head_similarity", "maps of one layer's heads are less alike with NeuTRENO",
          fmean, "mean over layers", -1, True, "that the figure shows this is not sure"),
    Claim("Table 4", "gradient_cosine", "symmetric and asymmetric gradient of J go one way: 0.973 / 0.964", fmean,
          "mean over layers, against 0.9", 1, False, "the 0.9 is ours", 0.9),
    Claim(SECOND, "block_hfc_lfc", NOT_INEVITABLE, depth, TREND, 1, False, ONE_MODEL, refutable=False),
    Claim(SECOND, "block_angle", NOT_INEVITABLE, depth, TREND, 1, False, ONE_MODEL, refutable=False),
    Claim(SECOND, "block_rank_one_distance", NOT_INEVITABLE, depth, TREND, 1, False, ONE_MODEL, refutable=False),
)  # fmt: skip
SPECTRA = Claim(
    "2401.04301, Fig. 5", "spectra", "vision models have more negative eigenvalues of W_V W_proj than positive ones",
    fmean,
    "share of negative real parts", 1, False, "the interval is over layers", 0.5,
)  # fmt: skip


def rows(subjects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each claim and model or pair; all intervals hold at once with 95 % (Bonferroni)."""
    compared = [(claim, name) for claim in CLAIMS for name in (PAIRS if claim.compares else PAIRS.values())]
    z = NormalDist().inv_cdf(1 - 0.025 / (len(compared) + len(PAIRS)))
    found = []
    for claim, name in compared:
        values = by_image(subjects[name]["images"], claim.metric)
        if claim.compares:
            plain = by_image(subjects[PAIRS[name]]["images"], claim.metric)
            ends = [fmean(map(claim.quantity, part)) for part in (plain, values)]
            each = [claim.quantity(a) - claim.quantity(b) for a, b in zip(values, plain, strict=True)]
        else:
            ends = [fmean(image[layer] for image in values) for layer in (0, -1)]
            each = [claim.quantity(image) for image in values]
        found.append(row(claim, name, each, z, ends))
    for name in PAIRS.values():
        shares = subjects[name]["heads"]
        found.append(row(SPECTRA, name, shares, z, [shares[0], shares[-1]]))
    return found


def by_image(images: Images, metric: str) -> list[list[float]]:
    """Layer by layer; of some the logarithm."""
    return [[math.log10(v) if metric in LOG else v for v in image[metric]] for image in images]


def row(claim: Claim, name: str, values: list[float], z: float, ends: list[float]) -> dict[str, Any]:
    centre, half = fmean(values), z * stdev(values) / len(values) ** 0.5
    keys = ("figure", "metric", "shows", "reads", "compares", "threshold", "but")
    return {
        **{key: getattr(claim, key) for key in keys}, "subject": name, "images": len(values), "ends": ends,
        "mean": centre, "low": centre - half, "high": centre + half,
        "verdict": verdict(claim, centre - half, centre + half),
    }  # fmt: skip


def verdict(claim: Claim, low: float, high: float) -> str:
    """Which side of the threshold the interval lies on, if it lies on one and the claim can be read in one way only."""
    if low <= claim.threshold <= high or not claim.robust:
        return "cannot be told"
    if (low > claim.threshold) == (claim.sign > 0):
        return "agrees"
    return "does not agree" if claim.refutable else "cannot be told"


def markdown(document: dict[str, Any]) -> str:
    """The page's tables, from the JSON alone."""
    d = document
    lines = [
        f"{d['model']}: {d['images']} photos at {d['size']} pixels; the adapted models: {d['images']} of CIFAR-10's val"
        f" images at 98 pixels (val accuracy of the run: control {d['top1']['control']:.1f} %, NeuTRENO "
        f"{d['top1']['neutreno']:.1f} %). {d['hardware']}, torch {d['versions']['torch']}, timm "
        f"{d['versions']['timm']}, {d['date']}, seed {d['seed']}: `{d['command']}`",
        "",
        "| figure | `--metrics` | the paper shows | measured here | in | values | mean [interval] | |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(each))} |" for each in d["rows"]),
        *(f"| {' | '.join(row)} |" for row in without_numbers(d)),
        "",
        "*Values*: first and last layer, or without and with NeuTRENO; of J and HFC / LFC log10. The commands: "
        f"`neutreno analyze RUN RUN/arms/control --data CIFAR10/val --images {d['images']} --metrics NAME --output "
        "DIR` with NAME from the table gives the adapted models' curves, and `neutreno analyze FILE --arch "
        "vit_small_patch14_dinov2 --data PHOTOS ...` those of the weights as they are (at their own 518 pixels). "
        "NeuTRENO put in without training, and the paired intervals, only this benchmark gives.",
        "",
        *caveats(d),
        "",
    ]
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    first, then = row["ends"]
    sign = "" if row["threshold"] else "+"
    words = f"{row['mean']:{sign}.3f} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"
    return [
        row["figure"], f"`{row['metric']}`", row["shows"], ("change in: " if row["compares"] else "") + row["reads"],
        WORDS[row["subject"]], f"{first:.3f}, {then:.3f}", words, f"**{row['verdict']}**; {row['but']}",
    ]  # fmt: skip


def without_numbers(d: dict[str, Any]) -> list[list[str]]:
    """Fig. 4 is a picture; Fig. 6 is of random weights and has its own benchmark."""
    six = d["figure6"]
    found = [
        ["Fig. 4", "`maps`", "maps of layers 1, 6, 12 of one photo", "the picture's last rows", "all four", "-", "-",
         "**cannot be told**; one photo, and no number that could differ"],
    ]  # fmt: skip
    for metric, what in ((BLOCK, "block outputs"), (ATTENTION, "attention outputs")):
        layer = six[metric]
        agrees = layer["neutreno"] < layer["plain"] and layer["standard_errors_min"] > 3
        found.append([
            "Fig. 6", f"`{metric}`", "tokens of random 12-layer models are less alike with NeuTRENO",
            f"{what}, last layer", f"random DeiT-tiny, {six['seeds']} seeds, {six['images']:,} photos: `figure6.json`",
            f"{layer['plain']:.3f}, {layer['neutreno']:.3f}",
            f"{layer['neutreno'] - layer['plain']:+.3f}, at least {layer['standard_errors_min']:.0f} standard errors",
            f"**{'agrees' if agrees else 'cannot be told'}**; in every seed",
        ])  # fmt: skip
    return found


def caveats(d: dict[str, Any]) -> list[str]:
    return [
        "What a reviewer should know:",
        "",
        "- Intervals are over images and all hold at once with 95 % (Bonferroni): a difference is no accident of these "
        "images. They do not cover training: there is one checkpoint, and one run of one seed.",
        "- The papers' models are DeiT trained on ImageNet from scratch, with and without NeuTRENO. Ours is another "
        "one (self-supervised, then tuned for saliency), and nothing here was trained from scratch: *does not agree* "
        "says that the pattern is not in this model, not that the papers' figures are wrong.",
        f"- Training: a fidelity of {d['fidelity']:g} put into trained weights changes them at once, and in 248 steps "
        f"the adapted model came to {d['top1']['neutreno']:.1f} % where its control has {d['top1']['control']:.1f} %. "
        "Where such a row agrees it shows what the term does to tokens, not that it helps; where it does not, longer "
        "training might change it.",
        "- Tables and figures of the second paper could not be read in full: its claims here are its abstract's, and "
        "which curves its Fig. 2 draws is not known to us.",
        "- What is measured of every figure was changed after part of the images had been seen: from last minus first "
        "layer to rank correlation with depth, and with the last layer but one beside the last. Where the two readings "
        "of a trend differ the row says *cannot be told*; the curves are in the picture.",
        "- Which tokens, and which mean over heads, the papers take is not stated; the choices are those of "
        "`timm_neutreno.smoothing`.",
    ]  # fmt: skip
