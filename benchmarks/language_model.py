"""NeuTRENO's Table 3 on text files: word-level (or byte-level) perplexity of a causal language model with and without.

    python benchmarks/language_model.py --train wiki.train.tokens --val wiki.valid.tokens --test wiki.test.tokens \\
        --output DIR --paper

Trains `timm_neutreno.CausalLM` plain, as NeuTRENO at three fidelities, and with value residual: every one with the same
seeds (weights, order of the text, dropout), steps and learning rate. Perplexity is that of a sliding window; NeuTRENO's
fidelity is chosen on val. Differences on test have a paired bootstrap interval over stretches of text, for the seeds
that were trained; what another seed would change is shown beside it as the smallest and largest difference of a seed.
Without --val the last tenth of the training text is val. Writes DIR/language_model.json, .md and .svg. A second call
with the same options goes on where the first one was interrupted. --quick tries everything in seconds; --paper sets
the sizes and recipe of the paper. Both are defaults: an option given beside them wins.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from language_model_report import SIMILARITIES, write
from text import Texts, load_text
from timm.layers import set_fused_attn
from timm.scheduler import CosineLRScheduler
from timm_neutreno_cli.runtime.files import write_atomic, write_text
from torch import Tensor, nn

from timm_neutreno import CausalLM, patch
from timm_neutreno.causal_lm import sliding_window_losses
from timm_neutreno.smoothing import watch

ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "NeuTRENO 0.2": {"method": "neutreno", "fidelity": 0.2},
    "NeuTRENO 0.4": {"method": "neutreno", "fidelity": 0.4},
    "NeuTRENO 0.6": {"method": "neutreno", "fidelity": 0.6},
    "value residual 0.5": {"method": "value_residual", "value_residual": 0.5},
}
PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "context": 16, "batch_size": 4, "steps": 6,
        "warmup": 2, "stride": 8, "stretch": 100, "limit": 3_000, "seeds": 2, "cutoffs": (100,), "min_count": 1,
    },
    "paper": {
        "dim": 128, "depth": 16, "num_heads": 8, "mlp_ratio": 16.0, "norm": "post", "context": 256, "batch_size": 96,
        "seeds": 1, "steps": 500_000, "warmup": 2_000, "lr": 2.5e-4, "clip": 0.25, "drop_rate": 0.1,
        "save_every": 2_000, "cutoffs": (20_000, 40_000, 200_000), "stride": 1, "min_count": 1,
    },
}  # fmt: skip
FREE = ("output", "save_every", "seeds", "quick", "paper", "batch_size_eval", "arms")  # may differ when a run goes on


def numbers(text: str) -> tuple[int, ...]:
    """1000,3000 as numbers; "" for none."""
    return tuple(int(word) for word in text.split(",") if word)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=Path, nargs="+", required=True, help="text files")
    add("--val", type=Path, nargs="+")
    add("--test", type=Path, nargs="+", required=True)
    add("--output", type=Path, required=True)
    add("--level", choices=["word", "byte"], default="word")
    add("--min-count", type=int, default=2, help="rarer words of the training text become <unk>")
    add("--limit", type=int, help="words of each text")
    add("--dim", type=int, default=128)
    add("--depth", type=int, default=6)
    add("--num-heads", type=int, default=4)
    add("--mlp-ratio", type=float, default=4.0)
    add("--context", type=int, default=128)
    add("--norm", choices=["post", "pre"], default="pre")
    add("--drop-rate", type=float, default=0.0)
    add(
        "--cutoffs", type=numbers, default=(1_000, 3_000), help="of adaptive softmax, those below the vocabulary's size"
    )
    add("--batch-size", type=int, default=8)
    add("--steps", type=int, default=600)
    add("--lr", type=float, default=3e-3, help="of Adam, with warm-up and cosine to 0")
    add("--warmup", type=int, default=60, help="steps")
    add("--clip", type=float, default=0.25, help="largest norm of a gradient")
    add("--stride", type=int, default=128, help="of the sliding window; 1 is the paper's")
    add("--stretch", type=int, default=1000, help="words that the bootstrap draws together")
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="plain is what the others are compared with")
    add("--seeds", type=int, default=3)
    add("--save-every", type=int, default=50, help="steps")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--float32", action="store_true", help="without bfloat16 autocast")
    add("--batch-size-eval", type=int, default=64)
    for name in PRESETS:
        add(f"--{name}", action="store_true")
    for name, values in PRESETS.items():
        if f"--{name}" in words:
            parser.set_defaults(**values)
    options = parser.parse_args(words)
    if "plain" not in options.arms:
        parser.error("--arms must have plain, which the others are compared with.")
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(1) if options.device == "cpu" else None
    # bfloat16's fused attention has a backward pass on CPUs that takes several times as long as the plain one
    set_fused_attn(options.device != "cpu")
    options.output.mkdir(parents=True, exist_ok=True)
    recipe = {name: value for name, value in vars(options).items() if name not in FREE}
    keep_recipe(options.output / "recipe.json", json.loads(json.dumps(recipe, default=str)))
    texts = load_text(options.train, options.val, options.test, options.level, options.min_count, options.limit)
    for name in ("train", "val", "test"):
        part = getattr(texts, name)
        print(f"{name}: {len(part):,} {options.level}s, {texts.unknown(part):.1%} <unk>", file=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for seed in range(options.seeds):  # every seed whole before the next one, so that there is always something to say
        for arm in options.arms:
            found[arm].append(run(arm, seed, texts, options))
        write(found, texts, options)
    print((options.output / "language_model.md").read_text())


def keep_recipe(path: Path, recipe: dict[str, Any]) -> None:
    """Written once: what was trained with other options must not be mixed with what will be."""
    if path.exists():
        before = json.loads(path.read_text())
        if changed := [name for name in recipe if before.get(name) != recipe[name]]:
            raise SystemExit(
                f"{path.parent} was begun with other options ({', '.join(changed)}): choose another --output."
            )
    write_text(path, json.dumps(recipe, indent=1) + "\n")


# --- one run ----------------------------------------------------------------------------------------------------------


def build(arm: str, seed: int, vocabulary: int, options: argparse.Namespace) -> CausalLM:
    """The same weights for every arm of a seed."""
    torch.manual_seed(seed)
    lm = CausalLM(
        vocabulary, options.dim, options.depth, options.num_heads, options.context, mlp_ratio=options.mlp_ratio,
        post_norm=options.norm == "post", act_layer="relu", drop_rate=options.drop_rate,
        cutoffs=[cutoff for cutoff in options.cutoffs if cutoff < vocabulary],
    )  # fmt: skip
    return (patch(lm, **ARMS[arm]) if ARMS[arm] else lm).to(options.device)  # type: ignore[return-value]


def run(arm: str, seed: int, texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate; what was done before is read again."""
    folder = options.output / "runs" / f"{arm.replace(' ', '-')}-seed{seed}"
    done = folder / "result.pt"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = build(arm, seed, texts.vocabulary, options)
        seconds = train(model, seed, texts.train, folder / "last.pt", options)
        start, precision = time.process_time(), autocast(options)
        with precision:
            losses = {
                part: sliding_window_losses(
                    model, getattr(texts, part), stride=options.stride, batch_size=options.batch_size_eval
                )
                for part in ("val", "test")
            }
            similarity = similarities(model, texts.val, options)
        result = {
            "losses": losses,
            "similarity": similarity,
            "train_seconds": seconds,
            "evaluation_seconds": time.process_time() - start,
            "weights": model.state_dict(),
        }
        write_atomic(done, lambda path: torch.save(result, path))
        (folder / "last.pt").unlink(missing_ok=True)
    result = torch.load(done, map_location="cpu", weights_only=True)
    val, test = (math.exp(result["losses"][part].double().mean()) for part in ("val", "test"))
    print(f"{arm}, seed {seed}: perplexity {val:.2f} on val, {test:.2f} on test", file=sys.stderr, flush=True)
    return result


