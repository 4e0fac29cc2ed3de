"""`neutreno models`: what timm models have a NeuTRENO twin."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from ..errors import CheckpointError


def models(
    pattern: Annotated[
        str, typer.Argument(help="A part of the names to list, such as dinov2; or a pattern with * and ?.")
    ] = "*",
    params: Annotated[bool, typer.Option(help="Count the parameters, which takes about 0.3 s for each model.")] = True,
    families: Annotated[
        bool, typer.Option("--families", help="Print a Markdown table of timm's modules instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """List the models of timm that NeuTRENO can be applied to, with the tags of their weights.

    # Which DINOv2 models are there?
      neutreno models dinov2
    # All names, at once
      neutreno models --no-params
    """
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
    from timm_neutreno.neutreno_vit import ALIASES

    known, asked = timm_neutreno.supported_models(), base_name(pattern).split(".")[0]
    names = fnmatch.filter(known, asked if set("*?[") & set(asked) else f"*{asked}*")
    names = names or [name for name in known if name == ALIASES.get(asked)]
    if not names:
        near = difflib.get_close_matches(asked, [*known, *ALIASES], n=3)
        hint = f" Did you mean: {', '.join(near)}?" if near else ""
        raise CheckpointError(
            f"NeuTRENO can be applied to no model of timm with {pattern!r} in its name.{hint} `neutreno models` lists "
            "those that it can be applied to."
        )
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
