"""The whole path: adapt the embedded checkpoint with --push-to-hub, load it elsewhere, get the same accuracy."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import yaml
from hub_double import READ, WRITE, Hub
from huggingface_hub import ModelCard

ADAPT = ["--epochs", "1", "--limit-batches", "2", "--batch-size", "50", "--workers", "0",
         "--device", "cpu", "--output", "run"]  # fmt: skip
MAIN = "import sys; from timm_neutreno_cli.main import {0}; sys.argv[0] = '{1}'; {0}()"
EVALUATE = """
import json, timm_neutreno, timm, torch
from timm.data import create_dataset, create_loader, resolve_model_data_config
from timm_neutreno.demo import demo_data_directory
model = timm.create_model("hf-hub:alice/neutreno-digits", pretrained=True).eval()
config = resolve_model_data_config(model)
data = create_dataset("", str(demo_data_directory()), split="val")
samples = data.reader.samples
data.reader.samples = [samples[i * len(samples) // 100] for i in range(100)]  # as --limit-batches 2 does
loader = create_loader(data, config["input_size"], 50, num_workers=0, device=torch.device("cpu"),
    **{key: config[key] for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode")})
right = total = 0
with torch.inference_mode():
    for images, target in loader:
        right, total = right + (model(images).argmax(1) == target).sum().item(), total + len(target)
print(json.dumps({"top1": 100 * right / total, "images": total, "labels": model.pretrained_cfg["label_names"]}))
"""


def start(code, hub, tmp_path, *arguments, home="home", token=WRITE):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=hub.environment(tmp_path / home, token), cwd=tmp_path,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A run that was pushed: the hub, the folder, and what was printed."""
    tmp_path = tmp_path_factory.mktemp("path")
    with Hub() as hub:
        code = MAIN.format("adapt_main", "neutreno-adapt")
        done = start(code, hub, tmp_path, *ADAPT, "--push-to-hub", "alice/neutreno-digits")
        assert done.returncode == 0, done.stderr
        yield hub, tmp_path, done


def test_loaded_by_name_elsewhere_it_has_the_runs_accuracy(pushed):
    hub, tmp_path, done = pushed
    assert done.stdout.strip().endswith(f"pushed to {hub.address}/alice/neutreno-digits")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    elsewhere = start(EVALUATE, hub, tmp_path, home="empty", token=None)
    assert elsewhere.returncode == 0, elsewhere.stderr
    found = json.loads(elsewhere.stdout)
    adapted = results["models"]["neutreno"]
    assert (found["top1"], found["images"]) == (adapted["top1"], adapted["images"])
    assert found["labels"] == list("0123456789")


def test_no_token_and_no_path_leaves_this_machine(pushed):
    hub, tmp_path, done = pushed
    texts = [
        path.read_bytes()
        for path in (tmp_path / "run").rglob("*")
        if path.suffix in (".json", ".jsonl", ".yaml", ".md")
    ]
    files = hub.repositories["alice/neutreno-digits"].revisions["main"]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "similarity.png"}
    for text in (*texts, *files.values(), done.stdout.encode(), done.stderr.encode()):
        assert WRITE.encode() not in text
    assert str(tmp_path) not in files["README.md"].decode() + files["config.json"].decode()


def test_the_card_is_valid_and_its_numbers_are_the_runs(pushed, tmp_path):
    hub, folder, _ = pushed
    path = tmp_path / "README.md"
    path.write_bytes(hub.repositories["alice/neutreno-digits"].revisions["main"]["README.md"])
    card = ModelCard.load(path)
    results = json.loads((folder / "run" / "results.json").read_text())
    adapted = results["models"]["neutreno"]
    assert [result.metric_value for result in card.data.eval_results] == [adapted["top1"], adapted["top5"]]
    assert (card.data.library_name, card.data.license) == ("timm", "apache-2.0")
    assert card.text.index("import timm_neutreno") < card.text.index("import timm\n")
    assert "Unknown model (neutreno_...)" in card.text
    section = card.text.partition("## Results")[2].partition("<!-- ")[0]
    known = json.dumps(results["table"]) + " ".join(results["verdict"]) + json.dumps(adapted["images"])
    assert set(re.findall(r"\d+(?:\.\d+)?", section)) <= set(re.findall(r"\d+(?:\.\d+)?", known))
    for model, (_, *cells) in zip(results["models"].values(), results["table"][1:], strict=True):
        figures = [
            f"{model['top1']:.2f}",
            f"{model['top5']:.2f}",
            f"{model['loss']:.4f}",
            f"{model['similarity'][-1]:.4f}",
        ]
        assert cells[1:] == figures
    arguments = yaml.safe_load((folder / "run" / "args.yaml").read_text())
    assert f"lr {arguments['lr']}" in card.text


def test_push_again_by_hand_is_harmless(pushed):
    hub, tmp_path, _ = pushed
    done = start(MAIN.format("main", "neutreno"), hub, tmp_path, "push", "run", "alice/neutreno-digits")
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub.address}/alice/neutreno-digits"), done.stderr
    assert hub.repositories["alice/neutreno-digits"].commits == ["main"]


def test_a_push_that_fails_after_training_leaves_the_run_and_the_command(pushed, tmp_path):
    hub, *_ = pushed
    hub.fail("POST", "/alice/later/commit/", 403)
    code = MAIN.format("adapt_main", "neutreno-adapt")
    done = start(code, hub, tmp_path, *ADAPT, "--no-control", "--push-to-hub", "alice/later", "--private", "--json")
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout)["models"]
    (line,) = re.findall("^error: (.+)$", done.stderr, re.MULTILINE)
    assert line.endswith("To push it later: neutreno push run alice/later --private")
    hub.failures.clear()
    command = line.partition("later: neutreno ")[2].split()
    assert start(MAIN.format("main", "neutreno"), hub, tmp_path, *command).returncode == 0
    assert hub.repositories["alice/later"].commits == ["main"]


def test_a_token_that_may_not_write_fails_before_training(pushed, tmp_path):
    hub, *_ = pushed
    code = MAIN.format("adapt_main", "neutreno-adapt")
    done = start(code, hub, tmp_path, *ADAPT, "--push-to-hub", "alice/never", token=READ)
    assert done.returncode == 5
    assert "is read-only" in done.stderr
    assert "Nothing was trained" in done.stderr
    assert not (tmp_path / "run").exists()
    assert "alice/never" not in hub.repositories
