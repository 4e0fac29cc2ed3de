"""What ADE20K costs: docs/segmentation.md has the table that benchmarks/ade20k_cost.py prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "ade20k_cost.py"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 11
    assert done.stdout in (ROOT / "docs" / "segmentation.md").read_text()
