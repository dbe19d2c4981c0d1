#!/usr/bin/env bash
# Under the name of the original repository: bash job_scripts/dymo.sh PolyMNIST [FOLDER|demo] [Hydra overrides]
exec bash "$(dirname "${BASH_SOURCE[0]}")/dymo.sh" PolyMNIST "$@"
