#!/usr/bin/env bash
# DyMo on PolyMNIST built from MNIST: imputer, backbone, Gaussian parameters, test, report.
#   bash job_scripts/polymnist_dymo.sh [folder with the four MNIST idx files] [Hydra overrides]
# Without a folder MNIST is downloaded. The published recipe (300 and 100 epochs) wants a GPU; on two CPU cores add
# schedule=short (15 epochs each).
set -euo pipefail
mnist=dataset.download=true
if (($#)) && [[ $1 != *=* ]]; then
  mnist="dataset.mnist=$(cd "$1" && pwd)"
  shift
fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py dataset=PolyMNIST model=DyMo "$mnist" 'stages=[prepare,impute,fit,gaussian,test,report]' "$@"
