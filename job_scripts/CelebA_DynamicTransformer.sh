#!/usr/bin/env bash
# Under the name of the original repository: the backbone alone on CelebA, which discards what is missing.
exec bash "$(dirname "${BASH_SOURCE[0]}")/dymo.sh" CelebA model=DynamicTransformer 'stages=[prepare,fit,gaussian,test,report]' "$@"
