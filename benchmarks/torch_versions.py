"""Where training on the embedded digits first differs between two versions of torch.

    python benchmarks/torch_versions.py record FILE.pt        # once in an environment of each
    python benchmarks/torch_versions.py compare OLD.pt NEW.pt

Records random numbers of a seed, and a few steps of AdamW on fixed batches without augmentation, plain and with
NeuTRENO, without and with stochastic depth: losses, every module's output in the first forward pass, first gradients.
"""

from __future__ import annotations

import sys
from typing import Any

import timm
import torch
from timm.data import ImageDataset, create_transform, resolve_data_config
from torch import Tensor
from torch.nn.functional import cross_entropy

import timm_neutreno
from timm_neutreno.demo import CHECKPOINT, demo_data_directory

RATE = 0.05  # stochastic depth, as in the recipe of the digits
STEPS, BATCH = 4, 100
DRAWS = {
    "rand": torch.rand,
    "randn": torch.randn,
    "randperm": torch.randperm,
    "bernoulli_": lambda count: torch.empty(count).bernoulli_(1 - RATE),
}


def record(path: str) -> None:
    found: dict[str, Any] = {"torch": str(torch.__version__), "draws": {}, "runs": {}}
    for name, draw in DRAWS.items():
        torch.manual_seed(0)
        found["draws"][name] = draw(1000)
    for method in ("plain", "neutreno"):
        for rate in (0.0, RATE):
            found["runs"][f"{method}, drop path {rate:g}"] = train(method, rate)
    torch.save(found, path)


def train(method: str, rate: float) -> dict[str, Any]:
    model = timm.create_model(f"local-dir:{CHECKPOINT}", pretrained=True, drop_path_rate=rate)
    if method != "plain":
        timm_neutreno.patch(model, method, fidelity=0.6)
    transform: Any = create_transform(**resolve_data_config({}, model=model))
    images = ImageDataset(str(demo_data_directory() / "train"), transform=transform)
    outputs = listen(model.train())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.05)
    torch.manual_seed(1)
    losses, gradients = [], {}
    for step in range(STEPS):
        batch = [images[(BATCH * step + i) * 997 % len(images)] for i in range(BATCH)]
        loss = cross_entropy(model(torch.stack([x for x, _ in batch])), torch.tensor([y for _, y in batch]))
        optimizer.zero_grad()
        loss.backward()
        gradients = gradients or {name: each.grad.clone() for name, each in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "outputs": outputs, "gradients": gradients}


def listen(model: torch.nn.Module) -> dict[str, Tensor]:
    """What will hold every module's output in the first forward pass."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        outputs.setdefault(name, output.detach().clone())

    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: keep(name, output))
    return outputs


def compare(old: str, new: str) -> None:
    one, other = (torch.load(path, weights_only=True) for path in (old, new))
    print(f"torch {one['torch']} and {other['torch']}, seed 0")
    for name, values in one["draws"].items():
        differ = int((values != other["draws"][name]).sum())
        print(f"{name}: {differ} of {len(values)} numbers differ")
    for name, run in one["runs"].items():
        theirs = other["runs"][name]
        print(name)
        for part in ("outputs", "gradients"):
            print(f"  first {part}: {differing(run[part], theirs[part])}")
        pairs = zip(run["losses"], theirs["losses"], strict=True)
        print("  losses:", ", ".join(f"{a:.7f} {'=' if a == b else f'/ {b:.7f}'}" for a, b in pairs))


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """How many tensors differ, and by how much of their largest value at most."""
    shares = [float((ours[n] - theirs[n]).abs().max() / ours[n].abs().max()) for n in ours]
    count = sum(not torch.equal(ours[n], theirs[n]) for n in ours)
    return f"{count} of {len(ours)} differ, by {max(shares):.1e} of the largest value at most"


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"record": record, "compare": compare}[sys.argv[1]](*sys.argv[2:])
