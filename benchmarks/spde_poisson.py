"""``python -m benchmarks.spde_poisson``: counts at as many places as a field has vertices, by maximum likelihood.

A Matern field of SD 1 and range 0.2 is drawn on a square grid, its own spacing finer as n grows; n counts with log rate
one plus the field lie anywhere in the unit square. Every size runs in a process of its own, so that its peak memory is
seen. Theory for the sparse factor of a plane: time n^1.5, memory n log n.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

import pyromix as pmx
from pyromix.covariances import Coords
from pyromix.linalg.sparse import ComplementPlan

SIZES = (1_000, 10_000, 100_000)
RANGE, SD, PADDING = 0.2, 1.0, 0.2


def simulate(vertices: int, seed: int = 0) -> tuple[pmx.SPDE, dict[str, torch.Tensor]]:
    """A structure on some so many vertices, and data."""
    side = 1 + 2 * PADDING
    grid = pmx.Grid([[0.0, 0.0], [1.0, 1.0]], side / (math.isqrt(vertices) - 1), PADDING)
    structure, rng = pmx.SPDE(grid), np.random.default_rng(seed)
    theta = {"sd": torch.tensor([SD], dtype=torch.float64), "range": torch.tensor(RANGE, dtype=torch.float64)}
    precision = structure.operator(theta, Coords(tuple(range(grid.size)), ("Intercept",))).separable().precision
    held = ComplementPlan(precision.rows, precision.cols, grid.size).factor(precision.values.numpy())
    field = torch.from_numpy(held.sample(rng.standard_normal((grid.size, 1)))[:, 0])
    index, weight = grid.projector(rng.uniform(size=(vertices, 2)))
    rate = (1.0 + (field[index] * weight).sum(1)).exp()
    counts = torch.poisson(rate, generator=torch.Generator().manual_seed(seed))
    return structure, {"index": index, "weight": weight, "y": counts}


def fit(structure: pmx.SPDE, data: dict[str, torch.Tensor]) -> pmx.Fit:
    """Maximum likelihood, the field integrated out by Laplace's method."""
    effect, linear = pmx.RandomEffect("field", structure, structure.mesh.size), pmx.LinearEffect("beta")

    def program(rows: dict[str, torch.Tensor]) -> None:
        ones = torch.ones(len(rows["y"]), 1, dtype=torch.float64)
        pmx.observe("y", pmx.Poisson(), linear(ones) + effect(rows["index"], weight=rows["weight"]), rows["y"])

    return pmx.fit(program, data, pmx.MaximumLikelihood(), progress=False)


def one(vertices: int) -> dict[str, Any]:
    """Seconds, peak memory and estimates of one size."""
    structure, data = simulate(vertices)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    found = fit(structure, data)
    return {
        "vertices": structure.mesh.size,
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - used,
        "base_mb": before / 1024,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "log_likelihood": found.log_likelihood,
        "status": found.status.value,
        **{name: float(found.estimate.point[f"field.{name}"].reshape(())) for name in ("range", "sd")},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help="this size alone, in this process, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one)))
        return 0
    print(f"truth: range {RANGE}, sd {SD}")
    print(
        f"{'vertices':>10}{'seconds':>10}{'CPU s':>9}{'peak MB':>10}{'log-likelihood':>16}{'range':>8}{'sd':>8}  growth"
    )
    last = None
    for size in given.sizes:
        command = [sys.executable, "-m", "benchmarks.spde_poisson", "--one", str(size)]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        power = ""
        if last:
            power = f"n^{math.log(r['cpu'] / last['cpu']) / math.log(r['vertices'] / last['vertices']):.2f}"
        last = r
        print(
            f"{r['vertices']:>10,}{r['seconds']:>10.1f}{r['cpu']:>9.1f}{r['peak_mb']:>10.0f}{r['log_likelihood']:>16.3f}"
            f"{r['range']:>8.3f}{r['sd']:>8.3f}   {power}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
