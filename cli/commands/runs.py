"""`neutreno runs`: what runs a folder holds, how far they are, and what they showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CliError, UsageError, one_line


def runs(
    folder: Annotated[str, typer.Argument(help="A folder that holds runs, or the folder of one run.")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """List runs, newest first: how far each is, its checkpoint, its accuracy beside the control's, and its verdict.

    A run that is not finished is shown with the command that goes on with it.

    # The runs in runs/
      neutreno runs
    """
    rows = list_runs(Path(folder))
    if as_json:
        print(json.dumps(rows))
        return
    from ..reports import tables
    from ..runtime.console import fold, width

    cells = [("run", "state", "checkpoint", "top-1", "control")]
    for row in rows:
        figures = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("top1", "control_top1")]
        cells.append((row["run"], row["state"], row["checkpoint"] or "-", *figures))
    print(tables.plain(cells, width()))
    for row in rows:
        if row["resume"]:
            print(f"\n{row['run']} goes on with: {row['resume']}")
        elif row["verdict"]:
            print("\n" + fold(f"{row['run']}: {row['verdict'][0]}", width()))


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """A row per run: run, state, checkpoint, data, top1, control_top1, verdict, resume (a command), newest first.

    Raises:
        UsageError: If there is no such folder, or no run in it.
    """
    from ..engine.resume import ARGUMENTS

    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; neutreno-adapt makes runs/ where it is started.")
    found = [folder] if (folder / ARGUMENTS).is_file() else [path.parent for path in folder.glob(f"*/{ARGUMENTS}")]
    if not found:
        raise UsageError(f"there is no run in {folder}: no folder in it has an {ARGUMENTS}.")
    return [_row(run) for run in sorted(found, key=lambda run: (run / ARGUMENTS).stat().st_mtime, reverse=True)]


def _row(run: Path) -> dict[str, Any]:
    from ..engine.resume import read_arguments

    empty = dict.fromkeys(("checkpoint", "data", "top1", "control_top1", "verdict", "resume"))
    row: dict[str, Any] = {"run": str(run), "state": "finished", **empty}
    try:
        arguments = read_arguments(run)
        row |= {"checkpoint": arguments.get("checkpoint"), "data": arguments.get("data") or arguments.get("data_dir")}
        if (run / "results.json").is_file():
            return row | _figures(json.loads((run / "results.json").read_text(encoding="utf-8")))
        row |= {"state": _progress(run, arguments), "resume": f"neutreno-adapt --resume {run}"}
    except (CliError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        row["state"] = f"unreadable: {one_line(error)[:80]}"
    return row


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    """From results.json of a run, or of a folder of seeds, where figures are means."""
    from ..reports.tables import is_trained
    from ..reports.verdict import CONTROL

    models = result["models"]
    main = result.get("main") or next(key for key in models if is_trained(key) and key != CONTROL)
    found = {"top1": main, "control_top1": CONTROL if CONTROL in models else None}
    tops = {key: models[name]["top1"] if name else None for key, name in found.items()}
    means = {key: top["mean"] if isinstance(top, dict) else top for key, top in tops.items()}
    seeds = {"state": f"finished, {len(result['seeds'])} seeds"} if "seeds" in result else {}
    return {**means, **seeds, "verdict": result["verdict"]}


def _progress(run: Path, arguments: dict[str, Any]) -> str:
    """How far an unfinished run is, by the last line of its newest log."""
    logs = sorted(run.glob("**/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    if not logs or not logs[-1].stat().st_size:
        return "before the first epoch's end"
    last = json.loads(logs[-1].read_text(encoding="utf-8").splitlines()[-1])
    return f"{last['arm']}: epoch {last['epoch']} of {arguments['epochs']} done"
