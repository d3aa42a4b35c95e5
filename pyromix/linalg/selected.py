"""Entries of the inverse of a `Factor`: what gradients and conditional variances need of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from pyromix.linalg import cholesky as small
from pyromix.linalg.block import Arrays, Pair
from pyromix.linalg.factor import Factor
from pyromix.linalg.sparse import DenseComplement

CHUNK = 4_000_000  # entries of a temporary, rows of the lead term times complement


def diagonal_blocks(factor: Factor) -> Arrays:
    """Diagonal blocks of ``A^-1``, (levels, q, q) per term: the conditional covariances of the spherical effects."""
    layout = factor.layout
    out: Arrays = [np.empty(0)] * len(layout.terms)
    for k, start in layout.offsets.items():
        term = layout.terms[k]
        at = start + np.arange(term.levels)[:, None, None] * term.q
        shape = (term.levels, term.q, term.q)
        rows = np.broadcast_to(at + np.arange(term.q)[None, :, None], shape)
        cols = np.broadcast_to(at + np.arange(term.q)[None, None, :], shape)
        out[k] = factor.rest.inverse_at(rows.ravel(), cols.ravel()).reshape(shape)
    if layout.lead is not None:
        out[layout.lead] = small.inverse(factor.root)
        if factor.v is not None:
            out[layout.lead] = out[layout.lead] + _lead_correction(factor)
    return out


def diagonal_sums(factor: Factor) -> Arrays:
    """Diagonal blocks of ``A^-1`` summed over levels, (q, q) per term.

    For a dense complement the lead term's sum is ``sum(inverse * T^T T)``, which needs no per-level work.
    """
    layout = factor.layout
    if layout.lead is None or factor.v is None or not isinstance(factor.rest, DenseComplement):
        return [block.sum(0) for block in diagonal_blocks(factor)]
    out: Arrays = [np.empty(0)] * len(layout.terms)
    inverse = factor.rest.inverse
    for k, start in layout.offsets.items():
        term = layout.terms[k]
        positions = start + np.arange(term.levels)[:, None] * term.q + np.arange(term.q)
        out[k] = inverse[positions[:, :, None], positions[:, None, :]].sum(0)
    out[layout.lead] = small.inverse(factor.root).sum(0) + _lead_sum(factor, inverse)
    return out


def pair_blocks(factor: Factor) -> Arrays:
    """Blocks of ``A^-1`` at every pair of levels that occur together, (pairs, q_j, q_k) per pair of the layout."""
    layout = factor.layout
    diagonal = diagonal_blocks(factor)
    crossing = iter(_crossing_blocks(factor)) if layout.crossing else iter(())
    out = []
    for p, pair in enumerate(layout.pairs):
        q_j, q_k = layout.terms[pair.j].q, layout.terms[pair.k].q
        if pair.same:
            out.append(diagonal[pair.j])
        elif p in layout.crossing:
            block = next(crossing)
            out.append(block if pair.j == layout.lead else block.swapaxes(1, 2))
        else:
            shape = (len(pair.level_j), q_j, q_k)
            rows = layout.offsets[pair.j] + pair.level_j[:, None, None] * q_j + np.arange(q_j)[None, :, None]
            cols = layout.offsets[pair.k] + pair.level_k[:, None, None] * q_k + np.arange(q_k)[None, None, :]
            rows, cols = np.broadcast_to(rows, shape).ravel(), np.broadcast_to(cols, shape).ravel()
            out.append(factor.rest.inverse_at(rows, cols).reshape(shape))
    return out


def pair_traces(factor: Factor, gram: Arrays, inverse: Arrays | None = None) -> Arrays:
    """Half the gradient of ``log|A|`` in every L: ``sum M L A^-1`` over pairs of levels, (q, q) per term.

    Parameters
    ----------
    gram
        The pair blocks M that the factor was made of.
    inverse
        `pair_blocks` of the factor, if already at hand.
    """
    layout = factor.layout
    out = [np.zeros((term.q, term.q)) for term in layout.terms]
    blocks = pair_blocks(factor) if inverse is None else inverse
    for pair, m, p in zip(layout.pairs, gram, blocks, strict=True):
        if pair.same:
            out[pair.j] += _trace(m @ factor.tril[pair.j], p)
        else:
            out[pair.k] += _trace(m.swapaxes(1, 2) @ factor.tril[pair.j], p)
            out[pair.j] += _trace(m @ factor.tril[pair.k], p.swapaxes(1, 2))
    return out


def _trace(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    if left.shape[1:] == (1, 1):
        return np.array([[left[:, 0, 0] @ right[:, 0, 0]]])
    if len(left) == 1:
        return left[0] @ right[0]
    return np.einsum("pab,pbc->ac", left, right)


def leverage(factor: Factor, inverse: Arrays | None = None) -> np.ndarray:
    """``diag(Z Lambda A^-1 Lambda^T Z^T)``, (n,): the conditional variance of every row's random part."""
    layout = factor.layout
    blocks = pair_blocks(factor) if inverse is None else inverse
    total: np.ndarray | float = 0.0
    for pair, p in zip(layout.pairs, blocks, strict=True):
        spread = factor.tril[pair.j] @ p @ factor.tril[pair.k].T
        part = _rows(pair, spread)
        total = total + (part if pair.same else 2 * part)
    return np.asarray(total)


