#!/usr/bin/env bash
# Inference stress: trained on complete data, tested while 0 to 100 % of the rows lack the image, or the table; five folds,
# table and curves of mean ± standard error.
#   bash job_scripts/inference_stress.sh mimic FOLDER | skin FOLDER | xray FOLDER | standin [Hydra overrides, e.g. paths.output=F seed=1]
# FOLDER: of the two tables of MIMIC, or metadata.csv and images/ of the skin lesions or chest X-rays.
# Ends with the report in outputs/<data set>/report/inference_stress.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_stress.sh"

trains=none
unimodal
for method in MaskedAttention Zeros_MLP Pooling_MLP; do on_parts "$method"; done
late
selection mlp
for method in ModDrop Concat_ModDrop; do run "$method"; done
report inference_stress none MaskedAttention Zeros_MLP Pooling_MLP Late ModelSelection ModDrop Concat_ModDrop \
  TokenUnimodal_image TokenUnimodal_table
