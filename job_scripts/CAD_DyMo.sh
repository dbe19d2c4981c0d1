#!/usr/bin/env bash
# DyMo on CAD with TIP as the recovery method: whole table missing, and 10 to 90 % of its cells.
#   bash job_scripts/CAD_DyMo.sh FOLDER|demo [Hydra overrides]
# FOLDER holds the files that TIP prepares (tabular_lengths_reordered.pt, cardiac_features_..., subjects/).
# 'demo' makes a small stand-in, for a look at every stage without the data. The published recipe (500 epochs of TIP, 300 of
# the backbone, ImageNet weights) wants a GPU.
set -euo pipefail
if ((! $#)) || [[ $1 == *=* ]]; then
  echo "usage: bash job_scripts/CAD_DyMo.sh FOLDER|demo [Hydra overrides]" >&2
  exit 2
fi
if [[ $1 == demo ]]; then
  data=(dataset.demo=true dataset.image_weights=none)
else
  data=("dataset.root=$(cd "$1" && pwd)")
fi
shift
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py dataset=CAD model=DyMo imputer=TIP "${data[@]}" 'stages=[prepare,impute,fit,gaussian,test,report]' \
  'missing.test=[none,whole_1,table_value_0.1,table_value_0.3,table_value_0.5,table_value_0.7,table_value_0.9]' "$@"