def _rows(pair: Pair, blocks: np.ndarray) -> np.ndarray:
    """``z_j^T block z_k`` for every row."""
    if len(blocks) == 1 and pair.slot_j.design is not None and pair.slot_k.design is not None:
        return np.einsum("nb,nb->n", pair.slot_j.design @ blocks[0], pair.slot_k.design)
    total: np.ndarray | float = 0.0
    for a in range(blocks.shape[1]):
        for b in range(blocks.shape[2]):
            part = blocks[:, a, b][pair.rows]
            for column in (pair.slot_j.column(a), pair.slot_k.column(b)):
                part = part if column is None else part * column
            total = total + part
    return np.asarray(total)


# -- the lead term's rows of the inverse: A^-1_1r = -T S^-1 with T = R^-T V --------------------------------------------


def _lead_correction(factor: Factor) -> np.ndarray:
    """Per-level blocks of ``T S^-1 T^T``."""
    layout = factor.layout
    levels, q = factor.root.shape[:2]
    out = np.empty((levels, q, q))
    if layout.products is not None and factor.v is not None:
        t, spread = _entries(factor)
        for a in range(q):
            for b in range(q):
                product = t[layout.aligned[:, a]] * spread[layout.aligned[:, b]]
                out[:, a, b] = np.bincount(layout.aligned_level, product, levels)
        return out
    for rows, t, product in _chunks(factor):
        shape = (-1, q, t.shape[-1])
        out[rows.start // q : rows.stop // q] = product.reshape(shape) @ t.reshape(shape).swapaxes(1, 2)
    return out


def _lead_sum(factor: Factor, inverse: np.ndarray) -> np.ndarray:
    """``sum_g T_g S^-1 T_g^T``, (q, q)."""
    if factor.root.shape[-1] > 1 or factor.layout.products is None:
        return _lead_correction(factor).sum(0)
    t = _t_entries(factor)
    first, second, flat = factor.layout.products
    twice = 2.0 * ((t[first] * t[second]) @ inverse.ravel(order="K")[flat])
    return np.array([[twice - (t**2) @ np.diag(inverse)[factor.v.indices]]])


def _crossing_blocks(factor: Factor) -> Arrays:
    """``-T S^-1`` at every crossing pair, (pairs, q of the lead term, q of the other)."""
    layout = factor.layout
    values = np.empty(len(layout.border_rows))
    if layout.products is not None:
        values[layout.border_order] = -_entries(factor)[1]
    else:
        order = np.argsort(layout.border_rows, kind="stable")
        sorted_rows = layout.border_rows[order]
        for rows, _, product in _chunks(factor):
            low, high = np.searchsorted(sorted_rows, [rows.start, rows.stop])
            here = order[low:high]
            values[here] = -product[layout.border_rows[here] - rows.start, layout.border_cols[here]]
    out, start = [], 0
    for p in layout.crossing:
        pair = layout.pairs[p]
        other = layout.terms[pair.k if pair.j == layout.lead else pair.j]
        shape = (len(pair.level_j), layout.terms[layout.lead].q, other.q)
        out.append(values[start : start + int(np.prod(shape))].reshape(shape))
        start += int(np.prod(shape))
    return out


def _t_entries(factor: Factor) -> np.ndarray:
    """Entries of T, in V's order."""
    layout = factor.layout
    if factor.root.shape[-1] == 1:
        return factor.v.data / np.repeat(factor.root[:, 0, 0], np.diff(layout.indptr))
    columns = small.solve_upper(factor.root[layout.aligned_level], factor.v.data[layout.aligned][..., None])
    t = np.empty_like(factor.v.data)
    t[layout.aligned] = columns[..., 0]
    return t


def _entries(factor: Factor) -> tuple[np.ndarray, np.ndarray]:
    """Entries of T, and of ``T S^-1`` at the same positions, from the planned products."""
    layout = factor.layout
    first, second, _ = layout.products
    t = _t_entries(factor)
    inverse = factor.rest.inverse_at(layout.indices[first], layout.indices[second])
    spread = np.bincount(first, t[second] * inverse, len(t))
    off = first != second
    return t, spread + np.bincount(second[off], t[first[off]] * inverse[off], len(t))


def _chunks(factor: Factor) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Row slices of T, dense rows of T and of ``T S^-1``, a few million entries at a time."""
    t, border = _t(factor), factor.layout.border
    q = factor.root.shape[-1]
    step = max(1, CHUNK // max(border, 1) // q) * q
    dense = isinstance(factor.rest, DenseComplement)
    for start in range(0, t.shape[0], step):
        part = t[start : start + step]
        rows = part if isinstance(part, np.ndarray) else part.toarray()
        product = part @ factor.rest.inverse if dense else factor.rest.solve(rows.T).T
        yield slice(start, start + len(rows)), rows, product


def _t(factor: Factor) -> np.ndarray | sp.csr_array:
    """``T = A_11^-1 A_1r``, in the layout of V."""
    root, layout = factor.root, factor.layout
    levels, q = root.shape[:2]
    if layout.dense_border:
        return small.solve_upper(root, factor.v.reshape(levels, q, -1)).reshape(levels * q, -1)
    inverse_t = small.solve_upper(root, np.broadcast_to(np.eye(q), root.shape))
    index = np.arange(levels + 1)
    left = sp.bsr_array((inverse_t, index[:-1], index), shape=(levels * q, levels * q))
    return (left.tocsr() @ factor.v).tocsr()
