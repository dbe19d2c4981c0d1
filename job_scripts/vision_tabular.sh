#!/usr/bin/env bash
# Stress tests and ablations of masked attention on an image and a table (configs/study/vision_tabular.yaml), five folds each, with
# tables and curves of mean ± standard error in outputs/<data set>/report/<study>. Finished runs are shared by the studies.
#   bash job_scripts/vision_tabular.sh STUDY MIMIC FOLDER|demo | SkinLesions FOLDER | ChestXray FOLDER [Hydra overrides]
# STUDY  inference_stress   trained on complete data, tested while 0 to 100 % of the rows lack the image, or the table
#        training_stress    0 to 75 % of the training rows lack the image, or the table; tested under every scenario
#        fusion_stage       fusion on frozen encoders ("early"), jointly, late, and without unimodal training before
#        masking_dropout    without masks, without dropout, without both, and model selection
# FOLDER: of the two tables of MIMIC, or metadata.csv and images/. EXPERIMENTS=Late,ModDrop runs only these.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
line="inference_stress|training_stress|fusion_stage|masking_dropout MIMIC FOLDER|demo | SkinLesions FOLDER | ChestXray FOLDER [Hydra overrides]"
(($# >= 3)) && [[ $3 != *=* ]] || usage "$line"
case $1 in
  inference_stress | training_stress)
    experiments=TokenUnimodal_image,TokenUnimodal_table,MaskedAttention,Zeros_MLP,Pooling_MLP,Late,ModelSelection,ModDrop,Concat_ModDrop ;;
  fusion_stage) experiments=MaskedAttention,MaskedAttention_frozen,MaskedAttention_scratch,Late ;;
  masking_dropout)
    experiments=MaskedAttention,MaskedAttention_without_dropout,MaskedAttention_unmasked_with_dropout,MaskedAttention_unmasked
    experiments+=,ModelSelection,ModelSelection_fusion ;;
  *) usage "$line" ;;
esac
study=$1 dataset=$2 experiments=${EXPERIMENTS:-$experiments}
read_data "${@:2}"
if [[ $dataset != MIMIC || $3 == demo ]]; then # small encoders, made for two CPU cores
  data+=(trainer=cpu trainer.enable_progress_bar=false)
  for argument in architecture weights image_size; do data+=("~dataset.encoders.image.$argument"); done
fi
if [[ $3 == demo ]]; then data+=(schedule=vision_tabular_demo); fi
folds=$(value_of dataset.fold 0,1,2,3,4) output=$(value_of paths.output outputs) others=()
for override in ${overrides[@]+"${overrides[@]}"}; do [[ $override == dataset.fold=* ]] || others+=("$override"); done
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

train=none trained=none
if [[ $study == training_stress ]]; then
  train=none,nested_0_0.25,nested_0_0.5,nested_0_0.75,nested_1_0.25,nested_1_0.5,nested_1_0.75 trained='*'
fi
python run.py --multirun "experiment=vision_tabular/${experiments//,/,vision_tabular/}" "${data[@]}" "missing.train=$train" \
  "dataset.fold=$folds" ${others[@]+"${others[@]}"}
runs=$(printf "$output/$dataset/%s/stress_$trained/seed*," ${experiments//,/ })
python run.py experiment=vision_tabular/MaskedAttention "${data[@]}" "name=$study" 'stages=[report]' dataset.fold=0 \
  "report.include=[${runs%,}]" ${others[@]+"${others[@]}"}
