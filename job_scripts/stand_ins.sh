#!/usr/bin/env bash
# DyMo's whole chain on the made stand-in of every licensed or large data set, with each of its recovery methods; no download,
# about half an hour on two CPU cores. Shows that every path works; the data are made up, and so are the numbers.
#   bash job_scripts/stand_ins.sh [Hydra overrides, e.g. seed=1]
set -euo pipefail
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

output=outputs seed=0
for override in "$@"; do
  case $override in
    paths.output=*) output=${override#*=} ;;
    seed=*) seed=${override#*=} ;;
  esac
done

runs=()
backbone() { # data set, overrides
  local dataset=$1
  shift
  python run.py "dataset=$dataset" dataset.demo=true model=DyMo name=backbone trainer=cpu 'stages=[prepare,fit,gaussian]' \
    model.backbone.training.batch_size=32 model.backbone.training.patience=null "$@"
}
recovery() { # data set, recovery method, overrides
  local dataset=$1 imputer=$2 trained=$output/$1/DynamicTransformer/backbone/seed$seed
  shift 2
  python run.py "dataset=$dataset" dataset.demo=true model=DyMo "imputer=$imputer" "name=$imputer" trainer=cpu \
    "model.transformer_checkpoint=$trained/checkpoints/best.ckpt" "model.gaussian=$trained/gaussian_cosine.safetensors" \
    'stages=[impute,test]' "$@"
  runs+=("$output/$dataset/DyMo/$imputer/seed$seed")
}

few=(dataset.pairings=2)
backbone MST "${few[@]}" model.backbone.training.max_epochs=30 model.backbone.module.optimizer.lr=3e-4 "$@"
recovery MST MoPoE "${few[@]}" imputer.training.max_epochs=30 imputer.training.batch_size=64 "$@"
recovery MST Mean "${few[@]}" "$@"

backbone CelebA model.backbone.training.max_epochs=8 "$@"
recovery CelebA MoPoE imputer.training.max_epochs=8 imputer.training.batch_size=32 "$@"
recovery CelebA Mean "$@"

small=(dataset.image_weights=none dataset.encoders.img.architecture=resnet18 dataset.side=64)
tip=(imputer.image_encoder.architecture=resnet18 imputer.table_encoder.width=128 imputer.training.max_epochs=15)
for dataset in DVM CAD Infarction; do
  backbone "$dataset" "${small[@]}" model.backbone.training.max_epochs=15 "$@"
  recovery "$dataset" TIP "${small[@]}" "${tip[@]}" imputer.training.batch_size=64 "$@"
  recovery "$dataset" IMI "${small[@]}" "$@"
done
python run.py dataset=MST dataset.demo=true name=stand_ins 'stages=[report]' "report.include=[$(IFS=,; echo "${runs[*]}")]" "$@"
