#!/usr/bin/env bash
# DyMo, every comparison method and the controls on the same data, masks and schedule, then one report over all of them.
#   bash job_scripts/polymnist_baselines.sh FOLDER|digits [Hydra overrides, e.g. seed=0,1,2 schedule=short]
# FOLDER holds the four MNIST idx files; 'digits' takes the embedded Digits instead. The published schedule wants a GPU; what is
# done already is skipped, so an interrupted study goes on with the same command.
set -euo pipefail
if ((! $#)) || [[ $1 == *=* ]]; then
  echo "usage: bash job_scripts/polymnist_baselines.sh FOLDER|digits [Hydra overrides]" >&2
  exit 2
fi
if [[ $1 == digits ]]; then
  data=(dataset=Digits)
else
  data=(dataset=PolyMNIST "dataset.mnist=$(cd "$1" && pwd)")
fi
shift
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

stages='stages=[prepare,impute,fit,gaussian,test]'
tokens=DyMo,ModDrop,MTL,MAP
vectors=Multimodal_CONCAT,Concat_ModDrop,LogitAverage,PatternExperts,QMF,PDF,DynMM,M3Care,MUSE,SimMLM,FlexMoE
latent=MultiAE,OnlineMAE,MoPoE_Classification
python run.py --multirun "${data[@]}" "model=$tokens,$vectors,$latent" "$stages" name=baselines "$@"
python run.py --multirun "${data[@]}" model=CMVAE_Classification imputer=CMVAE "$stages" name=baselines "$@"
others=()
for override in "$@"; do [[ $override == seed=* ]] || others+=("$override"); done
python run.py "${data[@]}" 'stages=[report]' name=baselines "${others[@]}"
