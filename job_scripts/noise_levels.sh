#!/usr/bin/env bash
# Accuracy against the noise level, of each modality and of all together, alone and with a pattern of missingness besides:
# DyMo (with discard, impute_all and its other comparators on the same backbone), its backbone trained on noise too, and
# any other models, under the same noise; then one report with tables and curves. On Digits some minutes on two CPU cores
# once the models are trained.
#   bash job_scripts/noise_levels.sh dataset=Digits [models=QMF,Multimodal_CONCAT] [Hydra overrides, e.g. seed=0,1,2]
# Besides: operator=gaussian levels=2,4,6,8,10,11 where=0,all missing=random_0.4 (a pattern, or none), trained=clean,noise
# (with and without noise in training: half of the rows, at levels 1 to 11). Which operator fits what: datasets/noise.py.
set -euo pipefail
operator=gaussian levels=2,4,6,8,10,11 where= missing=random_0.4 models= trained=clean,noise dataset=()
rest=()
for argument in "$@"; do
  case $argument in
    operator=* | levels=* | where=* | missing=* | models=* | trained=*) declare "${argument%%=*}=${argument#*=}" ;;
    dataset=*) dataset=("$argument") ;;
    *) rest+=("$argument") ;;
  esac
done
if ((! ${#dataset[@]})); then
  echo "usage: bash job_scripts/noise_levels.sh dataset=NAME [models=...] [operator=...] [levels=...] [where=...] [missing=...]" \
    "[trained=clean,noise] [Hydra overrides]" >&2
  exit 2
fi
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

scenarios=none
[[ $missing == none ]] || scenarios+=,$missing
IFS=, read -ra each_level <<<"$levels"
IFS=, read -ra each_place <<<"${where:-0,all}"
for place in "${each_place[@]}"; do
  for level in "${each_level[@]}"; do
    scenarios+=,noise_${operator}_${level}_$place
    [[ $missing == none ]] || scenarios+=,noise_${operator}_${level}_$place+$missing
  done
done
common=("${dataset[@]}" "missing.test=[$scenarios]" "${rest[@]}")
stages='stages=[prepare,impute,fit,gaussian,test]'
for training in ${trained//,/ }; do
  case $training in
    clean) noise=(name=noise_levels model.noise=null) ;;
    noise) noise=(name=noise_levels_trained "model.noise={operator:$operator,start_epoch:0}") ;;
    *) die "trained=$training: must be clean, noise, or both with a comma" ;;
  esac
  python run.py --multirun "${common[@]}" model=DyMo "$stages" "${noise[@]}"
  if [[ -n $models ]]; then python run.py --multirun "${common[@]}" "model=$models" "$stages" "${noise[@]}"; fi
done

output=outputs others=()
for override in "${rest[@]}"; do
  [[ $override == paths.output=* ]] && output=${override#*=}
  [[ $override == seed=* ]] || others+=("$override")
done
runs="$output/${dataset[0]#*=}/*/noise_levels"
python run.py "${dataset[@]}" name=noise_levels 'stages=[report]' "report.include=['$runs/seed*','${runs}_trained/seed*']" \
  "${others[@]}"
