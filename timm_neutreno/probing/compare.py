"""From measured models to a result: differences with intervals, and what can be told from them."""

from __future__ import annotations

from collections.abc import Sequence

from .bootstrap import Difference, paired_differences
from .errors import DataError
from .measure import PROBES, TASKS, Measured
from .result import ProbeResult, Row, Score, Verdict

NAMES = {"linear": "linear probe", "knn": "k-NN"}
CONFIDENCE = 0.95


def compare(measured: Sequence[Measured], task: str, protocol: dict[str, str], seed: int = 0) -> ProbeResult:
    """Compare every setting with its model as it is, and every further model with the first one.

    Of each family (a model, a method, the blocks it is in) the strength that is best on val is compared on test; the
    level of these intervals is raised so that all of them together hold with 95 % (Bonferroni).

    Args:
        measured: What `measure` gave; of each model first the one as it is.
        task: "classification" or "segmentation".
        protocol: For the result.
        seed: Of the bootstrap.

    Raises:
        DataError: If they did not see the same test images in the same order.
    """
    if len({each.fingerprint for each in measured}) > 1:
        raise DataError(
            "the test images came in another order the second time, so models cannot be compared image by image: give "
            "loaders without shuffling."
        )
    references = [_reference(measured, index) for index in range(len(measured))]
    best = {
        (probe, members[0]): max(members, key=lambda index: _last(measured[index], probe).val)
        for members in _families(measured)
        for probe in PROBES
    }
    level = 1 - (1 - CONFIDENCE) / max(1, len(best))
    differences = _differences(measured, references, TASKS[task].score, level, seed)
    rows = [_row(each, differences.get(index, {}), TASKS[task].score) for index, each in enumerate(measured)]
    verdicts = []
    for (probe, _), index in best.items():
        on_val = rows[index].scores[probe].val - rows[references[index]].scores[probe].val
        verdicts.append(_verdict(rows, index, probe, on_val, differences[index][probe][1], level, measured, task))
    images = dict(zip(("train", "val", "test"), measured[0].images, strict=True))
    return ProbeResult(task, TASKS[task].METRIC, images, protocol, rows, level, verdicts)


def _reference(measured: Sequence[Measured], index: int) -> int:
    """What a row is compared with: its model as it is; of a further model as it is, the first model's."""
    if measured[index].setting.is_reference:
        return 0
    name = measured[index].model
    return next(i for i, each in enumerate(measured) if each.model == name and each.setting.is_reference)


def _families(measured: Sequence[Measured]) -> list[list[int]]:
    """Indices of the rows that differ only in strengths; without the first one, the reference of all."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(measured[1:], 1):
        families.setdefault((each.model, each.setting.family), []).append(index)
    return list(families.values())


def _last(measured: Measured, probe: str):
    """The outcome on the last block."""
    return measured.outcomes[probe][max(measured.outcomes[probe])]


def _differences(measured, references, score, level: float, seed: int) -> dict[int, dict[str, list[Difference]]]:
    """Row -> probe -> difference with a 95 % interval, and with one at `level`."""
    found: dict[int, dict[str, list[Difference]]] = {index: {} for index in range(1, len(measured))}
    for reference in sorted(set(references[1:])):
        others = [index for index in range(1, len(measured)) if references[index] == reference]
        for probe in PROBES:
            counts = [_last(measured[index], probe).test for index in others]
            against = _last(measured[reference], probe).test
            every = paired_differences(against, counts, score, (CONFIDENCE, level), seed=seed)
            for index, intervals in zip(others, every, strict=True):
                found[index][probe] = intervals
    return found


def _row(measured: Measured, differences: dict[str, list[Difference]], score) -> Row:
    setting, scores = measured.setting, {}
    for probe in PROBES:
        outcome = _last(measured, probe)
        against = differences[probe][0] if differences else (None, None, None)
        scores[probe] = Score(outcome.choice, outcome.val, float(score(outcome.test.sum(0))), *against)
    by_block: dict[str, list[float]] = {}
    if len(measured.similarity) > 1:
        by_block["similarity"] = [measured.similarity[block] for block in sorted(measured.similarity)]
        for probe, outcomes in measured.outcomes.items():
            by_block[probe] = [float(score(outcomes[block].test.sum(0))) for block in sorted(outcomes)]
    return Row(
        model=measured.model,
        method=setting.method,
        strengths=dict(setting.strengths),
        layers=None if setting.layers is None else list(setting.layers),
        label=setting.label,
        similarity=measured.similarity[max(measured.similarity)],
        scores=scores,
        by_block=by_block,
    )


def _verdict(rows, index: int, probe: str, on_val: float, found: Difference, level, measured, task: str) -> Verdict:
    outcome = "better" if found.low > 0 else "worse" if found.high < 0 else "open"
    setting, model, unit = measured[index].setting, measured[index].model, TASKS[task].UNIT
    images, first = measured[index].images[2], measured[0].model
    numbers = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] {unit} on {images} test images"
    against = f"{model} as it is" if setting.method else f"{first} as it is"
    told = {
        "better": f"better than {against}",
        "worse": f"worse than {against}",
        "open": f"no difference from {against} can be told",
    }[outcome]
    who = f"{model}, {setting.family}" if setting.method else model
    best = f"best on val is {setting.values}, " if setting.values else ""
    stays = ", so one would leave the model as it is" if setting.method and on_val <= 0 else ""
    sentence = f"{who}, {NAMES[probe]}: {best}{on_val:+.2f} on val{stays}; {numbers}: {told}."
    return Verdict(
        model, setting.family, probe, index, on_val, found.value, found.low, found.high, outcome, sentence
    )  # fmt: skip
