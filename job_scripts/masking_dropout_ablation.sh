#!/usr/bin/env bash
# What masks and dropout do: the proposed model without its mask (zeros), without dropout, without both, and model selection
# with a perceptron or with the unmasked model; the inference stress test over five folds.
#   bash job_scripts/masking_dropout_ablation.sh mimic FOLDER | skin FOLDER | xray FOLDER | standin [Hydra overrides, e.g. paths.output=F seed=1]
# FOLDER: of the two tables of MIMIC, or metadata.csv and images/ of the skin lesions or chest X-rays.
# Ends with the report in outputs/<data set>/report/masking_dropout.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_stress.sh"

trains=none
unmasked=(model.module.mask_mode=none model.module.fill=mixed model.module.feature_mask=false)
without_dropout=(model.module.masks.kind=none model.module.feature_dropout=0)
on_parts MaskedAttention
on_parts MaskedAttention model.name=MaskedAttention_without_dropout "${without_dropout[@]}"
on_parts MaskedAttention model.name=MaskedAttention_unmasked_with_dropout "${unmasked[@]}"
on_parts MaskedAttention model.name=MaskedAttention_unmasked "${unmasked[@]}" "${without_dropout[@]}"
selection mlp
selection fusion model.name=ModelSelection_fusion
report masking_dropout none MaskedAttention MaskedAttention_without_dropout MaskedAttention_unmasked_with_dropout \
  MaskedAttention_unmasked ModelSelection ModelSelection_fusion
