"""What README, CONTRIBUTING and docs/ say, as far as a program can check: links, commands, options, Python names."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import timm
import typer
from timm_neutreno_cli.commands.models import family_table, list_models
from timm_neutreno_cli.main import adapt_app, app
from timm_neutreno_cli.reports import tables
from timm_neutreno_cli.reports.results import RunResult

import timm_neutreno

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {**typer.main.get_command(app).commands, "neutreno-adapt": typer.main.get_command(adapt_app)}


def snippets(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    return [(page.name, text) for page in PAGES for found, text in FENCE.findall(page.read_text()) if found == language]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        target = page if not path else page.parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent.name == "docs")


def words(line: str) -> list[str]:
    """A line of a shell snippet without comment, environment and placeholder."""
    return [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=\S*", word)]


def command_lines() -> list[tuple[str, str]]:
    found = []
    for page, text in snippets("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            found += [(page, part.strip()) for part in re.split(r"&&|\|\|?", line.partition("#")[0]) if part.strip()]
    return found


@pytest.mark.parametrize(
    ("page", "line"), [(p, n) for p, n in command_lines() if re.search(r"\bneutreno(-adapt)?\b", n)]
)
def test_commands_and_options_exist(page, line):
    given = words(line)
    start = next(index for index, word in enumerate(given) if word in ("neutreno", "neutreno-adapt"))
    name = given[start] if given[start] == "neutreno-adapt" else given[start + 1]
    assert name in COMMANDS, line
    known = {option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in given[start + 1 :]:
        if word.startswith("-") and not re.fullmatch(r"-\d.*", word):
            assert word.partition("=")[0] in {*known, "--help", "-h"}, word


def script_lines() -> list[tuple[str, str]]:
    """(page, command) of every `python benchmarks/...` in the pages' text."""
    found = re.compile(r"python (benchmarks/\w+\.py[^`\n]*)")
    return [(page.name, line) for page in PAGES for line in found.findall(page.read_text().replace("\\\n", " "))]


@pytest.mark.parametrize(("page", "line"), script_lines())
def test_scripts_exist_and_know_their_options(page, line):
    script, *given = words(line)
    source = (ROOT / script).read_text()
    for word in given:
        if word.startswith("--"):
            name = word.partition("=")[0]
            assert f'"{name}"' in source or f'"{name[2:]}"' in source, word  # made one by one, or in a loop over names


@pytest.mark.parametrize(("page", "text"), snippets("python"))
def test_python_is_python_and_names_exist(page, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "timm_neutreno":
            assert hasattr(timm_neutreno, node.attr), node.attr
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("timm_neutreno"):
            module = __import__(node.module, fromlist=["x"])
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_readmes_table_and_verdict_are_what_the_command_prints():
    """From the figures of its first command, `neutreno-adapt`, as that run left them (readme_run/results.json)."""
    found = RunResult.read(ROOT / "tests" / "readme_run")
    assert found
    (block,) = re.findall(r"^```\n(model .*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    table, verdict = block.split("\n\n")
    assert table == tables.plain(found.rows)
    assert " ".join(verdict.split()) == " ".join(found.sentences)


def test_readmes_four_lines_do_what_they_say(monkeypatch):
    """As printed, with an untrained model where weights would be fetched."""
    (text,) = (text for page, text in snippets("python") if page == "README.md")
    vit = timm.create_model("test_vit")
    namespace: dict = {"any_timm_vit": vit}
    exec(text.replace("pretrained=True", "pretrained=False"), namespace)
    assert timm_neutreno.is_patched(namespace["model"])
    assert {name.rpartition(".")[2] for name in timm_neutreno.strengths(vit)} == {
        "fidelity", "featscale_low", "featscale_high",
    }  # fmt: skip


def test_the_library_page_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in timm_neutreno.__all__ if name not in text]
    assert missing == []
    assert all(inspect.getdoc(getattr(timm_neutreno, name)) for name in timm_neutreno.__all__ if name != "METHODS")


def test_the_library_pages_reference_is_made_from_the_docstrings():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec
    assert spec.loader
    make_api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_api)
    page = make_api.PAGE.read_text()
    assert make_api.made(page) == page, "run python docs/make_api.py"


def test_the_methods_page_has_every_method():
    text = (ROOT / "docs" / "methods.md").read_text()
    for name, method in timm_neutreno.METHODS.items():
        assert f"| `{name}` |" in text
        assert all(f"`{strength}`" in text for strength in method.strengths)


def test_the_models_page_is_made_by_the_command():
    text = (ROOT / "docs" / "models.md").read_text()
    version = re.search(r"--families`, timm ([\d.]+) -->", text)
    assert version
    if timm.__version__ != version[1]:
        pytest.skip(f"the table is of timm {version[1]}, and this is {timm.__version__}")
    assert family_table(list_models("*", False)) in text


def test_figures_of_the_probe_page_are_the_files():
    """The table in docs/probing.md is that of benchmarks/real_weights_probe.md, whose figures are those of the JSON."""
    made = (ROOT / "benchmarks" / "real_weights_probe.md").read_text()
    table = [line for line in made.splitlines() if line.startswith("|")]
    assert "\n".join(table) in (ROOT / "docs" / "probing.md").read_text()
    rows = json.loads((ROOT / "benchmarks" / "real_weights_probe.json").read_text())["result"]["rows"]
    for line, row in zip(table[2:], rows, strict=True):
        scores = row["scores"].values()
        assert [f"{score['test']:.2f}" for score in scores] == [line.split(" | ")[index] for index in (2, 6)]
