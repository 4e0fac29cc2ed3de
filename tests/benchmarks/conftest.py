"""The scripts of benchmarks/ import each other by name, as `python benchmarks/NAME.py` lets them; so do their tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
