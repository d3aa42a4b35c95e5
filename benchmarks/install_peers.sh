#!/usr/bin/env bash
# Installs what the benchmarks compare with: R packages by apt (needs root or sudo), GPBoost by pip in its own
# environment, benchmarks/.peers, so that it cannot change the versions pyromix runs with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
packages=(r-base-core r-cran-lme4 r-cran-glmmtmb r-cran-jsonlite)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update
    "${as_root[@]}" apt-get install -y --no-install-recommends "${packages[@]}"
fi
python3 -m venv .peers
.peers/bin/pip install "gpboost==1.8.0"
Rscript -e 'for (p in c("lme4", "glmmTMB")) cat(p, as.character(packageVersion(p)), "\n")'
.peers/bin/python -c 'import importlib.metadata as m; print("gpboost", m.version("gpboost"))'
