#!/usr/bin/env bash
# Sets up the environment, then trains and tests DyMo on the embedded Digits data.
#   bash job_scripts/quickstart.sh [Hydra overrides, e.g. seed=1 model=QMF]
set -euo pipefail
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

echo "Running: python run.py${*:+ $*}"
if (($# == 0)); then
  echo "The defaults take DyMo through every stage on the embedded Digits data: no download, some minutes on a CPU."
fi
exec python run.py "$@"
