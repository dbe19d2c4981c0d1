#!/usr/bin/env bash
# The backbone alone on CelebA, which is discarding what is missing: training, Gaussian parameters, test, report.
#   bash job_scripts/CelebA_DynamicTransformer.sh [folder with img_align_celeba and its tables] [Hydra overrides]
# Without a folder data/CelebA is taken; dataset.demo=true tries it on a small stand-in. The recipe wants a GPU.
set -euo pipefail
root=
if (($#)) && [[ $1 != *=* ]]; then
  root="dataset.root=$(cd "$1" && pwd)"
  shift
fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python run.py dataset=CelebA model=DynamicTransformer ${root:+"$root"} 'stages=[prepare,fit,gaussian,test,report]' "$@"
