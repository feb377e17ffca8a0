"""Imports run downwards, in one order of packages and without a circle; no class name stands twice."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import apollo_cli

PACKAGE = Path(apollo_cli.__file__).parent
LAYERS = (
    ("errors",),
    ("files", "intervals", "signals", "threads"),
    ("growth",),
    ("models",),
    ("data",),
    ("config",),
    ("run_directory",),
    ("tracking",),
    ("training",),
    ("cli",),
    ("glue", "inference"),
    ("report",),
    ("sweeps",),
    ("train", "compare", "evaluate", "sample", "push", "api"),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module, by its name below `apollo_cli`; a package by its own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return {name: tree for name, tree in found.items() if name and not name.startswith("conf.")}


def imports(tree: ast.Module) -> set[str]:
    """The modules of ours that a tree imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "apollo_cli":
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                found.add(inner if inner in trees() else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("apollo_cli.")}
    return found - {""}


def test_every_package_has_a_level() -> None:
    assert {name.partition(".")[0] for name in trees()} == set(LEVEL)


def test_no_import_runs_upward() -> None:
    upward = [
        f"{module} imports {other}"
        for module, tree in trees().items()
        for other in imports(tree)
        if module.partition(".")[0] != (room := other.partition(".")[0])
        and LEVEL[room] >= LEVEL[module.partition(".")[0]]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: imports(tree) - {module} for module, tree in trees().items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError


def test_no_class_name_stands_twice() -> None:
    places = defaultdict(set)
    for module, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                places[node.name].add(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_a_function_says_which_problems_it_finds() -> None:
    named = [
        f"{module}.{node.name}"
        for module, tree in trees().items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in ("problems", "_problems")
    ]
    assert named == []
