"""Who may import whom: read from the sources with ast, imports inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"timm_neutreno": ROOT / "timm_neutreno", "timm_neutreno_cli": ROOT / "cli"}

# in cli/, what stands further left may import what stands further right; those in one set do not know each other
ORDER = [
    {"start"},
    {"main", "api"},
    {"commands"},
    {"engine"},
    {"tasks", "data", "reports"},
    {"runtime", "config"},
    {"errors"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

# library -> who may import it, as beginnings of module names
KEPT_IN = {
    "typer": ("timm_neutreno_cli.main", "timm_neutreno_cli.commands"),
    "torch.distributed": ("timm_neutreno_cli.runtime", "timm_neutreno_cli.engine.setup"),
    "matplotlib": (
        "timm_neutreno.segmenter.plots",
        "timm_neutreno.smoothing.plots",
        "timm_neutreno.probing.plots",
        "timm_neutreno_cli.reports",
    ),
    "transformers": ("timm_neutreno.hf",),
}


def modules() -> dict[str, Path]:
    """Every module of both packages, by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None) of each import statement in a module, wherever it stands."""
    path = MODULES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def needs(name: str) -> set[str]:
    """The modules of ours that a module imports."""
    found = set()
    for source, taken in imports(name):
        inner = f"{source}.{taken}"
        found.add(inner if inner in MODULES else source)
    return (found & MODULES.keys()) - {name}


def test_the_reader_sees_every_kind_of_import():
    assert "timm_neutreno_cli.engine.run" in needs("timm_neutreno_cli.commands.adapt")  # inside a function
    assert "timm_neutreno.smoothing" in needs("timm_neutreno_cli.reports.html")  # under TYPE_CHECKING
    assert ("torch.distributed", None) in set(imports("timm_neutreno_cli.runtime.processes"))


def test_every_package_is_installed():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {name for name, path in MODULES.items() if path.name == "__init__.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle(package):
    graph = {name: sorted(needs(name)) for name in MODULES if name.split(".")[0] == package}
    path: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for other in graph[name]:
            visit(other)
        done.add(path.pop())

    for name in graph:
        visit(name)


def test_the_library_does_not_know_the_command_line():
    for name in MODULES:
        if name.split(".")[0] == "timm_neutreno" and name != "timm_neutreno.__main__":  # `python -m` is a command
            above = [other for other in needs(name) if other.startswith("timm_neutreno_cli")]
            # the package itself names adapt, evaluate and probe to type checkers, and gets them when they are used
            assert above == (["timm_neutreno_cli.api"] if name == "timm_neutreno" else []), name


def test_no_arrow_goes_up():
    wrong = []
    for name in MODULES:
        if name.startswith("timm_neutreno_cli."):
            room = name.split(".")[1]
            for other in needs(name):
                if other.startswith("timm_neutreno_cli."):
                    target = other.split(".")[1]
                    if target != room and RANK[target] <= RANK[room]:
                        wrong.append(f"{name} -> {other}")
    assert wrong == []


def test_no_private_name_crosses_a_file():
    wrong = []
    for name, path in MODULES.items():
        ours = {taken or source for source, taken in imports(name) if source.split(".")[0] in PACKAGES}
        wrong += [
            f"{name}: {taken}" for taken in ours if taken.split(".")[-1].startswith("_") and taken != "__version__"
        ]
        modules = {taken for source, taken in imports(name) if f"{source}.{taken}" in MODULES}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                wrong += [f"{name}: {node.value.id}.{node.attr}"] * private
    assert wrong == []


@pytest.mark.parametrize("library", KEPT_IN)
def test_a_library_is_known_in_its_own_places_only(library):
    users = {
        name for name in MODULES for source, taken in imports(name) if f"{source}.{taken}.".startswith(f"{library}.")
    }
    assert users
    assert [name for name in users if not name.startswith(KEPT_IN[library])] == []
