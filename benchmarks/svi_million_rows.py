"""``python -m benchmarks.svi_million_rows``: SVI in batches of whole groups, over the number of groups.

Ten rows a group. Prints processor time of a step at the same batch size and the peak memory of a process that fits; the
cost of a step must not grow with the number of groups, and a million rows must fit in 3 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

GROUPS = (1_000, 10_000, 100_000)
BATCH = 500  # groups in a batch, the same for all
STEPS = 300
GROWTH = 1.5  # largest ratio of a step to one with the fewest groups: more data miss caches more often
MAX_MB = 3072.0


def one(groups: int, steps: int) -> dict[str, Any]:
    """Fit in this process."""
    import torch

    import pyromix as pmx
    from benchmarks.cases import simulated
    from pyromix.backends.svi import SVI
    from pyromix.backends.variational.build import build
    from pyromix.backends.variational.loop import Loop

    torch.set_num_threads(1)
    model = pmx.model("y ~ x1 + x2 + x3 + (1 | group)", simulated(10 * groups), family=pmx.Binomial())
    backend = SVI(steps=steps, batch_groups=BATCH)
    began = time.perf_counter()
    problem = build(backend, model.program, (model.design,), 0)
    prepared, busy = time.perf_counter(), time.process_time()
    Loop(problem.objective, problem.batches, backend.loop_settings(), 0).run(None, False)
    looped, busy = time.perf_counter(), time.process_time() - busy
    del problem
    fit = model.fit(backend, progress=False)
    fitted = time.perf_counter()
    beta = fit.draws()["beta"]
    return {
        "prepare": prepared - began,
        "step": busy / steps,
        "fit": fitted - looped,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "beta": [round(float(b), 4) for b in beta.mean(0)],
        "sd": [round(float(b), 4) for b in beta.std(0)],
        "health": [record.code for record in fit.health],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, help="run one size in this process and print JSON")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    if options.groups:
        print(json.dumps(one(options.groups, options.steps)))
        return 0
    results = {}
    print(f"{'groups':>9} {'rows':>10} {'prepare s':>10} {'ms/step':>8} {'steps/s':>8} {'fit s':>7} {'peak MB':>8}")
    for groups in GROUPS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.svi_million_rows"]
        done = subprocess.run(
            [*command, "--groups", str(groups), "--steps", str(options.steps)], capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr)
            return 1
        results[groups] = r = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{groups:>9,} {10 * groups:>10,} {r['prepare']:>10.2f} {1e3 * r['step']:>8.2f} {1 / r['step']:>8.1f} "
            f"{r['fit']:>7.1f} {r['peak_mb']:>8.0f}  beta {r['beta']} sd {r['sd']} {r['health']}"
        )
    growth = results[GROUPS[-1]]["step"] / results[GROUPS[0]]["step"]
    peak = results[GROUPS[-1]]["peak_mb"]
    met = growth <= GROWTH and peak <= MAX_MB
    print(f"a step with {GROUPS[-1]:,} groups takes {growth:.2f} x one with {GROUPS[0]:,}; peak {peak:.0f} MB")
    print("met" if met else "NOT MET")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
