"""Methods and imputers answer for themselves: no file of trainers/ or utils/ asks which class one is."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.base import IncompleteClassifier, Method
from models.baselines.base import Baseline, TokenBaseline, VectorBaseline
from models.imputers.base import FittedImputer, Imputer
from models.imputers.generative import GenerativeImputer

ROOT = Path(__file__).parents[1]
FILES = [file for folder in ("trainers", "utils") for file in sorted((ROOT / folder).rglob("*.py"))]
# Interfaces, base classes and what several methods share; everything else in models/ is one method.
SHARED = (
    *("models.base", "models.baselines.base", "models.baselines.modulation", "models.encoders.pooled"),
    *("models.imputers.base", "models.imputers.quality"),
    *("models.dymo.backbone", "models.dymo.gaussian", "models.dymo.prototypes"),
)
ABSTRACT = (Method, IncompleteClassifier, Baseline, TokenBaseline, VectorBaseline)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_trainers_and_utils_import_no_single_method() -> None:
    single = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in FILES
        for module in imports(ast.parse(file.read_text()))
        if module.startswith("models.") and module not in SHARED
    ]
    assert len(FILES) > 30 and single == []


def test_trainers_and_utils_ask_no_class() -> None:
    """Neither with ``isinstance`` or ``issubclass``, nor by a name in ``_target_``."""
    methods = {"DyMo", "DynamicTransformer", "CMPT", "MoPoE", "TIP", "Zero", "Completed", "Baseline", "FittedImputer"}
    asked = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call | ast.Compare):
                continue
            text = ast.unparse(node)
            is_question = isinstance(node, ast.Call) and text.startswith(("isinstance(", "issubclass("))
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            if (is_question and names & methods) or (isinstance(node, ast.Compare) and "_target_" in text):
                asked.append(f"{file.relative_to(ROOT)}: {text}")
    assert asked == []


@pytest.mark.parametrize("base", [*ABSTRACT, Imputer, FittedImputer, GenerativeImputer], ids=lambda kind: kind.__name__)
def test_an_incomplete_subclass_fails_at_construction(base: type) -> None:
    """Before an epoch is spent, and with the names of what is not implemented."""
    assert inspect.isabstract(base)
    with pytest.raises(TypeError, match=r"abstract class Half.* with abstract method"):
        type("Half", (base,), {})()
