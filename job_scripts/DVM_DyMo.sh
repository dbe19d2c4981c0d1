#!/usr/bin/env bash
# DyMo on DVM with TIP as the recovery method: whole table missing, and 10 to 90 % of its cells.
#   bash job_scripts/DVM_DyMo.sh FOLDER|demo [Hydra overrides]
# FOLDER holds the raw download (tables_V2.0/ and resized_DVM/) or the files that TIP prepares (features/).
# 'demo' makes a small stand-in, for a look at every stage without the data. The published recipe (500 epochs of TIP, 300 of
# the backbone, ImageNet weights) wants a GPU.
set -euo pipefail
if ((! $#)) || [[ $1 == *=* ]]; then
  echo "usage: bash job_scripts/DVM_DyMo.sh FOLDER|demo [Hydra overrides]" >&2
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

python run.py dataset=DVM model=DyMo imputer=TIP "${data[@]}" 'stages=[prepare,impute,fit,gaussian,test,report]' \
  'missing.test=[none,whole_1,table_value_0.1,table_value_0.3,table_value_0.5,table_value_0.7,table_value_0.9]' "$@"
