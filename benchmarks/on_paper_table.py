"""on_paper.md from on_paper.json alone."""

from __future__ import annotations

from typing import Any


def markdown(document: dict[str, Any]) -> str:
    d = document
    lines = [
        f"Worked out, not measured: operations counted on our models (torch {d['versions']['torch']}, timm "
        f"{d['versions']['timm']}, {d['date']}), times the assumptions in the last table: `{d['command']}`",
        "",
        *counted(d),
        *hours(d),
        *loader(d),
        *scaling(d),
        *assumptions(d),
    ]
    return "\n".join(lines) + "\n"


def counted(d: dict[str, Any]) -> list[str]:
    lines = [
        "| one arm | parameters | forward of a sample, GMACs | NeuTRENO adds | operations of a forward | steps x batch "
        "| FLOPs | data | read per sample | run folder |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for t in d["tasks"]:
        cells = [
            t["name"], f"{t['parameters'] / 1e6:.2f} M", f"{t['forward_flops'] / 2e9:.2f}",
            f"{100 * t['added']:.3f} %" if t["added"] else "not counted", str(t["operations"]),
            f"{t['steps']:,} x {t['batch']:,}", f"{t['flops']:.2g}", size(t["data_bytes"]), size(t["sample_bytes"]),
            size(t["run_bytes"]),
        ]  # fmt: skip
        lines.append(row(cells))
    return [*lines, ""]


def hours(d: dict[str, Any]) -> list[str]:
    low, middle, high = d["assumptions"]["UTILISATION"]["value"]
    lines = [
        f"Hours of one arm at {middle:.0%} of the peak (at {low:.0%} to {high:.0%}), and what limits the step there if "
        "it is not computing. A table with a control and three seeds takes six arms, one with a control and one "
        "seed two.",
        "",
        "| one arm | GPU | 1 GPU | 8 GPUs, one machine | 64 GPUs, eight machines | GPU hours with 1 / 8 / 64 |",
        "|---|---|---|---|---|---|",
    ]
    for t in d["tasks"]:
        for gpu, on in t["on"].items():
            spent = " / ".join(number(p["gpu_hours"]) if p["hours"] else "-" for p in on["plans"])
            lines.append(row([t["name"], gpu, *(duration(p) for p in on["plans"]), spent]))
    return [*lines, ""]


def duration(plan: dict[str, Any]) -> str:
    if not plan["hours"]:
        return "more GPUs than samples"
    low, middle, high = plan["hours"]
    limit = plan["limits"][1]
    return f"{number(middle)} ({number(high)} to {number(low)})" + ("" if limit == "computing" else f", {limit}")


def loader(d: dict[str, Any]) -> list[str]:
    low, middle, high = d["assumptions"]["UTILISATION"]["value"]
    kinds = d["assumptions"]["DECODED"]["value"]
    lines = [
        f"What one GPU that never waits asks of the loader, at {low:.0%} / {middle:.0%} / {high:.0%} of the peak. One "
        f"core gives {kinds['shrunk']} photos/s of files shrunk to 256 pixels, {kinds['whole']} of whole ones (of "
        f"CIFAR-10's files of 32 pixels {d['loader_small_files']:,.0f}: `loader.json`). The language model's text lies "
        "in memory, 256 tokens a sample.",
        "",
        "| | GPU | photos/s | cores, shrunk files | cores, whole files | cores there are | MB/s of whole files |",
        "|---|---|---|---|---|---|---|",
    ]
    seen = set()
    for t in d["tasks"]:
        name = t["name"].replace("adaptation, ", "").replace("from scratch, ", "")
        for gpu, on in t["on"].items():
            if on["loading"] is None or (name, gpu) in seen:
                continue
            seen.add((name, gpu))
            need = on["loading"]
            cells = [
                name, gpu, each(need["samples_per_second"]), each(need["cores"]["shrunk"]),
                each(need["cores"]["whole"]), str(need["has_cores"]),
                each([v / 1e6 for v in need["bytes_per_second"]]),
            ]  # fmt: skip
            lines.append(row(cells))
    return [*lines, ""]


def scaling(d: dict[str, Any]) -> list[str]:
    lines = [
        "Where scaling stops: the number of GPUs (1, 2, 4, ...) from which something takes longer than computing, the "
        "recipe's batch kept; `-`: never. Gradients are added up while the backward pass runs, so they cost nothing "
        "before that. The batch in memory is what autograd keeps, in bf16; where one GPU cannot hold it, "
        "accumulate gradients.",
        "",
        "| | GPU | loading | starting kernels | adding up gradients | the same, slow network | batch per GPU at 1 / 8 "
        "/ 64 | GB kept for it | gradients / computing at 8 / 64 | slow network, 64 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("loading", "starting kernels", "adding up gradients", "adding up gradients, slow network")
    for t in d["tasks"]:
        if "from scratch" in t["name"]:  # as the adaptation: the same step
            continue
        for gpu, on in t["on"].items():
            found = {stop["limit"]: f"{stop['gpus']:,}" for stop in on["stops"]}
            plans = on["plans"]
            shares = " / ".join(share(p, "all_reduce_share") for p in plans[1:])
            cells = [
                t["name"].replace("adaptation, ", ""), gpu, *(found.get(name, "-") for name in names),
                " / ".join(number(p["batch_per_gpu"]) if p["hours"] else "-" for p in plans),
                " / ".join(number(p["kept_gb"]) if p["hours"] and p["kept_gb"] else "-" for p in plans), shares,
                share(plans[-1], "slow_all_reduce_share"),
            ]  # fmt: skip
            lines.append(row(cells))
    return [*lines, ""]


def assumptions(d: dict[str, Any]) -> list[str]:
    lines = ["| assumption | value | source |", "|---|---|---|"]
    for name, entry in d["assumptions"].items():
        value = entry["value"]
        if isinstance(value, dict):
            words = ", ".join(f"{key} {short(v)}" for key, v in value.items())
        else:
            words = ", ".join(map(short, value)) if isinstance(value, list | tuple) else short(value)
        lines.append(row([f"`{name}`", words, entry["source"]]))
    return lines


def short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def each(values: list[float]) -> str:
    return " / ".join(number(value) for value in values)


def share(plan: dict[str, Any], key: str) -> str:
    return number(plan[key]) if plan["hours"] else "-"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2g}"


def size(value: float) -> str:
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= power:
            return f"{number(value / power)} {unit}"
    return f"{value:.0f} bytes"
