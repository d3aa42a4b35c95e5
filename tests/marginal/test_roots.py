"""Roots of covariances as maps, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pyromix.linalg.block import Layout, Slot, Term
from pyromix.linalg.factor import Factor
from pyromix.marginal import roots


def crossed(rng: np.random.Generator, sizes: tuple[int, ...], qs: tuple[int, ...], rows: int = 60) -> Factor:
    """A factored system of crossed effects with random designs and weights."""
    terms, trils = [], []
    for levels, q in zip(sizes, qs, strict=True):
        design = None if q == 1 else rng.normal(size=(rows, q))
        terms.append(Term(levels, q, (Slot(rng.integers(levels, size=rows), design),)))
        trils.append(np.tril(rng.normal(size=(q, q))) + 1.5 * np.eye(q))
    layout = Layout(terms)
    return Factor(layout, layout.gram(rng.uniform(0.2, 2.0, size=rows)), trils)


def dense_inverse(factor: Factor) -> np.ndarray:
    """``A^-1``, by solving for every unit vector."""
    sizes = [term.size for term in factor.layout.terms]
    eye = np.eye(sum(sizes))
    parts = [
        block.reshape(term.levels, term.q, -1)
        for block, term in zip(np.split(eye, np.cumsum(sizes)[:-1]), factor.layout.terms, strict=True)
    ]
    return np.concatenate([x.reshape(-1, len(eye)) for x in factor.solve(parts)])


@pytest.mark.parametrize(
    ("sizes", "qs"), [((7,), (1,)), ((6,), (3,)), ((9, 4), (1, 1)), ((8, 3), (2, 1)), ((5, 6, 3), (1, 2, 2))]
)
def test_bordered_root(rng: np.random.Generator, sizes: tuple[int, ...], qs: tuple[int, ...]) -> None:
    factor = crossed(rng, sizes, qs)
    root = roots.BorderedRoot.of(factor)
    size = sum(s * q for s, q in zip(sizes, qs, strict=True))
    dense = np.stack([root.times(row) for row in np.eye(size)], axis=1)
    assert_allclose(dense @ dense.T, dense_inverse(factor), atol=1e-12)
    back = np.stack([root.transposed(row) for row in np.eye(size)], axis=1)
    assert_allclose(back, dense.T, atol=1e-13)


def test_too_large_a_border_is_left_to_the_diagonal(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "MAX_BORDER", 2)
    factor = crossed(rng, (9, 4), (1, 1))
    sd = [np.full((9, 1), 2.0), np.full((4, 1), 3.0)]
    root = roots.root_of_inverse(factor, sd)
    assert_allclose(root.times(np.ones(13)), [2.0] * 9 + [3.0] * 4)
    assert_allclose(root.transposed(np.ones(13)), [2.0] * 9 + [3.0] * 4)


def test_dense_root_is_a_matrix(rng: np.random.Generator) -> None:
    matrix, x = rng.normal(size=(4, 4)), rng.normal(size=4)
    assert_allclose(roots.DenseRoot(matrix).times(x), matrix @ x)
    assert_allclose(roots.DenseRoot(matrix).transposed(x), matrix.T @ x)
