"""README and docs show what the JSON files in benchmarks/ hold, and nothing else.

    python benchmarks/evidence.py            # says which passages differ, and exits with 1 if one does
    python benchmarks/evidence.py --write    # makes them anew

A passage stands between the lines `<!-- benchmarks/NAME.json -->` and `<!-- end -->`: it is what `markdown(document)`
of the script that wrote NAME.json makes of it. `<!-- benchmarks/NAME.json FUNCTION -->` names another function of it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PASSAGE = re.compile(r"(<!-- benchmarks/(\w+)\.json(?: (\w+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make the passages anew")
    options = parser.parse_args()
    differing = [page for page in pages() if made(page) != page.read_text("utf-8")]
    for page in differing:
        if options.write:
            page.write_text(made(page), "utf-8")
        print(f"{page.relative_to(HERE.parent)}: {'made anew' if options.write else 'differs'}")
    sys.exit(1 if differing and not options.write else 0)


def pages() -> list[Path]:
    return [HERE.parent / "README.md", *sorted((HERE.parent / "docs").glob("*.md"))]


def made(page: Path) -> str:
    """The page, with every passage as its JSON says."""
    return PASSAGE.sub(
        lambda match: match[1] + passage(match[2], match[3] or "markdown") + match[5], page.read_text("utf-8")
    )


def passage(name: str, function: str) -> str:
    """What a script's function makes of benchmarks/NAME.json, with a newline at its end."""
    document = json.loads((HERE / f"{name}.json").read_text("utf-8"))
    return getattr(importlib.import_module(script(name)), function)(document).strip("\n") + "\n"


def script(name: str) -> str:
    """NAME, or what stands before its last words: from_scratch for from_scratch_depth."""
    parts = name.split("_")
    tried = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next(module for module in tried if (HERE / f"{module}.py").is_file())


if __name__ == "__main__":
    main()
