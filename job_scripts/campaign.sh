#!/usr/bin/env bash
# Kills, a system that refuses, damaged and hostile files: as many as fit into a budget of about so many minutes on one
# core; prints the table of docs/reliability.md.
#   bash job_scripts/campaign.sh [minutes, 30 by default] [pytest arguments, e.g. -k kill]
# DYMO_CAMPAIGN_SEED=1 tries other accidents; DYMO_CAMPAIGN_FILE (default campaign.csv) is where the table is written.
set -euo pipefail
[[ ${1:-30} =~ ^[0-9]+(\.[0-9]+)?$ ]] || {
  echo "usage: bash job_scripts/campaign.sh [minutes] [pytest arguments]" >&2
  exit 2
}
minutes=${1:-30}
(($#)) && shift
EXTRAS=test
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export HF_HUB_OFFLINE=1 WANDB_MODE=offline MPLBACKEND=Agg
export DYMO_CAMPAIGN_MINUTES=$minutes DYMO_CAMPAIGN_FILE=${DYMO_CAMPAIGN_FILE:-campaign.csv}
python -m pytest -q -m campaign tests/campaign tests/contracts/test_contracts.py "$@"
