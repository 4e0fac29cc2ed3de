"""Several seeds: means, spreads, the paired difference and its interval, and what is said about it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.seeds import T_975, contains_zero, paired, readme, summarise, t_quantile, table
from timm_neutreno_cli.summary import ADAPTED, BEFORE, CONTROL

EMA = "NeuTRENO, adapted, EMA"
FIGURES = st.floats(-100, 100, allow_nan=False)
PAIRS = st.lists(st.tuples(FIGURES, FIGURES), min_size=2, max_size=40)


def figures(top1: float, **others: object) -> dict:
    return {
        "fidelity": "0.6",
        "images": 100,
        "top1": top1,
        "top5": 99.0,
        "loss": 1.0,
        "similarity": [0.9, 0.3],
    } | others


def document(seed: int, rows: dict[str, dict], **facts: object) -> dict:
    return {"seed": seed, "checkpoint": "demo", "data": "digits", "epochs": 3, "models": rows, **facts}


def runs(adapted: list[float], control: list[float]) -> list[dict]:
    pairs = enumerate(zip(adapted, control, strict=True))
    return [document(seed, {CONTROL: figures(c), ADAPTED: figures(a)}) for seed, (a, c) in pairs]


# --- figures


def test_mean_spread_and_interval_by_hand():
    result = summarise(runs([81.0, 83.0, 85.0], [80.0, 80.0, 80.0]))
    assert result["models"][ADAPTED]["top1"] == {"mean": 83.0, "sd": 2.0, "values": [81.0, 83.0, 85.0]}
    top1 = result["differences"]["top1"]
    assert (top1["mean"], top1["sd"], top1["values"]) == (3.0, 2.0, [1.0, 3.0, 5.0])
    half = 4.3027 * 2 / 3**0.5
    assert (top1["low"], top1["high"]) == pytest.approx((3 - half, 3 + half))


def test_similarity_is_the_last_block_s():
    result = summarise([document(seed, {ADAPTED: figures(80.0, similarity=[0.9, 0.1 + seed / 10])}) for seed in (0, 1)])
    assert result["models"][ADAPTED]["similarity"]["values"] == pytest.approx([0.1, 0.2])


def test_the_pairing_takes_out_what_the_seeds_share():
    """Seeds that move both arms by 10 points leave a difference that is the same in all."""
    top1 = summarise(runs([70.5, 80.5, 90.5], [70.0, 80.0, 90.0]))["differences"]["top1"]
    assert (top1["low"], top1["high"]) == pytest.approx((0.5, 0.5))


def test_quantiles_are_students():
    stats = pytest.importorskip("scipy.stats")
    assert pytest.approx(T_975, abs=5.1e-5) == [stats.t.ppf(0.975, df) for df in range(1, 31)]
    for df in (31, 40, 100, 10_000):
        assert t_quantile(df) == pytest.approx(stats.t.ppf(0.975, df), abs=1e-4)


def test_interval_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(0)
    for count in (2, 5, 30, 60):
        differences = [draw.gauss(0.3, 1) for _ in range(count)]
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        ours = paired(differences)
        assert (ours["low"], ours["high"]) == pytest.approx((low, high), abs=2e-3 if count == 2 else 1e-4)


@given(PAIRS, FIGURES)
def test_a_shift_of_both_arms_changes_no_difference(pairs, shift):
    here = summarise(runs([a for a, _ in pairs], [c for _, c in pairs]))["differences"]["top1"]
    there = summarise(runs([a + shift for a, _ in pairs], [c + shift for _, c in pairs]))["differences"]["top1"]
    for key in ("mean", "low", "high"):
        assert there[key] == pytest.approx(here[key], abs=1e-6)


@given(st.lists(FIGURES, min_size=2, max_size=40))
def test_equal_arms_differ_by_nothing(values):
    result = summarise(runs(values, values))
    assert all((d["mean"], d["low"], d["high"]) == (0, 0, 0) for d in result["differences"].values())
    assert "equal in every one" in result["verdict"][0]
    assert "no difference shown" in result["verdict"][1]


@given(PAIRS, st.randoms())
def test_the_order_of_the_seeds_is_irrelevant(pairs, draw):
    documents = runs([a for a, _ in pairs], [c for _, c in pairs])
    shuffled = documents.copy()
    draw.shuffle(shuffled)
    assert summarise(shuffled) == summarise(documents)


@given(PAIRS)
def test_arms_exchanged_turn_the_interval_round(pairs):
    one = summarise(runs([a for a, _ in pairs], [c for _, c in pairs]))["differences"]["top1"]
    other = summarise(runs([c for _, c in pairs], [a for a, _ in pairs]))["differences"]["top1"]
    assert (other["low"], other["mean"], other["high"]) == pytest.approx((-one["high"], -one["mean"], -one["low"]))
    assert contains_zero(one) == contains_zero(other)


# --- words


@pytest.mark.parametrize(
    ("adapted", "words"),
    [
        ([81.0, 81.1, 81.2], ("NeuTRENO won: +1.10 points", "better in 3 of them", "does not contain 0")),
        ([79.0, 85.0, 80.5], ("no difference shown: +1.50 points", "better in 2 of them", "contains 0")),
        ([79.0, 79.1, 79.2], ("NeuTRENO is worse: -0.90", "better in 0 of them", "does not contain 0")),
        ([80.0, 80.0, 80.0], ("no difference shown", "are equal in every one of 3 seeds")),
        (
            [81.0] * 3,
            ("no difference shown: +1.00", "same number of images (one is 1.00 points): there is no interval"),
        ),
    ],
)
def test_accuracy_in_words(adapted, words):
    sentence = summarise(runs(adapted, [80.0] * 3))["verdict"][0]
    for part in words:
        assert part in sentence
    assert ("no difference shown" in sentence) != any(claim in sentence for claim in ("won", "worse"))


@pytest.mark.parametrize(
    ("adapted", "words"),
    [([0.2, 0.21], "less alike, by more"), ([0.4, 0.41], "more alike, by more"), ([0.2, 0.4], "no difference")],
)
def test_similarity_in_words(adapted, words):
    documents = [
        document(seed, {CONTROL: figures(80.0), ADAPTED: figures(80.0, similarity=[value])})
        for seed, value in enumerate(adapted)
    ]
    assert words in summarise(documents)["verdict"][1]


# --- rows that are missing, and runs that do not belong together


def test_without_a_control_nothing_is_compared():
    result = summarise([document(seed, {ADAPTED: figures(80.0)}) for seed in (0, 1)])
    assert result["differences"] == {}
    assert result["verdict"][0].startswith("No seeds with a control")
    assert "a gain may come from fine-tuning alone" in result["verdict"][0]
    assert "won" not in readme(result)
    assert "minus control" not in readme(result)


def test_a_control_in_some_seeds_only():
    documents = runs([80.0, 81.0, 82.0], [80.0, 80.0, 80.0])
    del documents[1]["models"][CONTROL]
    result = summarise(documents)
    assert result["differences"]["top1"]["values"] == [0.0, 2.0]
    assert result["difference_seeds"] == [0, 2]
    assert f"{CONTROL} (2)" in table(result)
    del documents[0]["models"][CONTROL]
    assert summarise(documents)["verdict"][0].startswith("1 seed with a control")
    assert summarise(documents)["models"][CONTROL]["top1"]["sd"] is None


def test_other_rows_are_kept_in_order():
    rows = {BEFORE: figures(50.0), CONTROL: figures(80.0), ADAPTED: figures(81.0), EMA: figures(82.0)}
    assert list(summarise([document(seed, rows) for seed in (0, 1)])["models"]) == [BEFORE, CONTROL, ADAPTED, EMA]


def test_one_seed_has_no_spread():
    with pytest.raises(UsageError, match="at least two seeds, got 1"):
        summarise(runs([80.0], [80.0]))


def test_the_same_seed_twice_is_refused():
    with pytest.raises(UsageError, match="two runs have the seed 0"):
        summarise(runs([80.0], [80.0]) * 2)


def test_runs_of_something_else_are_refused():
    documents = runs([80.0, 81.0], [80.0, 80.0])
    documents[1]["data"] = "cifar10"
    with pytest.raises(UsageError, match="differ in more than the seed: data is cifar10 and digits"):
        summarise(documents)


# --- tables


def test_tables():
    documents = runs([81.0, 83.0], [80.0, 80.0])
    for each, fidelity in zip(documents, ("0.41 to 0.55", "0.39 to 0.60"), strict=True):
        each["models"][BEFORE] = figures(10.0)
        each["models"][ADAPTED]["fidelity"] = fidelity
        each["new_head"] = True
    result = summarise(documents)
    rows = {line.split("  ")[0]: line for line in table(result).splitlines()}
    assert "82.00 ± 1.41" in rows[ADAPTED]
    assert "learned" in rows[ADAPTED]
    assert rows[BEFORE].count("new head") == 3
    assert rows[CONTROL].count("new head") == 0
    text = readme(result)
    assert "| top-1 | +1.00 | +3.00 | +2.00 | -10.71 to +14.71 |" in text
    assert "Student's t, 1 degree of freedom" in text
    assert "Seeds 0, 1" in text
    assert all(sentence in text for sentence in result["verdict"])


def test_the_result_is_json():
    result = summarise(runs([81.0, 83.0], [80.0, 80.0]))
    assert json.loads(json.dumps(result)) == result
