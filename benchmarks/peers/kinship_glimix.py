"""glimix-core, a FaST-LMM: eigenvectors of K once, then one ratio of variances."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from glimix_core.lmm import LMM
from kinship_timing import bench
from numpy_sugar.linalg import economic_qs


def fit(k: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    model = LMM(y, x, economic_qs(k), restricted=True)
    model.fit(verbose=False)
    return float(model.v0), float(model.v1)


bench(fit, f"glimix-core {version('glimix-core')}")
