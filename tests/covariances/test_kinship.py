"""Related levels against dense algebra, and what is no relationship matrix."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.covariances import Coords, Kinship, Unstructured, from_config, vanraden
from pyromix.errors import ConfigError, DataError, JitterWarning, StructureError
from pyromix.testing import CovarianceSuite
from tests.covariances.fits import check_gaussian_fit

IDS = ("a", "b", "c", "d")
# relations of both signs, and Cholesky entries of both signs
K = np.array([[1.0, -0.6, 0.3, 0.1], [-0.6, 1.2, 0.2, -0.4], [0.3, 0.2, 0.9, 0.5], [0.1, -0.4, 0.5, 1.1]])
FRAME = pd.DataFrame(K, index=IDS, columns=IDS)


def _double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestKinship(CovarianceSuite):
    """Levels in another order than K's, one id of K unobserved."""

    def make(self) -> Kinship:
        return Kinship(FRAME)

    def coords(self) -> Coords:
        return Coords(("c", "a", "d"), ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(0.8, 1.7)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        part = torch.tensor([[FRAME.loc[i, j] for j in coords.levels] for i in coords.levels], dtype=torch.float64)
        return torch.kron(part, torch.diag(theta["sd"] ** 2))


class TestKinshipWithCorrelatedTerms(CovarianceSuite):
    """Correlated slopes on relations of both signs, where a peer lost the negative entries of the factor."""

    def make(self) -> Kinship:
        return Kinship(FRAME, terms=Unstructured())

    def coords(self) -> Coords:
        return Coords(IDS[::-1], ("Intercept", "x"))

    def theta(self) -> dict[str, torch.Tensor]:
        corr = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
        return {"sd": _double(0.8, 1.7), "corr_cholesky": corr}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        part = torch.from_numpy(FRAME.loc[list(coords.levels), list(coords.levels)].to_numpy().copy())
        sd, corr = torch.diag(theta["sd"]), theta["corr_cholesky"] @ theta["corr_cholesky"].T
        return torch.kron(part, sd @ corr @ sd)


class TestKinshipOfMarkers(CovarianceSuite):
    markers = pd.DataFrame([[0, 1, 2, 0], [1, 1, 0, 2], [2, 0, 1, 0], [1, 2, 2, 1], [0, 1, 0, 2]], index=list("pqrst"))

    def make(self) -> Kinship:
        return Kinship(markers=self.markers)

    def coords(self) -> Coords:
        return Coords(("r", "s", "p"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(1.3)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        m = self.markers.to_numpy(dtype=float)
        n, count = m.shape
        p = [sum(m[i, j] for i in range(n)) / (2 * n) for j in range(count)]
        scale = 2 * sum(x * (1 - x) for x in p)
        at = [list(self.markers.index).index(level) for level in coords.levels]
        g = [[sum((m[i, k] - 2 * p[k]) * (m[j, k] - 2 * p[k]) for k in range(count)) / scale for j in at] for i in at]
        return theta["sd"] ** 2 * torch.tensor(g, dtype=torch.float64)


# -- identities ------------------------------------------------------------------------------------------------------
def test_unrelated_levels_are_iid() -> None:
    coords = Coords(IDS, ("Intercept",))
    found = Kinship((np.eye(4), IDS)).operator({"sd": _double(0.7)}, coords)
    expected = pmx.IID().operator({"sd": torch.tensor(0.7, dtype=torch.float64)}, coords)
    u = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    assert float(found.log_prob(u)) == pytest.approx(float(expected.log_prob(u)), abs=1e-12)
    torch.testing.assert_close(found.dense(), expected.dense(), atol=1e-14, rtol=0)


def test_columns_are_matched_by_label() -> None:
    shuffled = FRAME[list("dbca")]
    coords = Coords(IDS, ("Intercept",))
    found = Kinship(shuffled).operator({"sd": _double(1.0)}, coords).dense()
    torch.testing.assert_close(found, torch.from_numpy(K), atol=1e-13, rtol=0)


def test_a_singular_matrix_draws_and_has_no_density() -> None:
    twins = np.array([[1.0, 1.0, 0.3], [1.0, 1.0, 0.3], [0.3, 0.3, 1.0]])
    operator = Kinship((twins, IDS[:3])).operator({"sd": _double(2.0)}, Coords(IDS[:3], ("Intercept",)))
    torch.testing.assert_close(operator.dense(), 4 * torch.from_numpy(twins), atol=1e-12, rtol=0)
    root = operator.separable().root
    assert torch.equal(root, root.tril()) and bool((root.diagonal() >= 0).all())
    assert operator.logdet_factor() == -math.inf
    assert operator.log_prob(torch.ones(3, 1, dtype=torch.float64)) == -math.inf


def test_a_centred_genomic_matrix_is_singular_and_exact() -> None:
    genotypes = np.random.default_rng(1).integers(0, 3, (30, 200)).astype(float)
    g, ids = vanraden((genotypes, range(30)))
    root = Kinship((g, ids)).operator({"sd": _double(1.0)}, Coords(tuple(ids), ("Intercept",))).separable().root
    torch.testing.assert_close(root @ root.T, torch.from_numpy(g), atol=1e-12, rtol=0)
    assert root.diagonal().min() == 0.0


def test_missing_genotypes_take_the_mean_and_fixed_markers_drop_out() -> None:
    markers = np.array([[0.0, 2.0, 1.0], [np.nan, 2.0, 0.0], [1.0, 2.0, 2.0], [2.0, 2.0, np.nan]])
    filled = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    p = filled.mean(0) / 2
    expected = (filled - 2 * p) @ (filled - 2 * p).T / (2 * (p * (1 - p)).sum())
    found, ids = vanraden((markers, IDS))
    assert list(ids) == list(IDS)
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_it_is_saved_in_plain_values() -> None:
    config = Kinship(FRAME, sd=2.0, terms=Unstructured(corr=0.5)).config()
    again = from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    theta = again.parameters(Coords(IDS, ("Intercept", "x")))
    assert [p.fixed is not None for p in theta] == [True, True]
    with pytest.raises(ConfigError, match=r"id Timestamp.* is a Timestamp; only text and numbers can be saved"):
        Kinship((np.eye(1), [pd.Timestamp("2020-01-01")])).config()
    with pytest.raises(ConfigError, match=r"2001 ids is not written into a saved model \(limit 2000\)"):
        Kinship((np.eye(2001), range(2001))).config()


def test_the_root_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyromix.covariances.known_matrix as module

    calls, made = [], module.semidefinite_root
    monkeypatch.setattr(module, "semidefinite_root", lambda m: calls.append(1) or made(m))
    structure = Kinship(FRAME)
    for sd in (1.0, 2.0, 3.0):
        structure.operator({"sd": _double(sd)}, Coords(IDS, ("Intercept",))).separable()
    assert len(calls) == 1


# -- bad input -------------------------------------------------------------------------------------------------------
def _with(i: int, j: int, value: float) -> np.ndarray:
    matrix = K.copy()
    matrix[i, j] = value
    return matrix


BAD = [
    (lambda: Kinship(), ConfigError, r"Kinship: got nothing; pass one of K=, markers=, pedigree="),
    (lambda: Kinship(FRAME, markers=FRAME), ConfigError, r"got K and markers"),
    (lambda: Kinship(K), ConfigError, r"K=: got a ndarray; pass a pandas DataFrame .* or \(array, ids\)"),
    (lambda: Kinship((K[:3], IDS)), StructureError, r"shape \(3, 4\) for 4 ids is not \(ids, ids\)"),
    (lambda: Kinship((K, IDS[:3])), StructureError, r"shape \(4, 4\) for 3 ids"),
    (lambda: Kinship(FRAME.iloc[:3]), StructureError, r"shape \(3, 4\) is not square"),
    (lambda: Kinship(FRAME.rename(columns={"b": "z"})), StructureError, r"column 'z' is no row"),
    (lambda: Kinship((K, list("aabc"))), StructureError, r"id 'a' is there more than once"),
    (
        lambda: Kinship((_with(0, 1, -0.4), IDS)),
        StructureError,
        r"not symmetric, ids 'a' and 'b' have -0\.4 and -0\.6 \(largest difference 0\.2\)",
    ),
    (lambda: Kinship((_with(2, 2, math.nan), IDS)), DataError, r"entry nan for ids 'c' and 'c'"),
    (
        lambda: Kinship(([[1.0, 2.0], [2.0, 1.0]], "ab")),
        StructureError,
        r'smallest eigenvalue is -1 \(the largest 3\); repair="nearest"',
    ),
    (lambda: Kinship(FRAME, repair="jitter"), ConfigError, r"Kinship\(repair='jitter'\): choose None or \"nearest\""),
    (lambda: Kinship(FRAME, sd=-1.0), ConfigError, r"Kinship\(sd=\.\.\.\): -1\.0 is not allowed"),
    (lambda: Kinship(FRAME, terms="us"), ConfigError, r"Kinship\(terms='us'\): pass a structure of the terms"),
    (lambda: Kinship(FRAME, sd=1.0, terms=Unstructured(sd=2.0)), ConfigError, r"the SDs are given twice"),
    (
        lambda: Kinship(markers=pd.DataFrame([[0, 3]], index=["a"], columns=["m1", "m2"])),
        DataError,
        r"markers=: 3 for id 'a', marker 'm2': genotypes are allele counts",
    ),
    (lambda: Kinship(markers=([[1.0], [1.0]], "ab")), DataError, r"every marker has one genotype only"),
    (lambda: Kinship(markers=([[np.nan, 1], [np.nan, 2]], "ab")), DataError, r"marker 0 has no genotype; drop it"),
    (lambda: Kinship(markers=([["AA"], ["AT"]], "ab")), DataError, r"markers=: its entries are not all numbers"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_refused_where_it_is_written(make, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_levels_that_the_matrix_lacks_are_named() -> None:
    with pytest.raises(StructureError, match=r"Kinship: 2 of 3 levels are not among its ids \('x', 'y'\); add them"):
        Kinship(FRAME).operator({"sd": _double(1.0)}, Coords(("x", "a", "y"), ("Intercept",)))
    with pytest.raises(StructureError, match=r"levels are str, its ids int: convert one of them"):
        Kinship((np.eye(2), [1, 2])).operator({"sd": _double(1.0)}, Coords(("1", "2"), ("Intercept",)))


def test_negative_eigenvalues_are_set_to_zero_on_request() -> None:
    matrix = np.array([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1; the nearest is 1.5 everywhere
    with pytest.warns(JitterWarning, match=r"smallest eigenvalue -1; .* changed entries by 0\.5 at most"):
        structure = Kinship((matrix, "ab"), repair="nearest")
    dense = structure.operator({"sd": _double(1.0)}, Coords(("a", "b"), ("Intercept",))).dense()
    torch.testing.assert_close(dense, torch.full((2, 2), 1.5, dtype=torch.float64), atol=1e-12, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_config(structure.config())


def test_eigenvalues_a_little_below_zero_are_reported() -> None:
    matrix = np.ones((3, 3)) - 1e-10 * np.diag([1.0, 1.0, 1.0])
    with pytest.warns(JitterWarning, match="negative eigenvalues were set to zero"):
        Kinship((matrix, "abc"))


# -- fits ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suite", [TestKinship, TestKinshipWithCorrelatedTerms], ids=["independent", "correlated"])
def test_maximum_likelihood_is_that_of_the_dense_normal(suite: type[CovarianceSuite]) -> None:
    rng = np.random.default_rng(7)
    g, ids = vanraden((rng.integers(0, 3, (25, 60)).astype(float), [f"id{i}" for i in range(25)]))
    frame = pd.DataFrame(0.95 * g + 0.05 * np.eye(25), index=ids, columns=ids)
    coords = Coords(tuple(ids[:20]), ("Intercept", "x"))
    terms = None if suite is TestKinship else Unstructured()
    theta = suite().theta()

    def dense(at: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        part = torch.from_numpy(frame.loc[list(coords.levels), list(coords.levels)].to_numpy().copy())
        root = torch.diag(at["sd"])
        if "corr_cholesky" in at:
            root = root @ at["corr_cholesky"]
        return torch.kron(part, root @ root.T)

    check_gaussian_fit(Kinship(frame, terms=terms), coords, dense, theta)


def test_formulas_match_rows_by_label() -> None:
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"id": np.repeat(list("dbac"), 6), "y": rng.normal(size=24)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.FewGroupsWarning)
        warnings.simplefilter("ignore", pmx.SingularFitWarning)
        fits = [
            pmx.model("y ~ 1 + (1 | id)", data, covariances={"id": Kinship(frame)}).fit(progress=False)
            for frame in (FRAME, FRAME.loc[list("bdca"), list("acdb")])
        ]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, abs=1e-10)


def test_singular_relationships_are_sampled() -> None:
    """VanRaden's matrix of centred markers has rank n - 1 at most; NUTS against nested Laplace, exact here.

    Means within 0.35 SD: seven Monte Carlo errors of 400 draws.
    """
    rng = np.random.default_rng(2)
    markers = pd.DataFrame(rng.binomial(2, 0.4, (12, 40)), index=range(12))
    data = pd.DataFrame({"id": np.repeat(np.arange(12), 4)})
    data["y"] = np.repeat(rng.normal(size=12), 4) + 0.5 * rng.normal(size=48)
    model = pmx.model("y ~ 1 + (1 | id)", data, covariances={"id": Kinship(markers=markers)})
    nuts = model.fit(pmx.NUTS(draws=400, tune=200, chains=2), progress=False).draws()
    nested = model.fit(pmx.NestedLaplace(draws=1000), progress=False).draws()
    for name in ("id", "id.sd", "y.sigma", "beta"):
        off = (nuts[name].mean(0) - nested[name].mean(0)).abs() / nested[name].std(0)
        assert float(off.max()) < 0.35, name
