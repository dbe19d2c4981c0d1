#!/usr/bin/env bash
# Sets up the environment, then checks style and types and runs the tests; stops at the first step that fails.
#   bash job_scripts/run_tests.sh [pytest arguments, e.g. -k digits or -m 'not slow']
# COVERAGE=1 measures what the tests reach, with its floor for the whole suite; it makes them half as long again.
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg

# The tests write and remove some hundred thousand files: in memory, where there is room, without waiting for a disk.
memory=/dev/shm
if [[ -z ${TMPDIR:-} && -w $memory ]] && (($(df -kP "$memory" | awk 'NR == 2 {print $4}') > 8 * 1024 * 1024)); then
  export TMPDIR=$memory/dymo-tests-$UID
  mkdir -p "$TMPDIR"
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
trap 'kill "$checker" 2>/dev/null || true; rm -f "$types"' EXIT

report_types() {
  local code=0
  wait "$checker" || code=$?
  cat "$types"
  return "$code"
}

# A process for each core; the files stay whole, since their fixtures train small models, in the order of tests/conftest.py.
step "pytest" pytest -n auto --dist loadfile --no-loadscope-reorder ${coverage[@]+"${coverage[@]}"} "$@"
step "mypy" report_types
