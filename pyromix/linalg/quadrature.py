"""Gauss-Hermite nodes."""

from __future__ import annotations

import numpy as np
from scipy.special import roots_hermite


def gauss_hermite(nodes: int, dimension: int = 1) -> tuple[np.ndarray, np.ndarray]:
    r"""Tensor nodes x (M, dimension) and log weights (M,) for :math:`\int f(x) e^{-|x|^2} dx`.

    Exact for polynomials of degree below ``2 * nodes`` in each coordinate; ``M = nodes ** dimension``.
    """
    x, w = roots_hermite(nodes)
    grid = np.stack(np.meshgrid(*[x] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    logs = np.stack(np.meshgrid(*[np.log(w)] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    return grid, logs.sum(1)
