"""What a run says of NeuTRENO: with a control and outside the interval only, wherever the sentence goes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from figures import STRENGTHS, evaluation, result
from timm_neutreno_cli.reports import run_report

from timm_neutreno.hub import card


def texts(adapted: float, control: float | None, similarity: float = 0.3) -> dict[str, str]:
    """The sentences as a terminal, the run's README.md, its results.json and the public card show them."""
    models = {"checkpoint": evaluation(68.5)}
    models |= {} if control is None else {"control": evaluation(control)}
    found = result(models | {"neutreno": evaluation(adapted, similarity, STRENGTHS)})
    results = {**found.document(), "table": found.rows}
    config = {"architecture": "neutreno_vit", "num_classes": 2, "pretrained_cfg": {}}
    shown = {
        "terminal": found.text(),
        "README.md": run_report.readme(found, Path(), {}),
        "results.json": json.dumps(results),
        "card": card.render("me/it", config, results),
    }
    for place, text in shown.items():
        assert all(sentence in text for sentence in found.sentences), place
    return shown


def words(text: str) -> list[str]:
    """The verdicts in a text, without the sentence that lower is not better by itself."""
    return re.findall(r"\b(?:won|win|[Ww]orse|[Bb]etter|gained)\b", text.replace("Lower is not better by itself", ""))


def sentence(adapted: float, control: float | None, similarity: float = 0.3) -> str:
    """The one about accuracy, which every document has; the machine's word agrees with it."""
    shown = texts(adapted, control, similarity)
    document = json.loads(shown["results.json"])
    first = document["verdict"][0]
    assert document["outcomes"] == {"neutreno": first.partition(":")[0].lower()}
    assert first.startswith(("Better: ", "Worse: ", "No difference shown: "))
    assert all(
        words(text) == words(shown["terminal"]) for place, text in shown.items() if place in ("README.md", "card")
    )
    return first


def test_a_clear_win():
    assert sentence(90.0, 80.0) == (
        "Better: neutreno has 90.00 % top-1, the control 80.00 %: +10.00 points (40 images), 95 % interval +5.03 to "
        "+14.97, on 400 images with one seed. With this many images, only a "
        "difference of 4.97 points or more would show."
    )


def test_a_clear_loss():
    assert sentence(70.0, 80.0) == (
        "Worse: neutreno has 70.00 % top-1, the control 80.00 %: -10.00 points (40 images), 95 % interval -16.01 to "
        "-3.99, on 400 images with one seed. With this many images, only a "
        "difference of 6.01 points or more would show."
    )


def test_a_tie():
    assert sentence(80.0, 80.0) == (
        "No difference shown: neutreno and the control are equal at 80.00 % top-1, on 400 images with one seed. "
        "With this many images, only a difference of 5.56 points or more would show."
    )
    assert "difference of 0.69 points or more" in sentence(100.0, 100.0)  # not of 0: there are 400 images only


@pytest.mark.parametrize("adapted", [81.0, 79.0, 84.0, 80.25])
def test_inside_the_interval_no_difference_is_shown(adapted):
    found = sentence(adapted, 80.0)
    assert words(found) == []
    assert found.startswith(f"No difference shown: neutreno has {adapted:.2f} % top-1, the control 80.00 %: ")
    assert f"{adapted - 80:+.2f} points ({'1 image)' if adapted == 80.25 else ''}" in found


def test_without_a_control_nothing_is_claimed():
    """A new head after an epoch: the whole gain may be fine-tuning's."""
    assert sentence(85.1, None) == (
        "No difference shown: without a control, a gain may be fine-tuning alone. neutreno has 85.10 % top-1 on 400 "
        "images with one seed, which says nothing for or against it. Run it again without --no-control."
    )
    for text in texts(85.1, None).values():
        assert words(text) == []
        assert "16.6" not in text
    assert "by itself. That, too, may be fine-tuning alone." in texts(85.1, None, similarity=0.1)["terminal"]


def test_one_seed_says_so():
    for text in texts(90.0, 80.0).values():
        assert "All this is from one seed. Training again with another seed would give other figures; --seeds 3" in text


def test_the_interval_is_the_textbook_s():
    found = sentence(90.0, 80.0)
    low, high = map(float, re.search(r"interval (\S+) to (\S+), on", found).groups())
    p = (360 + 320 + 2) / 804
    noise = 1.96 * 100 * (2 * p * (1 - p) / 400) ** 0.5
    assert (low, high) == pytest.approx((10 - noise, 10 + noise), abs=0.006)


def test_similarity_is_told_beside_it_and_is_no_merit():
    here = (
        "Token similarity in the last block: 0.310 in neutreno, 0.300 in the control: no difference shown, within the"
    )
    assert here in texts(80.0, 80.0, similarity=0.31)["terminal"]
    there = "0.100 in neutreno, 0.300 in the control: lower, by more than the noise over images (0.014)."
    assert there in texts(80.0, 80.0, similarity=0.1)["terminal"]


def test_several_methods_are_each_compared_and_the_intervals_say_so():
    """Of one difference among many, one in twenty is larger than its own 95 % interval: they are wider together."""
    models = {"checkpoint": evaluation(70.0), "control": evaluation(80.0), "neutreno": evaluation(85.6)}
    assert result(models).sentences[0].startswith("Better: neutreno has")
    several = result(models | {"gfsa": evaluation(90.0), "featscale": evaluation(70.0)})
    assert [text.partition(" has ")[0] for text in several.sentences[:6:2]] == [
        "No difference shown: neutreno", "Better: gfsa", "Worse: featscale",
    ]  # fmt: skip
    assert several.document()["outcomes"] == {
        "neutreno": "no difference shown", "gfsa": "better", "featscale": "worse",
    }  # fmt: skip
    assert several.sentences[-2].startswith("3 methods were compared with one control: the intervals are widened")
