"""A model that is described far larger than its weights: refused by shapes, before memory is taken for it."""

from __future__ import annotations

import json
import time
from argparse import Namespace

import pytest
import timm
import torch
from fuzz import memory
from integration import small_run
from timm_neutreno_cli.engine import checkpoint
from timm_neutreno_cli.engine.segmenter import open_segmenter
from timm_neutreno_cli.errors import CheckpointError

import timm_neutreno

ARCH, SHAPE = small_run.ARCH, small_run.SHAPE
HUGE = 2**31


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model(f"neutreno_{ARCH}", num_classes=3, **SHAPE)
    return timm_neutreno.hub.save_pretrained(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def edited(saved):
    """config.json with other entries of model_args, as long as a test lasts."""
    path = saved / "config.json"
    before = path.read_text()

    def write(**entries: object) -> str:
        config = json.loads(before)
        for key in ("num_classes", "input_size"):
            if key in entries:
                config["pretrained_cfg"][key] = entries[key]
                config |= {"num_classes": entries.pop(key)} if key == "num_classes" else {}
        config["model_args"] |= entries
        path.write_text(json.dumps(config))
        return str(saved)

    yield write
    path.write_text(before)


def refused(what: object, **kwargs: object) -> str:
    started = time.monotonic()
    with memory.at_most(2**30), pytest.raises(CheckpointError) as error:
        checkpoint.build(what if isinstance(what, checkpoint.Source) else checkpoint.resolve_checkpoint(what), **kwargs)
    assert time.monotonic() - started < 20
    assert not any(said in str(error.value) for said in memory.OUT_OF_MEMORY), error.value
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("embed_dim", HUGE, "embed_dim is said to be 2147483648, but "),
        ("embed_dim", 4800, "fc1.weight would have shape 19200 x 4800, but {file} has it with shape 96 x 24"),
        ("depth", HUGE, "depth is said to be 2147483648, but {file} holds 44 tensors in all"),
        ("depth", 10**400, "depth is said to be a number of more than 64 bits"),
        ("img_size", [40000, 40000], "pos_embed would have shape 1 x 25000001 x 24, but {file} has it with shape"),
        ("input_size", [3, HUGE, 16], "input_size is said to be 2147483648"),
        ("num_classes", 10**7, "head.weight would have shape 10000000 x 24, but {file} has it with shape 3 x 24"),
        ("mlp_ratio", 1e9, "fc1.weight would have shape 24000000000 x 24"),
        ("reg_tokens", 10**7, "reg_token would have shape 1 x 10000000 x 24, but {file} has none of this name"),
    ],
)
def test_config_json_of_another_size(saved, edited, key, value, said):
    message = refused(edited(**{key: value}))
    assert said.format(file=saved / "model.safetensors") in message
    assert "Is config.json of the same model as the weights" in message


def test_a_checkpoint_that_records_another_size(tmp_path):
    weights = timm.create_model(ARCH, num_classes=3, **SHAPE).state_dict()
    args = Namespace(model_kwargs={**SHAPE, "embed_dim": HUGE})
    torch.save({"arch": ARCH, "args": args, "state_dict": weights}, tmp_path / "last.pth.tar")
    assert f"but {tmp_path / 'last.pth.tar'} holds" in refused(str(tmp_path / "last.pth.tar"))


def test_weights_of_a_far_smaller_model(tmp_path):
    """--arch names a giant; it is not made first."""
    torch.save(timm.create_model(ARCH, num_classes=3, **SHAPE).state_dict(), tmp_path / "x.pth")
    source = checkpoint.resolve_checkpoint(str(tmp_path / "x.pth"), "vit_giant_patch14_224")
    message = refused(source)
    assert "would have shape" in message
    assert "Is --arch of the same model" in message


def test_options_count_too(saved):
    assert "pos_embed would have shape" in refused(str(saved), img_size=80000)
    source = checkpoint.resolve_checkpoint("deit_tiny", model_kwargs={"embed_dim": HUGE})
    assert "but timm's deit_tiny_patch16_224 holds" in refused(source)


def test_what_fits_is_built(saved, edited):
    """Another head, another input size, more blocks of stochastic depth: as before."""
    source = checkpoint.resolve_checkpoint(str(saved))
    assert checkpoint.build(source, num_classes=5000, img_size=64, drop_path=0.1).num_classes == 5000
    with pytest.raises(CheckpointError, match=r"size mismatch for .*\[1, 1, 24\].*\[1, 1, 48\]"):
        checkpoint.build(checkpoint.resolve_checkpoint(edited(embed_dim=48)))


def test_segmenter(tmp_path):
    torch.manual_seed(0)
    model = timm_neutreno.Segmenter(ARCH, 3, encoder_args=SHAPE)
    timm_neutreno.patch(model).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    for entries, said in (
        ({"decoder_dim": HUGE}, "decoder_dim is said to be 2147483648"),
        ({"decoder_depth": HUGE}, "decoder_depth is said to be"),
        ({"encoder_args": {**SHAPE, "embed_dim": 4800}}, "would have shape 19200 x 4800, but"),
        ({"window": [0, 16]}, "window is [0, 16]: give height and width"),
        ({"stride": "x"}, "stride is 'x'"),
        ({"mean": [0.5]}, "mean is [0.5]: give three numbers"),
        ({"std": [0, 1, 1]}, "std is [0, 1, 1]: give three numbers above 0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"encoder": 7}, "the encoder is a int"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**whole, **entries}))
        with memory.at_most(2**30), pytest.raises(CheckpointError) as error:
            open_segmenter(str(tmp_path))
        assert said in str(error.value)
