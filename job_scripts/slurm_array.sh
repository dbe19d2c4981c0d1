#!/usr/bin/env bash
# A SLURM job array: one task per model and seed, then a report. Submit it from the root of the checkout:
#   MODELS="DyMo ModDrop QMF" SEEDS="0 1 2" bash job_scripts/slurm_array.sh submit [sbatch options --] [Hydra overrides]
#   for example: bash job_scripts/slurm_array.sh submit --partition=gpu -- dataset=Digits schedule=demo
# A task that was cancelled or preempted continues where it stopped when the same command is submitted again; finished
# tasks end at once. Set DRY_RUN=1 to print the commands instead of running them.
#SBATCH --job-name=dymo
#SBATCH --output=outputs/slurm/%A_%a.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --requeue
set -euo pipefail

read -ra models <<<"${MODELS:-DyMo ModDrop}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
tasks=$((${#models[@]} * ${#seeds[@]}))

# SLURM copies this script elsewhere before it runs it: the checkout is where it was submitted.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[[ -f run.py ]] || { echo "error: $PWD has no run.py: submit from the root of the checkout." >&2; exit 2; }
source job_scripts/_slurm.sh
((tasks > 0)) || die "MODELS and SEEDS must name at least one model and one seed."

if [[ ${1:-} == submit ]]; then
  shift
  options=() overrides=("$@")
  for ((i = 0; i < $#; i++)); do
    if [[ ${overrides[i]} == -- ]]; then
      options=("${overrides[@]:0:i}") overrides=("${overrides[@]:i+1}")
      break
    fi
  done
  mkdir -p outputs/slurm
  export MODELS="${models[*]}" SEEDS="${seeds[*]}"
  script=job_scripts/slurm_array.sh
  submit() {  # prints the number of the job
    if [[ -n ${DRY_RUN:-} ]]; then run sbatch "$@" >&2; echo JOB; else sbatch --parsable "$@" | cut -d ';' -f 1; fi
  }
  # All tasks read the packed store: one job packs it first. If it fails, the tasks, which would wait forever, are
  # cancelled.
  # The report waits for all tasks, whether they succeed or not.
  logs=outputs/slurm  # %a is the number of a task, and has ten digits in a job that is no array
  first=$(submit --output="$logs/%j_prepare.log" "${options[@]}" "$script" prepare "${overrides[@]}")
  array=$(submit --array="0-$((tasks - 1))" --dependency="afterok:$first" --kill-on-invalid-dep=yes "${options[@]}" \
    "$script" "${overrides[@]}")
  last=$(submit --output="$logs/%j_report.log" --dependency="afterany:$array" "${options[@]}" \
    "$script" report "${overrides[@]}")
  echo "submitted: prepare $first, $tasks tasks $array, report $last"
  exit
fi

activate
case ${1:-} in
  prepare) run python run.py "${@:2}" 'stages=[prepare]' ;;
  report) run python run.py "${@:2}" 'stages=[report]' ;;
  *)
    index=${SLURM_ARRAY_TASK_ID:-}
    [[ $index =~ ^[0-9]+$ ]] || die "SLURM_ARRAY_TASK_ID is not set: start this script with its word submit."
    ((index < tasks)) || die "task $index: ${#models[@]} models and ${#seeds[@]} seeds are tasks 0 to $((tasks - 1))."
    model=${models[index / ${#seeds[@]}]} seed=${seeds[index % ${#seeds[@]}]}
    echo "task $index of $tasks: model=$model seed=$seed" >&2
    run python run.py "$@" "model=$model" "seed=$seed" 'stages=[prepare,impute,fit,gaussian,test]'
    ;;
esac
