"""Makes docs/api.md's reference from the docstrings: python docs/make_api.py. tests/test_docs.py compares them."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from timm_neutreno_cli.api.result import Result

import timm_neutreno
from timm_neutreno import hf, hub, probing, smoothing

PAGE = Path(__file__).with_name("api.md")
BEGIN, END = "<!-- made by `python docs/make_api.py` -->\n", "<!-- end of what is made -->\n"
LONGEST = 900  # characters of a signature; a longer one is a command's, whose options have their defaults in the text
HEADING = re.compile(r"(Args|Attributes|Options|Returns|Yields|Raises):$")


def reference() -> str:
    """Every public function and class with its docstring: those of the package, then of its modules."""
    parts = []
    for module in (timm_neutreno, hub, hf, smoothing, probing):
        parts.append(f"## {module.__name__}\n")
        found = {name: getattr(module, name) for name in sorted(module.__all__)}
        # tables and constants are described where they are used
        parts += [entry(name, it) for name, it in found.items() if inspect.isfunction(it) or inspect.isclass(it)]
    return "\n".join([*parts, "## What adapt, evaluate and probe return\n", entry("Result", Result)])


def entry(name: str, found: Any) -> str:
    """Heading, call, and docstring; of a class its own public methods too."""
    parts = [f"### {name}", f"```text\n{call(name, found)}\n```", markdown(inspect.getdoc(found) or "")]
    for key, value in vars(found).items() if inspect.isclass(found) else ():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and not key.startswith("_") and function.__doc__:
            parts += [f"#### .{key}", f"```text\n{key}{shown(function)}\n```", markdown(inspect.getdoc(function) or "")]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def call(name: str, found: Any) -> str:
    """How it is called."""
    if not inspect.isclass(found):
        return name + shown(found)
    if issubclass(found, Exception):
        return f"class {name}({found.__base__.__name__})"
    signature = shown(found)
    return name + (signature.rpartition(" -> ")[0] or signature)


def shown(found: Any) -> str:
    """The signature, with annotations as they were written, one argument a line if it is long."""
    signature = inspect.signature(found)
    if len(str(signature)) > LONGEST:
        return f"(**options) -> {annotation(signature.return_annotation)}"
    words: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(word.startswith("*") for word in words):
            words.append("*")
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind = annotation(parameter.annotation)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        words.append(
            f"{prefix}{parameter.name}{': ' + kind if kind else ''}{default if kind else default.replace(' ', '')}"
        )
    returns = annotation(signature.return_annotation)
    line = f"({', '.join(words)}){' -> ' + returns if returns else ''}"
    return line if len(line) < 90 else "(\n    " + ",\n    ".join(words) + f",\n){' -> ' + returns if returns else ''}"


def annotation(kind: Any) -> str:
    if kind is inspect.Signature.empty:
        return ""
    if isinstance(kind, str):
        return kind.strip("'")
    return kind.__name__ if isinstance(kind, type) else str(kind)


def markdown(text: str) -> str:
    """A docstring in Google's style: its parts become lists; indented code stays as it is."""
    part, out = "", []
    for line in text.splitlines():
        item = re.match(r"    ([\w*`<>\[\], ]+): (.*)", line) if part else None
        if HEADING.match(line):
            part = line[:-1]
            out += ["", f"**{part}**", ""]
        elif item and part not in ("Returns", "Yields"):
            out.append(f"- `{item[1].strip('`')}`: {escaped(item[2])}")
        elif part and line.startswith("    "):
            words = escaped(line.strip())
            out[-1:] = [f"{out[-1]} {words}"] if out[-1] else ["", words]
        else:
            part = part if not line.strip() else ""
            out.append(line if line.startswith("    ") else escaped(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))


def escaped(text: str) -> str:
    """Plain words in Markdown: outside of `code`, stars, underscores and angle brackets mean themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<>|])", r"\\\1", part) for part in parts)


def made(page: str) -> str:
    """The page with its reference made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{reference()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
