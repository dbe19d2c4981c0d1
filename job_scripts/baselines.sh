#!/usr/bin/env bash
# DyMo, every comparison method and the controls on the same data, masks and schedule (configs/experiment/baselines.yaml), then
# one report over all of them. Finished runs are skipped, so an interrupted study continues with the same command.
#   bash job_scripts/baselines.sh Digits|PolyMNIST|MultiFeatureDigits|... [FOLDER|demo] [Hydra overrides, e.g. seed=0,1,2 schedule=short]
# FOLDER: job_scripts/_data.sh. The published schedule of PolyMNIST wants a GPU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] || usage "DATASET [FOLDER|demo] [Hydra overrides]"
read_data "$@" && without_sweeps
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py --multirun experiment=baselines "${data[@]}" ${overrides[@]+"${overrides[@]}"}
if [[ $1 != MultiFeatureDigits ]]; then # its imputer knows images and text only
  python run.py --multirun experiment=baselines_cmvae "${data[@]}" ${overrides[@]+"${overrides[@]}"}
fi
python run.py experiment=baselines "${data[@]}" 'stages=[report]' ${others[@]+"${others[@]}"}
