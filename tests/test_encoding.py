"""Text is UTF-8, whatever the locale: every reading and writing of text names its encoding."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
OPENING = {"open", "read_text", "write_text"}


def unsaid(path: Path) -> list[str]:
    """The calls of a file that open text in the locale's encoding."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = (
            node.func.attr
            if isinstance(node.func, ast.Attribute)
            else "open" * (getattr(node.func, "id", "") == "open")
        )
        owner = getattr(getattr(node.func, "value", None), "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        binary = any("b" in mode and len(mode) < 4 for mode in modes)
        ours = owner in ("files", "records", "Image", "os", "package")  # files.write_text, ...: they say it themselves
        if name in OPENING and not ours and not binary and "encoding" not in {word.arg for word in node.keywords}:
            found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_no_text_is_read_or_written_in_the_locales_encoding():
    places = [*(ROOT / "cli").rglob("*.py"), *(ROOT / "timm_neutreno").rglob("*.py")]
    assert len(places) > 50
    assert [line for path in places for line in unsaid(path)] == []
