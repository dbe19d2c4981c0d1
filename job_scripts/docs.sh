#!/usr/bin/env bash
# Builds the documentation site from docs/ into site/. A dead link, an unknown anchor or a page that is missing from the menu
# stops the build.
#   bash job_scripts/docs.sh [mkdocs options, e.g. --site-dir FOLDER]
# To read the pages while you edit them: .venv/bin/python -m mkdocs serve
set -euo pipefail
EXTRAS=docs
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

export NO_MKDOCS_2_WARNING=1 # an announcement of mkdocs-material on every build
exec python -m mkdocs build --strict "$@"
