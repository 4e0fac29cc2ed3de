"""Files of a run: nothing is overwritten, and what is written is complete or not there."""

from __future__ import annotations

import os
import subprocess
import sys

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


def test_a_run_that_was_killed_before_its_first_file_can_begin_anew(tmp_path):
    for name in (files.LOCK, ".args.yaml.123.part"):
        (tmp_path / name).touch()
    assert files.choose_directory(str(tmp_path), "x") == tmp_path
    (tmp_path / ".bashrc").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        files.choose_directory(str(tmp_path), "x")


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


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """Else a crash of the machine leaves an empty file under the name of the old one."""
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("sync"), sync(number)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    files.write_text(tmp_path / "results.json", "new")
    assert done == ["sync", "rename", "sync"]  # the file, its name, the folder


def test_text_is_utf8_and_keeps_the_bytes_of_names_that_the_locale_cannot_read(tmp_path):
    files.write_text(tmp_path / "x", "± ü \udcc3\udcbc")
    assert (tmp_path / "x").read_bytes() == "± ü ü".encode()


HOLD = """
import sys, time
from pathlib import Path
from timm_neutreno_cli.runtime import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_and_a_killed_one_is_none(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"is being written by process {other.pid} on "), files.locked(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()
    with files.locked(tmp_path):
        assert files.choose_directory(str(tmp_path), "x") == tmp_path  # the lock's own file is nothing in it
    assert os.listdir(tmp_path) == []


def test_a_failed_command_leaves_the_lock_free(tmp_path):
    with pytest.raises(KeyError), files.locked(tmp_path):
        raise KeyError
    assert os.listdir(tmp_path) == []
