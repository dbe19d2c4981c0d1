#!/usr/bin/env bash
# Three seeds of DyMo on Digits: an ordinary backbone and a recovery-aware one, cosine distance (about an hour on two cores).
#   bash job_scripts/digits_study.sh [Hydra overrides, e.g. distance_metric=squared_euclidean name=euclidean]
set -euo pipefail
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

common=(dataset=Digits model=DyMo seed=0,1,2 name=study)
python run.py --multirun "${common[@]}" 'stages=[prepare,impute,fit,gaussian,test]' model.recovery_aware=0.0,0.5 "$@"
python run.py dataset=Digits model=DyMo name=study 'stages=[report]' "$@"
