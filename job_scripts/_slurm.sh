# Sourced by the scripts for SLURM in the root of the checkout: what they have in common.

die() { echo "error: $*" >&2; exit 2; }

# Run a command, or print it if DRY_RUN is set.
run() { if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }

# Use the environment of the checkout in a task.
activate() {
  [[ -x .venv/bin/python || -n ${DRY_RUN:-} ]] || die "there is no .venv: run bash job_scripts/quickstart.sh --help first."
  export PATH="$PWD/.venv/bin:$PATH"
  # SLURM does not always keep a task on its cores: PyTorch would start a thread for each core of the node.
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"; fi
}
