"""`neutreno models`."""

import json
import sys

import pytest
import timm
from timm_neutreno_cli.main import main

import timm_neutreno


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["neutreno", "models", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr()


def test_lists_every_supported_model_with_family_and_tags(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "--json", "--no-params")
    rows = {row["name"]: row for row in json.loads(printed.out)}
    assert code == 0
    assert list(rows) == timm_neutreno.supported_models()
    assert rows["deit_tiny_patch16_224"]["family"] == "deit"
    assert rows["deit_tiny_patch16_224"]["tags"] == ["fb_in1k"]
    assert all(timm.is_model(row["twin"]) for row in rows.values())


@pytest.mark.parametrize("pattern", ["deit_tiny_*", "neutreno_deit_tiny_*", "deit_tiny"])
def test_pattern_and_parameters(monkeypatch, capsys, pattern):
    code, printed = run(monkeypatch, capsys, pattern)
    assert code == 0
    assert [line.split()[0] for line in printed.out.splitlines()] == [
        "deit_tiny_distilled_patch16_224",
        "deit_tiny_patch16_224",
    ]
    assert "5.7 M" in printed.out


def test_no_match_is_one_line(monkeypatch, capsys):
    code, printed = run(monkeypatch, capsys, "resnet*")
    assert code == 4
    assert printed.err == (
        "error: NeuTRENO can be applied to no model of timm with 'resnet*' in its name. `neutreno models` lists those "
        "that it can be applied to.\n"
    )
    assert "Did you mean: deit_tiny?" in run(monkeypatch, capsys, "deit_tinny")[1].err
