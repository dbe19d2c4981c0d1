#!/usr/bin/env bash
# DyMo on one of its six tasks: recovery method, backbone, Gaussian parameters, test, report.
#   bash job_scripts/dymo.sh PolyMNIST|MST|CelebA|DVM|CAD|Infarction [FOLDER|demo] [Hydra overrides]
# FOLDER: job_scripts/_data.sh. The published recipes want a GPU; on two CPU cores add schedule=short for PolyMNIST (15 epochs).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] || usage "PolyMNIST|MST|CelebA|DVM|CAD|Infarction [FOLDER|demo] [Hydra overrides]"
read_data "$@"
case $1 in DVM | CAD | Infarction) data+=(imputer=TIP) ;; esac
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py "${data[@]}" ${overrides[@]+"${overrides[@]}"}
