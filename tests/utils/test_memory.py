"""Freed blocks stay with the process, counted in page faults, which do not depend on the machine's speed."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
    kept = page_faults("keep")
    if kept == "unsupported":
        pytest.skip("the C library is not glibc")
    assert int(kept) < 100 < int(page_faults("default"))
