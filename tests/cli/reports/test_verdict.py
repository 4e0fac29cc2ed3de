"""What a run says of NeuTRENO: with a control and outside the interval only, wherever the sentence goes."""

from __future__ import annotations

import json
import re

import pytest
from figures import STRENGTHS, evaluation, result

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
        "README.md": found.readme(),
        "results.json": json.dumps(results),
        "card": card.render("me/it", config, results),
    }
    for place, text in shown.items():
        assert all(sentence in text for sentence in found.sentences), place
    return shown


def claims(text: str) -> list[str]:
    return re.findall(r"\b(?:won|win|worse|better|gained)\b", text)


def test_without_a_control_nobody_won():
    """A new head after an epoch: the whole gain may be fine-tuning's."""
    for text in texts(85.1, None).values():
        assert claims(text) == []
        assert "Accuracy: neutreno has 85.10 % top-1 on 400 images. There is no control, so this says nothing " in text
        assert "a gain may come from fine-tuning alone" in text
        assert "16.6" not in text
    assert "That, too, may come from fine-tuning alone" in texts(85.1, None, similarity=0.1)["terminal"]


@pytest.mark.parametrize("adapted", [81.0, 79.0, 84.0])
def test_inside_the_interval_no_difference_is_shown(adapted):
    for text in texts(adapted, 80.0).values():
        assert claims(text) == []
        assert f"Accuracy: no difference shown for neutreno: {adapted - 80:+.2f} points" in text
        assert " contains 0." in text


def test_equal_is_no_difference():
    for text in texts(80.0, 80.0).values():
        assert claims(text) == []
        assert "no difference shown: neutreno and the control are equal at 80.00 % top-1 on 400 images." in text


@pytest.mark.parametrize(("adapted", "words"), [(90.0, "neutreno won: +10.00"), (70.0, "neutreno is worse: -10.00")])
def test_outside_the_interval_it_won_or_is_worse(adapted, words):
    text = texts(adapted, 80.0)["card"]
    assert f"Accuracy: {words} points of top-1 against the control, 40 of 400 images" in text
    low, high = map(float, re.search(r"interval (\S+) to (\S+) \(over images", text).groups())
    noise = 1.96 * 100 * (2 * (adapted + 80) / 200 * (1 - (adapted + 80) / 200) / 400) ** 0.5
    assert (low, high) == pytest.approx((adapted - 80 - noise, adapted - 80 + noise), abs=0.006)
    assert "does not contain 0." in text


def test_similarity_inside_the_noise_is_no_difference():
    assert "no difference shown, within the noise over images" in texts(80.0, 80.0, similarity=0.31)["terminal"]
    assert "less alike, by more than the noise" in texts(80.0, 80.0, similarity=0.1)["terminal"]


def test_several_methods_are_each_compared_and_the_intervals_say_so():
    """Of one difference among many, one in twenty is larger than its own 95 % interval: they are wider together."""
    models = {"checkpoint": evaluation(70.0), "control": evaluation(80.0), "neutreno": evaluation(85.6)}
    assert "neutreno won" in result(models).sentences[0]
    several = result(models | {"gfsa": evaluation(90.0), "featscale": evaluation(70.0)}).sentences
    assert "no difference shown for neutreno" in several[0]
    assert "gfsa won: +10.00" in several[2]
    assert "featscale is worse: -10.00" in several[4]
    assert several[-1].startswith("3 methods were compared with one control")
