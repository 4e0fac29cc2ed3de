"""What a person is told, on stderr: nothing if quiet, but for warnings; items come through a bar unchanged."""

from __future__ import annotations

from timm_neutreno_cli.runtime.console import Console


def test_lines_go_to_stderr_as_they_are(capsys):
    Console().say("arm  [bold]x[/bold]  " + "y" * 300)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "arm  [bold]x[/bold]  " + "y" * 300 + "\n"  # neither styled nor wrapped


def test_quiet_says_nothing_but_what_must_not_be_missed(capsys):
    console = Console(quiet=True)
    console.say("line")
    assert list(console.track(range(3), "title", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    console.warn("a checkpoint is damaged")
    assert capsys.readouterr().err == "warning: a checkpoint is damaged\n"


def test_items_are_not_read_ahead():
    """A step that raises must be the last one that was taken."""
    taken = []
    for item in Console().track(iter(range(10)), "title", 10):
        taken.append(item)
        if item == 3:
            break
    assert taken == [0, 1, 2, 3]
