"""Damaged and hostile input of every kind against what reads it: right, or one sentence with its code, and soon.

Mutations are numbered; a failure prints the number, and `Random(f"{target} {number}")` makes the same one again.
"""

from __future__ import annotations

import io
import json
import signal
import threading
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import timm
import torch
import typer
import yaml
from fuzz import memory, mutations, pickles
from integration import small_run
from PIL import Image
from safetensors.torch import save_file
from timm_neutreno_cli import config as settings
from timm_neutreno_cli.commands.options import takes_config
from timm_neutreno_cli.config import Config
from timm_neutreno_cli.engine import checkpoint, hub, load_errors, resume, state
from timm_neutreno_cli.engine.segmenter import open_segmenter
from timm_neutreno_cli.errors import CheckpointError, CliError
from timm_neutreno_cli.reports import run_report
from timm_neutreno_cli.reports.results import Evaluations, RunResult
from timm_neutreno_cli.runtime import loggers

import timm_neutreno
from timm_neutreno.hub import client
from timm_neutreno.pictures import UnreadableImage, read_rgb

LONGEST = 20  # seconds for one input, on a busy machine
TOKEN = "hf_writewritewritewrite"
ARCH, SHAPE = small_run.ARCH, {**small_run.SHAPE, "num_classes": 3}


@pytest.fixture
def fuzz(request, tmp_path, capsys) -> Callable[..., None]:
    """Feeds a target for some seconds; what it raises must be of the given kinds, with words, without the token."""
    seconds = request.config.getoption("--fuzz-seconds", 8)

    def run(name: str, target: Callable[[Random], object], allowed: tuple[type[Exception], ...] = (CliError,)) -> None:
        end, number, refused = time.monotonic() + seconds, 0, 0
        before = signal.signal(signal.SIGALRM, hung)
        try:
            while time.monotonic() < end or number < 5:
                signal.alarm(LONGEST)
                try:
                    with warnings.catch_warnings(), memory.at_most():
                        warnings.simplefilter("ignore")
                        target(Random(f"{name} {number}"))
                except allowed as error:
                    refused += 1
                    if not str(error).strip() or any(said in str(error) for said in (TOKEN, *memory.OUT_OF_MEMORY)):
                        pytest.fail(f"{name} {number}: {type(error).__name__} says {str(error)!r}")
                except BaseException as error:
                    raise AssertionError(f"{name} {number}: {type(error).__name__}: {str(error)[:300]}") from error
                number += 1
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        printed = capsys.readouterr()
        assert TOKEN not in printed.out + printed.err
        with capsys.disabled():
            print(f"  {name}: {number} inputs, {refused} refused", end="", flush=True)

    return run


def hung(*_: object) -> None:
    raise TimeoutError(f"it took more than {LONGEST} s")


def small_model(name: str = f"neutreno_{ARCH}", **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **SHAPE, **options)


# --- checkpoints


def build(path: Path) -> None:
    checkpoint.build(checkpoint.resolve_checkpoint(str(path), None if path.suffix == ".tar" else ARCH, dict(SHAPE)))


def test_checkpoint_bytes(fuzz, tmp_path):
    weights = small_model(ARCH).state_dict()
    save_file(weights, tmp_path / "x.safetensors")
    torch.save(weights, tmp_path / "x.pth")
    wholes = {suffix: (tmp_path / f"x{suffix}").read_bytes() for suffix in (".safetensors", ".pth")}

    def target(draw: Random) -> None:
        suffix = draw.choice(list(wholes))
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(mutations.damaged_bytes(draw, wholes[suffix]))
        build(path)

    fuzz("checkpoint bytes", target)


def test_checkpoint_contents(fuzz, tmp_path):
    """A whole file of torch.save, with something else in it; the tensors' own names and shapes among it."""
    weights = small_model(ARCH).state_dict()
    args = {
        "model_kwargs": small_run.SHAPE,
        "img_size": 16,
        "mean": [0.5] * 3,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
    }

    def target(draw: Random) -> None:
        content: dict[str, Any] = {"arch": ARCH, "state_dict": dict(weights), "state_dict_ema": dict(weights)}
        recorded = mutations.damaged_value(draw, args)
        content["args"] = Namespace() if isinstance(recorded, dict) else recorded
        if isinstance(recorded, dict):
            vars(content["args"]).update(recorded)
        for _ in range(draw.randint(0, 2)):
            name = draw.choice(list(content["state_dict"]) or [""])
            other = draw.choice([*mutations.ODD, torch.zeros(3), torch.zeros(0), torch.zeros(2, 2, dtype=torch.int8)])
            content["state_dict"][draw.choice([name, "", f"module.{name}", 7])] = other
        if draw.random() < 0.3:
            content[draw.choice(list(content))] = draw.choice(mutations.ODD)
        path = tmp_path / "bad.pth.tar"
        torch.save(draw.choice([content, content["state_dict"]]), path)
        build(path)

    fuzz("checkpoint contents", target)


