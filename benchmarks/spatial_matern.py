"""``python -m benchmarks.spatial_matern``: a Matern 3/2 process at 2,000 sites with noise; see docs/benchmarks.md."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.harness import PEERS, Failed, machine, peers_python, run_side, table
from benchmarks.spatial_side import METHODS

LENGTH, NOISE = 0.1, 0.5


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
    parser.add_argument("--repeats", type=int, default=1, help="timed fits a side (%(default)s)")
    options = parser.parse_args()
    print(f"Matern 3/2, {options.sites} sites, ML\n{machine()}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sites.csv"
        simulated(options.sites).to_csv(path, index=False)
        ours = [sys.executable, "-m", "benchmarks.spatial_side", str(path)]
        peer = [str(peers_python()), str(PEERS / "gpboost_spatial.py"), str(path)]
        sides = [(ours, method) for method in METHODS]
        if peers_python().exists():
            sides += [(peer, method) for method in ("exact", "Vecchia")]
        else:
            print("GPBoost: not run: not installed; run benchmarks/install_peers.sh points")
        for command, method in sides:
            try:
                results.append(run_side([*command, method, str(options.repeats)]))
            except Failed as error:
                print(f"{method}: failed: {error}")
    first = statistics.median(results[0]["times"])
    rows = []
    for result in results:
        seconds = statistics.median(result["times"])
        cells = [f"{seconds:.2f}", f"{first / seconds:.2f}", f"{result['loglik']:.3f}", f"{result['peak_mb']:.0f}"]
        rows.append([result["version"], *cells])
    print(table(["", "fit s", "our exact fit / it", "log-likelihood", "peak MB"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
