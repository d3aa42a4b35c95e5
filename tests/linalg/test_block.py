"""Structured systems against the dense matrix they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from pyromix.errors import NumericalError
from pyromix.linalg import block, selected
from pyromix.linalg import cholesky as small
from pyromix.linalg import sparse as complements
from pyromix.linalg.banded import BandComplement, ChainComplement
from pyromix.linalg.block import Layout, Slot, Term
from pyromix.linalg.factor import Factor

N = 60


def make_term(rng, levels, q, slots=1, intercept=False):
    out = []
    for _ in range(slots):
        index = rng.integers(0, levels, N)
        out.append(Slot(index, None if intercept else rng.normal(size=(N, q))))
    return Term(levels, q, tuple(out))


def nested_term(rng, parent, levels, q):
    """A factor of which each level of ``parent`` (larger) belongs to one."""
    return Term(levels, q, (Slot(parent.slots[0].index % levels, rng.normal(size=(N, q))),))


CASES = {
    "one intercept": lambda rng: [make_term(rng, 7, 1, intercept=True)],
    "one slope": lambda rng: [make_term(rng, 7, 2)],
    "q = 3": lambda rng: [make_term(rng, 5, 3)],
    "crossed": lambda rng: [make_term(rng, 5, 1, intercept=True), make_term(rng, 11, 1)],
    "crossed slopes": lambda rng: [make_term(rng, 9, 2), make_term(rng, 6, 3), make_term(rng, 3, 1)],
    "three crossed": lambda rng: [make_term(rng, 12, 1), make_term(rng, 8, 1), make_term(rng, 4, 2)],
    "members": lambda rng: [make_term(rng, 9, 1), make_term(rng, 6, 2, slots=3)],
    "members alone": lambda rng: [make_term(rng, 6, 2, slots=2)],
    "seven terms a level": lambda rng: [make_term(rng, 3, 7)],
}


def dense_z(term):
    z = np.zeros((N, term.levels, term.q))
    for slot in term.slots:
        design = np.ones((N, 1)) if slot.design is None else slot.design
        for n in range(N):
            z[n, slot.index[n]] += design[n]
    return z.reshape(N, -1)


def build(case, seed=1):
    rng = np.random.default_rng(seed)
    terms = CASES[case](rng)
    layout = Layout(terms)
    weight = rng.uniform(0.5, 2.0, N)
    tril = [np.tril(rng.normal(size=(t.q, t.q))) for t in terms]
    factor = Factor(layout, layout.gram(weight), tril)
    z = np.hstack([dense_z(t) @ np.kron(np.eye(t.levels), length) for t, length in zip(terms, tril, strict=True)])
    return layout, factor, z.T @ (weight[:, None] * z) + np.eye(z.shape[1]), rng


STORAGE = ["dense border", "sparse border", "blocks", "sparse complement"]


@pytest.fixture(params=[*STORAGE, *(f"{name}, unplanned" for name in STORAGE[1:])])
def storage(request, monkeypatch):
    """The same algebra under every way of holding the border and the complement."""
    name, _, unplanned = request.param.partition(", ")
    if name != "dense border":
        monkeypatch.setattr(block, "DENSE_BORDER", 0)
    if name in ("blocks", "sparse complement"):
        monkeypatch.setattr(block, "DENSE_LIMIT", 0)
    if name == "sparse complement":
        monkeypatch.setattr(complements, "BLOCK_LIMIT", 0)
        monkeypatch.setattr(block, "BLOCK_LIMIT", 0)
    if unplanned:
        monkeypatch.setattr(block, "PRODUCT_LIMIT", -1)


def positions(layout):
    starts = np.concatenate([[0], np.cumsum([t.size for t in layout.terms])])
    return [slice(a, b) for a, b in zip(starts[:-1], starts[1:], strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_logdet_and_solve(case, storage):
    layout, factor, a, rng = build(case)
    assert factor.logdet == pytest.approx(np.linalg.slogdet(a)[1], rel=1e-12)
    rhs = rng.normal(size=(len(a), 3))
    parts = [rhs[s].reshape(t.levels, t.q, 3) for s, t in zip(positions(layout), layout.terms, strict=True)]
    got = np.concatenate([x.reshape(-1, 3) for x in factor.solve(parts)])
    np.testing.assert_allclose(got, np.linalg.solve(a, rhs), rtol=1e-9, atol=1e-11)
    single = factor.solve([x[..., 0] for x in parts])
    np.testing.assert_allclose(np.concatenate([x.ravel() for x in single]), got[:, 0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_sample_is_a_root_of_the_inverse(case, storage):
    layout, factor, a, _ = build(case)
    eye = np.eye(len(a))
    noise = [eye[s].reshape(t.levels, t.q, -1) for s, t in zip(positions(layout), layout.terms, strict=True)]
    root = np.concatenate([x.reshape(-1, len(a)) for x in factor.sample(noise)])
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(a), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_selected_inverse(case, storage):
    layout, factor, a, _ = build(case)
    inverse = np.linalg.inv(a)
    at = positions(layout)
    blocks = selected.diagonal_blocks(factor)
    sums = selected.diagonal_sums(factor)
    for s, term, got, total in zip(at, layout.terms, blocks, sums, strict=True):
        view = inverse[s, s].reshape(term.levels, term.q, term.levels, term.q)
        expected = np.einsum("gagb->gab", view)
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(total, expected.sum(0), rtol=1e-9, atol=1e-11)
    for pair, got in zip(layout.pairs, selected.pair_blocks(factor), strict=True):
        tj, tk = layout.terms[pair.j], layout.terms[pair.k]
        view = inverse[at[pair.j], at[pair.k]].reshape(tj.levels, tj.q, tk.levels, tk.q)
        np.testing.assert_allclose(got, view[pair.level_j, :, pair.level_k, :], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_apply_and_transpose(case):
    layout, _, _, rng = build(case)
    z = np.hstack([dense_z(t) for t in layout.terms])
    effects = [rng.normal(size=(t.levels, t.q)) for t in layout.terms]
    np.testing.assert_allclose(layout.apply(effects), z @ np.concatenate([u.ravel() for u in effects]))
    rows = rng.normal(size=(N, 2))
    got = np.concatenate([x.reshape(-1, 2) for x in layout.transpose(rows)])
    np.testing.assert_allclose(got, z.T @ rows, atol=1e-12)


def test_nested_factors_leave_small_blocks(monkeypatch):
    monkeypatch.setattr(block, "DENSE_BORDER", 0)
    rng = np.random.default_rng(3)
    inner = make_term(rng, 20, 2)
    layout = Layout([nested_term(rng, inner, 5, 1), inner])
    factor = Factor(layout, layout.gram(None), [np.eye(1), np.eye(2)])
    assert isinstance(factor.rest, complements.BlockComplement)
    assert list(factor.rest.blocks.members) == [1]


def test_indefinite_blocks_are_refused():
    with pytest.raises(NumericalError, match="block 1 of 2 is not positive definite"):
        small.cholesky(np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [2.0, 1.0]]]))
    with pytest.raises(NumericalError, match="block 0 of 1"):
        small.cholesky(-np.eye(9)[None])
    bad = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(NumericalError, match="complement of 2 rows"):
        complements.DenseComplement(bad.copy())
    with pytest.raises(NumericalError, match="block 0 of 1"):
        complements.complement(sp.csr_array(bad))
    with pytest.raises(NumericalError, match="sparse complement of 2 rows"):
        BandComplement(sp.csr_array(bad), np.arange(2))
    with pytest.raises(NumericalError, match="sparse complement of 2 rows"):
        ChainComplement(np.ones(2), np.array([2.0]), np.arange(2))
    with pytest.raises(NumericalError, match="sparse complement of 2 rows"):
        ChainComplement(np.array([1.0, np.nan]), np.zeros(1), np.arange(2))
