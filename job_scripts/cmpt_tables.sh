#!/usr/bin/env bash
# The tables and figures of CMPT (arXiv 2501.17823, configs/cmpt_tables.yaml), each ending in ours beside the paper's numbers.
#   bash job_scripts/cmpt_tables.sh TABLE DATA|demo [Hydra overrides, e.g. seed=0,1,2 trainer=gpu]
# TABLE                    is                                                     trains on
#   table_1, table_8       a share missing, in training and in testing            MMIMDb, Food101
#   table_2                complete training, one missing in testing              CREMAD, KineticsSound, Food101
#   table_3                complete, image and text                               Food101, MMIMDb
#   table_4                complete, sound and video                              KineticsSound, AVE, CREMAD
#   table_5                weight of the alignment                                Food101, AVE
#   table_7                rank of the adapters                                   Food101, AVE, CREMAD, KineticsSound
#   table_9                LoRA, DoRA, VeRA                                       Food101, AVE, CREMAD, KineticsSound
#   table_10               CLIP's and SigLIP's image encoder                      Food101, AVE, CREMAD, KineticsSound
#   table_11               base and large encoders                                MMIMDb, Food101
#   figure_2, figure_3, figure_7  every rate, with and without proxies and dropout: curves in the report of each data set,
#                          and the models beside each other in numbers            MMIMDb, Food101
#   figure_4, figure_8, figure_9  scores by class with and without proxies, sorted by gain     MMIMDb, Food101
#   figure_5, figure_10    t-SNE of the fused features (complete, missing without and with proxies) of the ten classes that
#                          gain most (5) or least (10)                            Food101
#   figure_6, figure_11    attention of class token and proxy, over the image, for samples by outcome without and with
#                          proxies, and the shares of the outcomes                MMIMDb, Food101
#   figure_12, figure_13   scores by class of one model: complete, text only, image only       MMIMDb (12), Food101 (13)
#   dymo                   DyMo decides on each proxy (not in the paper)          Food101
# Training rows: the paper has no validation split (67,988 rows of Food-101, 6,698 of CREMA-D, 14,739 of Kinetics-Sound); ours
# lay a tenth aside. For the paper's: dataset.validation=test dataset.monitor=null paths.output=outputs/published_split (the last
# epoch counts; without monitor=null it is chosen on the test rows). Every printed comparison says which of them it is.
# DATA: folder with Food101/, MMIMDb/, AVE/, CREMA-D/ and KineticsSound/ (with my_train.txt and my_test.txt, the lists of CMPT's 31
# classes; or KINETICS_LISTS=their folder). 'demo': demo data and tiny random encoders, which show that a path works and nothing
# else; their runs are in outputs/demo. Runs that another table has trained already are not trained again: on one GPU a set takes
# hours once.
set -euo pipefail
(($# >= 2)) || { sed -n '2,3p' "${BASH_SOURCE[0]}" >&2; exit 2; }
table=$1 data=$2
shift 2
[[ $data == demo ]] || data=$(cd "$data" && pwd)
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

python -m trainers.cmpt_tables "$table" "$data" "$@"
