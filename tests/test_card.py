"""What the model card tells a stranger to type: an install line that works, and the command without our paths."""

from __future__ import annotations

import json
from importlib.metadata import Distribution

import pytest

from timm_neutreno.hub import card

CONFIG = {"architecture": "neutreno_vit_tiny_patch16_224", "num_classes": 2, "pretrained_cfg": {}}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes an installation of the package whose metadata say where it came from."""

    def make(origin: dict | None = None, url: str = "") -> None:
        folder = tmp_path / "timm_neutreno-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: timm-neutreno\nVersion: 1.2\n{url}\n")
        if origin:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.setattr(card, "distribution", lambda name: Distribution.at(folder))

    return make


def test_an_installation_from_git_names_its_address_and_commit(installed):
    installed({"url": "https://git.example/neutreno", "vcs_info": {"vcs": "git", "commit_id": "abc123"}})
    assert "```bash\npip install git+https://git.example/neutreno@abc123\n```" in card.render("me/it", CONFIG)


def test_another_installation_names_the_project_s_repository(installed):
    installed({"url": "file:///home/me/clone", "dir_info": {}}, "Project-URL: Repository, https://git.example/neutreno")
    assert card.install() == "```bash\npip install git+https://git.example/neutreno\n```"


def test_without_an_address_no_registry_is_named(installed):
    installed({"url": "file:///home/me/clone", "dir_info": {"editable": True}})
    text = card.render("me/it", CONFIG)
    assert "Install timm_neutreno 1.2 first: `pip install .` in its source folder." in text
    assert "pip install timm" not in text
    assert "/home/me" not in text


def test_the_command_is_there_without_paths_of_this_machine():
    evaluation = {"images": 4, "top1": 50.0, "top5": 100.0}
    results = {
        "main": "neutreno", "models": {"neutreno": evaluation}, "table": [["model"], ["neutreno"]], "verdict": [],
        "data": "/home/me/my photos", "checkpoint": "/home/me/weights.pth",
        "command": "neutreno adapt --checkpoint /home/me/weights.pth --data '/home/me/my photos' --lr 0.001",
    }  # fmt: skip
    text = card.render("me/it", CONFIG, results, {"lr": 0.001, "versions": {"torch": "2.10"}})
    assert "```bash\nneutreno adapt --checkpoint weights.pth --data 'my photos' --lr 0.001\n```" in text
    assert "All settings: lr 0.001." in text
    assert "/home/me" not in text
