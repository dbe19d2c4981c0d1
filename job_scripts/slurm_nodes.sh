#!/usr/bin/env bash
# One training on several machines of a SLURM cluster, with a run directory that all of them can write (Lightning's DDP, one
# process per task). Submit it from the root of the checkout, with the number of machines and of tasks, which is that of GPUs:
#   mkdir -p outputs/slurm
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 job_scripts/slurm_nodes.sh dataset=PolyMNIST dataset.mnist=FOLDER
# Without GPUs: add trainer.accelerator=cpu to the overrides. A job that was cancelled or preempted continues where it stopped
# when the same command is submitted again. Set DRY_RUN=1 to print the commands instead of running them.
#SBATCH --job-name=dymo_nodes
#SBATCH --output=outputs/slurm/%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --cpus-per-task=4
#SBATCH --requeue
set -euo pipefail

# SLURM copies this script elsewhere before it runs it: the checkout is where it was submitted.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
[[ -f run.py ]] || { echo "error: $PWD has no run.py: submit from the root of the checkout." >&2; exit 2; }
source job_scripts/_slurm.sh
nodes=${SLURM_NNODES:-} tasks=${SLURM_NTASKS_PER_NODE:-}
[[ $nodes =~ ^[0-9]+$ && $tasks =~ ^[0-9]+$ ]] ||
  die "the number of nodes or of tasks per node is not set: submit with sbatch --nodes=2 --ntasks-per-node=4."
activate

processes=(trainer=ddp "trainer.num_nodes=$nodes" "trainer.devices=$tasks")
run python run.py "$@" 'stages=[prepare]'
# srun does not take the CPUs per task over from sbatch.
run srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" python run.py "${processes[@]}" "$@" 'stages=[impute,fit,gaussian,test]'
run python run.py "$@" 'stages=[report]'
