#!/usr/bin/env bash
# DyMo on PolyMNIST with each generative recovery method on one backbone; the report tells them apart by their names.
#   bash job_scripts/PolyMNIST_recovery_methods.sh [folder with the four MNIST idx files] [Hydra overrides, e.g. seed=1]
# Without a folder MNIST is downloaded. The published recipes (300, 150 and 250 epochs) want a GPU.
set -euo pipefail
mnist=dataset.download=true
if (($#)) && [[ $1 != *=* ]]; then
  mnist="dataset.mnist=$(cd "$1" && pwd)"
  shift
fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

output=outputs seed=0 suffix= gaussian=cosine
for override in "$@"; do
  case $override in
    paths.output=*) output=${override#*=} ;;
    seed=*) seed=${override#*=} ;;
    distance_metric=squared_euclidean) suffix=_EU gaussian=euclidean ;;
  esac
done

common=(dataset=PolyMNIST model=DyMo "$mnist" "$@")
python run.py "${common[@]}" name=backbone 'stages=[prepare,fit,gaussian]'

backbone=$output/PolyMNIST/DynamicTransformer$suffix/backbone/seed$seed
runs=()
for imputer in MoPoE MMVAEPlus CMVAE; do
  python run.py "${common[@]}" "imputer=$imputer" "name=$imputer" 'stages=[impute,test]' \
    "model.transformer_checkpoint=$backbone/checkpoints/best.ckpt" \
    "model.gaussian=$backbone/gaussian_$gaussian.safetensors"
  runs+=("$output/PolyMNIST/DyMo$suffix/$imputer/seed$seed")
done
python run.py "${common[@]}" name=recovery_methods 'stages=[report]' "report.include=[$(IFS=,; echo "${runs[*]}")]"
