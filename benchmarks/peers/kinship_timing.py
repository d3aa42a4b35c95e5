"""Shared by the kinship peers: ``python PEER.py FOLDER REPEATS``; K, y and X lie in the folder."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

FOLDER, REPEATS = Path(sys.argv[1]), int(sys.argv[2])


def bench(fit: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, float]], version: str) -> None:
    """Time ``fit(k, y, x)``, which returns the variances of the effects and of the residual."""
    k, y, x = (np.load(FOLDER / f"{name}.npy") for name in ("k", "y", "x"))
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        effects, residual = fit(k, y, x)
        times.append(time.perf_counter() - start)
    result = {
        "first": times[0],
        "times": times[1:] or times,
        "effects": effects,
        "residual": residual,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "version": version,
    }
    print("RESULT " + json.dumps(result))
