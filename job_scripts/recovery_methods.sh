#!/usr/bin/env bash
# DyMo with each recovery method of a data set on one backbone; the report tells them apart by their names.
#   bash job_scripts/recovery_methods.sh PolyMNIST|MST|CelebA|DVM|CAD|Infarction [FOLDER|demo] [Hydra overrides, e.g. seed=1]
#   bash job_scripts/recovery_methods.sh demo [Hydra overrides]     all sets with demo data: half an hour on two CPU cores
# FOLDER: job_scripts/_data.sh. The published recipes want a GPU. Demo data are made up, and so are their numbers.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] || usage "demo | PolyMNIST|MST|CelebA|DVM|CAD|Infarction [FOLDER|demo] [Hydra overrides]"
sets=$1
if [[ $1 == demo ]]; then
  sets="MST CelebA DVM CAD Infarction"
  set -- MST "$@"
fi
read_data "$@"
if [[ ${2:-} == demo ]]; then data+=(schedule=demo trainer=cpu); fi
output=$(value_of paths.output outputs) seed=$(value_of seed 0) suffix='' gaussian=cosine
if [[ $(value_of distance_metric '') == squared_euclidean ]]; then suffix=_EU gaussian=euclidean; fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

runs=()
for set in $sets; do
  case $set in
    PolyMNIST) imputers="MoPoE MMVAEPlus CMVAE" ;;
    MST | CelebA) imputers="MoPoE Mean" ;;
    *) imputers="TIP IMI" ;;
  esac
  common=("dataset=$set" "${data[@]:1}" ${overrides[@]+"${overrides[@]}"})
  python run.py "${common[@]}" name=backbone 'stages=[prepare,fit,gaussian]'
  backbone=$output/$set/DynamicTransformer$suffix/backbone/seed$seed
  for imputer in $imputers; do
    python run.py "${common[@]}" "imputer=$imputer" "name=$imputer" 'stages=[impute,test]' \
      "model.transformer_checkpoint=$backbone/checkpoints/best.ckpt" "model.gaussian=$backbone/gaussian_$gaussian.safetensors"
    runs+=("$output/$set/DyMo$suffix/$imputer/seed$seed")
  done
done
python run.py "${data[@]}" ${overrides[@]+"${overrides[@]}"} name=recovery_methods 'stages=[report]' \
  "report.include=[$(IFS=,; echo "${runs[*]}")]"
