#!/usr/bin/env bash
# Training stress: 0 to 75 % of the training rows lack the image, or the table; tested on complete data, and under every
# scenario of inference_stress.sh (the whole grid of 7 x 9); five folds, mean ± standard error.
#   bash job_scripts/training_stress.sh mimic FOLDER | skin FOLDER | xray FOLDER | standin [Hydra overrides, e.g. paths.output=F seed=1]
# FOLDER: of the two tables of MIMIC, or metadata.csv and images/ of the skin lesions or chest X-rays.
# Ends with the report in outputs/<data set>/report/training_stress; runs of inference_stress.sh are used again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_stress.sh"

trains=$sweep
unimodal
for method in MaskedAttention Zeros_MLP Pooling_MLP; do on_parts "$method"; done
late
selection mlp
for method in ModDrop Concat_ModDrop; do run "$method"; done
report training_stress '*' MaskedAttention Zeros_MLP Pooling_MLP Late ModelSelection ModDrop Concat_ModDrop \
  TokenUnimodal_image TokenUnimodal_table
