"""A package imports what is to the left of it in :data:`LAYERS` alone, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAYERS = ("utils", "datasets", "models", "gaussian_parameter_generation", "trainers", "run")
FILES = [ROOT / "run.py", *(file for layer in LAYERS[:-1] for file in sorted((ROOT / layer).rglob("*.py")))]


def imports() -> dict[str, set[str]]:
    """Module -> the modules of this project that it imports, anywhere in the file."""
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in FILES}
    graph: dict[str, set[str]] = {}
    for name, file in names.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                graph[name] |= {
                    m for m in (node.module, *(f"{node.module}.{a.name}" for a in node.names)) if m in names
                }
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in names}
    return graph


def test_no_module_imports_a_higher_layer() -> None:
    rank = {layer: i for i, layer in enumerate(LAYERS)}
    upward = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if rank[other.split(".")[0]] > rank[module.split(".")[0]]
    ]
    assert len(FILES) > 100 and upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """``prepare`` raises a CycleError that names the modules."""
    TopologicalSorter(imports()).prepare()
