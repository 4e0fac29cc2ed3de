"""What the papers' figures say, as claims with a sign, and what the measurements of papers_figures.py say of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist, fmean, stdev
from typing import Any, NamedTuple

Images = list[dict[str, list[float]]]  # image by image: metric -> a value per layer
PAIRS = {"patched": "plain", "adapted": "control"}  # with NeuTRENO -> without
WORDS = {
    "plain": "real weights as they are",
    "patched": "real weights, NeuTRENO put in, nothing trained",
    "control": "adapted, control",
    "adapted": "adapted, NeuTRENO",
}


class Claim(NamedTuple):
    figure: str
    metric: str  # of `neutreno analyze --metrics`
    shows: str  # what the paper shows, in words
    quantity: Callable[[dict[str, list[float]]], float]  # of one image's values
    reads: str  # what that is
    sign: int  # of the quantity, or of its change by NeuTRENO, if the claim holds
    compares: bool = True  # with NeuTRENO against without; else the models without NeuTRENO, one by one
    threshold: float = 0.0
    refutable: bool = True  # whether one model that does otherwise speaks against it


def last(metric: str) -> Callable[[dict[str, list[float]]], float]:
    return lambda values: values[metric][-1]


def mean(metric: str) -> Callable[[dict[str, list[float]]], float]:
    return lambda values: fmean(values[metric])


def rise(metric: str) -> Callable[[dict[str, list[float]]], float]:
    return lambda values: values[metric][-1] - values[metric][0]


def log_rise(metric: str) -> Callable[[dict[str, list[float]]], float]:
    return lambda values: math.log10(values[metric][-1] / values[metric][0])


RISES = "similarity of tokens rises with depth, to about 0.9 in the last two layers"
LOWER = "with NeuTRENO it is lower in the last layers"
FALLS = "J(u) falls with depth; which u and which kernel is not said"
NOT_INEVITABLE = "smoothing with depth is not inevitable, even in pre-trained models (abstract)"
CLAIMS = (
    Claim("Fig. 1", "block_similarity", RISES, rise("block_similarity"), "block outputs, last - first layer", 1, False),
    Claim("Fig. 1", "block_similarity", LOWER, last("block_similarity"), "block outputs, last layer", -1),
    Claim("Fig. 1", "attention_similarity", RISES, rise("attention_similarity"),
          "attention outputs, last - first layer", 1, False),
    Claim("Fig. 1", "attention_similarity", LOWER, last("attention_similarity"), "attention outputs, last layer", -1),
    Claim("Fig. 3", "functional_softmax", FALLS, log_rise("functional_softmax"),
          "J(v), softmax as kernel, log10 of last / first layer", -1, False),
    Claim("Fig. 3", "functional_exp", FALLS, log_rise("functional_exp"),
          "J(v), exp as kernel, log10 of last / first layer", -1, False),
    Claim("Fig. 5", "map_cosine", "maps of successive layers are less alike with NeuTRENO", mean("map_cosine"),
          "cosine of successive maps, mean over layers", -1),
    Claim("Fig. 5", "head_similarity", "the authors' code has instead: maps of one layer's heads, less alike",
          mean("head_similarity"), "cosine of one layer's maps, mean over layers", -1),
    Claim("Table 4", "gradient_cosine", "cos of symmetric and asymmetric gradient of J is near 1: 0.973 / 0.964",
          mean("gradient_cosine"), "mean over layers, against 0.9 (ours)", 1, False, 0.9),
    Claim("2401.04301, Fig. 2", "block_hfc_lfc", NOT_INEVITABLE, log_rise("block_hfc_lfc"),
          "HFC / LFC of block outputs, log10 of last / first layer", 1, False, refutable=False),
    Claim("2401.04301, Fig. 2", "block_angle", NOT_INEVITABLE, rise("block_angle"),
          "angle to the mean direction, degrees, last - first layer", 1, False, refutable=False),
    Claim("2401.04301, Fig. 2", "block_rank_one_distance", NOT_INEVITABLE, rise("block_rank_one_distance"),
          "distance to rank one, last - first layer", 1, False, refutable=False),
)  # fmt: skip
NEGATIVE = "eigenvalues of W_V W_proj: vision models have more negative than positive ones"


def rows(subjects: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each claim and model or pair, with the interval that all of them share an error of 5 % in."""
    compared = [(claim, name) for claim in CLAIMS for name in (PAIRS if claim.compares else PAIRS.values())]
    z = NormalDist().inv_cdf(1 - 0.025 / (len(compared) + 2))
    found = []
    for claim, name in compared:
        values = [claim.quantity(image) for image in subjects[name]["images"]]
        plain = [claim.quantity(image) for image in subjects[PAIRS.get(name, name)]["images"]]
        each = [a - b for a, b in zip(values, plain, strict=True)] if claim.compares else values
        found.append(
            row(claim, name, each, z) | ({"from": fmean(plain), "to": fmean(values)} if claim.compares else {})
        )
    for name in PAIRS.values():
        claim = Claim("2401.04301, Fig. 5", "spectra", NEGATIVE, lambda _: 0, "share of negative real parts, layers", 1,
                      False, 0.5)  # fmt: skip
        found.append(row(claim, name, subjects[name]["heads"], z))
    return found


