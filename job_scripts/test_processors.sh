#!/usr/bin/env bash
# Runs the tests with the kernels of three kinds of processor, each with one and with two threads, and prints a table of the
# results; the exit status is 1 if any run fails.
#   bash job_scripts/test_processors.sh [pytest arguments, e.g. tests/models/dymo/test_selection.py or -m 'not slow']
# "default" stands for a processor without AVX, "avx2" for one without AVX-512, "native" for the one at hand. CAPABILITIES and
# THREADS choose fewer: CAPABILITIES=default THREADS="1 2". PROCESSES=1 takes one test process instead of one per core.
# Output of each run: <capability>_<threads>.log in the folder LOGS, outputs/test_processors by default.
set -euo pipefail
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg
LOGS=${LOGS:-outputs/test_processors}
mkdir -p "$LOGS"

# PyTorch, oneDNN and MKL choose their kernels separately. MKL_ENABLE_INSTRUCTIONS has no effect on processors that are not
# Intel's; MKL_CBWR=COMPATIBLE, its plainest code path, has.
settings() { # capability
  case $1 in
    default) echo ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 MKL_CBWR=COMPATIBLE ;;
    avx2) echo ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ;;
    native) ;;
    *) die "CAPABILITIES takes default, avx2 and native, not $1." ;;
  esac
}

count() { # log, word: how many tests of the summary line, 0 where it does not name the word
  sed -nE "s/^(=+ )?(.*[^0-9])?([0-9]+) $2.* in [0-9.]+s.*/\3/p" "$1" | tail -n 1 | grep . || echo 0
}

rows=() failures=0
for capability in ${CAPABILITIES:-default avx2 native}; do
  variables=$(settings "$capability")
  for threads in ${THREADS:-1 2}; do
    log=$LOGS/${capability}_$threads.log code=0 start=$SECONDS
    echo "== $capability, threads: $threads"
    # shellcheck disable=SC2086  # one word per variable
    env -u ATEN_CPU_CAPABILITY -u ONEDNN_MAX_CPU_ISA -u MKL_ENABLE_INSTRUCTIONS -u MKL_CBWR $variables \
      DYMO_TEST_THREADS="$threads" OMP_NUM_THREADS="$threads" MKL_NUM_THREADS="$threads" \
      pytest -n "${PROCESSES:-auto}" --dist loadfile "$@" >"$log" 2>&1 || code=$?
    if ((code)); then
      failures=$((failures + 1))
      grep -E '^(FAILED|ERROR)' "$log" || tail -n 20 "$log"
    fi
    echo "== exit status $code after $((SECONDS - start)) s, output in $log"
    rows+=("$(printf '%-12s %7s %7s %7s %7s' "$capability" "$threads" "$(count "$log" passed)" "$(count "$log" failed)" \
      "$(count "$log" errors?)")")
  done
done

printf '\n%-12s %7s %7s %7s %7s\n' capability threads passed failed errors
printf '%s\n' "${rows[@]}"
((failures == 0))
