"""README and docs show what the JSON files of benchmarks/ hold."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def evidence():
    return importlib.import_module("evidence")


def test_every_passage_is_what_its_json_says(evidence):
    pages = evidence.pages()
    assert sum(len(evidence.PASSAGE.findall(page.read_text())) for page in pages) >= 8
    assert [page.name for page in pages if evidence.made(page) != page.read_text()] == []


def test_a_changed_figure_is_seen(evidence, tmp_path):
    page = next(page for page in evidence.pages() if evidence.PASSAGE.search(page.read_text()))
    text = page.read_text()
    place = evidence.PASSAGE.search(text).start(4) + 1
    changed = tmp_path / page.name
    changed.write_text(text[:place] + "0" + text[place:])
    assert evidence.made(changed) == text


def test_every_figure_of_benchmarks_is_shown_somewhere(evidence):
    text = "".join(page.read_text() for page in evidence.pages())
    for path in sorted((ROOT / "benchmarks").glob("*.json")):
        assert path.name in text, path.name