def test_config_json(fuzz, tmp_path):
    folder = timm_neutreno.hub.save_pretrained(small_model(learnable_fidelity="head"), tmp_path / "model")
    whole = json.loads((folder / "config.json").read_text())

    def target(draw: Random) -> None:
        (folder / "config.json").write_bytes(mutations.damaged_text(draw, whole))
        if draw.random() < 0.3:
            hub.check_model(folder)
        checkpoint.build(checkpoint.resolve_checkpoint(f"local-dir:{folder}"))

    fuzz("config.json", target)


def test_config_json_of_a_segmenter(fuzz, tmp_path):
    torch.manual_seed(0)
    model = timm_neutreno.Segmenter(ARCH, 3, encoder_args=small_run.SHAPE, class_names=["a", "b", "c"])
    timm_neutreno.patch(model, learnable_fidelity="head").save_pretrained(tmp_path / "model")
    whole = json.loads((tmp_path / "model" / "config.json").read_text())

    def target(draw: Random) -> None:
        (tmp_path / "model" / "config.json").write_bytes(mutations.damaged_text(draw, whole))
        open_segmenter(str(tmp_path / "model"))

    fuzz("config.json of a Segmenter", target)


def test_hostile_pickles(tmp_path):
    """As checkpoint and as a run's last.pth.tar: 36 files, and nothing that is in them is done."""
    marker, count = tmp_path / "executed", 0
    for name, payload in pickles.payloads(marker).items():
        folder = tmp_path / name
        folder.mkdir()
        for path in pickles.files({"state_dict": payload, "epoch": 1}, folder):
            with pytest.raises(CheckpointError):
                build(path)
            (folder / "arm").mkdir(exist_ok=True)
            (folder / "arm" / state.LAST).write_bytes(path.read_bytes())
            with pytest.raises(CheckpointError, match="Nothing can be resumed"):
                state.read_newest(folder / "arm")
            assert not marker.exists(), path
            count += 1
    assert count == 36
    torch.load(folder / "zip.pth.tar", weights_only=False)
    assert marker.exists()  # they are what they say


# --- files of a run


def test_args_yaml(fuzz, tmp_path):
    whole = {**settings.to_yaml(Config(recipe="finetune", lr=0.1)), "versions": {"torch": "2"}, "class_names": ["a"],
             "data_config": {"mean": [0.5]}, "data_fingerprint": {"train images": 3}, "epochs_before": [1]}  # fmt: skip

    def target(draw: Random) -> None:
        (tmp_path / "args.yaml").write_bytes(mutations.damaged_text(draw, whole, yaml.safe_dump))
        found = resume.find_run(Config(resume=str(tmp_path)))
        settings.check(found)
        resume.check_data(found, {"train images": 3})

    fuzz("args.yaml", target)


COLLECT = typer.Typer()


@COLLECT.command()
@takes_config()
def collect(config: Config) -> None:
    settings.check(config)


def test_command_lines(fuzz, monkeypatch):
    def target(draw: Random) -> None:
        words = []
        for name in draw.sample(list(settings.OPTIONS), draw.randint(1, 3)):
            value = draw.choice([*map(str, mutations.ODD), "1e-3", "fidelity=[[", "x={a: &a [*a]}", "10" * 12])
            words.append(f"{settings.flag(name)}={value}")
        try:
            COLLECT(words, standalone_mode=False)
        except (typer.BadParameter, typer._click.exceptions.ClickException) as error:
            raise settings.UsageError(error.format_message()) from error

    fuzz("command lines", target)


