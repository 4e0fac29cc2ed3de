"""What --help, --help-all, completion and a wrong option's answer show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
import typer
from timm_neutreno_cli.commands import command, completion
from timm_neutreno_cli.config import MAIN, METHOD_NAMES, OPTIONS, flag
from timm_neutreno_cli.main import app, run

from timm_neutreno import METHODS

GROUP = typer.main.get_command(app)
EXAMPLE = re.compile(r"^ *(neutreno .+)$", re.MULTILINE)
EXAMPLES = [line for made in (GROUP, *GROUP.commands.values()) for line in EXAMPLE.findall(made.help or "")]


@pytest.fixture
def shown(monkeypatch, capsys):
    """Runs `neutreno`; returns what it prints, on a terminal of so many columns."""

    def start(*args: str, columns: int = 100) -> str:
        monkeypatch.setattr(sys, "argv", ["neutreno", *args])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            run(app)
        return "".join(capsys.readouterr())

    return start


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", EXAMPLE.sub("", text)))


def test_help_shows_the_options_that_matter_and_help_all_every_one(shown):
    few, every = options(shown("adapt", "--help")), options(shown("adapt", "--help-all", columns=140))
    assert {flag(name) for name in MAIN} <= few
    assert len(few) < 20
    assert {flag(name) for name in OPTIONS} - {"--control"} <= every


@pytest.mark.parametrize("name", [None, *GROUP.commands])
@pytest.mark.parametrize("columns", [40, 80])
def test_no_name_of_an_option_is_cut(shown, name, columns):
    text = shown(*([name] if name else []), "--help", columns=columns)
    made = GROUP.commands[name] if name else GROUP
    assert {option.opts[0] for option in made.params if not option.hidden and option.opts[0][:2] == "--"} <= options(
        text
    )


def test_there_are_five_examples_of_the_whole_and_of_adapt():
    assert [len(EXAMPLE.findall(made.help)) for made in (GROUP, GROUP.commands["adapt"])] == [5, 5]


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_a_command_line(example):
    name, *args = shlex.split(example)[1:]
    made = GROUP.commands[name]
    made.make_context(name, args, resilient_parsing=True)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_is_full_sentences(name):
    words = re.sub(r" \(default: .*\)$", "", OPTIONS[name].help)
    assert words[0].isupper()
    assert words.endswith(".")
    assert len(words.split()) > 3


@pytest.mark.parametrize("ours", sorted(set(command.OTHER_NAMES.values())))
def test_what_other_tools_call_otherwise_has_that_name_here(ours):
    assert ours.split()[0] in {
        name for made in GROUP.commands["adapt"].params for name in (*made.opts, *made.secondary_opts)
    }


def test_an_option_of_another_tool_is_answered_with_ours(shown):
    assert shown("adapt", "--learning-rate=1e-3") == "error: there is no option --learning-rate: here it is --lr.\n"
    assert "--device cpu" in shown("adapt", "--cpu")
    assert "Possible options: --fidelity" in shown("adapt", "--fidelty", "1")
    assert "No such option: --learning-rate" in shown("models", "--learning-rate")  # it has no such thing


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from timm_neutreno_cli.main import app\n"
        "try: app(['adapt', '--help'])\nexcept SystemExit: pass\n"
        "heavy = ('torch', 'timm', 'matplotlib', 'rich.live')\n"
        "print(*(name for name in heavy if name in sys.modules), file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "\n"


def test_methods_are_completed_also_behind_a_sign():
    assert set(METHOD_NAMES) == set(METHODS)
    assert completion.methods("at") == ["attnscale"]
    assert completion.methods("neutreno+gf") == ["neutreno+gfsa"]


def test_checkpoints_are_demo_folders_files_and_names_of_timm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit_mine").mkdir()
    (tmp_path / "weights.pth").touch()
    (tmp_path / ".hidden").touch()
    assert list(completion.models("")) == ["demo", "deit_mine/", "weights.pth"]
    assert list(completion.models("w")) == ["weights.pth"]
    assert {"deit_mine/", "deit_tiny", "deit_tiny_patch16_224"} <= set(completion.models("deit_"))
    assert list(completion.paths(f"{tmp_path}/de")) == [f"{tmp_path}/deit_mine/"]


def test_runs_are_offered_for_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "note.txt").touch()
    assert list(completion.runs("")) == ["runs/first/"]


def test_the_shell_gets_the_words():
    asked = {"_NEUTRENO_COMPLETE": "complete_bash", "COMP_WORDS": "neutreno adapt --recipe ", "COMP_CWORD": "3"}
    code = "from timm_neutreno_cli.main import app; app(prog_name='neutreno')"
    offered = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert offered.stdout.split() == ["finetune", "deit", "digits", "segmenter"], offered.stderr
