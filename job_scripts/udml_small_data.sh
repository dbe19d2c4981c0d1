#!/usr/bin/env bash
# UDML against the same model without its parts, and against concatenation, QMF and PDF on the same encoders, schedule and noisy
# training data, where one modality has noise: written and spoken digits. Some minutes a run on two CPU cores.
#   bash job_scripts/udml_small_data.sh digits RECORDINGS MNIST [Hydra overrides, e.g. seed=0,1,2]
# RECORDINGS: {digit}_{speaker}_{take}.wav; MNIST: the four idx files. MODELS="UDML QMF" runs some only.
set -euo pipefail
if (($# < 3)) || [[ $1 != digits ]]; then
  echo "usage: bash job_scripts/udml_small_data.sh digits RECORDINGS MNIST [Hydra overrides]" >&2
  exit 2
fi
data=(dataset=SpokenDigits dataset.form=UDML dataset.protocol=official dataset.pairings=1
  "dataset.recordings=$(cd "$2" && pwd)" "dataset.mnist=$(cd "$3" && pwd)")
shift 3
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

scenarios=none
for level in 2 4 6 8 10 11; do scenarios+=,noise_gaussian_${level}_audio,noise_gaussian_${level}_image; done
common=("${data[@]}" name=small_data 'stages=[prepare,fit,test]' "missing.test=[$scenarios]"
  dataset.baselines.max_epochs=16 dataset.baselines.batch_size=64 dataset.baselines.lr=2e-3)
noisy='model.noise={start_epoch:6,levels:[1,2,3,4,5,6,7,8,9,10]}' # what UDML has by its recipe
declare -A settings=(
  [UDML]="model=UDML"
  [UDML_without_dependency]="model=UDML model.name=UDML_without_dependency model.module.dependency=null"
  [UDML_without_estimator]="model=UDML model.name=UDML_without_estimator model.module.estimator=false"
  [UDML_without_variances]="model=UDML model.name=UDML_without_variances model.module.probabilistic=false"
  [Multimodal_CONCAT]="model=Multimodal_CONCAT model.use_imputer=false $noisy"
  [QMF]="model=QMF $noisy"
  [PDF]="model=PDF $noisy"
)
all="UDML UDML_without_dependency UDML_without_estimator UDML_without_variances Multimodal_CONCAT QMF PDF"
output=outputs others=()
for override in "$@"; do
  [[ $override == seed=* ]] || others+=("$override")
  [[ $override == paths.output=* ]] && output=${override#paths.output=}
done
for model in ${MODELS:-$all}; do
  read -ra these <<<"${settings[$model]}"
  python run.py --multirun "${common[@]}" "${these[@]}" "$@"
done
for model in ${MODELS:-$all}; do
  [[ $model == UDML* ]] || continue
  python -m models.udml.curves "$output/SpokenDigits/curves/$model" "$output/SpokenDigits/$model/small_data/"seed*
done
python run.py "${data[@]}" 'stages=[report]' name=small_data "${others[@]}"
