"""The script that runs the tests with the kernels of other processors, and the thread count that it sets."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

from tests.makers import SCRIPTS

# Prints what it was started with; without AVX two tests fail.
FAKE_PYTEST = """#!/usr/bin/env bash
echo "arguments: $*; ${ATEN_CPU_CAPABILITY:-native} ${ONEDNN_MAX_CPU_ISA:-} ${MKL_CBWR:-} $DYMO_TEST_THREADS"
if [[ ${ATEN_CPU_CAPABILITY:-} == default ]]; then
  echo "FAILED tests/models/dymo/test_selection.py::test_it - AssertionError"
  echo "===== 2 failed, 2807 passed, 21 skipped, 54 warnings in 694.84s (0:11:34) ====="
  exit 1
fi
echo "2809 passed, 21 skipped, 54 warnings in 94.84s (0:01:34)"
"""


def run(tmp_path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "job_scripts").mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir(exist_ok=True)
    shutil.copy(SCRIPTS / "test_processors.sh", tmp_path / "job_scripts")
    (tmp_path / "job_scripts" / "_environment.sh").write_text('die() { echo "error: $*" >&2; exit 1; }\n')
    (tmp_path / "bin" / "pytest").write_text(FAKE_PYTEST)
    (tmp_path / "bin" / "pytest").chmod(0o755)
    choices = ("CAPABILITIES", "THREADS", "PROCESSES", "LOGS")  # of a run of the script that runs this test
    plain = {key: value for key, value in os.environ.items() if key not in choices}
    # A variable of the shell that started the tests does not reach the native runs.
    environment = {**plain, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ATEN_CPU_CAPABILITY": "avx2"}
    command = ["bash", "job_scripts/test_processors.sh", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True)


def test_every_capability_runs_with_one_and_two_threads(tmp_path: Path) -> None:
    done = run(tmp_path, "-k", "digits")
    assert done.returncode == 1, done.stderr
    table = [line.split() for line in done.stdout.split("\n\n")[-1].splitlines()]
    assert table == [
        ["capability", "threads", "passed", "failed", "errors"],
        *(["default", threads, "2807", "2", "0"] for threads in "12"),
        *([capability, threads, "2809", "0", "0"] for capability in ("avx2", "native") for threads in "12"),
    ]
    logs = tmp_path / "outputs" / "test_processors"
    kernels = {"default": "default SSE41 COMPATIBLE", "avx2": "avx2 AVX2 ", "native": "native  "}
    for capability, words in kernels.items():
        for threads in "12":
            first = (logs / f"{capability}_{threads}.log").read_text().splitlines()[0]
            assert first == f"arguments: -n auto --dist loadfile -k digits; {words} {threads}"


def test_success_of_the_chosen_runs_is_success(tmp_path: Path) -> None:
    done = run(tmp_path, CAPABILITIES="native avx2", THREADS="2")
    assert done.returncode == 0 and done.stdout.count("exit status 0") == 2
    unknown = run(tmp_path, CAPABILITIES="sse9")
    assert unknown.returncode == 1 and "CAPABILITIES takes default, avx2 and native, not sse9" in unknown.stderr


def test_the_tests_use_the_number_of_threads_of_the_environment() -> None:
    assert torch.get_num_threads() == int(os.environ.get("DYMO_TEST_THREADS", "1"))
