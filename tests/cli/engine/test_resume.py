"""args.yaml of a run: what it keeps from one start to the next, and what is read of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import resume
from timm_neutreno_cli.errors import CheckpointError, UsageError


def arguments(folder) -> dict:
    return yaml.safe_load((folder / resume.ARGUMENTS).read_text())


def test_every_start_leaves_its_versions_and_its_plan(tmp_path):
    resume.write_arguments(tmp_path, Config(epochs=2), {"device": "cpu"})
    first = arguments(tmp_path)
    assert first["versions"].keys() == {"python", "torch", "timm", "timm-neutreno"}
    assert (first["epochs"], first["device"], "given" in first, "resumed" in first) == (2, "cpu", False, False)
    resume.write_arguments(tmp_path, Config(epochs=2), {})
    resume.write_arguments(tmp_path, Config(epochs=5), {})
    last = arguments(tmp_path)
    assert (last["epochs"], last[resume.EPOCHS_BEFORE], len(last["resumed"])) == (5, [2], 2)
    assert last["versions"] == first["versions"]


def test_other_data_is_refused_with_what_differs_or_allowed(tmp_path):
    then = {"classes": 2, "train images": 8, "train names": "abc"}
    resume.write_arguments(tmp_path, Config(), {resume.FINGERPRINT: then})
    config = Config(resume=str(tmp_path))
    resume.check_data(config, then)
    with pytest.raises(UsageError, match="train images 8 in the run, 9 now; train names abc in the run, abd now"):
        resume.check_data(config, {**then, "train images": 9, "train names": "abd"})
    resume.check_data(replace(config, allow_changes=True), {})


@pytest.mark.parametrize(
    ("text", "words"), [(None, "is not a run"), ("[", "cannot read"), ("epochs: 3", "was not written by a run")]
)
def test_what_is_no_run(tmp_path, text, words):
    if text is not None:
        (tmp_path / resume.ARGUMENTS).write_text(text)
    with pytest.raises(CheckpointError, match=words):
        resume.find_run(Config(resume=str(tmp_path)))


def test_auto_starts_or_goes_on(tmp_path):
    config = Config(resume="auto", output=str(tmp_path))
    assert resume.find_run(config).resume is None
    resume.write_arguments(tmp_path, Config(seed=7), {})
    found = resume.find_run(config)
    assert (found.resume, found.seed) == (str(tmp_path), 7)
    with pytest.raises(UsageError, match="needs --output"):
        resume.find_run(Config(resume="auto"))


def test_a_finished_run_takes_more_epochs_and_nothing_else(tmp_path):
    resume.write_arguments(tmp_path, Config(epochs=4), {})
    (tmp_path / "results.json").write_text("{}")
    more = Config(resume=str(tmp_path), epochs=6, given=frozenset({"epochs"}))
    assert resume.find_run(more).epochs == 6
    for change in ({"epochs": 3}, {"lr": 0.5}):
        config = Config(resume=str(tmp_path), allow_changes=True, given=frozenset(change), **change)
        with pytest.raises(UsageError, match="the run is finished, and --"):
            resume.find_run(config)
