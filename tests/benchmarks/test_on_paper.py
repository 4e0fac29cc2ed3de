"""benchmarks/on_paper.py: its counts and its arithmetic on cases worked out by hand, and its table."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parents[2] / "benchmarks"
N, C, DEPTH, CLASSES = 197, 192, 12, 1000  # of DeiT-tiny


@pytest.fixture(scope="module")
def on_paper():
    return importlib.import_module("on_paper")


def task(on_paper, **changed):
    values = dict(
        name="t", parameters=10**6, forward_flops=1e9, training_flops=3e9, added=0.0, operations=100, kept_bytes=1e6,
        batch=1024, steps=1000, evaluated=0.0, sample_bytes=1e5, data_bytes=1e9, photos="",
    )  # fmt: skip
    return on_paper.Task(**{**values, **changed})


def test_counts_of_deit_tiny_are_those_of_its_shapes(on_paper):
    counted = on_paper.counts(lambda: timm.create_model("deit_tiny_patch16_224"), 224)
    macs = (N - 1) * 16 * 16 * 3 * C + DEPTH * (12 * N * C * C + 2 * N * N * C) + C * CLASSES
    assert macs == pytest.approx(1.26e9, rel=0.01)  # the DeiT paper says 1.3 G
    assert counted["forward_flops"] == 2 * macs
    assert counted["training_flops"] == 6 * macs
    assert counted["parameters"] == 5_717_416
    assert counted["added"] == pytest.approx(0.0005, rel=0.1)
    least = N * C * DEPTH * (3 + 4 + 4)  # q, k, v; input and output of GELU
    assert least < counted["kept_bytes"] / 2 < 4 * least


def test_a_training_step_takes_the_products_of_three_forward_passes(on_paper):
    model, image = timm.create_model("deit_tiny_patch16_224").to("meta"), torch.empty(1, 3, 224, 224, device="meta")
    products = []
    for trained in (False, True):
        with torch.set_grad_enabled(trained), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            scores = model(image)
            if trained:
                scores.sum().backward()
        products.append(counter.get_total_flops())
    assert 2.9 < products[1] / products[0] <= on_paper.TRAINING.value


@pytest.mark.parametrize(("gpus", "sent"), [(1, 0), (2, 4e6), (8, 7e6), (64, 7.875e6)])
def test_an_all_reduce_sends_almost_twice_the_gradients(on_paper, gpus, sent):
    assert on_paper.all_reduce_bytes(10**6, gpus) == sent


def test_hours_are_operations_over_rate_where_computing_takes_longest(on_paper):
    found = on_paper.plan(task(on_paper), "A100", 8)
    assert found["limits"][1] == "computing"
    assert found["hours"][1] == pytest.approx(1000 * 1024 * 3e9 / (8 * 31.2e12) / 3600)
    assert found["gpu_hours"] == pytest.approx(8 * found["hours"][1])
    evaluated = on_paper.plan(task(on_paper, evaluated=1024e3), "A100", 8)
    assert evaluated["hours"][1] == pytest.approx(found["hours"][1] * 4 / 3)


@pytest.mark.parametrize(
    ("changed", "gpus", "limit", "seconds"),
    [
        ({"photos": "shrunk"}, 8, "loading", 128 / (14 * 315)),
        ({"operations": 10_000}, 8, "starting kernels", 0.24),
        ({"parameters": 10**10}, 8, "adding up gradients", 7e10 / 225e9),
        ({"parameters": 10**10}, 64, "adding up gradients", 7.875e10 / 200e9),
    ],
)
def test_a_step_takes_as_long_as_what_is_slowest(on_paper, changed, gpus, limit, seconds):
    found = on_paper.plan(task(on_paper, **changed), "H100", gpus)
    assert found["limits"][1] == limit
    assert found["hours"][1] == pytest.approx(1000 * seconds / 3600)
    assert found["samples_per_second"] == pytest.approx(1024 / seconds)


def test_a_batch_is_not_spread_over_more_gpus_than_it_has_samples(on_paper):
    assert on_paper.plan(task(on_paper, batch=8), "A100", 64)["hours"] is None
    assert all(stop["gpus"] <= 8 for stop in on_paper.stops(task(on_paper, batch=8, operations=10**6), "A100"))


def test_scaling_stops_where_starting_kernels_takes_longer(on_paper):
    # 2.4 ms of starting; computing takes 98 ms on one GPU: 3.1 on 32, 1.5 on 64
    assert {"limit": "starting kernels", "gpus": 64} in on_paper.stops(task(on_paper), "A100")


@pytest.mark.parametrize(("name", "module"), [("on_paper", "on_paper_table")])
def test_the_table_is_what_its_json_gives(on_paper, name, module):
    document = json.loads((FOLDER / f"{name}.json").read_text())
    assert sys.modules[module].markdown(document) == (FOLDER / f"{name}.md").read_text()
