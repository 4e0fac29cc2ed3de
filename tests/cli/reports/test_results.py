"""results.json by machine keys, there and back; the one table writer; the words for keys."""

from __future__ import annotations

import html
import json
import time
from dataclasses import replace

import pytest
from figures import STRENGTHS, evaluation, result
from timm_neutreno_cli import config as settings
from timm_neutreno_cli.errors import CheckpointError
from timm_neutreno_cli.reports import epochs, run_report, tables
from timm_neutreno_cli.reports.results import Evaluations, RunResult

MODELS = {
    "checkpoint": evaluation(50.0), "neutreno/start": evaluation(40.0, strengths=STRENGTHS),
    "control": evaluation(80.0), "neutreno": evaluation(81.0, strengths=STRENGTHS),
    "neutreno/ema": evaluation(82.0, strengths=STRENGTHS),
}  # fmt: skip

ARGUMENTS = {
    **settings.to_yaml(settings.resolve(settings.from_given({"epochs": 1}))),
    "versions": {"torch": "2.10"}, "data_fingerprint": {"val images": 400},
}  # fmt: skip


def test_a_result_is_written_and_read_back(tmp_path):
    assert RunResult.read(tmp_path) is None
    found = result(MODELS)
    run_report.write(found, tmp_path, ARGUMENTS)
    assert RunResult.read(tmp_path) == found
    document = json.loads((tmp_path / "results.json").read_text())
    assert list(document["models"]) == list(MODELS)
    assert document["verdict"] == found.sentences
    assert [tuple(row) for row in document["table"]] == found.rows
    assert document["command"] == "neutreno adapt --epochs 1"
    for name in ("report.html", "README.md"):
        text = html.unescape((tmp_path / name).read_text())
        told = [
            "neutreno adapt --epochs 1",
            "torch 2.10",
            "400 val images",
            time.strftime("%Y-%m-%d"),
            *found.load_lines(),
        ]
        assert [words for words in told if words not in text] == []
        assert [row[0] for row in found.rows if row[0] not in text] == []


def test_rows_are_called_in_words_and_ordered_by_arms(tmp_path):
    evaluations = Evaluations(tmp_path, writes=True)
    for key in reversed(MODELS):
        evaluations.add(key, MODELS[key])
    assert list(evaluations.in_order(["control", "neutreno"])) == list(MODELS)
    assert Evaluations(tmp_path, writes=True).rows == evaluations.rows
    assert [tables.label(key) for key in MODELS] == [
        "checkpoint as it came", "neutreno, not adapted", "control, no method", "neutreno, adapted",
        "neutreno, adapted, EMA",
    ]  # fmt: skip


@pytest.mark.parametrize("file", ["results.json", "evaluations.json"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows["neutreno"].pop("top1"), "of neutreno, top1 is missing"),
        (lambda rows: rows["neutreno"].update(similarity=[]), "of neutreno, similarity is empty"),
        (lambda rows: rows["neutreno"].update(loss="low"), "of neutreno, loss must be of the kind float, got 'low'"),
        (lambda rows: rows["neutreno"].update(images=0), "images cannot be 0"),
        (lambda rows: rows["neutreno"].update(top1=float("nan")), "top1 cannot be nan"),
        (
            lambda rows: rows["neutreno"].update(strengths={"fidelity": {"min": 1}}),
            "fidelity are incomplete",
        ),
        (lambda rows: rows.update(neutreno=3), "of neutreno, it is no mapping|models must be of the kind"),
    ],
)
def test_a_row_that_no_evaluation_gives_is_named(tmp_path, file, change, words):
    run_report.write(result(MODELS), tmp_path, ARGUMENTS)
    document = json.loads((tmp_path / "results.json").read_text())
    change(document["models"])
    (tmp_path / file).write_text(json.dumps(document if file == "results.json" else document["models"]))
    with pytest.raises(CheckpointError, match=words) as refused:
        RunResult.read(tmp_path) if file == "results.json" else Evaluations(tmp_path, writes=True)
    assert str(tmp_path / file) in str(refused.value)


def test_a_result_without_its_main_model_is_refused(tmp_path):
    document = {**result(MODELS).document(), "main": "gfsa"}
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="models has no gfsa"):
        RunResult.read(tmp_path)


def test_names_cannot_break_out_of_the_readme(tmp_path):
    found = replace(result(MODELS), checkpoint="x|y\n# <img src=z>", data="[a](b) `c`", output='a"b')
    text = run_report.readme(found, tmp_path, ARGUMENTS)
    assert r"Checkpoint: x\|y # \<img src=z\>. Data: \[a\](b) \`c\`," in text
    assert r'"local-dir:a\"b"' in text


def test_one_table_in_three_notations():
    rows = [("model", "top-1"), ("a|b <c>", "81.00")]
    assert tables.plain(rows) == "model    top-1\n--------------\na|b <c>  81.00"
    assert tables.markdown(rows).splitlines() == [
        "| model | top-1 |", "|---|---|", r"| a\|b \<c\> | 81.00 |",
    ]  # fmt: skip
    assert "<td>a|b &lt;c&gt;</td>" in tables.html(rows)


def test_strengths_in_a_cell():
    learned = {"mean_abs": 0.25, "min": -0.3, "max": 0.2}
    assert tables.strength_cell({}) == "-"
    assert tables.strength_cell(STRENGTHS) == "0.6"
    assert tables.strength_cell({"gfsa": learned}) == "|0.25|"
    assert tables.strength_cell({"gfsa": learned, **STRENGTHS}) == "gfsa |0.25|, fidelity 0.6"


def test_a_new_head_s_accuracy_is_hidden_until_it_is_trained():
    rows = {row[0]: row for row in tables.cells(MODELS, new_head=True)}
    assert rows["neutreno, not adapted"][2:5] == ("new head",) * 3
    assert rows["neutreno, adapted"][2] == "81.00"


def test_an_epoch_s_record_and_line():
    pace = epochs.Pace(seconds=2.0, waited=1.0, steps=10)
    record = epochs.record("gfsa", 3, {"train_loss": 0.5}, pace, 8, {"raw": evaluation(80.0), "ema": evaluation(81.0)})
    assert (record["images_per_second"], record["data_wait_share"]) == (40.0, 0.5)
    assert (record["val_top1"], record["val_ema_top1"]) == (80.0, 81.0)
    words = " ".join(epochs.line(record, 10).split())
    assert words == "gfsa 3/10 loss 0.5000 val loss 1.0000 top-1 80.00 EMA 81.00 40 images/s"
    assert epochs.waiting(record).startswith("50 % of the time")
    nothing = epochs.record("gfsa", 3, {"train_loss": 0.5}, epochs.Pace(1.0, 0.0, 0), 8, {"raw": evaluation(80.0)})
    assert "images/s" not in epochs.line(nothing, 10)
    assert epochs.waiting(nothing) == ""
