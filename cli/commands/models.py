"""`neutreno models`: what timm models have a NeuTRENO twin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from ..errors import CheckpointError


def models(
    pattern: Annotated[str, typer.Argument(help="Names to list, with * and ?, such as '*deit*'.")] = "*",
    params: Annotated[bool, typer.Option(help="Count parameters, some 0.3 s a model.")] = True,
    families: Annotated[bool, typer.Option("--families", help="A Markdown table of timm's modules instead.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the models that `neutreno-adapt --checkpoint` and `timm.create_model("neutreno_...")` know."""
    if families:
        print(family_table(list_models(pattern, params=False)))
        return
    rows = list_models(pattern, params)
    if as_json:
        print(json.dumps(list(rows)))
        return
    for row in rows:
        count = f"{row['params'] / 1e6:9.1f} M  " if params else ""
        print(f"{row['name']:<48} {row['family']:<28} {count}{', '.join(row['tags'])}", flush=True)


def list_models(pattern: str, params: bool) -> Iterator[dict[str, Any]]:
    """Yield name, twin, family (timm's module), tags with weights, and parameters if asked for.

    Raises:
        CheckpointError: If no name matches.
    """
    import fnmatch

    from timm.models import get_arch_pretrained_cfgs, model_entrypoint

    import timm_neutreno
    from timm_neutreno.names import base_name, neutreno_name

    names = fnmatch.filter(timm_neutreno.supported_models(), base_name(pattern))
    if not names:
        raise CheckpointError(f"no supported model is named like {pattern!r}. `neutreno models` lists them all.")
    for name in names:
        cfgs = get_arch_pretrained_cfgs(name).values()
        row = {
            "name": name,
            "twin": neutreno_name(name),
            "family": model_entrypoint(name).__module__.rpartition(".")[2],
            "tags": [cfg.tag or "" for cfg in cfgs if cfg.has_weights],
        }
        yield {**row, "params": count_parameters(name)} if params else row


def family_table(rows: Iterable[dict[str, Any]]) -> str:
    """A row per module of timm: how many models have a twin, how many weights they have, the first names."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append(row)
    lines = ["| timm.models | models | weights | such as |", "|---|---|---|---|"]
    for family, group in sorted(found.items()):
        names = ", ".join(f"`{row['name']}`" for row in group[:3])
        lines.append(f"| `{family}` | {len(group)} | {sum(len(row['tags']) for row in group)} | {names} |")
    return "\n".join(lines)


def count_parameters(name: str) -> int:
    """On the meta device: nothing of the size of the weights is allocated."""
    import timm
    import torch

    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())
