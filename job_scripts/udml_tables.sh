#!/usr/bin/env bash
# UDML against the same model without its parts, and against concatenation, sum, OGM-GE, QMF, PDF and DynMM on the same encoders,
# schedule and noisy training data: clean, at every second noise level of either modality, and with blur that no model was
# trained on. Ends with the clean and noisy table (of UDML also each modality alone, UDML/<modality>), level curves, and for UDML
# weights and predicted levels against the level.
#   bash job_scripts/udml_tables.sh digits RECORDINGS MNIST | cremad FOLDER|demo | kinetics FOLDER|demo [Hydra overrides, e.g. seed=0,1,2]
# RECORDINGS: {digit}_{speaker}_{take}.wav; MNIST: the four idx files; FOLDER: the download (configs/dataset/CREMAD.yaml,
# KineticsSound.yaml), for which a GPU is wanted. Digits: some minutes a run on two CPU cores. MODELS="UDML QMF" runs some only.
set -euo pipefail
usage() {
  echo "usage: bash job_scripts/udml_tables.sh digits RECORDINGS MNIST | cremad FOLDER|demo | kinetics FOLDER|demo [Hydra overrides]" >&2
  exit 2
}
(($# >= 2)) || usage
case $1 in
  digits)
    (($# >= 3)) || usage
    dataset=SpokenDigits picture=image
    data=(dataset.protocol=official dataset.pairings=1 "dataset.recordings=$(cd "$2" && pwd)" "dataset.mnist=$(cd "$3" && pwd)")
    trained=(dataset.training_defaults.max_epochs=16 dataset.training_defaults.batch_size=64 dataset.training_defaults.lr=2e-3)
    optimizer=() noisy='model.noise={start_epoch:6,levels:[1,2,3,4,5,6,7,8,9,10]}' # what UDML has by its recipe
    shift 3 ;;
  cremad | kinetics)
    dataset=CREMAD picture=visual data=() trained=()
    [[ $1 == kinetics ]] && dataset=KineticsSound
    [[ $2 == demo ]] && data=(dataset.demo=true) || data=("dataset.root=$(cd "$2" && pwd)")
    noisy='model.noise={start_epoch:50}'
    optimizer=(model.module.optimizer._target_=torch.optim.SGD model.module.optimizer.lr=1e-3 +model.module.optimizer.momentum=0.9
      model.module.optimizer.weight_decay=1e-4 model.module.scheduler.name=step model.training.max_epochs=100
      model.training.batch_size=64 model.training.patience=null)
    shift 2 ;;
  *) usage ;;
esac
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

scenarios=none
for level in 2 4 6 8 10 11; do scenarios+=,noise_gaussian_${level}_audio,noise_gaussian_${level}_$picture; done
for level in 5 9; do scenarios+=,noise_temporal_blur_${level}_audio,noise_motion_blur_${level}_$picture; done
common=("dataset=$dataset" dataset.form=UDML "${data[@]}" name=udml 'stages=[prepare,fit,test]' "missing.test=[$scenarios]" "${trained[@]}")
alike=("${optimizer[@]}" "$noisy")
declare -A settings=(
  [UDML]="model=UDML"
  [UDML_without_dependency]="model=UDML model.name=UDML_without_dependency model.module.dependency=null"
  [UDML_without_estimator]="model=UDML model.name=UDML_without_estimator model.module.estimator=false"
  [UDML_without_variances]="model=UDML model.name=UDML_without_variances model.module.probabilistic=false"
  [Multimodal_CONCAT]="model=Multimodal_CONCAT model.use_imputer=false ${alike[*]}"
  [Multimodal_SUM]="model=Multimodal_CONCAT model.name=Multimodal_SUM model.module.fusion=sum model.use_imputer=false ${alike[*]}"
  [OGM_GE]="model=Multimodal_CONCAT model.name=OGM_GE model.modulation={} model.use_imputer=false ${alike[*]}"
  [QMF]="model=QMF ${alike[*]}"
  [PDF]="model=PDF ${alike[*]}"
  [DynMM]="model=DynMM model.use_imputer=false ${alike[*]}"
)
all="UDML UDML_without_dependency UDML_without_estimator UDML_without_variances Multimodal_CONCAT Multimodal_SUM OGM_GE QMF PDF DynMM"
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
  python -m trainers.udml_curves "$output/$dataset/curves/$model" "$output/$dataset/$model/udml/"seed*
done
python run.py "dataset=$dataset" dataset.form=UDML "${data[@]}" 'stages=[report]' name=udml "${others[@]}"