def autocast(options: argparse.Namespace) -> torch.autocast:
    return torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=not options.float32)


def train(model: nn.Module, seed: int, text: Tensor, path: Path, options: argparse.Namespace) -> float:
    """CPU seconds that it took. `path` is written every so many steps; training goes on from there, bit for bit."""
    optimizer = torch.optim.Adam(model.parameters(), lr=options.lr, fused=True)
    schedule = CosineLRScheduler(
        optimizer, options.steps, warmup_t=options.warmup, warmup_lr_init=0.0, t_in_epochs=False
    )  # fmt: skip
    first, spent = 0, 0.0
    torch.manual_seed(seed)  # of dropout
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent = state["step"], state["seconds"]
        set_random_state(state["random"])
    start = time.process_time()
    model.train()
    for step in range(first, options.steps):
        schedule.step_update(step + 1)
        tokens, targets = (t.to(options.device) for t in batch(text, seed, step, options))
        with autocast(options):
            loss = model(tokens, targets).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        if not step % 50:
            print(f"{path.parent.name}: step {step}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            state = {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1,
                "seconds": spent + time.process_time() - start, "random": random_state(),
            }  # fmt: skip
            write_atomic(path, lambda beside, state=state: torch.save(state, beside))
    return spent + time.process_time() - start


def batch(text: Tensor, seed: int, step: int, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Windows and what follows each token, (B, N) both. Every epoch cuts the text anew and shuffles it."""
    N, B = options.context, options.batch_size
    steps = ((len(text) - 1) // N - 1) // B  # an epoch's; one window fewer than there are, so that cuts can move
    epoch, step = divmod(step, steps)
    random = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    offset = int(torch.randint(N, (), generator=random))
    order = torch.randperm((len(text) - 1 - offset) // N, generator=random)
    starts = order[step * B : (step + 1) * B] * N + offset
    places = starts[:, None] + torch.arange(N)
    return text[places], text[places + 1]


def random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


@torch.no_grad()
def similarities(model: CausalLM, text: Tensor, options: argparse.Namespace) -> dict[str, list[float]]:
    """Token similarity by layer, mean over the text's windows."""
    model.eval()
    windows = text[: len(text) // options.context * options.context].view(-1, options.context)
    with watch(model, SIMILARITIES) as seen:
        for part in windows.split(options.batch_size_eval):
            model.forward_features(part.to(options.device))
    return seen.result().values


if __name__ == "__main__":
    main()
