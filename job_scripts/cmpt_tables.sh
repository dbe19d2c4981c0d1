#!/usr/bin/env bash
# The tables and figures of CMPT (arXiv 2501.17823), each ending in ours beside the paper's numbers.
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
table=$1
demo= folder= data=(dataset.demo=true)
if [[ $2 == demo ]]; then demo=1; else folder=$(cd "$2" && pwd) && data=("paths.data=$folder"); fi
shift 2
EXTRAS=
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
rest=("$@") output=outputs others=() first=seed=0
if [[ $demo ]]; then output=outputs/demo; fi # never among real runs
for override in "$@"; do
  [[ $override == paths.output=* ]] && output=${override#*=}
  [[ $override == seed=* ]] && first=${override%%,*}
  [[ $override == seed=* ]] || others+=("$override")
done

tiny() { # modality, family, settings: in the place of a published encoder with its weights
  small+=("model.encoders.$1.architecture=$2" "model.encoders.$1.weights=none"
    "+model.encoders.$1.size={hidden_size:16,intermediate_size:32,num_hidden_layers:1,num_attention_heads:2,$3}")
}
settings() { # data set, experiment: fills `common` with the overrides of its commands
  small=()
  local image=clip
  [[ $2 == siglip* ]] && image=siglip
  common=("dataset=$1" "${data[@]}" "paths.output=$output")
  case $1 in
    Food101 | MMIMDb)
      small+=(dataset.side=32 dataset.stored_side=40 dataset.text_length=24)
      # At the usual range so few random weights give every text the same state, and the Gaussian stage no width.
      tiny image $image image_size:32,patch_size:8 && tiny text bert max_position_embeddings:24,initializer_range:0.5 ;;
    *)
      common+=(dataset.form=CMPT)
      if [[ $1 == KineticsSound && ! $demo ]]; then
        local lists=${KINETICS_LISTS:-$folder/KineticsSound}
        [[ -f $lists/my_train.txt && -f $lists/my_test.txt ]] ||
          die "CMPT's Kinetics-Sound has 31 classes: put my_train.txt and my_test.txt into $lists, or set KINETICS_LISTS"
        common+=("dataset.lists=$lists" dataset.num_classes=31)
      fi
      small+=(dataset.side=32 dataset.stored_side=32 dataset.forms.CMPT.audio.frames=48 dataset.forms.CMPT.audio.mel_bins=32)
      tiny audio ast max_length:48,num_mel_bins:32,frequency_stride:16,time_stride:16 && tiny visual $image image_size:32,patch_size:8 ;;
  esac
  if [[ $demo ]]; then common+=("${small[@]}" model.training.max_epochs=1); fi
}
run() { # experiment without cmpt_, data sets, overrides
  local experiment=$1 sets=$2 set
  shift 2
  for set in $sets; do
    local name=$experiment
    [[ $name == siglip && $set != Food101 ]] && name=siglip_video
    settings "$set" "$name"
    python run.py --multirun "experiment=cmpt_$name" "${common[@]}" 'stages=[prepare,fit,test]' "$@" "${rest[@]}"
  done
}
report() { # data sets: tables and curves over all models of name=complete
  for set in $1; do
    settings "$set" complete
    [[ $set == MMIMDb ]] && common+=(report.primary=f1_macro)
    python run.py experiment=cmpt_complete "${common[@]}" 'stages=[report]' "${others[@]}"
  done
}
drawn() { # data set, models: their run directories
  local set=$1 model
  shift
  for model in "$@"; do printf '%s\n' "$output/$set/$model"/complete/seed*; done
}
beside() { python -m trainers.published docs/published/cmpt.csv --table "$1" --output "$output"; }
sets_av="AVE CREMAD KineticsSound"
models=(CMPT CMPT_without_proxies CMPT_without_proxies_or_dropout)
controls() { for e in complete without_proxies without_proxies_or_dropout; do run $e "$1"; done; }

case $table in
  table_1 | table_8) for e in 30_100 65_65 100_30; do run $e "MMIMDb Food101"; done ;;
  table_2) run complete "CREMAD KineticsSound Food101" ;;
  table_3) run complete "Food101 MMIMDb" ;;
  table_4) run complete "$sets_av" ;;
  table_5)
    run complete "Food101 AVE"
    run lambda "Food101 AVE" model.module.alignment.weight=0,0.1,0.3,0.4,0.5 ;;
  table_7)
    run complete "Food101 $sets_av"
    run rank "Food101 $sets_av" model.module.adapter.rank=2,4 ;;
  table_9) for e in complete dora vera; do run $e "Food101 $sets_av"; done ;;
  table_10) for e in complete siglip; do run $e "Food101 $sets_av"; done ;;
  table_11) for e in complete large; do run $e "MMIMDb Food101"; done ;;
  figure_2 | figure_3 | figure_7)
    controls "MMIMDb Food101"
    report "MMIMDb Food101" ;;
  figure_4 | figure_8 | figure_9)
    controls "MMIMDb Food101"
    for set in MMIMDb Food101; do
      mapfile -t runs < <(drawn "$set" "${models[@]}")
      for missing in whole_0 whole_1; do
        python -m trainers.figures per_class "$output/$set/report/$table-$missing.png" "${runs[@]}" --scenario $missing
      done
    done ;;
  figure_5 | figure_10)
    for e in complete without_proxies; do run $e Food101; done
    order=gain
    [[ $table == figure_10 ]] && order=no_gain
    mapfile -t runs < <(drawn Food101 CMPT)
    for directory in "${runs[@]}"; do
      without=$output/Food101/CMPT_without_proxies/complete/${directory##*/}
      [[ -d $without ]] || continue # a seed of another table
      for missing in whole_0 whole_1; do
        python -m trainers.figures features "$output/Food101/report/$table-$missing-${directory##*/}.png" "$directory" "$without" \
          --scenario $missing --order $order
      done
    done ;;
  figure_6 | figure_11)
    rows=2 # per outcome
    [[ $table == figure_11 ]] && rows=5
    for e in complete without_proxies; do run $e "MMIMDb Food101"; done
    for set in MMIMDb Food101; do
      settings $set complete
      python -m trainers.figures attention "$output/$set/report/$table.png" experiment=cmpt_complete "${common[@]}" "$first" "${others[@]}" \
        --scenario whole_1 --rows $rows --without "$output/$set/CMPT_without_proxies/complete/seed${first#seed=}"
    done ;;
  figure_12 | figure_13)
    set=MMIMDb
    [[ $table == figure_13 ]] && set=Food101
    run complete $set
    mapfile -t runs < <(drawn $set CMPT)
    python -m trainers.figures one_model "$output/$set/report/$table.png" "${runs[@]}" --scenarios none whole_0 whole_1 ;;
  dymo)
    run complete Food101
    settings Food101 dymo
    python run.py --multirun experiment=cmpt_dymo "${common[@]}" 'stages=[gaussian,test]' "${rest[@]}"
    report Food101 ;;
  *)
    echo "error: there is no '$table': see the head of ${BASH_SOURCE[0]}" >&2
    exit 2 ;;
esac
case $table in
  table_* | figure_2 | figure_3) beside "$table" ;;
  figure_7) beside figure_3 ;; # the same gains; the paper prints no other numbers
esac
case $table in
  figure_2 | figure_3 | figure_7) python -m trainers.published docs/published/cmpt.csv --compare "${models[@]}" --output "$output" ;;
  table_3 | table_4) python -m models.cmpt.parameters --totals ;;
esac
if [[ $demo ]]; then echo "These are demo data and random encoders: the numbers mean nothing."; fi
