"""REML done directly: a Cholesky factor of the covariance of the rows for every value of the ratio of variances.

A stand-in for programs that do not decompose K: the search is over one number, by Brent's method to 1e-6.
"""

from __future__ import annotations

import numpy as np
import scipy
from kinship_timing import bench
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar


def fit(k: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    n, p = x.shape
    diagonal = np.diag_indices(n)

    def profile(logit: float) -> tuple[float, float, float]:
        """Minus twice the restricted log-likelihood but for constants, the share and the total variance."""
        share = 1 / (1 + np.exp(-logit))
        v = share * k
        v[diagonal] += 1 - share
        factor = cho_factor(v, lower=True, overwrite_a=True, check_finite=False)
        w_x = cho_solve(factor, x, check_finite=False)
        xwx = x.T @ w_x
        r = y - x @ np.linalg.solve(xwx, w_x.T @ y)
        total = float(r @ cho_solve(factor, r, check_finite=False)) / (n - p)
        logdet = 2 * np.log(factor[0].diagonal()).sum() + np.linalg.slogdet(xwx)[1]
        return (n - p) * np.log(total) + logdet, share, total

    best = minimize_scalar(lambda t: profile(t)[0], bounds=(-6, 6), method="bounded", options={"xatol": 1e-6})
    _, share, total = profile(best.x)
    return share * total, (1 - share) * total


bench(fit, f"dense REML, SciPy {scipy.__version__}")
