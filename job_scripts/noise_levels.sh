#!/usr/bin/env bash
# Accuracy against the noise level, of each modality and of all together, alone and combined with a pattern of missingness: DyMo
# (with its comparators on the same backbone), its backbone trained on noise too, and any other models, under the same noise;
# then one report with tables and curves. On Digits some minutes on two CPU cores once the models are trained.
#   bash job_scripts/noise_levels.sh DATASET [FOLDER|demo] [models=QMF,Multimodal_CONCAT] [Hydra overrides, e.g. seed=0,1,2]
# Further options: operator=gaussian levels=2,4,6,8,10,11 where=0,all missing=random_0.4 (patterns, or none), trained=clean,noise
# (with and without noise in training: half of the rows, at levels 1 to 11). docs/missingness.md says which operator fits what.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] ||
  usage "DATASET [FOLDER|demo] [models=...] [operator=...] [levels=...] [where=...] [missing=...] [trained=clean,noise] [Hydra overrides]"
operator=gaussian levels=2,4,6,8,10,11 where=0,all missing=random_0.4 models='' trained=clean,noise arguments=()
for argument in "$@"; do
  case $argument in
    operator=* | levels=* | where=* | missing=* | models=* | trained=*) declare "${argument%%=*}=${argument#*=}" ;;
    *) arguments+=("$argument") ;;
  esac
done
read_data "${arguments[@]}" && without_sweeps
dataset=$1 output=$(value_of paths.output outputs)
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

[[ $missing != none ]] || missing=''
scenarios=none${missing:+,$missing}
for place in ${where//,/ }; do
  for level in ${levels//,/ }; do
    noise=noise_${operator}_${level}_$place
    scenarios+=,$noise
    for pattern in ${missing//,/ }; do scenarios+=,$noise+$pattern; done
  done
done
common=("${data[@]}" "missing.test=[$scenarios]" 'stages=[prepare,impute,fit,gaussian,test]' ${overrides[@]+"${overrides[@]}"})
for training in ${trained//,/ }; do
  case $training in
    clean) noise=(name=noise_levels model.noise=null) ;;
    noise) noise=(name=noise_levels_trained "model.noise={operator:$operator,start_epoch:0}") ;;
    *) stop "trained=$training: must be clean, noise, or both with a comma" ;;
  esac
  python run.py --multirun "${common[@]}" "model=DyMo${models:+,$models}" "${noise[@]}"
done
runs="$output/$dataset/*/noise_levels"
python run.py "${data[@]}" name=noise_levels 'stages=[report]' "report.include=['$runs/seed*','${runs}_trained/seed*']" \
  ${others[@]+"${others[@]}"}
