#!/usr/bin/env bash
# What selection is worth (docs/results/selection.md): easy and hard views x three imputers x 3, 15 and 50 epochs of the backbone,
# beside late fusion, ModDrop and MTL. The imputers are MoPoE with a classifier on its latent, the same after a quarter of the
# epochs, and MoPoE with the published objective. Finished runs are skipped, so that an interrupted grid continues with the same
# command.
#   bash job_scripts/selection_grid.sh FOLDER [Hydra overrides, e.g. seed=0]
# FOLDER: of the four MNIST idx files. Some three hours of processor time per seed.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($#)) && [[ $1 != *=* ]] || usage "FOLDER [Hydra overrides]"
read_data PolyMNIST "$@"
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

failed=0
run() { # the other runs go on if one fails
  python run.py --multirun experiment=selection_grid "dataset=$views" "${data[@]:1}" \
    dataset.root=null "dataset.training_defaults.max_epochs=$epochs" "$@" ${overrides[@]+"${overrides[@]}"} || failed=$?
}
alone=('model.comparators=[]' 'model.validation=[]') # DyMo's own rule; the comparators are those of the first run of a cell
for epochs in 15 3 50; do
  for views in PolyMNIST PolyMNIST_hard; do
    for changes in "imputer.name=MoPoE" "imputer.name=MoPoE_short imputer.training.max_epochs=4" \
      "imputer.name=MoPoE_ELBO imputer.module.class_weight=0"; do
      read -ra imputer <<< "$changes"
      label=DyMo_${imputer[0]#*=}_$epochs backbone=model.backbone.name=DynamicTransformer_$epochs
      run "${imputer[@]}" "$backbone"
      run "${imputer[@]}" "$backbone" "${alone[@]}" model.selection.calibration=none "model.name=${label}_uncalibrated"
      ((epochs != 15)) ||
        run "${imputer[@]}" "${backbone}_EU" "${alone[@]}" distance_metric=squared_euclidean "model.name=${label}_EU"
    done
    run model=LogitAverage "model.name=LogitAverage_$epochs" model.use_imputer=true 'model.comparators=[discard,weighted]'
    run model=ModDrop "model.name=ModDrop_$epochs" 'model.comparators=[]'
  done
done
epochs=15 # of MTL alone: 50 epochs take it over an hour
for views in PolyMNIST PolyMNIST_hard; do run model=MTL model.name=MTL_15 'model.comparators=[]'; done
exit $failed
