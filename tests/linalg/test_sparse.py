"""Sparse factors of banded matrices in shuffled order, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pyromix.linalg.sparse import ComplementPlan


@pytest.mark.parametrize("width", [1, 3, 12])
def test_bands_in_any_order(width: int, rng: np.random.Generator) -> None:
    """Chains of several lengths, rows shuffled: factored by cyclic reduction up to a width, else as any matrix."""
    size = 150
    band = sum(np.diag(rng.uniform(-1, 1, size - k), -k) for k in range(1, width + 1))
    band[100:, :100] = 0.0
    dense = band + band.T + 4 * width * np.eye(size)
    shuffled = rng.permutation(size)
    dense = dense[np.ix_(shuffled, shuffled)]
    rows, cols = np.nonzero(dense)
    plan = ComplementPlan(rows, cols, size)
    assert (plan.rank is not None) is (width <= 8)
    held = plan.factor(dense[rows, cols])
    inverse = np.linalg.inv(dense)
    assert held.logdet == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-12)
    assert_allclose(held.inverse_at(rows, cols), inverse[rows, cols], atol=1e-13)
    b = rng.standard_normal((size, 3))
    assert_allclose(held.solve(b), inverse @ b, atol=1e-12)
    root = held.sample(np.eye(size))
    assert_allclose(root @ root.T, inverse, atol=1e-13)
