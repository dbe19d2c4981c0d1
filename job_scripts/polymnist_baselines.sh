#!/usr/bin/env bash
# DyMo, every comparison method and the controls on the same data, masks and schedule, then one report over all of them.
#   bash job_scripts/polymnist_baselines.sh FOLDER|digits|six-views=FOLDER [Hydra overrides, e.g. seed=0,1,2 schedule=short]
# FOLDER holds the four MNIST idx files; 'digits' takes the embedded Digits instead, 'six-views' the six vectors of UCI's
# Multiple Features (MultiFeatureDigits; without CMVAE_Classification, whose imputer knows images and text only).
# All keep the weights of their last epoch (dataset.monitor=null): accuracy on complete validation data, by which the originals
# choose, is full after an epoch or two, and then says nothing of rows with gaps. dataset.monitor=val_accuracy restores that.
# Epochs, batch size and schedule of all are those of dataset.training_defaults; methods with stages (MultiAE, OnlineMAE, DynMM, SimMLM)
# train each of them so long. The published schedule of PolyMNIST wants a GPU; what is done already is skipped, so an
# interrupted study goes on with the same command.
set -euo pipefail
if ((! $#)) || [[ $1 == *=* && $1 != six-views=* ]]; then
  echo "usage: bash job_scripts/polymnist_baselines.sh FOLDER|digits|six-views=FOLDER [Hydra overrides]" >&2
  exit 2
fi
case $1 in
  digits) data=(dataset=Digits) ;;
  six-views=*) data=(dataset=MultiFeatureDigits "dataset.root=$(cd "${1#*=}" && pwd)") ;;
  *) data=(dataset=PolyMNIST "dataset.mnist=$(cd "$1" && pwd)") ;;
esac
shift
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

stages=('stages=[prepare,impute,fit,gaussian,test]' dataset.monitor=null)
tokens=DyMo,ModDrop,MTL,MAP
vectors=Multimodal_CONCAT,Concat_ModDrop,LogitAverage,PatternExperts,QMF,PDF,DynMM,M3Care,MUSE,SimMLM,FlexMoE
latent=MultiAE,OnlineMAE,MoPoE_Classification
python run.py --multirun "${data[@]}" "model=$tokens,$vectors,$latent" imputer=MoPoE "${stages[@]}" name=baselines "$@"
if [[ ${data[0]} != dataset=MultiFeatureDigits ]]; then
  python run.py --multirun "${data[@]}" model=CMVAE_Classification imputer=CMVAE "${stages[@]}" name=baselines "$@"
fi
others=()
for override in "$@"; do [[ $override == seed=* ]] || others+=("$override"); done
python run.py "${data[@]}" 'stages=[report]' name=baselines "${others[@]}"
