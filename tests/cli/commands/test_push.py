"""`neutreno push`: what it refuses before it asks the Hub, each in one line with the documented exit code."""

from __future__ import annotations

import json
import re
import sys

import pytest
from hub_double import READ
from timm_neutreno_cli import config
from timm_neutreno_cli.errors import UsageError
from timm_neutreno_cli.main import main


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    def run(code: int, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", ["neutreno", "push", *map(str, args)])
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert stop.value.code == code, printed.err
        assert printed.out == ""
        (line,) = re.findall(r"^error: (.+)$", printed.err, re.MULTILINE)
        return line

    return run


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    config = {"architecture": "neutreno_vit_tiny_patch16_224", "num_classes": 10, "pretrained_cfg": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_no_finished_run(fails, tmp_path):
    assert "has no model.safetensors and no config.json, so it is no finished run" in fails(4, tmp_path, "me/tiny")


def test_a_model_without_neutreno(fails, saved):
    (saved / "config.json").write_text('{"architecture": "resnet50", "num_classes": 10, "pretrained_cfg": {}}')
    assert "holds resnet50, which is no NeuTRENO model" in fails(4, saved, "me/tiny")
    (saved / "config.json").write_text("{")
    assert "cannot read" in fails(4, saved, "me/tiny")


@pytest.mark.parametrize("name", ["a/b/c", "me/", "me/x..y", "me/x.git", "https://huggingface.co/me/x"])
def test_a_name_that_is_none(fails, saved, name):
    assert "is not a name for a repository: give OWNER/NAME" in fails(2, saved, name)


def test_a_token_instead_of_a_name_is_not_echoed(fails, saved):
    line = fails(2, saved, READ)
    assert "That is a token" in line
    assert READ not in line


def test_a_pull_request_is_against_main(fails, saved):
    assert "create_pr or a revision, not both" in fails(2, saved, "me/x", "--create-pr", "--revision", "other")


@pytest.mark.parametrize("given", [{"private": True}, {"revision": "x"}, {"create_pr": True}])
def test_options_of_a_push_that_was_not_asked_for(given):
    with pytest.raises(UsageError, match="are for --push-to-hub"):
        config.check(config.Config(**given))
