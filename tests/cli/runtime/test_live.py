"""The panel: whole figures in whatever width, one line less than the terminal's columns, and gone afterwards."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as Rich
from timm_neutreno_cli.runtime import console as consoles
from timm_neutreno_cli.runtime import live
from timm_neutreno_cli.runtime.console import Console, fold

FIGURES = {
    "loss": 0.61234, "lr": 1.9e-4, "fidelity": 0.43, "images_per_second": 12540.2, "waiting": 0.031,
    "memory_mib": 8120.4, "arm_left": 320.0, "run_left": 4003.0,
}  # fmt: skip
WORDS = [
    "loss 0.6123", "lr 1.9e-04", "fidelity 0.430, rising", "12,540 images/s", "data wait 3%", "memory 8,120 MiB",
    "arm 5 min 20 s left", "run 1 h 6 min left",
]  # fmt: skip


def drawn(columns: int, title: str = "epoch 3/100, neutreno+value_residual (arm 2/3)", **figures: float) -> list[str]:
    panel = live.Panel(title, 20, figures or FIGURES)
    panel.done = 7
    console = Rich(width=columns, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(panel)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_it_fits_and_no_figure_is_cut(columns):
    lines = drawn(columns)
    assert max(map(len, lines)) < columns
    assert "7/20" in " ".join(lines)
    assert [words for words in WORDS if not any(words in line for line in lines)] == []
    assert [
        word for word in ("epoch", "3/100,", "neutreno+value_residual", "2/3)") if word not in " ".join(lines)
    ] == []
    assert max(map(len, drawn(20))) < 20  # even there nothing runs over


def test_it_uses_the_width_that_there_is():
    assert [len(drawn(columns)) for columns in (40, 80, 160)] == [8, 3, 2]
    assert len(drawn(160)[0]) == 159  # the bar fills the line


def test_only_figures_that_are_known_are_shown():
    assert live.words({"loss": 1.0, "lr": None, "arm_left": None, "run_left": None}) == ["loss 1.0000"]
    assert live.words({"arm_left": 3.0, "run_left": 3.0}) == ["run 3 s left"]  # the last arm's time is the run's


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (45, "45 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h"), (60, "1 min")],
)
def test_durations_have_two_units_at_most(seconds, words):
    assert live.duration(seconds) == words


def terminal(console: Console, columns: int = 80, **kwargs: object) -> io.StringIO:
    """Let a console believe that it has a terminal; what is written to it."""
    file = io.StringIO()
    console.console = Rich(width=columns, file=file, force_terminal=True, highlight=False, soft_wrap=True, **kwargs)
    return file


def test_items_come_through_unchanged_and_the_panel_goes():
    console = Console()
    file = terminal(console)
    console.show(loss=0.5)
    assert list(console.track(iter("abc"), "title", 3)) == list("abc")
    written = file.getvalue()
    assert "loss 0.5000" in written
    assert "\x1b[?25h" in written  # the cursor is back
    assert written.endswith(("\x1b[2K", "\x1b[1A\x1b[2K"))  # its lines are erased


def test_lines_are_said_above_the_panel():
    console = Console()
    file = terminal(console)
    for item in console.track(range(2), "title", 2):
        console.say(f"line {item}")
    assert file.getvalue().index("line 0") < file.getvalue().index("line 1")


def test_a_panel_that_is_closed_early_is_gone():
    console = Console()
    file = terminal(console)
    tracked = console.track(range(9), "title", 9)
    assert next(tracked) == 0
    tracked.close()
    assert "\x1b[?25h" in file.getvalue()


def test_without_a_terminal_there_are_plain_lines_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(consoles, "EVERY", 0.0)
    console = Console()
    console.show(loss=0.5, images_per_second=100.0)
    assert list(console.track(range(2), "epoch 1/2", 5, start=3)) == [0, 1]
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1/2: 4 of 5, loss 0.5000, 100 images/s",
        "epoch 1/2: 5 of 5, loss 0.5000, 100 images/s",
    ]


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(consoles, "EVERY", 0.0)
    console = Console()
    file = terminal(console)
    assert list(console.track(range(2), "title", 2)) == [0, 1]
    assert file.getvalue() == "title: 1 of 2\ntitle: 2 of 2\n"


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console()
    file = terminal(console)
    console.caution("a warning")
    list(console.track(range(3), "title", 3))
    assert "warning: a warning" in file.getvalue()
    assert "\x1b[3" not in file.getvalue().replace("\x1b[39m", "").replace("\x1b[49m", "")


def test_long_lines_are_folded_between_words():
    assert fold("data   a b c\nshort", 8, "       ") == "data   a\n       b\n       c\nshort"
    assert fold("x" * 30, 8) == "x" * 30  # a path stays whole
    assert fold("anything at all", None) == "anything at all"
