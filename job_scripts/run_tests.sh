#!/usr/bin/env bash
# Sets up the environment, then checks style and types and runs the tests; stops at the first step that fails.
#   bash job_scripts/run_tests.sh [pytest arguments, e.g. -k digits or -m 'not slow']
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg

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

# The coverage floor holds for the whole suite, not for a selection.
floor=()
if (($#)); then floor=(--cov-fail-under=0); fi

step "ruff check" ruff check .
step "ruff format" ruff format --check .
step "mypy" mypy
# A process for each core; the files stay whole, since their fixtures train small models.
step "pytest" pytest -n auto --dist loadfile --cov --cov-report=term ${floor[@]+"${floor[@]}"} "$@"
