"""Methods and imputers answer for themselves: no file of trainers/ or utils/ asks which class one is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.utils import get_object

from models.base import IncompleteClassifier, Method
from models.baselines.base import Baseline, TokenBaseline, VectorBaseline
from models.imputers.base import FittedImputer, Imputer
from models.imputers.generative import GenerativeImputer

ROOT = Path(__file__).parents[2]
FILES = [file for folder in ("trainers", "utils") for file in sorted((ROOT / folder).rglob("*.py"))]
# Interfaces, base classes and what several methods share; everything else in models/ is one method.
SHARED = (
    *("models.base", "models.baselines.modulation", "models.completed", "models.program", "models.encoders.pooled"),
    *("models.imputers.base", "models.imputers.quality"),
    *("models.dymo.backbone", "models.dymo.gaussian", "models.dymo.prototypes"),
)
# Names of all classes of single methods, and of the shared bases that say how a method works.
METHODS = {
    node.name
    for file in sorted((ROOT / "models").rglob("*.py"))
    for node in ast.parse(file.read_text()).body
    if isinstance(node, ast.ClassDef) and ".".join(file.relative_to(ROOT).with_suffix("").parts) not in SHARED
} | {"Completed", "FittedImputer", "TrainedImputer"}
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
    asked = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call | ast.Compare):
                continue
            text = ast.unparse(node)
            if isinstance(node, ast.Call):
                is_question = text.startswith(("isinstance(", "issubclass("))
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            else:
                is_question = "_target_" in text
                names = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            if is_question and names & METHODS:
                asked.append(f"{file.relative_to(ROOT)}: {text}")
    assert len(METHODS) > 80 and asked == []


def test_every_configured_class_is_complete() -> None:
    configs = "\n".join(file.read_text() for file in sorted((ROOT / "configs").rglob("*.yaml")))
    targets = sorted(set(re.findall(r"_target_: (models\.[\w.]+)", configs)))
    assert len(targets) > 50
    assert [target for target in targets if inspect.isabstract(get_object(target))] == []


@pytest.mark.parametrize("base", [*ABSTRACT, Imputer, FittedImputer, GenerativeImputer], ids=lambda kind: kind.__name__)
def test_an_incomplete_subclass_fails_at_construction(base: type) -> None:
    """Before an epoch is spent, and with the names of what is not implemented."""
    assert inspect.isabstract(base)
    with pytest.raises(TypeError, match=r"abstract class Half.* with abstract method"):
        type("Half", (base,), {})()


def test_a_method_that_needs_calibration_implements_it() -> None:
    with pytest.raises(TypeError, match="Careless sets needs_calibration: implement calibrate"):
        type("Careless", (Method,), {"needs_calibration": True})
