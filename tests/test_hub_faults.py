"""What goes to the Hub is looked into first, and a Hub that is silent or is none ends in a sentence."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from timm_neutreno_cli.engine import checkpoint, load_errors
from timm_neutreno_cli.errors import HubError

import timm_neutreno
from timm_neutreno.hub import PushError, card, client, push_folder

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    model = timm.create_model("neutreno_vit_tiny_patch16_224", **SMALL)
    return timm_neutreno.hub.save_pretrained(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(whole, tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in whole.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Puts the Hub at an address of this machine, in this process."""

    def put(port: int) -> None:
        address, constants = f"http://127.0.0.1:{port}", huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_writewritewritewrite")
        monkeypatch.setattr(client.prepare, "__defaults__", ((),))
        load_errors.hub_answers.cache_clear()

    yield put
    load_errors.hub_answers.cache_clear()


# --- what is sent


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "similarity.png"])
def test_a_link_out_of_the_folder_is_not_published(saved, tmp_path, name):
    (tmp_path / "secret").write_text("secret")
    (saved / name).unlink(missing_ok=True)
    (saved / name).symlink_to(tmp_path / "secret")
    with pytest.raises(PushError, match=r"is a link to .*secret"):
        push_folder(saved, "me/model")


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:100], lambda b: b[:-5], lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights_are_not_published(saved, damage):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PushError, match="is damaged, no safetensors file"):
        push_folder(saved, "me/model")


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_damaged_records_are_named(saved, at, name, text, monkeypatch):
    (saved / name).write_bytes(text)
    monkeypatch.setattr(client, "prepare", lambda target, architecture: target)
    with pytest.raises(PushError, match=f"cannot read .*{name}"):
        push_folder(saved, "me/model")


# --- who answers


def test_a_silent_hub_is_not_waited_for(saved, at, monkeypatch):
    """It takes the connection and says nothing."""
    monkeypatch.setattr(client, "SILENCE", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        at(server.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(PushError, match="no connection to the Hugging Face Hub"):
            push_folder(saved, "me/model")
        monkeypatch.setattr(load_errors, "QUICK", 0.5)
        with pytest.raises(HubError, match="the Hugging Face Hub cannot be reached"):
            checkpoint.resolve_checkpoint("hf-hub:me/model")
        assert time.monotonic() - start < 15


def test_without_a_network_one_quick_try_and_one_sentence(at, caplog, capsys):
    at(9)  # nobody listens there
    start = time.monotonic()
    source = checkpoint.resolve_checkpoint("deit_tiny")
    with pytest.raises(HubError, match="deit_tiny is not in the local cache and the Hugging Face Hub cannot"):
        checkpoint.build(source)
    assert time.monotonic() - start < 15
    assert not [record for record in caplog.records if "Retrying" in record.message]
    assert capsys.readouterr().err == ""
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@dataclass
class Answer:
    status: int
    body: bytes


FOREIGN = {
    "a login page": Answer(200, b"<html>log in</html>"), "nothing": Answer(200, b""), "null": Answer(200, b"null"),
    "204": Answer(204, b""), "a list": Answer(200, b"[]"), "a number": Answer(200, b"3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_the_hub_is_said(saved, at, name):
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(FOREIGN[name].status)
            self.send_header("ETag", '"x"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(FOREIGN[name].body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(FOREIGN[name].body)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at(server.server_address[1])
        with pytest.raises(PushError, match=r"is not the Hugging Face Hub \("):
            push_folder(saved, "me/model")
        with pytest.raises(HubError):
            checkpoint.resolve_checkpoint("hf-hub:me/model")
    finally:
        server.shutdown()
        server.server_close()


# --- what is written on the card


def test_names_cannot_break_out_of_the_card():
    torch.manual_seed(0)
    row = {"images": 3, "top1": 1.0, "top5": 2.0}
    results = {
        "main": "neutreno", "models": {"neutreno": row}, "data": "x | y\n# <script>", "checkpoint": "[a](b)\n- `c`",
        "base_model": None, "table": [["model", "top-1"], ["a|b", "<b>"]], "verdict": [],
    }  # fmt: skip
    config = {"architecture": "neutreno_vit", "num_classes": 3, "pretrained_cfg": {}, "model_args": {}}
    arguments = {"recipe": "finetune", "auto_augment": "rand\n# x|<b>", "versions": {"torch": "<i>"}}
    text = card.render("me/model", config, results, arguments, "mit\n# x")
    body = text.split("---", 2)[2]
    assert not [line for line in body.splitlines() if line.startswith(("# x", "# <", "- `c`"))]
    assert r"x \| y # \<script\>" in body
    assert r"| a\|b | \<b\> |" in body
    assert r"\[a\](b) - \`c\`" in body
    assert "<script>" not in body
