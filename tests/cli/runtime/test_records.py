"""Small files that are read again: right, or one sentence that names the file and what is wrong in it."""

from __future__ import annotations

import os

import pytest
from timm_neutreno_cli.errors import CheckpointError
from timm_neutreno_cli.runtime import records

KINDS = {"epoch": int, "names": list[str], "loss": float, "note": str | None}
GOOD = '{"epoch": 1, "names": ["ü"], "loss": 1, "note": null}'


def test_what_was_written_comes_back(tmp_path):
    (tmp_path / "x.json").write_text(GOOD, encoding="utf-8")
    assert records.read_json(tmp_path / "x.json", KINDS) == {"epoch": 1, "names": ["ü"], "loss": 1, "note": None}
    assert records.read_yaml(tmp_path / "x.json", KINDS)["names"] == ["ü"]  # JSON is YAML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "holds a list, no mapping"),
        (b"{}", "epoch is missing"),
        (GOOD.encode().replace(b"1,", b"1.5,", 1), "epoch must be of the kind int, got '1.5'"),
        (GOOD.encode().replace(b'1, "n', b'true, "n', 1), "epoch must be of the kind int, got 'True'"),
        (GOOD.encode().replace(b"null", b"3"), "note must be"),
        (b" " * (records.ROOM + 1), "more than 10 MiB"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=words) as refused:
        records.read_json(path, KINDS)
    assert str(path) in str(refused.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="no such file"):
        records.read_json(tmp_path / "x.json", {})


def test_a_last_line_that_was_cut_off_is_left_out_and_no_other(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert [record["epoch"] for record in records.read_lines(path, {"epoch": int})] == [1, 2]
    path.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(CheckpointError, match=r"x\.jsonl, line 2: .* Repair or remove it"):
        list(records.read_lines(path, {"epoch": int}))
