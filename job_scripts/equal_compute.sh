#!/usr/bin/env bash
# The comparison methods on the six views of a digit, each with as many epochs as cost the processor time of DyMo with its imputer
# (100 epochs of MoPoE and 40 of the backbone: 50 s), beside job_scripts/baselines.sh, where all have 40 epochs: 40 times what DyMo
# costs there, divided by what the method costs (docs/results/six-views.md#cost), each less the imputer (22.5 s) where both use it.
# The report has what each run really cost.
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
failed=0
for entry in DyMo:40 Concat_ModDrop:473 QMF:350 PDF:284 ModDrop:208 MUSE:179 LogitAverage:164 MultiAE:115 SimMLM:106 \
  Multimodal_CONCAT:216 MoPoE_Classification:207 FlexMoE:66 DynMM:50 OnlineMAE:45 MAP:43 PatternExperts:33 M3Care:31 MTL:11; do
  python run.py --multirun "${common[@]}" "model=${entry%:*}" "name=epochs_${entry#*:}" \
    "dataset.training_defaults.max_epochs=${entry#*:}" ${overrides[@]+"${overrides[@]}"} || failed=$?
done
python run.py "${common[@]}" name=equal_compute 'stages=[report]' "report.include=['$output/MultiFeatureDigits/*/epochs_*/seed*']" \
  ${others[@]+"${others[@]}"}
exit $failed # the other methods went on
