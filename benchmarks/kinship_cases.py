"""Data of the kinship benchmark: what every side reads, and the likelihood all are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

WHEAT = Path(__file__).resolve().parents[1] / "tests" / "reference" / "data" / "wheat.csv.xz"


def wheat() -> dict[str, np.ndarray]:
    """Grain yield of 599 lines in one environment; K of 1,279 markers, as the reference fits have it."""
    import pandas as pd

    data = pd.read_csv(WHEAT, dtype={"markers": str})
    m = np.stack([np.frombuffer(text.encode(), dtype=np.uint8) - ord("0") for text in data["markers"]]).astype(float)
    p = m.mean(0)
    return {"k": (m - p) @ (m - p).T / (2 * (p * (1 - p)).sum()), "y": data["env1"].to_numpy(), "x": np.ones((599, 1))}


def simulated(n: int = 5000) -> dict[str, np.ndarray]:
    """Unrelated animals with 10,000 markers, half of the variance theirs; fixed seed."""
    rng = np.random.default_rng(1729)
    m = rng.binomial(2, rng.uniform(0.1, 0.9, 2 * n), (n, 2 * n)).astype(float)
    p = m.mean(0) / 2
    m -= 2 * p
    k = m @ m.T / (2 * (p * (1 - p)).sum())
    u = m @ rng.normal(size=2 * n)
    x = np.column_stack([np.ones(n), rng.normal(size=n)])
    return {"k": k, "y": x @ [1.0, 0.5] + u / u.std() + rng.normal(size=n), "x": x}


CASES = {"wheat": wheat, "simulated_5000": simulated}


def log_likelihood(data: dict[str, Any], effects: float, residual: float) -> float:
    """Restricted log-likelihood at given variances, densely, in lme4's convention."""
    from scipy.linalg import cho_factor, cho_solve

    k, y, x = data["k"], data["y"], data["x"]
    v = effects * k
    v[np.diag_indices(len(y))] += residual
    factor = cho_factor(v, overwrite_a=True, check_finite=False)
    w_x = cho_solve(factor, x)
    xwx = x.T @ w_x
    r = y - x @ np.linalg.solve(xwx, w_x.T @ y)
    logdet = 2 * np.log(factor[0].diagonal()).sum() + np.linalg.slogdet(xwx)[1]
    return float(-0.5 * (logdet + r @ cho_solve(factor, r) + (len(y) - x.shape[1]) * np.log(2 * np.pi)))
