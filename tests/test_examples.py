"""The scripts in examples/, run as a person would, on what is embedded."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *words: object, cwd: Path) -> str:
    command = [sys.executable, EXAMPLES / name, *words]
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=True).stdout


def test_patch_pretrained(tmp_path):
    printed = run("patch_pretrained.py", cwd=tmp_path)
    assert "to the last bit: True" in printed
    assert "beside the pretrained weights: 23" in printed


def test_see_smoothing(tmp_path):
    printed = run("see_smoothing.py", "curves.png", cwd=tmp_path)
    first, last = (printed.splitlines()[index].split()[2:] for index in (0, 11))
    assert float(last[1]) < float(last[0])  # less alike with the term
    assert first != last
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_adapt_in_python(tmp_path):
    printed = run("adapt_in_python.py", cwd=tmp_path)
    assert "neutreno+featscale, adapted" in printed
    (report,) = tmp_path.glob("runs/*/report.html")
    assert f"report to open: {report}" in printed
    assert "logits: (2, 10)\nlayers with the term: 11\n" in printed
