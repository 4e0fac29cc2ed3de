"""What the shell offers when it completes an option's value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..config import METHOD_NAMES, RECIPES

Completion = Callable[[str], Iterable[str]]


def words(choices: Iterable[str]) -> Completion:
    """A completion that offers fixed words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return complete


def paths(incomplete: str, keep: Callable[[Path], bool] = lambda path: True) -> Iterator[str]:
    """Files and folders that begin so, folders with a slash; hidden ones only if asked for."""
    folder, _, start = incomplete.rpartition("/")
    root = Path(f"{folder}/" if "/" in incomplete else ".").expanduser()
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return
    for path in entries:
        if path.name.startswith(start or ".") is bool(start) and keep(path):
            yield f"{incomplete.removesuffix(start)}{path.name}{'/' if path.is_dir() else ''}"


def runs(incomplete: str) -> Iterator[str]:
    """Folders: those of runs/ before anything is typed."""
    yield from paths(incomplete or "runs/", Path.is_dir)


def models(incomplete: str) -> Iterator[str]:
    """demo, files, folders and, from the second letter on, names of timm, which take seconds since they need torch."""
    yield from words(["demo"])(incomplete)
    yield from paths(incomplete)
    if len(incomplete) > 1 and "/" not in incomplete and ":" not in incomplete:
        import timm_neutreno
        from timm_neutreno.neutreno_vit import ALIASES

        yield from words(dict.fromkeys([*ALIASES, *timm_neutreno.supported_models()]))(incomplete)


def methods(incomplete: str) -> list[str]:
    """Names of methods, also behind a + or a comma."""
    cut = max(incomplete.rfind("+"), incomplete.rfind(",")) + 1
    return [incomplete[:cut] + name for name in words(METHOD_NAMES)(incomplete[cut:])]


COMPLETIONS: dict[str, Completion] = {
    "checkpoint": models,
    "recipe": words(dict.fromkeys(name for recipes in RECIPES.values() for name in recipes)),
    "method": methods,
    "device": words(("cpu", "cuda", "mps")),
    "log": words(("tensorboard", "wandb", "trackio")),
    "resume": runs,
    "gpus": words(("all",)),
}
