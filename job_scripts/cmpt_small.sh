#!/usr/bin/env bash
# CMPT against the same model without proxies, with and without modality dropout, and with DyMo's choice among its proxies, where
# a fraction of the rows lacks one modality (configs/study/cmpt_small.yaml). Some minutes per seed on two CPU cores.
#   bash job_scripts/cmpt_small.sh SpokenDigits RECORDINGS MNIST | ChestXrayNotes FOLDER VOCABULARY [Hydra overrides, e.g. seed=0,1,2]
# RECORDINGS: {digit}_{speaker}_{take}.wav; MNIST: the four idx files; FOLDER: metadata.csv and images/; VOCABULARY: BERT's vocab.txt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_data.sh"
(($# >= 2)) && [[ $2 != *=* ]] || usage "SpokenDigits RECORDINGS MNIST | ChestXrayNotes FOLDER VOCABULARY [Hydra overrides]"
read_data "$@" && without_sweeps
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

experiments=CMPT,CMPT_without_proxies,CMPT_without_proxies_or_dropout,CMPT_DyMo
python run.py --multirun "experiment=cmpt_small/${experiments//,/,cmpt_small/}" "${data[@]}" ${overrides[@]+"${overrides[@]}"}
python run.py experiment=cmpt_small/CMPT "${data[@]}" 'stages=[report]' ${others[@]+"${others[@]}"}