def row(claim: Claim, name: str, values: list[float], z: float) -> dict[str, Any]:
    centre, half = fmean(values), z * stdev(values) / len(values) ** 0.5
    keys = ("figure", "metric", "shows", "reads", "compares", "threshold")
    return {
        **{key: getattr(claim, key) for key in keys}, "subject": name, "mean": centre, "low": centre - half,
        "high": centre + half, "verdict": verdict(claim, centre - half, centre + half),
    }  # fmt: skip


def verdict(claim: Claim, low: float, high: float) -> str:
    """By the interval alone: which side of the threshold it lies on, if it lies on one."""
    if low <= claim.threshold <= high:
        return "cannot be told"
    if (low > claim.threshold) == (claim.sign > 0):
        return "agrees"
    return "does not agree" if claim.refutable else "cannot be told"


def markdown(document: dict[str, Any]) -> str:
    """The page's tables, from the JSON alone."""
    d = document
    lines = [
        f"{d['model']}: {d['images']} photos at {d['size']} pixels; the adapted models: {d['images']} of CIFAR-10's val "
        f"images at 98 pixels (val accuracy of the run: control {d['top1']['control']:.1f} %, NeuTRENO "
        f"{d['top1']['neutreno']:.1f} %). {d['hardware']}, torch {d['versions']['torch']}, timm {d['versions']['timm']}, "
        f"{d['date']}, seed {d['seed']}: `{d['command']}`",
        "",
        "| figure | `--metrics` | the paper shows | here | in | mean [interval] | |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(each))} |" for each in d["rows"]),
        *(f"| {' | '.join(row)} |" for row in without_numbers(d)),
        "",
        f"The command of the adapted models is `neutreno analyze RUN RUN/arms/control --data CIFAR10/val --images "
        f"{d['images']} --metrics NAME --output DIR`, NAME from the table; of the real weights as they are, `neutreno "
        "analyze FILE --arch vit_small_patch14_dinov2 --data PHOTOS ...` (at the weights' own 518 pixels).",
        "",
        *caveats(d),
        "",
        "![every metric by layer, and maps](papers_figures.svg)",
        "",
    ]
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    change = f"{row['mean']:+.3f}" if row["compares"] or row["threshold"] == 0 else f"{row['mean']:.3f}"
    words = f"{change} [{row['low']:.3f}, {row['high']:.3f}]"
    if row["compares"]:
        words = f"{row['from']:.3f} to {row['to']:.3f}: {words}"
    metric = f"`{row['metric']}`"
    return [row["figure"], metric, row["shows"], row["reads"], WORDS[row["subject"]], words, f"**{row['verdict']}**"]


def without_numbers(d: dict[str, Any]) -> list[list[str]]:
    """Fig. 4 is a picture; Fig. 6 is of random weights and has its own benchmark."""
    six = d["figure6"]
    found = [
        ["Fig. 4", "`maps`", "maps of layers 1, 6, 12 of one photo", "the last row of the picture", "all four", "-",
         "**cannot be told**: one photo, and no number that could differ"],
    ]  # fmt: skip
    for metric, what in (("block_similarity", "block outputs"), ("attention_similarity", "attention outputs")):
        layer = six[metric]
        agrees = layer["neutreno"] < layer["plain"] and layer["standard_errors_min"] > 3
        found.append([
            "Fig. 6", f"`{metric}`", "random 12-layer models: lower with NeuTRENO", f"{what}, last layer",
            f"DeiT-tiny, {six['seeds']} seeds, {six['images']:,} photos (`figure6.json`)",
            f"{layer['plain']:.3f} to {layer['neutreno']:.3f}", f"**{'agrees' if agrees else 'cannot be told'}**",
        ])  # fmt: skip
    return found


def caveats(d: dict[str, Any]) -> list[str]:
    return [
        "What a reviewer should know:",
        "",
        f"- Intervals are over images, made wider for the number of rows (Bonferroni), so they say that a difference is "
        "no accident of these images. They do not cover training: there is one checkpoint, and one run of one seed. Of "
        "the eigenvalues they are over the 12 layers, which are no independent draws.",
        "- The papers' models are DeiT trained on ImageNet from scratch, with and without NeuTRENO. Ours is another "
        "model (self-supervised, then tuned for saliency), and nothing here was trained from scratch: \"does not agree\" "
        "says that the pattern is not in this model, not that the papers' figures are wrong.",
        f"- Put into trained weights without training, a fidelity of {d['fidelity']:g} breaks them; and in 248 steps the "
        f"adapted model came to {d['top1']['neutreno']:.1f} % where its control has {d['top1']['control']:.1f} %. So where "
        "these rows agree they show what the term does to tokens, not that it helps.",
        "- The second paper's full text was not at hand: its figures are known from the abstract and summaries, and its "
        "claims here are the abstract's. Of \"not inevitable\", one model that smooths is no counterexample, hence "
        "\"cannot be told\" there.",
        "- Which tokens, which u and kernel, and which mean over heads the papers take is not stated; the choices are "
        "those of `timm_neutreno.smoothing`.",
    ]  # fmt: skip
