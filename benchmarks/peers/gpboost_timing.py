"""Shared by the GPBoost peers, which run in an environment of their own, without pyromix."""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import version

import gpboost as gpb
import numpy as np
import pandas as pd

PATH, REPEATS = sys.argv[1], int(sys.argv[2])


def frame() -> pd.DataFrame:
    return pd.read_csv(PATH)


def design(columns: list[np.ndarray]) -> np.ndarray:
    """Fixed-effect columns with an intercept in front."""
    return np.column_stack([np.ones(len(columns[0])), *columns]).astype(float)


def dummies(column: pd.Series) -> list[np.ndarray]:
    """Treatment coding: one column per level but the first."""
    return [(column == level).to_numpy(float) for level in sorted(column.unique())[1:]]


def bench(groups: np.ndarray, y: np.ndarray, x: np.ndarray, likelihood: str) -> None:
    """Time the whole fit: making the model from group labels, then estimating; the first call is timed apart."""

    def fit() -> gpb.GPModel:
        model = gpb.GPModel(group_data=groups, likelihood=likelihood, num_parallel_threads=1)
        model.fit(y=y, X=x)
        return model

    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        model = fit()
        times.append(time.perf_counter() - start)
    result = {
        "first": times[0],
        "times": times[1:],
        "loglik": -model.get_current_neg_log_likelihood(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "version": f"GPBoost {version('gpboost')}",
    }
    print("RESULT " + json.dumps(result))
