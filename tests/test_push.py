"""Push and load back through the real huggingface_hub client and a Hub on loopback, every step in a new process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_double import FINE, READ, WRITE, Hub, Repository

# what every process starts with; the waits between tries are cut short
START = """
import sys, json, timm, torch, timm_neutreno
from pathlib import Path
from timm_neutreno import hub, hub_client
hub_client.prepare.__defaults__, hub_client.upload.__defaults__ = ((0.0, 0.0),), ((0.0, 0.0),)
hub_client.LONGEST = 0.0
SMALL = dict(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=3)
torch.manual_seed(0)
x = torch.linspace(-2, 2, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
def model(fidelity=0.45):
    return timm.create_model("neutreno_vit_tiny_patch16_224", fidelity=fidelity, **SMALL).eval()
def fresh(path):
    return timm.create_model(path, pretrained=True).eval()
"""


@pytest.fixture
def hub():
    with Hub() as running:
        yield running


@pytest.fixture
def run(hub, tmp_path):
    """Runs code in a new process; returns what it printed. A cache is kept only under the same home."""

    def start(code, *, home="home", token=WRITE, fails=False, **env):
        done = subprocess.run(
            [sys.executable, "-c", START + code], env=hub.environment(tmp_path / home, token, **env), cwd=tmp_path,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        for secret in (WRITE, READ, FINE):
            assert secret not in done.stdout + done.stderr
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr.strip().splitlines()[-1] if fails else done.stdout.strip()

    return start


METHODS = """
SPECS = ["neutreno", "gfsa", "attnscale", "featscale", "twicing", "xsa", "value_residual", "neutreno+featscale",
         "gfsa+neutreno", "neutreno+symmetric", "value_residual+kernel", "laplacian+neutreno"]
LEARNED = {"fidelity": "head", "gfsa": "head", "attnscale": "layer", "twicing": "layer", "xsa": "head",
           "value_residual": "layer", "featscale_low": "channel", "featscale_high": "channel"}
torch.set_grad_enabled(False)  # a mask with gradient sends SDPA another way
"""


def test_every_method_travels_through_the_hub(hub, run):
    """One process pushes them all, with learned strengths that are not zero; a new one with an empty cache loads."""
    run(
        METHODS
        + """
from timm_neutreno.methods import METHODS
for i, spec in enumerate(SPECS):
    names = [strength for name in spec.split("+") for strength in METHODS[name].strengths if strength in LEARNED]
    options = {f"learnable_{name}": LEARNED[name] for name in names}
    m = timm.create_model("neutreno_vit_tiny_patch16_224", method=spec, **options, **SMALL).eval()
    for key, value in timm_neutreno.strengths(m).items():
        if isinstance(value, torch.nn.Parameter):
            value.copy_(torch.linspace(0.1, 0.4, value.numel()) + 0.01 * len(key))
    hub.push_to_hub(m, f"method{i}")
    torch.save((m(x), repr(m)), f"method{i}.pt")
"""
    )
    load = """
for i, spec in enumerate(SPECS):
    expected, shown = torch.load(f"method{i}.pt")
    m = fresh(f"hf-hub:alice/method{i}")
    assert torch.equal(m(x), expected), spec
    assert repr(m) == shown, spec
print(len(SPECS))
"""
    assert run(METHODS + load, home="empty", token=None) == "12"
    card = hub.repositories["alice/method7"].revisions["main"]["README.md"].decode()
    assert "- `featscale`: y + low mean + high (y - mean)" in card
    assert "- fidelity: learned per head, started at 0.6; the values are in the weights" in card


def test_push_twice_and_load_in_a_new_process(hub, run):
    labels = "label_names=list('abc'), label_descriptions={'a': 'one'}"
    push = f"m = model(); print(hub.push_to_hub(m, 'tiny', {labels})); torch.save(m(x), 'logits.pt')"
    assert run(push) == f"{hub.address}/alice/tiny"
    assert run(push) == f"{hub.address}/alice/tiny"
    repository = hub.repositories["alice/tiny"]
    assert repository.commits == ["main"]  # the second push changed nothing
    assert set(repository.revisions["main"]) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    load = "m = fresh('hf-hub:alice/tiny'); assert torch.equal(m(x), torch.load('logits.pt')); print(m._model_args)"
    assert "0.45" in run(load, home="empty", token=None)
    run(load, home="empty", token=None, HF_HUB_OFFLINE="1")  # from the cache
    config = json.loads(repository.revisions["main"]["config.json"])
    assert (config["label_names"], config["label_descriptions"]) == (["a", "b", "c"], {"a": "one"})


def test_private_branch_and_pull_request(hub, run):
    run(
        "m = model(); hub.push_to_hub(m, 'alice/tiny', private=True)\n"
        "hub.push_to_hub(model(0.2), 'alice/tiny', revision='other')\n"
        "for _ in range(2): print(hub.push_to_hub(model(0.3), 'alice/tiny', create_pr=True))\n"
        "torch.save(m(x), 'logits.pt')"
    )
    repository = hub.repositories["alice/tiny"]
    assert repository.private
    assert repository.commits == ["main", "other", "refs/pr/1", *repository.commits[3:]]
    assert len(repository.pull_requests) == 1
    fidelities = [
        json.loads(repository.revisions[name]["config.json"])["model_args"]["fidelity"]
        for name in ("main", "other", "refs/pr/1")
    ]
    assert fidelities == [0.45, 0.2, 0.3]
    code = "assert torch.equal(fresh('hf-hub:alice/tiny').forward(x), torch.load('logits.pt')); "
    code += "print(fresh('hf-hub:alice/tiny@other')._model_args['fidelity'])"
    assert run(code, home="empty") == "0.2"
    run("fresh('hf-hub:alice/tiny')", home="stranger", token=None, fails=True)


PUSH = "hub.push_to_hub(model(), 'alice/tiny')"
REFUSED = """
import os
for name, token in json.loads(CASES):
    os.environ.pop("HF_TOKEN", None)
    if token: os.environ["HF_TOKEN"] = token
    try:
        hub.push_to_hub(model(), name)
    except (hub.PushError, ValueError) as error:
        print(error)
    else:
        print("pushed")
"""


def refusals(run, cases):
    """What pushes to these (repository, token) say, all from one process."""
    code = REFUSED.replace("CASES", repr(json.dumps(cases)))
    return run(code).splitlines()


def test_who_may_not_push_is_told_why(hub, run):
    tiny = "alice/tiny"
    cases = [
        (tiny, None, "not logged in to the Hugging Face Hub. Run `hf auth login`"),
        (tiny, "hf_wrongwrongwrongwrong", "does not accept the token from HF_TOKEN: wrong or expired"),
        (tiny, READ, "token of alice is read-only"),
        (tiny, FINE, "fine-grained, without the right to write"),
        ("bob/tiny", WRITE, "bob/tiny belongs to bob, and the token is of alice"),
        ("a b/tiny", WRITE, "is not a name for a repository"),
        (WRITE, WRITE, "That is a token, not a repository"),
    ]
    said = refusals(run, [case[:2] for case in cases])
    for (*_, expected), line in zip(cases, said, strict=True):
        assert expected in line
    assert not hub.repositories


def test_offline_and_no_network(run):
    assert "offline mode is on" in run(PUSH, fails=True, HF_HUB_OFFLINE="1")
    assert "no connection to the Hugging Face Hub" in run(PUSH, fails=True, HF_ENDPOINT="http://127.0.0.1:9")


def test_a_failed_push_says_why_and_leaves_the_repository_as_it_was(hub, run):
    says = {
        401: "does not accept the token",
        402: "the storage of alice on the Hub is used up",
        403: "the token may not write to alice/r403",
        404: "alice/r404 is missing on the Hub",
        409: "was changed by somebody else at the same time",
        429: "rate limit is reached. Push again in 1 seconds",
        500: "an error of its own (500)",
        0: "no connection to the Hugging Face Hub",
    }
    for status in says:
        hub.fail("POST", f"/alice/r{status}/commit/", status)
    for line, expected in zip(
        refusals(run, [(f"alice/r{status}", WRITE) for status in says]), says.values(), strict=True
    ):
        assert expected in line
    assert len(hub.repositories) == len(says)
    assert not any(repository.commits for repository in hub.repositories.values())


def test_failures_that_pass(hub, run):
    hub.fail("GET", "/whoami", 429, 1)
    hub.fail("POST", "/repos/create", 503, 1)
    hub.fail("POST", "/commit/", 500, 1)
    hub.fail("POST", "/commit/", 0, 1)
    run(PUSH)
    assert hub.repositories["alice/tiny"].commits == ["main"]


def test_large_files_cut_in_the_middle(hub, run):
    """Large files go another way: to an address of their own."""
    hub.lfs = True
    hub.fail("PUT", "/lfs/", 0, 1)
    run(PUSH, HF_HUB_DISABLE_XET="1")
    run("fresh('hf-hub:alice/tiny')", home="empty")


def test_repositories_of_other_content_are_not_overwritten(hub, run):
    run(PUSH)
    files = hub.repositories["alice/tiny"].revisions["main"]
    files["notes.txt"] = b"mine"
    run(PUSH.replace("model()", "model(0.1)"))
    assert hub.repositories["alice/tiny"].revisions["main"]["notes.txt"] == b"mine"
    files = hub.repositories["alice/tiny"].revisions["main"]
    files["config.json"] = b'{"architecture": "resnet50"}'
    assert "holds another model (resnet50" in run(PUSH, fails=True)
    del files["config.json"]
    assert "has other files in it (model.safetensors, notes.txt)" in run(PUSH, fails=True)


def test_private_does_not_publish_into_a_public_repository(hub, run):
    run(PUSH)
    assert "exists and is public" in run(PUSH.replace("tiny'", "tiny', private=True"), fails=True)


def test_a_persons_text_survives(hub, run):
    run(PUSH)
    files = hub.repositories["alice/tiny"].revisions["main"]
    text = files["README.md"].decode()
    text = text.replace("tags:", "language: fr\ntags:\n- mine", 1).replace("0.45", "EDITED")
    files["README.md"] = text.replace(
        "<!-- timm_neutreno: model", "My own words.\n\n<!-- timm_neutreno: model", 1
    ).encode()
    run(PUSH)
    card = hub.repositories["alice/tiny"].revisions["main"]["README.md"].decode()
    assert "My own words." in card
    assert "language: fr" in card
    assert "- mine" in card
    assert "EDITED" not in card
    assert card.count("# tiny") == 1


def test_a_repository_of_an_older_version_keeps_loading(hub, run):
    """Written by make_old_repository.py with 0.1.0. If this fails, repositories that exist stop loading."""
    old = {path.name: path.read_bytes() for path in (Path(__file__).parent / "old_repository").iterdir()}
    hub.repositories["alice/old"] = Repository(private=False)
    hub.repositories["alice/old"].revisions["main"] = old
    hub.repositories["alice/old"].revisions["v1"] = old
    pixels = "torch.linspace(-2, 2, 3 * 16 * 16).reshape(1, 3, 16, 16)"
    code = f"""
from timm_neutreno_cli import checkpoint, errors
for name in ("hf-hub:alice/old", "hf-hub:alice/old@v1"):
    m = fresh(name)
    torch.testing.assert_close(m({pixels})[0], torch.tensor([-1.399334, 0.261924]), rtol=1e-4, atol=1e-4)
print(m.pretrained_cfg["label_names"], m._model_args["learnable_fidelity"])
try:
    checkpoint.find("hf-hub:alice/old@nope")
except errors.HubError as error:
    print(error)
"""
    loaded, refused = run(code, token=None).splitlines()
    assert loaded == "['cat', 'dog'] head"
    assert "hf-hub:alice/old@nope has no such revision" in refused


def test_timms_own_push_loads_back_as_neutreno(hub, run):
    run(
        "from timm.models import push_to_hf_hub\n"
        "plain = timm.create_model('vit_tiny_patch16_224', **SMALL).eval()\n"
        "patched = timm_neutreno.patch(plain, fidelity=0.35)\n"
        "for name, m in dict(created=model(), patched=patched).items():\n"
        "    push_to_hf_hub(m, f'alice/{name}', safe_serialization=True); torch.save(m(x), f'{name}.pt')"
    )
    code = (
        "for name, fidelity in dict(created=0.45, patched=0.35).items():\n"
        "    m = fresh(f'hf-hub:alice/{name}')\n"
        "    assert timm_neutreno.is_patched(m) and m._model_args['fidelity'] == fidelity\n"
        "    assert torch.equal(m(x), torch.load(f'{name}.pt'))"
    )
    run(code, home="empty")
