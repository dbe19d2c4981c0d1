# Sourced by the stress tests beside it (Resilient-VT, arXiv 2605.12031): the data set of the command line and its settings, runs and
# reports over the folds of a cross-validation. Each run is ${output}/<data set>/<method>/stress_<missing.train>/seed<k>_fold<f>; what
# is there and valid is skipped, unimodal parts are shared by the methods built on them, and the folds show one file of images.
usage() {
  echo "usage: bash job_scripts/$(basename "$0") mimic FOLDER | skin FOLDER | xray FOLDER | standin [Hydra overrides]" >&2
  exit 2
}
(($# >= 1)) || usage
case $1 in
  mimic|skin|xray) (($# >= 2)) || usage; kind=$1 folder=$(cd "$2" && pwd); shift 2 ;;
  standin) kind=$1 folder=; shift ;;
  *) usage ;;
esac
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

# Column 0 is the image, 1 the table.
sweep=none
for column in 0 1; do for rate in 0.25 0.5 0.75; do sweep+=,nested_${column}_$rate; done; done
tests=$sweep,nested_0_1,nested_1_1
output=outputs folds=0,1,2,3,4 overrides=()
for override in "$@"; do
  case $override in
    dataset.fold=*) folds=${override#*=} ;;
    paths.output=*) output=${override#*=}; overrides+=("$override") ;;
    *) overrides+=("$override") ;;
  esac
done

naim=(dataset.encoders.table._target_=models.encoders.naim.NAIM)
small_image=(dataset.encoders.image._target_=models.encoders.convolutional.ConvolutionalEncoder
  '~dataset.encoders.image.architecture' '~dataset.encoders.image.weights' '~dataset.encoders.image.image_size'
  +dataset.encoders.image.width=64)
small=("${small_image[@]}" "${naim[@]}" +dataset.encoders.table.width=32 +dataset.encoders.table.heads=4
  +dataset.encoders.table.hidden=64 dataset.training_defaults.width=32 dataset.training_defaults.heads=4 dataset.training_defaults.vector_width=64
  dataset.training_defaults.lr=2e-3 trainer=cpu trainer.enable_progress_bar=false)
parts=() fused=() scratch=()  # of the unimodal parts, of what is built on them, and of the same without parts
brief() { # epochs of the parts, epochs of what is built on them (methods without parts get both), batch size
  small+=("dataset.training_defaults.max_epochs=$(($1 + $2))" dataset.training_defaults.patience=null "dataset.training_defaults.batch_size=$3")
  parts=("training.max_epochs=$1" training.warmup_epochs=0 training.patience=null module.optimizer.lr=2e-3)
  fused=("training.max_epochs=$2" training.warmup_epochs=0 training.patience=null module.encoder_lr=1e-4)
  scratch=("training.max_epochs=$(($1 + $2))" training.warmup_epochs=0 training.patience=null module.optimizer.lr=2e-3)
}
weighted=auroc_weighted,auroc,recall_weighted,f1_weighted,mcc_weighted,gmean_weighted,accuracy
case $kind in
  mimic) # as published: width 1024 in 16 heads, batches of 512
    dataset=MIMIC primary=auroc_weighted metrics=$weighted
    data=("dataset.root=$folder" "${naim[@]}" +dataset.encoders.table.width=1024 +dataset.encoders.table.heads=16
      dataset.training_defaults.width=1024 dataset.training_defaults.heads=16 dataset.training_defaults.batch_size=512) ;;
  standin)
    dataset=MIMIC primary=auroc_weighted metrics=$weighted
    brief 8 5 32
    data=(dataset.demo=true dataset.side=64 dataset.stored_side=64 "${small[@]}") ;;
  skin) # a tenth of the training rows: a method and training set takes some seconds
    dataset=SkinLesions primary=auroc metrics=auroc,recall_macro,f1_macro,mcc,gmean,accuracy
    brief 8 5 64
    data=("dataset.csv=$folder/metadata.csv" "dataset.images=$folder/images" dataset.side=48 dataset.stored_side=56
      dataset.train_fraction=0.1 dataset.monitor=val_loss "${small[@]}") ;;
  xray)
    dataset=ChestXray primary=auroc metrics=auroc,recall_macro,f1_macro,mcc,gmean,accuracy
    brief 12 8 32
    data=("dataset.csv=$folder/metadata.csv" "dataset.images=$folder/images" dataset.side=48 dataset.stored_side=56
      dataset.monitor=val_loss "${small[@]}") ;;
esac

run() { # model, its overrides: all folds, trained under ${trains} and tested under all scenarios
  python run.py --multirun "dataset=$dataset" "${data[@]}" "model=$1" 'name=stress_${missing.train}' "dataset.fold=$folds" \
    "missing.train=$trains" "missing.test=[$tests]" 'stages=[prepare,fit,test]' "${@:2}" "${overrides[@]}"
}
on_parts() { # model built on unimodal parts, its overrides
  run "$1" "${parts[@]/#/model.unimodal.}" "${fused[@]/#/model.}" "${@:2}"
}
late() { run Late "${parts[@]/#/model.unimodal.}" "$@"; }
selection() { # mlp | fusion, overrides: which model takes the complete rows
  run ModelSelection "model.multimodal=$1" "${parts[@]/#/model.unimodal.}" "${fused[@]/#/model.$1.}" "${@:2}"
}
unimodal() { run TokenUnimodal model.modality=0,1 "${parts[@]/#/model.}"; }
report() { # name of the report, training sets (a pattern), methods: labels of their run directories
  local method include=()
  for method in "${@:3}"; do include+=("$output/$dataset/$method/stress_$2/seed*"); done
  python run.py "dataset=$dataset" "${data[@]}" dataset.fold=0 "name=$1" 'stages=[report]' "report.primary=$primary" \
    "report.metrics=[$metrics]" "report.include=[$(IFS=,; echo "${include[*]}")]" "${overrides[@]}"
}
