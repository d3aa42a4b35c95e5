"""``python -m benchmarks.growth``: time and memory of pyromix over the number of rows, at ten rows per group."""

from __future__ import annotations

import math
import statistics
import tempfile
from pathlib import Path

from benchmarks.cases import CASES
from benchmarks.harness import arguments, finish, machine, pyromix_result, table, write_csv

ROWS = (10_000, 100_000, 1_000_000)
# Largest exponent of growth that still counts as linear: timings of one machine repeat to a few per cent.
LINEAR = 1.05


def exponents(values: list[float]) -> list[float]:
    """Slope between neighbours on log-log axes: 1 is linear."""
    return [math.log(b / a) / math.log(ROWS[i + 1] / ROWS[i]) for i, (a, b) in enumerate(zip(values, values[1:]))]  # noqa: B905


def main() -> int:
    options = arguments(__doc__ or "")
    print(f"{CASES[f'simulated_{ROWS[0]}'].formula}  [Binomial]\n{machine()}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in ROWS:
            case = CASES[f"simulated_{rows}"]
            csv = write_csv(case, Path(folder))
            results[str(rows)] = pyromix_result(case, csv, options.repeats)
            csv.unlink()
    fits = [statistics.median(r["times"]) for r in results.values()]
    models = [statistics.median(r["model_times"]) for r in results.values()]
    # memory above what the process held before the first model: libraries and the data frame
    memory = [max(r["peak_mb"] - r["base_mb"], 1.0) for r in results.values()]
    header = ["rows", "model s", "fit s", "extra MB", "peak MB", "log-likelihood"]
    body = [
        [f"{rows:,}", f"{m:.4f}", f"{f:.4f}", f"{extra:.0f}", f"{r['peak_mb']:.0f}", f"{r['loglik']:.3f}"]
        for rows, m, f, extra, r in zip(ROWS, models, fits, memory, results.values(), strict=True)
    ]
    print(table(header, body))
    met = True
    for label, values in (("fit", fits), ("model", models), ("extra memory", memory)):
        slopes = exponents(values)
        ok = max(slopes) <= LINEAR
        met &= ok or label == "model"
        shown = ", ".join(f"{slope:.2f}" for slope in slopes)
        print(f"{label}: grows as rows to the power {shown}; required <= 1: {'met' if ok else 'NOT MET'}")
    return finish(options, results, met)


if __name__ == "__main__":
    raise SystemExit(main())
