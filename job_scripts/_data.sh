# Sourced by the scripts beside it: `read_data DATASET [FOLDER ...|demo] [Hydra overrides]` fills the arrays `data` (overrides
# that choose the data set and say where it is) and `overrides` (the user's).
#   PolyMNIST, MST     folder of the four MNIST idx files, of MST a second one of SVHN; without them they are downloaded
#   SpokenDigits       folder of {digit}_{speaker}_{take}.wav, folder of the MNIST idx files
#   SkinLesions, ChestXray, ChestXrayNotes     folder with metadata.csv and images/, of the notes also BERT's vocab.txt
#   any other          its folder, see configs/dataset; without it data/<data set>
#   demo               small made-up data in the real layout, of the sets that have them
stop() { echo "$*" >&2; exit 2; }

usage() { stop "usage: bash job_scripts/$(basename "$0") $1"; }

read_data() {
  local set=$1 keys=(root) path argument used=0 is_demo=
  shift
  data=("dataset=$set") overrides=()
  case $set in
    Digits) keys=() ;;
    PolyMNIST) keys=(mnist) ;;
    MST) keys=(mnist svhn) ;;
    SpokenDigits) keys=(recordings mnist) ;;
    SkinLesions | ChestXray) keys=(csv) ;;
    ChestXrayNotes) keys=(csv tokenizer) ;;
  esac
  for argument in "$@"; do
    if [[ $argument == *=* || $argument == -* ]]; then
      overrides+=("$argument")
    elif [[ $argument == demo ]]; then
      is_demo=1 data+=(dataset.demo=true)
    else
      [[ -e $argument ]] || stop "error: there is no $argument"
      ((used < ${#keys[@]})) || stop "error: $set takes ${#keys[@]} folders, $argument is one more"
      path=$(cd "$(dirname "$argument")" && pwd)/$(basename "$argument")
      if [[ ${keys[used]} == csv ]]; then
        data+=("dataset.csv=$path/metadata.csv" "dataset.images=$path/images")
      else
        data+=("dataset.${keys[used]}=$path")
      fi
      used=$((used + 1))
    fi
  done
  case $set in
    PolyMNIST) ((used)) || data+=(dataset.download=true) ;;
    MST) [[ $is_demo ]] || data+=(dataset.download=true) ;;
    DVM | CAD | Infarction) [[ ! $is_demo ]] || data+=(dataset.image_weights=none) ;;
  esac
}

without_sweeps() { # the user's overrides as a report takes them: all seeds
  local override
  others=()
  for override in ${overrides[@]+"${overrides[@]}"}; do [[ $override == seed=* ]] || others+=("$override"); done
}

value_of() { # key, default: of the user's overrides
  local override value=$2
  for override in ${overrides[@]+"${overrides[@]}"}; do [[ $override == "$1="* ]] && value=${override#*=}; done
  echo "$value"
}
