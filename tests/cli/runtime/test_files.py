"""Files of a run: nothing is overwritten, and what is written is complete or not there."""

from __future__ import annotations

import os

import pytest
from timm_neutreno_cli.errors import OutputError, UsageError
from timm_neutreno_cli.runtime import files


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert files.choose_directory(str(tmp_path / "empty"), "x") == tmp_path / "empty"
    (tmp_path / "empty" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        files.choose_directory(str(tmp_path / "empty"), "x")
    with pytest.raises(UsageError, match="exists and is not empty"):
        files.choose_directory(str(tmp_path / "empty" / "mine"), "x")


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    first = files.make_directory(files.choose_directory(None, "demo"))
    assert first.name == "20260101-000000-demo"
    assert files.choose_directory(None, "demo").name == "20260101-000000-demo-2"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "results.json"
    files.write_text(path, "old")

    def fail(beside):
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=f"cannot write {path}: No space left on device"):
        files.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


def test_an_error_that_is_no_write_s_comes_through(tmp_path):
    with pytest.raises(KeyError), files.writing(tmp_path):
        raise KeyError("mine")
    with pytest.raises(RuntimeError, match="DataLoader worker"), files.writing(tmp_path):
        raise RuntimeError("DataLoader worker (pid 1) is killed")
    with pytest.raises(OutputError, match="the disk is full"), files.writing(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc]")  # torch.save on a full disk


def test_what_a_killed_process_left_is_removed_and_the_rest_stays(tmp_path):
    (tmp_path / ".last.pth.tar.123.part").write_text("")
    (tmp_path / ".metrics.csv.9.part").write_text("")
    (tmp_path / files.SAVING).mkdir()
    (tmp_path / files.SAVING / "model.safetensors").write_text("")
    (tmp_path / "last.pth.tar").write_text("")
    (tmp_path / ".gitignore").write_text("")
    files.remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".gitignore", "last.pth.tar"]
