"""Paired differences over seeds, and their intervals, corrected for the number of comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev
from typing import Any

EXACT = 1e-9  # floating point leaves this much of a difference of equal figures


def paired(differences: Sequence[float], comparisons: int = 1) -> dict[str, Any]:
    """Mean of at least two paired differences, and its interval, mean +- t(n - 1) * sd / sqrt(n).

    Args:
        differences: One per seed.
        comparisons: How many such intervals shall hold together with 95 % (Bonferroni: each with 1 - 0.05 / so many).
    """
    mean, sd = fmean(differences), stdev(differences)
    half = t_quantile(1 - 0.025 / comparisons, len(differences) - 1) * sd / math.sqrt(len(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half, "sd": sd, "values": list(differences)}


def t_quantile(p: float, df: int) -> float:
    """The quantile of Student's t for p above a half and an integer number of degrees of freedom.

    The distribution function is a finite sum of powers of cos(theta), tan(theta) = t / sqrt(df) (Abramowitz and Stegun,
    26.7.3 and 26.7.4); it is inverted by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if _t_central(theta, df) < 2 * p - 1 else (low, theta)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _t_central(theta: float, df: int) -> float:
    """Probability that |t| is below sqrt(df) * tan(theta)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = cosine if odd else 1.0, 0.0
    for k in range(1 + odd, df, 2):  # of df - 1 factors in all
        total += term
        term *= cosine**2 * k / (k + 1)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total


def z_quantile(comparisons: int = 1) -> float:
    """Standard errors on either side that hold so many normal intervals together with 95 %."""
    return NormalDist().inv_cdf(1 - 0.025 / comparisons)


def contains_zero(difference: Mapping[str, Any]) -> bool:
    return difference["low"] <= EXACT and difference["high"] >= -EXACT


def sign_test(won: int, lost: int) -> float:
    """The two-sided p of so many pairs that differ one way and the other, if both were as likely: McNemar's exact test.

    McNemar, Psychometrika 12, 1947; exact by the binomial distribution, and 1 if no pair differs.
    """
    pairs = won + lost
    tail = sum(math.comb(pairs, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**pairs)
