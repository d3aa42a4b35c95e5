"""pyromix's half of the kinship benchmark: ``python -m benchmarks.kinship_side FOLDER REPEATS``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pyromix_side import peak_mb


def main(folder: Path, repeats: int) -> dict[str, Any]:
    """Time the structure, the model and the fit together, each time with a K that has not been decomposed yet."""
    import pandas as pd

    import pyromix as pmx

    k, y, x = (np.load(folder / f"{name}.npy") for name in ("k", "y", "x"))
    df = pd.DataFrame({"y": y, "id": range(len(y)), **{f"x{j}": x[:, j] for j in range(1, x.shape[1])}})
    backend, structure = pmx.MaximumLikelihood, pmx.Kinship  # imported before the clock starts
    formula = " + ".join(["y ~ 1", *(f"x{j}" for j in range(1, x.shape[1])), "(1 | id)"])
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        model = pmx.model(formula, df, covariances={"id": structure((k, range(len(y))))})
        fit = model.fit(backend(criterion="reml"), progress=False)
        times.append(time.perf_counter() - start)
    residual = fit.variance_components().set_index("group")["variance"]["Residual"]
    return {
        "first": times[0],
        "times": times[1:] or times,
        "effects": float(fit.estimate.point["id.sd"]) ** 2,
        "residual": float(residual),
        "peak_mb": peak_mb(),
        "version": f"pyromix {pmx.__version__}",
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
