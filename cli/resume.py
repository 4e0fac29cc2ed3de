"""Going on with a run: its own settings, what may change, and what must not change in silence."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from . import extension, summary
from .config import AdaptConfig, Recipe
from .errors import CheckpointError, UsageError, one_line

ARGUMENTS, SEEDS, FINGERPRINT = "args.yaml", "seeds.json", "data_fingerprint"

# these change where and how fast a run goes, or what is written, but not its figures, up to rounding
FREE = {
    "workers", "device", "gpus", "fsdp", "accumulate", "compile", "grad_checkpointing", "channels_last", "time_limit",
    "save_every_steps", "log", "quiet", "json", "push_to_hub", "private", "revision", "create_pr", "patience",
    "skip_bad_images", "data_dir",
}  # fmt: skip
NOT_COMPARED = {"resume", "allow_changes", "dry_run", "output", "settings", "recipe", "seeds", "given"}


def find_run(config: AdaptConfig) -> AdaptConfig:
    """`--resume auto` resumes --output if a run is there, else starts it; a run of several seeds knows how many."""
    if config.resume == "auto":
        if not config.output:
            raise UsageError("--resume auto needs --output RUN, the folder to make or to go on with.")
        path = Path(config.output)
        begun = (path / ARGUMENTS).exists() or any(path.glob(f"seed-*/{ARGUMENTS}"))
        config = replace(config, resume=config.output if begun else None)
    if config.resume and (Path(config.resume) / SEEDS).exists():
        stored = json.loads((Path(config.resume) / SEEDS).read_text())
        for name in set(config.given) & stored.keys():
            if getattr(config, name) != stored[name]:
                raise UsageError(
                    f"--resume {config.resume}: --{name} is {stored[name]} in the run. Leave it as it was."
                )
        return replace(config, **stored)
    return config


def own_settings(directory: Path) -> AdaptConfig | None:
    """Those of a run, or of the first seed in it; None if there are none."""
    paths = [directory, *sorted(directory.glob("seed-*"))]
    found = next((path for path in paths if (path / ARGUMENTS).exists()), None)
    return as_config(read_arguments(found)) if found else None


def first_seed(config: AdaptConfig) -> AdaptConfig:
    """The settings for seeds that have not begun: those of the first one that has. A change must suit all that have."""
    assert config.resume is not None
    begun = sorted(path.parent for path in Path(config.resume).glob(f"seed-*/{ARGUMENTS}"))
    if not begun:
        raise CheckpointError(f"no seed of {config.resume} has begun: start anew with another --output.")
    given = tuple(name for name in config.given if name != "seed")
    settled = [settle(replace(config, resume=str(path), given=given), result(path) is not None) for path in begun]
    return settled[0][0]


def read_arguments(directory: Path) -> dict[str, Any]:
    """The args.yaml of a run.

    Raises:
        CheckpointError: If the folder is no run, or the file cannot be read.
    """
    path = directory / ARGUMENTS
    try:
        values = yaml.safe_load(path.read_text())
    except OSError:
        raise CheckpointError(f"{directory} is not a run: it has no {ARGUMENTS}. Give the folder of a run.") from None
    except yaml.YAMLError as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)[:200]}.") from error
    if not isinstance(values, dict) or "recipe" not in values:
        raise CheckpointError(f"{path} was not written by a run.")
    return values


def as_config(values: dict[str, Any]) -> AdaptConfig:
    """The settings of an args.yaml, all of them given."""
    names = {item.name for item in fields(AdaptConfig)} - {"recipe", "settings"}
    recipe = dict(values["recipe"])
    name = recipe.pop("name", None)
    known = {item.name for item in fields(Recipe)}
    return AdaptConfig(
        **{key: value for key, value in values.items() if key in names},
        recipe=name,
        settings={key: value for key, value in recipe.items() if key in known},
    )


def settle(config: AdaptConfig, finished: bool = False) -> tuple[AdaptConfig, dict[str, Any]]:
    """The run's own settings with the given ones put in, and its args.yaml.

    Args:
        config: With `resume`, the run's folder.
        finished: Nothing of the run is left to do. Then more epochs are the only change that makes it go on.

    Raises:
        UsageError: If a given setting would change the run's figures, without --allow-changes.
        CheckpointError: If the folder is no run.
    """
    assert config.resume is not None
    values = read_arguments(Path(config.resume))
    own = as_config(values)
    names = {item.name for item in fields(AdaptConfig)} & set(config.given) - NOT_COMPARED
    given = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    changes = {k: (getattr(own, k), v) for k, v in given.items() if k not in FREE and v != getattr(own, k)}
    changes |= {k: (own.settings.get(k), v) for k, v in config.settings.items() if v != own.settings.get(k)}
    if config.recipe not in (None, own.recipe):
        changes["recipe"] = own.recipe, config.recipe
    changes = {f"--{name.replace('_', '-')}": pair for name, pair in changes.items()}
    then, now = changes.get("--epochs", (0, 0))
    if then != now:
        values = {**values, extension.BEFORE: [*values.get(extension.BEFORE, []), then]}
    if finished and now > then:  # what was asked for
        del changes["--epochs"]
    elif finished and changes:
        raise UsageError(
            f"--resume {config.resume}: the run is finished, and {_differences(changes)}. More --epochs would make it "
            "go on; for anything else start another run, with another --output."
        )
    _refuse(config, changes)
    merged = replace(
        own, **given, settings={**own.settings, **config.settings}, recipe=config.recipe or own.recipe,
        resume=config.resume, allow_changes=config.allow_changes, dry_run=config.dry_run, seeds=1,
    )  # fmt: skip
    return merged, values


def check_data(values: dict[str, Any], now: dict[str, Any], config: AdaptConfig) -> None:
    """Refuse other data than the run's.

    Raises:
        UsageError: With what differs, without --allow-changes.
    """
    then = values.get(FINGERPRINT, {})
    _refuse(
        config, {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}
    )


def _refuse(config: AdaptConfig, changes: dict[str, tuple[Any, Any]]) -> None:
    if not changes or config.allow_changes:
        return
    raise UsageError(
        f"--resume {config.resume}: {_differences(changes)}. Leave it as it was, or pass --allow-changes to go on all "
        "the same; the run then is not what either setting alone would give."
    )


def _differences(changes: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} {_short(then)} in the run, {_short(now)} now" for name, (then, now) in changes.items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def result(directory: Path) -> dict[str, Any] | None:
    """What a run that is finished printed; None if it is not."""
    path = directory / "results.json"
    if not path.exists():
        return None
    document = json.loads(path.read_text())
    document["table"] = summary.plain_table([tuple(row) for row in document["table"][1:]])
    return document