def test_files_of_a_run(fuzz, tmp_path):
    row = {"strengths": {"fidelity": {"mean_abs": 0.6, "min": 0.6, "max": 0.6}}, "images": 9, "top1": 50.0,
           "top5": 99.0, "loss": 1.0, "similarity": [0.1, 0.2], "similarity_error": 0.01}  # fmt: skip
    models = {key: row for key in ("checkpoint", "control", "neutreno/start", "neutreno")}
    result = RunResult(
        seed=0, checkpoint="demo", data="demo", output="runs/x", epochs=2, device="cpu", processes=1, skipped_images=0,
        new_head=False, seconds=1.0, base_model=None, license=None, epochs_before=[], arms=["control", "neutreno"],
        main="neutreno", models=models,
    )  # fmt: skip
    record = {"arm": "neutreno", "epoch": 1, "train_loss": 0.5, "val_top1": 50.0}
    saved = {"epoch": 0, "epochs": 2, "state_dict": {}, "optimizer": {}, "scaler": {},
             "train_state": asdict(state.TrainState())}  # fmt: skip

    def target(draw: Random) -> None:
        kind = draw.choice(["results", "evaluations", "metrics", "checkpoint"])
        if kind == "results":
            (tmp_path / "results.json").write_bytes(mutations.damaged_text(draw, result.document()))
            found = RunResult.read(tmp_path)
            assert found is not None
            json.dumps(found.document()), found.text(), run_report.readme(found, tmp_path, {})
        elif kind == "evaluations":
            (tmp_path / "evaluations.json").write_bytes(mutations.damaged_text(draw, models))
            Evaluations(tmp_path, True).in_order(["control", "neutreno"])
        elif kind == "metrics":
            lines = [mutations.damaged_text(draw, record) for _ in range(3)]
            (tmp_path / loggers.JSONL).write_bytes(b"\n".join(lines) + b"\n")
            loggers.rewind(tmp_path, lambda known: known["epoch"] <= 1)
        else:
            torch.save(mutations.damaged_value(draw, saved), tmp_path / state.LAST)
            state.read_newest(tmp_path)

    fuzz("files of a run", target)


# --- images


def test_images(fuzz, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    wholes = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        for mode in ("RGB", "P", "L", "CMYK"):
            file = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(file, kind)
            except (OSError, ValueError):  # the format has no such mode
                continue
            wholes.append(file.getvalue())

    def target(draw: Random) -> None:
        (tmp_path / "x.jpg").write_bytes(mutations.damaged_bytes(draw, draw.choice(wholes)))
        assert read_rgb(tmp_path / "x.jpg").mode == "RGB"

    fuzz("images", target, (UnreadableImage,))


# --- answers of the Hub


@pytest.fixture
def portal(monkeypatch, tmp_path) -> Iterator[dict[str, Any]]:
    """Something at the Hub's address that is not the Hub: what it answers is drawn anew for every request."""
    said: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            draw = said["draw"]
            status = draw.choice([200, 200, 200, 200, 204, 302, 400, 401, 403, 404, 418, 500, 503])
            known = {"name": "alice", "orgs": [], "auth": {"accessToken": {"role": "write"}}, "url": "x/y/z",
                     "id": "a/b", "siblings": [{"rfilename": "config.json"}], "private": False, "commitUrl": "x",
                     "commitOid": "y", "files": [], "discussions": [], "architecture": "x"}  # fmt: skip
            bodies = [
                b"<html>log in</html>",
                b"",
                b"null",
                b"[]",
                b"3",
                b'"x"',
                b"{}",
                b"\xff\xfe",
                json.dumps(known).encode(),
            ]
            body = draw.choice([*bodies, mutations.damaged_text(draw, known)]) if status != 204 else b""
            self.send_response(status)
            if status == 302:
                self.send_header("Location", draw.choice(["/", "http://127.0.0.1:9/", "x", ""]))
            for name in ("X-Repo-Commit", "ETag", "X-Error-Code", "retry-after"):
                if draw.random() < 0.3:
                    self.send_header(name, draw.choice(["0", "x", "RepoNotFound", ""]))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants

    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                        address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(client, "QUICK", ())
    monkeypatch.setattr(client.prepare, "__defaults__", ((),))
    monkeypatch.setattr(client.upload, "__defaults__", ((),))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's own waits between its tries
    yield said
    server.shutdown()
    server.server_close()


def test_answers_of_the_hub(fuzz, portal, tmp_path):
    folder = timm_neutreno.hub.save_pretrained(small_model(), tmp_path / "model")

    def target(draw: Random) -> None:
        portal["draw"] = draw
        load_errors.hub_answers.cache_clear()
        if draw.random() < 0.7:
            options = {"private": draw.random() < 0.3, "create_pr": draw.random() < 0.3}
            hub.push(folder, client.Target("alice/model", **options), quiet=True)
        else:
            checkpoint.build(checkpoint.resolve_checkpoint("hf-hub:alice/model"))

    fuzz("answers of the Hub", target)
