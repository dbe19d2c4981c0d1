#!/usr/bin/env bash
# What only a GPU can show, unattended and within eight minutes: the tests marked gpu, and measurements beside a slow twin of the
# original. Writes gpu.csv into the output folder and prints a line for each part; the exit status is 1 if a part failed.
#   bash job_scripts/gpu_check.sh [FOLDER of the four MNIST idx files] [OUTPUT, outputs/gpu_check by default] [options]
# Without the folder (or with "made-up"), digits are made up: times are those of real ones, accuracies mean nothing.
# DRY=1 runs every part on the CPU with tiny sizes. Options are those of python -m tests.benchmarks.gpu, for example --parts=waits.
# PYTHON names an interpreter whose packages are used as they are; nothing is downloaded then. With WHEELS=FOLDER, all wheels of
# the folder are installed for it first (made elsewhere with the command of docs/performance.md).
set -euo pipefail
mnist=${1:-made-up} output=$(realpath -m "${2:-outputs/gpu_check}")
[[ $mnist == made-up || -d $mnist ]] || {
  echo "usage: bash job_scripts/gpu_check.sh [FOLDER of the four MNIST idx files] [OUTPUT] [options]; there is no folder $mnist" >&2
  exit 2
}
shift $(($# < 2 ? $# : 2))
arguments=(--out "$output" "$@")
if [[ $mnist != made-up ]]; then arguments+=("dataset.mnist=$(realpath "$mnist")"); fi
if [[ ${DRY:-} ]]; then arguments+=(--dry); fi
if [[ ${WHEELS:-} ]]; then WHEELS=$(realpath "$WHEELS"); fi

if [[ ${PYTHON:-} ]]; then
  python=$(command -v "$PYTHON") || { echo "error: PYTHON=$PYTHON is no program" >&2; exit 2; }
  CDPATH= cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if [[ ${WHEELS:-} ]]; then
    # A folder of its own, so that the interpreter's packages stay as they are.
    "$python" -m pip install --quiet --no-index --no-deps --target "$output/packages" "$WHEELS"/*.whl
    export PYTHONPATH=$output/packages${PYTHONPATH:+:$PYTHONPATH}
  fi
else
  EXTRAS=test
  source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
  python=python
fi

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg
"$python" -m tests.benchmarks.gpu "${arguments[@]}"
