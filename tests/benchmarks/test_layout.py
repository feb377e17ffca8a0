"""Cells are data, runs train them, render modules read what is kept."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def _imports() -> dict[str, set[str]]:
    """{module: modules of benchmarks that it imports anywhere}."""
    found = {}
    for path in FOLDER.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                module = (node.module or "").partition(".")[2]
                names |= {module} if module else {name.name for name in node.names}
        found[path.stem] = names
    return found


def test_no_import_runs_in_a_circle() -> None:
    TopologicalSorter(_imports()).prepare()  # raises CycleError


def test_cells_import_no_runs_and_render_modules_do_not_train() -> None:
    for module, names in _imports().items():
        if module.endswith("cells") or module == "archives":
            assert not [name for name in names if name.startswith(("run_", "render_", "campaign"))], module
        if module.startswith("render_"):
            assert not [name for name in names if name.startswith(("run_", "campaign"))], module
