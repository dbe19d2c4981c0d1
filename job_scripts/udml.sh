#!/usr/bin/env bash
# UDML against the same model without its parts, and against concatenation, sum, OGM-GE, QMF, PDF and DynMM (configs/study/udml.yaml).
# Ends with the clean and noisy table (of UDML also each modality alone, UDML/<modality>), level curves, and for UDML weights and
# predicted levels against the level.
#   bash job_scripts/udml.sh SpokenDigits RECORDINGS MNIST | CREMAD FOLDER|demo | KineticsSound FOLDER|demo [Hydra overrides]
# A GPU is wanted, except for SpokenDigits: some minutes per run on two CPU cores. EXPERIMENTS=UDML,QMF runs only these.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($# >= 2)) && [[ $2 != *=* ]] || usage "SpokenDigits RECORDINGS MNIST | CREMAD FOLDER|demo | KineticsSound FOLDER|demo [Hydra overrides]"
read_data "$@" && without_sweeps
dataset=$1 output=$(value_of paths.output outputs)
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

ablations=UDML,UDML_without_dependency,UDML_without_estimator,UDML_without_variances
experiments=${EXPERIMENTS:-$ablations,Multimodal_CONCAT,Multimodal_SUM,OGM_GE,QMF,PDF,DynMM}
python run.py --multirun "experiment=udml/${experiments//,/,udml/}" "${data[@]}" ${overrides[@]+"${overrides[@]}"}
for experiment in ${experiments//,/ }; do
  [[ $experiment == UDML* ]] || continue
  python -m trainers.udml_curves "$output/$dataset/curves/$experiment" "$output/$dataset/$experiment/udml/"seed*
done
python run.py experiment=udml/UDML "${data[@]}" 'stages=[report]' ${others[@]+"${others[@]}"}
