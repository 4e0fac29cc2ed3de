"""Several seeds: means, spreads, the paired difference and its interval, and what is said about it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.reports.intervals import contains_zero, paired, t_quantile
from timm_neutreno_cli.reports.seeds import readme, summarise, text

BEFORE, CONTROL, ADAPTED, EMA = "checkpoint", "control", "neutreno", "neutreno/ema"
STRENGTHS = {"fidelity": {"mean_abs": 0.6, "min": 0.6, "max": 0.6}}
FIGURES = st.floats(-100, 100, allow_nan=False)
PAIRS = st.lists(st.tuples(FIGURES, FIGURES), min_size=2, max_size=40)


def figures(top1: float, **others: object) -> dict:
    return {
        "strengths": STRENGTHS,
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
    top1 = result["differences"][ADAPTED]["top1"]
    assert (top1["mean"], top1["sd"], top1["values"]) == (3.0, 2.0, [1.0, 3.0, 5.0])
    half = 4.30265273 * 2 / 3**0.5
    assert (top1["low"], top1["high"]) == pytest.approx((3 - half, 3 + half))


def test_similarity_is_the_last_block_s():
    result = summarise([document(seed, {ADAPTED: figures(80.0, similarity=[0.9, 0.1 + seed / 10])}) for seed in (0, 1)])
    assert result["models"][ADAPTED]["similarity"]["values"] == pytest.approx([0.1, 0.2])


def test_the_pairing_takes_out_what_the_seeds_share():
    """Seeds that move both arms by 10 points leave a difference that is the same in all."""
    top1 = summarise(runs([70.5, 80.5, 90.5], [70.0, 80.0, 90.0]))["differences"][ADAPTED]["top1"]
    assert (top1["low"], top1["high"]) == pytest.approx((0.5, 0.5))


def test_quantiles_are_students():
    stats = pytest.importorskip("scipy.stats")
    for df in (*range(1, 32), 40, 100, 1000):
        for p in (0.975, 1 - 0.025 / 4, 0.999):
            assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-10)


def test_interval_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(0)
    for count in (2, 5, 30, 60):
        differences = [draw.gauss(0.3, 1) for _ in range(count)]
        low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        ours = paired(differences)
        assert (ours["low"], ours["high"]) == pytest.approx((low, high), rel=1e-9)


@given(PAIRS, FIGURES)
def test_a_shift_of_both_arms_changes_no_difference(pairs, shift):
    here = summarise(runs([a for a, _ in pairs], [c for _, c in pairs]))["differences"][ADAPTED]["top1"]
    there = summarise(runs([a + shift for a, _ in pairs], [c + shift for _, c in pairs]))["differences"][ADAPTED][
        "top1"
    ]
    for key in ("mean", "low", "high"):
        assert there[key] == pytest.approx(here[key], abs=1e-6)


@given(st.lists(FIGURES, min_size=2, max_size=40))
def test_equal_arms_differ_by_nothing(values):
    result = summarise(runs(values, values))
    assert all((d["mean"], d["low"], d["high"]) == (0, 0, 0) for d in result["differences"][ADAPTED].values())
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
    one = summarise(runs([a for a, _ in pairs], [c for _, c in pairs]))["differences"][ADAPTED]["top1"]
    other = summarise(runs([c for _, c in pairs], [a for a, _ in pairs]))["differences"][ADAPTED]["top1"]
    assert (other["low"], other["mean"], other["high"]) == pytest.approx((-one["high"], -one["mean"], -one["low"]))
    assert contains_zero(one) == contains_zero(other)


# --- words


@pytest.mark.parametrize(
    ("adapted", "words"),
    [
        (
            [81.0, 81.1, 81.2],
            "Better: neutreno against the control: +1.10 points of top-1, 95 % interval +0.85 to +1.35, mean of 3 "
            "seeds "
            "on 100 images; better in 3 of them. With seeds that scatter like these, only a difference of 0.25 "
            "points or more would show.",
        ),
        (
            [79.0, 85.0, 80.5],
            "No difference shown: neutreno against the control: +1.50 points of top-1, 95 % interval -6.26 to +9.26, "
            "mean of 3 seeds on 100 images; better in 2 of them. With seeds that scatter like these, only a "
            "difference of 7.76 points or more would show.",
        ),
        (
            [79.0, 79.1, 79.2],
            "Worse: neutreno against the control: -0.90 points of top-1, 95 % interval -1.15 to -0.65, mean of 3 seeds "
            "on 100 images; better in 0 of them. With seeds that scatter like these, only a difference of 0.25 "
            "points or more would show.",
        ),
        (
            [80.0, 80.0, 80.0],
            "No difference shown: neutreno and the control are equal in every one of 3 seeds on 100 images.",
        ),
        (
            [81.0] * 3,
            "No difference shown: neutreno differs from the control by +1.00 points of top-1 in every one of 3 seeds "
            "on "
            "100 images. The same number of images each time (one is 1.00 points) gives no interval.",
        ),
    ],
)
def test_accuracy_in_words(adapted, words):
    result = summarise(runs(adapted, [80.0] * 3))
    assert result["verdict"][0] == words
    assert result["outcomes"] == {ADAPTED: words.partition(":")[0].lower()}


@pytest.mark.parametrize(
    ("adapted", "words"),
    [([0.2, 0.21], "lower, by more"), ([0.4, 0.41], "higher, by more"), ([0.2, 0.4], "no difference")],
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
    assert result["verdict"] == [
        "No difference shown: without a control, a gain may be fine-tuning alone. No seed has a control, and a "
        "comparison "
        "of seeds needs two. This says nothing for or against neutreno."
    ]
    assert result["outcomes"] == {ADAPTED: "no difference shown"}
    assert "won" not in readme(result)
    assert "minus the control" not in readme(result)


def test_a_control_in_some_seeds_only():
    documents = runs([80.0, 81.0, 82.0], [80.0, 80.0, 80.0])
    del documents[1]["models"][CONTROL]
    result = summarise(documents)
    assert result["differences"][ADAPTED]["top1"]["values"] == [0.0, 2.0]
    assert result["difference_seeds"] == [0, 2]
    assert "control, no method (2)" in text({**result, "output": "runs"})
    del documents[0]["models"][CONTROL]
    assert "Only one seed has a control, and a comparison of seeds needs two." in summarise(documents)["verdict"][0]
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
    for each, mean in zip(documents, (0.41, 0.43), strict=True):
        each["models"][BEFORE] = figures(10.0)
        each["models"][ADAPTED]["strengths"] = {"fidelity": {"mean_abs": mean, "min": -0.1, "max": 0.6}}
        each["new_head"] = True
    result = summarise(documents)
    rows = {line.split("  ")[0]: line for line in text({**result, "output": "runs"}).splitlines()}
    assert "82.00 ± 1.41" in rows["neutreno, adapted"]
    assert "|0.42|" in rows["neutreno, adapted"]
    assert rows["checkpoint as it came"].count("new head") == 3
    assert rows["control, no method"].count("new head") == 0
    page = readme(result)
    assert "| neutreno, top-1 | +1.00 | +3.00 | +2.00 | -10.71 to +14.71 |" in page
    assert "Student's t, 1 degree of freedom" in page
    assert "Seeds 0, 1" in page
    assert all(sentence in page for sentence in result["verdict"])


def test_several_methods_have_wider_intervals_that_hold_together():
    documents = runs([81.0, 81.6, 81.9], [80.0, 80.0, 80.0])
    one = summarise(documents)["differences"][ADAPTED]["top1"]
    for each, top1 in zip(documents, (79.0, 79.1, 79.3), strict=True):
        each["models"]["gfsa"] = figures(top1)
    both = summarise(documents)
    wider = both["differences"][ADAPTED]["top1"]
    assert wider["low"] < one["low"] < one["high"] < wider["high"]
    assert wider["high"] - wider["mean"] == pytest.approx((one["high"] - one["mean"]) * 6.20535 / 4.30265, rel=1e-5)
    assert both["verdict"][2].startswith("Worse: gfsa against the control: -0.87 points")
    assert any(sentence.startswith("2 methods were compared") for sentence in both["verdict"])


def test_the_result_is_json():
    result = summarise(runs([81.0, 83.0], [80.0, 80.0]))
    assert json.loads(json.dumps(result)) == result
