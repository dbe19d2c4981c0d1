#!/usr/bin/env bash
# DyMo on MNIST-SVHN-Text: imputer, backbone, Gaussian parameters, test, report.
#   bash job_scripts/MST_DyMo.sh [folder with the four MNIST idx files [folder with SVHN's .mat files]] [overrides]
# The second folder may hold photographs of digits in {0..9}/ instead. Without folders the prepared data of the original
# are looked for in data/MST, else MNIST and SVHN are downloaded; dataset.demo=true tries it on a small stand-in.
set -euo pipefail
data=(dataset.download=true)
if (($#)) && [[ $1 != *=* ]]; then
  data+=("dataset.mnist=$(cd "$1" && pwd)")
  shift
  if (($#)) && [[ $1 != *=* ]]; then
    data+=("dataset.svhn=$(cd "$1" && pwd)")
    shift
  fi
fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py dataset=MST model=DyMo "${data[@]}" 'stages=[prepare,impute,fit,gaussian,test,report]' "$@"
