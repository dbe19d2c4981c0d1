#!/usr/bin/env bash
# The comparison methods on the six views of a digit, each with as many epochs as cost the processor time of DyMo with its imputer
# (100 epochs of MoPoE and 40 of the backbone: 50 s), beside job_scripts/baselines.sh, where all have 40 epochs. The numbers follow
# from the costs of those runs (docs/results/six-views.md#cost); report and page show what each run really cost.
#   bash job_scripts/equal_compute.sh FOLDER [Hydra overrides, e.g. seed=0,1,2]
# Some 15 minutes of processor time per seed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] || usage "FOLDER [Hydra overrides]"
read_data MultiFeatureDigits "$@" && without_sweeps
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

common=("${data[@]}" experiment=baselines) output=$(value_of paths.output outputs)
# Parts of a method have its number of epochs, and so the folder does: OnlineMAE starts from a MultiAE of its own.
for entry in DyMo:40 Concat_ModDrop:455 QMF:333 PDF:286 ModDrop:204 MUSE:179 LogitAverage:164 MultiAE:114 SimMLM:105 \
  Multimodal_CONCAT:234 MoPoE_Classification:220 FlexMoE:66 DynMM:51 OnlineMAE:44 MAP:43 PatternExperts:33 M3Care:31 MTL:10; do
  python run.py --multirun "${common[@]}" "model=${entry%:*}" "name=epochs_${entry#*:}" \
    "dataset.training_defaults.max_epochs=${entry#*:}" ${overrides[@]+"${overrides[@]}"}
done
python run.py "${common[@]}" name=equal_compute 'stages=[report]' "report.include=['$output/MultiFeatureDigits/*/epochs_*/seed*']" \
  ${others[@]+"${others[@]}"}
