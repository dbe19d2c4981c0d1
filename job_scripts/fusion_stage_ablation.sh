#!/usr/bin/env bash
# At which stage to fuse: on frozen encoders ("early"), jointly ("intermediate", the proposed), late, and without unimodal
# training before; the inference stress test over five folds.
#   bash job_scripts/fusion_stage_ablation.sh mimic FOLDER | skin FOLDER | xray FOLDER | standin [Hydra overrides, e.g. paths.output=F seed=1]
# FOLDER: of the two tables of MIMIC, or metadata.csv and images/ of the skin lesions or chest X-rays.
# Ends with the report in outputs/<data set>/report/fusion_stage.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_stress.sh"

trains=none
on_parts MaskedAttention
on_parts MaskedAttention model.name=MaskedAttention_frozen model.module.freeze_encoders=true
run MaskedAttention model.name=MaskedAttention_scratch model.prerequisites=null "${scratch[@]/#/model.}" model.module.encoder_lr=null
late
report fusion_stage none MaskedAttention MaskedAttention_frozen MaskedAttention_scratch Late
