"""Freed blocks stay with the process, counted in page faults, which do not depend on the machine's speed."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from utils.memory import keep_imported

FAULTS = """
import resource, sys
from utils.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("unsupported")
    raise SystemExit
def step():
    blocks = [b"x" * (20 * 2**20) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> str:
    command = [sys.executable, "-c", FAULTS, mode]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_steps_reuse_what_the_steps_before_have_freed() -> None:
    remaining = page_faults("keep")
    if remaining == "unsupported":
        pytest.skip("the C library is not glibc")
    assert int(remaining) < 100 < int(page_faults("default"))


def test_imports_are_excluded_from_collections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many_objects.py").write_text("objects = [[i] for i in range(20_000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    gc.collect()
    collections, frozen = [], gc.get_freeze_count()
    monkeypatch.setattr(gc, "callbacks", [*gc.callbacks, lambda phase, _: collections.append(phase)])
    with keep_imported("many_objects"):
        importlib.import_module("many_objects")
    assert not collections and gc.isenabled()
    assert gc.get_freeze_count() > frozen + 20_000
    frozen = gc.get_freeze_count()
    with keep_imported("many_objects"):
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_the_processes_of_the_tests_collect_garbage() -> None:
    """Imports of the tests do without; a process that goes on without needs 10 GB for the contracts alone."""
    assert gc.isenabled()
