#!/usr/bin/env bash
# Sets up the environment, then checks style and types and runs the tests; stops at the first step that fails.
#   bash job_scripts/run_tests.sh [pytest arguments, e.g. -k digits or -m 'not slow']
# COVERAGE=1 measures what the tests reach, with its floor for the whole suite; it makes them half as long again.
set -euo pipefail
unset PYTHONDONTWRITEBYTECODE  # hundreds of processes import the same files
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg

# The tests write and remove some hundred thousand files: in memory, without waiting for a disk, where there is room for them
# and where programs may be executed.
temporary= checker= types=
finish() {
  if [[ $checker ]]; then kill "$checker" 2>/dev/null || true; fi
  rm -rf "$types" "$temporary"
}
trap finish EXIT

has_room() {
  local room=12 limit=/sys/fs/cgroup/memory.max  # GiB
  [[ -r /proc/meminfo && -w $1 ]] && awk -v room=$room '/^MemAvailable/ {exit $2 < room * 2^20}' /proc/meminfo &&
    df -kP "$1" | awk -v room=$room 'NR == 2 {exit $4 < room * 2^20}' &&
    { [[ ! -r $limit ]] || awk -v room=$room '{exit $1 != "max" && $1 < room * 2^30}' $limit; }
}

if [[ -z ${TMPDIR:-} ]] && has_room /dev/shm; then
  temporary=$(mktemp -d /dev/shm/tests.XXXXXX)
  printf '#!/bin/sh\n' >"$temporary/probe" && chmod +x "$temporary/probe"
  if "$temporary/probe" 2>/dev/null; then export TMPDIR=$temporary; fi
fi

step() {
  local name=$1 start=$SECONDS code=0
  shift
  echo "== $name"
  "$@" || code=$?
  if ((code)); then
    echo "== $name FAILED after $((SECONDS - start)) s (exit status $code); stopping here" >&2
    exit "$code"
  fi
  echo "== $name done in $((SECONDS - start)) s"
}

coverage=()
if [[ ${COVERAGE:-} ]]; then
  coverage=(--cov --cov-report=term)
  if (($#)); then coverage+=(--cov-fail-under=0); fi
fi

step "ruff check" ruff check .
step "ruff format" ruff format --check .
# mypy takes one core for a minute: beside the tests, whose processes do not always use all cores.
types=$(mktemp)
mypy >"$types" 2>&1 &
checker=$!

report_types() {
  local code=0
  wait "$checker" || code=$?
  cat "$types"
  return "$code"
}

# A process for each core; the files stay whole, since their fixtures train small models, in the order of tests/conftest.py.
step "pytest" pytest -n auto --dist loadfile --no-loadscope-reorder ${coverage[@]+"${coverage[@]}"} "$@"
step "mypy" report_types
