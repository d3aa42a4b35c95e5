"""Sparse factors of banded matrices in shuffled order and of fields on graphs, against dense algebra."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from pyromix.errors import NumericalError
from pyromix.linalg.banded import BandComplement, ChainComplement
from pyromix.linalg.dissection import dissect
from pyromix.linalg.sparse import ComplementPlan, FrontalComplement
from pyromix.linalg.supernodal import Fronts, Panels


@pytest.mark.parametrize("width", [1, 3, 12])
def test_bands_in_any_order(width: int, rng: np.random.Generator) -> None:
    """Bands of several lengths, rows shuffled: chains and narrow bands in their own ways, others as any matrix."""
    size = 150
    band = sum(np.diag(rng.uniform(-1, 1, size - k), -k) for k in range(1, width + 1))
    band[100:, :100] = 0.0
    dense = band + band.T + 4 * width * np.eye(size)
    shuffled = rng.permutation(size)
    dense = dense[np.ix_(shuffled, shuffled)]
    rows, cols = np.nonzero(dense)
    plan = ComplementPlan(rows, cols, size)
    held = plan.factor(dense[rows, cols])
    assert type(held) is {1: ChainComplement, 3: BandComplement, 12: FrontalComplement}[width]
    inverse = np.linalg.inv(dense)
    assert held.logdet == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-12)
    assert_allclose(held.inverse_at(rows, cols), inverse[rows, cols], atol=1e-13)
    b = rng.standard_normal((size, 3))
    assert_allclose(held.solve(b), inverse @ b, atol=1e-12)
    root = held.sample(np.eye(size))
    assert_allclose(root @ root.T, inverse, atol=1e-13)
    rows, cols = rng.integers(0, size, (2, 400))  # mostly where the matrix has no entry
    assert_allclose(held.inverse_at(rows, cols), inverse[rows, cols], atol=1e-13)


def test_a_random_walk_that_is_hardly_observed() -> None:
    """Neighbours are correlated to one part in ten thousand; entries of the inverse against 50 digits."""
    size, little = 120, 1e-9
    matrix = np.diag(np.r_[1.0, np.full(size - 2, 2.0), 1.0] + little) - np.eye(size, k=1) - np.eye(size, k=-1)
    rows, cols = np.nonzero(np.tril(matrix))
    held = ComplementPlan(rows, cols, size).factor(matrix[rows, cols])
    with mpmath.workdps(50):
        inverse = mpmath.matrix(matrix.tolist()) ** -1
        exact = np.array(inverse.tolist(), dtype=float)
    assert_allclose(held.inverse_at(rows, cols), exact[rows, cols], rtol=1e-5)  # the condition number is 4e9
    assert held.logdet == pytest.approx(np.log(np.linalg.eigvalsh(matrix)[1:]).sum() + np.log(little), rel=1e-6)


# -- nested dissection and fronts ------------------------------------------------------------------------------------
def laplacian(shape: tuple[int, ...]) -> sp.csr_array:
    """Of a grid: as many neighbours as there are on its axes."""
    total = sp.csr_array((int(np.prod(shape)),) * 2)
    for axis in range(len(shape)):
        parts = [sp.eye_array(m) for m in shape]
        m = shape[axis]
        link = sp.diags_array([np.ones(m - 1), np.ones(m - 1)], offsets=[-1, 1])
        parts[axis] = sp.diags_array(link.sum(1)) - link
        product = parts[0]
        for part in parts[1:]:
            product = sp.kron(product, part)
        total = total + product
    return sp.csr_array(total)


def scattered(size: int, edges: int, rng: np.random.Generator) -> sp.csr_array:
    """A random graph in several components, some of a single vertex."""
    a, b = rng.integers(0, size, (2, edges))
    link = sp.coo_array((np.ones(edges), (a, b)), shape=(size, size))
    link = sp.csr_array(link + link.T)
    link.setdiag(0.0)
    link.eliminate_zeros()
    return sp.csr_array(sp.diags_array(link.sum(1)) - link)


def bordered(rng: np.random.Generator) -> sp.csr_array:
    """A grid, two columns that touch everything, and a level of its own beside every vertex."""
    grid = laplacian((20, 20)) + 3.0 * sp.eye_array(400)
    fixed = sp.csr_array(rng.uniform(-0.01, 0.01, (2, 400)))
    own = -0.5 * sp.eye_array(400)
    return sp.csr_array(
        sp.block_array([[grid, own, fixed.T], [own, sp.eye_array(400), None], [fixed, None, sp.eye_array(2)]])
    )


FIELDS = {
    "plane": lambda rng: laplacian((31, 17)) + 0.1 * sp.eye_array(527),
    "plane, squared": lambda rng: (lambda k: k @ k)(laplacian((22, 23)) + 0.1 * sp.eye_array(506)),
    "solid": lambda rng: laplacian((9, 8, 7)) + 0.1 * sp.eye_array(504),
    "scattered": lambda rng: scattered(600, 900, rng) + 0.1 * sp.eye_array(600),
    "bordered": bordered,
    "complete": lambda rng: sp.csr_array(np.full((150, 150), 0.5) + 0.5 * np.eye(150)),
    "star": lambda rng: star(300),
}


def star(size: int) -> sp.csr_array:
    """One vertex touches all others, which are far from each other."""
    out = sp.lil_array((size, size))
    out[0, 1:] = out[1:, 0] = -0.5
    out.setdiag(np.where(np.arange(size) == 0, size, 1.0))
    return sp.csr_array(out)


@pytest.mark.parametrize("leaf", [1, 7, 48])
@pytest.mark.parametrize("name", FIELDS)
def test_fronts_against_dense_algebra(name: str, leaf: int, rng: np.random.Generator) -> None:
    matrix = FIELDS[name](rng)
    shuffled = rng.permutation(matrix.shape[0])
    matrix = sp.coo_array(sp.tril(matrix[shuffled][:, shuffled]))
    rows, cols = matrix.coords
    lower = matrix.toarray()
    dense = lower + np.tril(lower, -1).T
    inverse = np.linalg.inv(dense)
    held = FrontalComplement(Fronts(rows, cols, len(dense), leaf), matrix.data)
    scale = np.abs(inverse).max()
    assert held.logdet == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-11)
    assert_allclose(held.inverse_at(rows, cols), inverse[rows, cols], atol=1e-11 * scale)
    assert_allclose(held.inverse_at(cols, rows), inverse[rows, cols], atol=1e-11 * scale)
    anywhere = rng.integers(0, len(dense), (2, 200))
    assert_allclose(held.inverse_at(*anywhere), inverse[anywhere[0], anywhere[1]], atol=1e-11 * scale)
    b = rng.standard_normal((len(dense), 3))
    before = b.copy()
    assert_allclose(held.solve(b), inverse @ b, atol=1e-10 * scale)
    assert_allclose(b, before)
    root = held.sample(np.eye(len(dense)))
    assert_allclose(root @ root.T, inverse, atol=1e-10 * scale)


@pytest.mark.parametrize("name", FIELDS)
def test_neighbours_lie_above_or_below_each_other(name: str, rng: np.random.Generator) -> None:
    """What makes fronts of different branches independent."""
    matrix = sp.coo_array(FIELDS[name](rng))
    tree = dissect(sp.csr_array(matrix), 10)
    above = []
    for s, up in enumerate(tree.parent):
        assert up < s
        above.append({s} | (above[up] if up >= 0 else set()))
    for a, b in zip(*(tree.node[at] for at in matrix.coords), strict=True):
        assert a in above[b] or b in above[a]


def test_separators_of_a_square_are_its_middle_lines() -> None:
    """The first cut of a 64 x 64 grid is a line of 64 vertices, and the tree is some log n deep."""
    tree = dissect(laplacian((64, 64)))
    sizes = np.bincount(tree.node)
    assert sizes[0] <= 64
    depth = np.zeros(len(sizes), dtype=int)
    for s in range(1, len(sizes)):
        depth[s] = depth[tree.parent[s]] + 1
    assert depth.max() <= 9


def test_fill_grows_as_n_log_n() -> None:
    counts = []
    for m in (40, 80, 160):
        matrix = sp.coo_array(sp.tril(laplacian((m, m))))
        counts.append(Fronts(*matrix.coords, m * m).entries / (m * m * np.log2(m * m)))
    assert max(counts) < 1.25 * min(counts)


def test_plans_choose_by_pattern(rng: np.random.Generator) -> None:
    """Grids go to fronts, bands and blocks do not; entries of the inverse are found without a search."""
    matrix = sp.coo_array(sp.tril(laplacian((30, 30)) + sp.eye_array(900)))
    rows, cols = matrix.coords
    plan = ComplementPlan(rows, cols, 900)
    held = plan.factor(matrix.data)
    assert isinstance(held, FrontalComplement) and plan.fronts.rows is rows
    inverse = np.linalg.inv(matrix.toarray() + np.tril(matrix.toarray(), -1).T)
    assert_allclose(held.inverse_at(rows, cols), inverse[rows, cols], rtol=1e-10)


@pytest.mark.parametrize(("bad", "why"), [(-5.0, "is not positive definite"), (np.nan, "(are|is) not")])
def test_an_indefinite_field_is_refused(bad: float, why: str) -> None:
    matrix = sp.coo_array(sp.tril(laplacian((20, 20)) + sp.eye_array(400)))
    matrix.data[np.flatnonzero(matrix.coords[0] == matrix.coords[1])[200]] = bad
    with pytest.raises(NumericalError, match=f"a sparse complement of 400 rows .*{why}"):
        Panels(Fronts(*matrix.coords, 400), matrix.data)
