#!/usr/bin/env bash
# CMPT against the same model without proxies, with and without modality dropout, where a share of the rows lacks one modality:
# written and spoken digits (sound + image), or chest X-rays with notes (image + text). Small transformers, trained on one modality
# each and then frozen; some minutes a seed on two CPU cores. Besides, DyMo's choice among the proxies of the first (CMPT_DyMo).
#   bash job_scripts/cmpt_small_data.sh digits RECORDINGS MNIST | notes FOLDER VOCABULARY [Hydra overrides, e.g. seed=0,1,2]
# RECORDINGS: {digit}_{speaker}_{take}.wav; MNIST: the four idx files; FOLDER: metadata.csv and images/; VOCABULARY: BERT's vocab.txt.
set -euo pipefail
usage() {
  echo "usage: bash job_scripts/cmpt_small_data.sh digits RECORDINGS MNIST | notes FOLDER VOCABULARY [Hydra overrides]" >&2
  exit 2
}
(($# >= 3)) || usage
first=$(cd "$2" && pwd)
case $1 in
  digits) data=(dataset=SpokenDigits dataset.form=CMPT dataset.protocol=official
    "dataset.recordings=$first" "dataset.mnist=$(cd "$3" && pwd)") ;;
  notes) data=(dataset=ChestXrayNotes dataset.side=64 dataset.stored_side=72 "dataset.csv=$first/metadata.csv"
    "dataset.images=$first/images" "dataset.tokenizer=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")") ;;
  *) usage ;;
esac
shift 3
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

scenarios=none,whole_0,whole_1
for rate in 0.3 0.5 0.7 0.9; do scenarios+=,image_text_text_$rate,image_text_image_$rate; done
fit=('stages=[prepare,fit,test]')
common=("${data[@]}" model=CMPT name=small_data "missing.test=[$scenarios]")
python run.py --multirun "${common[@]}" "${fit[@]}" "$@"
python run.py --multirun "${common[@]}" "${fit[@]}" model.name=CMPT_without_proxies model.module.proxy=null "$@"
python run.py --multirun "${common[@]}" "${fit[@]}" model.name=CMPT_without_proxies_or_dropout model.module.proxy=null \
  model.module.masks.kind=none "$@"
# DyMo decides for each sample whether a proxy takes part.
python run.py --multirun "${common[@]}" 'stages=[gaussian,test]' model.select=true "$@"
others=()
for override in "$@"; do [[ $override == seed=* ]] || others+=("$override"); done
python run.py "${data[@]}" model=CMPT 'stages=[report]' name=small_data "${others[@]}"
