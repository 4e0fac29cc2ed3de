"""Going on with a run: its own config with what was given now put in, and what must not change in silence."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..config import OPTIONS, Config, changes, flag, from_yaml, place, resumed, to_yaml
from ..errors import CheckpointError, UsageError
from ..reports.results import RESULTS
from ..runtime import files, records

ARGUMENTS, FINGERPRINT = "args.yaml", "data_fingerprint"
EPOCHS_BEFORE = "epochs_before"  # the numbers of epochs that the run was planned for before this one
KINDS = {
    **{name: kind for name, kind in get_type_hints(Config).items() if name in OPTIONS},
    "versions": dict[str, str], "resumed": list[dict[str, str]], EPOCHS_BEFORE: list[int], FINGERPRINT: dict[str, Any],
}  # fmt: skip


def find_run(config: Config) -> Config:
    """The config to run with: as given, or the resumed run's own with what was given put in.

    `--resume auto` resumes --output if a run is there, else starts it.

    Raises:
        UsageError: If what was given would change the run's figures, without --allow-changes.
        CheckpointError: If the folder is no run.
    """
    if config.resume == "auto":
        if not config.output:
            raise UsageError("--resume auto needs --output RUN, the folder to make or to go on with.")
        config = replace(config, resume=config.output if (place(config.output) / ARGUMENTS).exists() else None)
    if config.resume is None:
        return config
    folder = place(config.resume)
    own = own_config(folder)
    _check_changes(config, own, folder)
    for seed in sorted(path.parent for path in folder.glob(f"seed-*/{ARGUMENTS}")):  # a change must suit all that began
        given = config.given - {"seed", "seeds"}
        _check_changes(replace(config, given=given), own_config(seed), seed)
    return resumed(config, own)


def _check_changes(config: Config, own: Config, folder: Path) -> None:
    changed = changes(config, own)
    if (folder / RESULTS).exists():
        if "epochs" in changed and config.epochs > own.epochs:  # the one change that makes a finished run go on
            del changed["epochs"]
        if changed:
            raise UsageError(
                f"--resume {folder}: the run is finished, and {_differences(changed)}. More --epochs would make "
                "it go on; for anything else start another run, with another --output."
            )
    _refuse(config, changed)


def read_arguments(directory: Path) -> dict[str, Any]:
    """The args.yaml of a run.

    Raises:
        CheckpointError: If the folder is no run, or the file cannot be read.
    """
    path = directory / ARGUMENTS
    if not path.exists():
        raise CheckpointError(f"{directory} is not a run: it has no {ARGUMENTS}. Give the folder of a run.")
    values = records.read_yaml(path, {})
    if "versions" not in values:
        raise CheckpointError(f"{path} was not written by a run.")
    if isinstance(values.get("recipe"), dict):
        raise CheckpointError(f"{directory} is a run of a development version, which cannot be resumed: start it anew.")
    if fault := records.misfit(values, {name: kind for name, kind in KINDS.items() if name in values}):
        raise CheckpointError(f"{path}: {fault}.")
    return values


def own_config(directory: Path) -> Config:
    """The config of a run. Errors as of `read_arguments` and `config.recorded`."""
    return from_yaml(read_arguments(directory), directory / ARGUMENTS)


def write_arguments(directory: Path, config: Config, facts: dict[str, Any]) -> None:
    """args.yaml: every option as it was resolved, what else was found out, and the versions of each start."""
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "timm-neutreno")},
    }
    values = {**to_yaml(config), **facts, "versions": versions}
    if (directory / ARGUMENTS).exists():
        earlier = read_arguments(directory)
        values |= {"versions": earlier["versions"], "resumed": [*earlier.get("resumed", []), versions]}
        plans = [*earlier.get(EPOCHS_BEFORE, []), *([earlier["epochs"]] if earlier["epochs"] != config.epochs else [])]
        values |= {EPOCHS_BEFORE: plans} if plans else {}
    files.write_text(directory / ARGUMENTS, yaml.safe_dump(values, sort_keys=False))


def check_data(config: Config, now: dict[str, Any]) -> None:
    """Refuse other data than the resumed run's.

    Raises:
        UsageError: With what differs, without --allow-changes.
    """
    then = read_arguments(Path(config.resume or "")).get(FINGERPRINT, {})
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    _refuse(config, {name: (then.get(name), now.get(name)) for name in names})


def _refuse(config: Config, changed: dict[str, tuple[Any, Any]]) -> None:
    if not changed or config.allow_changes:
        return
    raise UsageError(
        f"--resume {config.resume}: {_differences(changed)}. Leave it as it was, or pass --allow-changes to go on all "
        "the same; the run then is not what either setting alone would give."
    )


def _differences(changed: dict[str, tuple[Any, Any]]) -> str:
    names = {name: flag(name) if name in OPTIONS else name for name in changed}
    return "; ".join(
        f"{names[name]} {_short(then)} in the run, {_short(now)} now" for name, (then, now) in changed.items()
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."
