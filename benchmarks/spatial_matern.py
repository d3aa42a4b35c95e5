"""``python -m benchmarks.spatial_matern``: a Matern 3/2 process at 2,000 sites with noise; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import PEERS, Failed, machine, peers_python, run_side, table
from benchmarks.spatial_side import METHODS

LENGTH, NOISE = 0.1, 0.5
OURS = [sys.executable, "-m", "benchmarks.spatial_side"]


def simulated(sites: int) -> pd.DataFrame:
    """Places in the unit square, a covariate, a process of SD 1 and noise; fixed seed."""
    rng = np.random.default_rng(1729)
    places = rng.random((sites, 2))
    scaled = np.sqrt(3) * np.linalg.norm(places[:, None] - places, axis=-1) / LENGTH
    root = np.linalg.cholesky((1 + scaled) * np.exp(-scaled) + 1e-10 * np.eye(sites))
    x = rng.standard_normal(sites)
    y = 1.0 + 0.5 * x + root @ rng.standard_normal(sites) + NOISE * rng.standard_normal(sites)
    return pd.DataFrame({"s1": places[:, 0], "s2": places[:, 1], "x": x, "y": y})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=2000, help="%(default)s")
    parser.add_argument("--few", type=int, default=400, help="sites beside glmmTMB, whose time grows as n^2.7")
    parser.add_argument("--repeats", type=int, default=1, help="timed fits a side (%(default)s)")
    options = parser.parse_args()
    print(machine())
    sides = [(OURS, method) for method in METHODS]
    if peers_python().exists():
        sides += [([str(peers_python()), str(PEERS / "gpboost_spatial.py")], method) for method in ("exact", "Vecchia")]
    else:
        print("GPBoost: not run: not installed; run benchmarks/install_peers.sh points")
    compare(options.sites, sides, options.repeats)
    if shutil.which("Rscript") and options.few:
        compare(options.few, [(OURS, "exact"), (["Rscript", str(PEERS / "glmmtmb_spatial.R")], "")], options.repeats)
    return 0


def compare(sites: int, sides: list[tuple[list[str], str]], repeats: int) -> None:
    """Run the sides on one data set and print their table; the first is what the others are compared with."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sites.csv"
        simulated(sites).to_csv(path, index=False)
        for command, method in sides:
            last = [str(repeats), str(PEERS)] if command[0] == "Rscript" else [method, str(repeats)]
            try:
                results.append(run_side([*command, str(path), *last]))
            except Failed as error:
                print(f"{method or command[-1]}: failed: {error}")
    first = statistics.median(results[0]["times"])
    rows = []
    for result in results:
        seconds = statistics.median(result["times"])
        cells = [f"{seconds:.2f}", f"{first / seconds:.2f}", f"{result['loglik']:.3f}", f"{result['peak_mb']:.0f}"]
        rows.append([result["version"], *cells])
    print(f"\nMatern 3/2, {sites} sites, ML")
    print(table(["", "fit s", "our exact fit / it", "log-likelihood", "peak MB"], rows))


if __name__ == "__main__":
    raise SystemExit(main())
