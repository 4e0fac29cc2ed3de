"""Each warning where it matters, and nowhere else."""

from __future__ import annotations

import pytest
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.reports.cautions import near_chance, of_run
from timm_neutreno_cli.reports.epochs import TimeLeft
from timm_neutreno_cli.reports.tables import count, plain


def test_a_plain_run_has_none():
    assert list(of_run(Config(), [], "")) == []
    assert list(of_run(Config(checkpoint="deit_tiny", data="photos"), ["state_dict is taken, of several"], "")) == []


@pytest.mark.parametrize(
    ("config", "notes", "new_head", "words"),
    [
        (Config(checkpoint="my.pth"), [], "", "my.pth is trained on the embedded digits, since --data is missing."),
        (Config(), [], "10 classes instead of 1000", "the head is initialised anew: 10 classes instead of 1000."),
        (Config(), ["state_dict_ema is taken, of several in the file"], "", "are averages (EMA)"),
        (Config(), ["teacher. is taken, of teacher. and student. in the file"], "", "are averages (EMA)"),
    ],
)
def test_each_is_said(config, notes, new_head, words):
    (said,) = of_run(config, notes, new_head)
    assert words in said


@pytest.mark.parametrize(
    ("top1", "images", "classes", "near"),
    [(11.0, 400, 10, True), (20.0, 400, 10, False), (52.0, 400, 2, True), (60.0, 400, 2, False),
     (0.2, 50000, 1000, True), (70.0, 20, 2, True), (15.9, 640, 1000, False)],
)  # fmt: skip
def test_near_chance(top1, images, classes, near):
    said = near_chance("it", {"top1": top1, "images": images}, classes, "")
    assert bool(said) is near
    assert not said or f"it is near chance: {top1:.2f} % on {count(images, 'image')}" in said
    assert near_chance("it", {"top1": top1, "images": images}, classes, "a new head guesses") == ""


def test_plurals():
    assert [count(1, "image"), count(1400, "image"), count(1, "class"), count(10, "class"), count(0.5, "epoch")] == [
        "1 image", "1,400 images", "1 class", "10 classes", "0.5 epochs",
    ]  # fmt: skip
    assert count(1_281_167, "image") == "1,281,167 images"


def test_a_table_that_is_too_wide_becomes_blocks():
    rows = [("model", "top-1", "loss"), ("control", "81.00", "0.5"), ("neutreno", "82.00", "0.4")]
    assert plain(rows, 22) == plain(rows, None)
    assert plain(rows, 15).splitlines() == [
        "control", "  top-1  81.00", "  loss   0.5", "neutreno", "  top-1  82.00", "  loss   0.4",
    ]  # fmt: skip


def test_the_time_that_is_left_counts_from_the_second_step(monkeypatch):
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr("timm_neutreno_cli.reports.epochs.time.perf_counter", lambda: next(clock))
    left = TimeLeft(10)
    assert left.after(3, trainings=2) == (None, None)
    assert left.after(4, trainings=2) == (2.0 * 6, 2.0 * 26)
    assert left.after(5, trainings=0) == (2.0 * 5, 2.0 * 5)
