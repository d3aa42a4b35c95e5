"""pyromix's half of a benchmark, in a process of its own: ``python -m benchmarks.pyromix_side CASE CSV REPEATS``."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

from benchmarks.cases import CASES


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(name: str, path: str, repeats: int) -> dict[str, Any]:
    """Time `model` and `fit` apart; the first pair, in a process that has fitted nothing, is kept on its own."""
    import pandas as pd
    import torch

    import pyromix as pmx

    case = CASES[name]
    # labels as categories before the clock starts: the R peers get factors in the same way
    df = pd.read_csv(path, dtype=dict.fromkeys(case.text, str)).astype(dict.fromkeys(case.text, "category"))
    family = getattr(pmx, case.family) if isinstance(case.family, str) else case.family
    backend = pmx.MaximumLikelihood
    base_mb = peak_mb()
    model_times, fit_times = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model = pmx.model(case.formula, df, family())
        middle = time.perf_counter()
        fit = model.fit(backend(criterion=case.criterion), progress=False)
        end = time.perf_counter()
        model_times.append(middle - start)
        fit_times.append(end - middle)
    return {
        "first": fit_times[0],
        "times": fit_times[1:],
        "first_model": model_times[0],
        "model_times": model_times[1:],
        "loglik": float(fit.log_likelihood),
        "status": fit.status.name,
        "base_mb": base_mb,
        "peak_mb": peak_mb(),
        "threads": torch.get_num_threads(),
        "version": f"pyromix {pmx.__version__}",
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
