"""Made-up results of a run, for the tests of what is said about them."""

from __future__ import annotations

from timm_neutreno_cli.reports.results import RunResult

STRENGTHS = {"fidelity": {"mean_abs": 0.6, "min": 0.6, "max": 0.6}}


def evaluation(top1: float, similarity: float = 0.3, strengths: dict | None = None) -> dict:
    return {
        "strengths": strengths or {}, "images": 400, "top1": top1, "top5": 100.0, "loss": 1.0,
        "similarity": [0.9, similarity], "similarity_error": 0.005,
    }  # fmt: skip


def result(models: dict[str, dict]) -> RunResult:
    arms = [name for name in models if name != "checkpoint"]
    return RunResult(
        seed=0, checkpoint="demo", data="digits", output="run", epochs=1, device="cpu", processes=1, skipped_images=0,
        new_head=True, seconds=1.0, base_model=None, license=None, epochs_before=[], arms=arms, main=arms[-1],
        models=models,
    )  # fmt: skip
