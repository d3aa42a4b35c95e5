#!/usr/bin/env bash
# Installs what the benchmarks compare with: R packages by apt (needs root or sudo), Python packages by pip, each family
# in an environment of its own under benchmarks/, so that none can change the versions pyromix runs with.
# `install_peers.sh points` installs what the point estimates need, `posteriors` what the posteriors need; default: both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
what=${1:-both}
case "$what" in both | points | posteriors) ;; *) echo "usage: $0 [points|posteriors]" >&2 && exit 2 ;; esac

apt_install() {
    if ! dpkg -s "$@" >/dev/null 2>&1; then
        local as_root=()
        [ "$(id -u)" -eq 0 ] || as_root=(sudo)
        "${as_root[@]}" apt-get update
        "${as_root[@]}" apt-get install -y --no-install-recommends "$@"
    fi
}

r_versions() {
    Rscript -e "for (p in commandArgs(TRUE)) cat(p, as.character(packageVersion(p)), '\n')" "$@"
}

# environment NAME PACKAGE...: also prints the versions of what was asked for
environment() {
    local name=$1
    shift
    python3 -m venv "$name"
    "$name/bin/pip" install --quiet "$@"
    "$name/bin/pip" freeze | grep -iE "^($(printf '%s\n' "$@" | sed 's/[[<=>].*//' | paste -sd '|'))=="
}

if [ "$what" != posteriors ]; then
    apt_install r-base-core r-cran-lme4 r-cran-glmmtmb r-cran-jsonlite
    r_versions lme4 glmmTMB
    environment .peers "gpboost==1.8.0"
    environment .peers-kinship "glimix-core==3.1.14"
fi
if [ "$what" != points ]; then
    apt_install r-base-core r-cran-rstanarm r-cran-jsonlite
    r_versions rstanarm
    environment .peers-numpyro "numpyro==0.22.0" "jax==0.10.2"
    # the last nutpie and Bambi for Python 3.11; ArviZ 0.23's plots do not import beside matplotlib 3.11
    environment .peers-bambi "bambi==0.17.2" "nutpie[pymc]==0.16.8" "matplotlib<3.11"
fi
