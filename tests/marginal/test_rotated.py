"""One effect correlated by a known matrix, on its eigenvectors: against dense algebra and the general way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix.linalg import known
from pyromix.marginal import rotated
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.rotated import BoundRotated
from pyromix.running import run
from tests.marginal.correlated_structures import number

LEVELS = 14
SD, SIGMA = 0.9, 0.6


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def relationship(singular: bool) -> np.ndarray:
    """A centred genomic matrix, which is singular, or that plus something."""
    z = np.random.default_rng(5).normal(size=(LEVELS, 40))
    z -= z.mean(0)
    return z @ z.T / 40 + (0.0 if singular else 0.1) * np.eye(LEVELS)


@dataclass
class Case:
    """Rows, the program on them, and its covariances written out."""

    index: np.ndarray
    design: np.ndarray | None = None
    counts: np.ndarray | None = None
    singular: bool = False

    def __post_init__(self) -> None:
        rng = np.random.default_rng(len(self.index))
        n = len(self.index)
        self.k = relationship(self.singular)
        self.x, self.y = np.column_stack([np.ones(n), rng.normal(size=n)]), rng.normal(size=n)
        place = np.zeros((n, LEVELS))
        place[np.arange(n), self.index] = 1.0 if self.design is None else self.design[:, 0]
        self.repeat = np.arange(n) if self.counts is None else np.repeat(np.arange(n), self.counts)
        self.z = place[self.repeat]
        self.values = {"beta": double(0.3, -0.2), "g.sd": double(SD), "y.sigma": number(SIGMA)}
        self.v = SD**2 * self.z @ self.k @ self.z.T + SIGMA**2 * np.eye(len(self.repeat))

    @property
    def program(self) -> Callable[[Any], None]:
        labels = tuple(f"id {k}" for k in range(LEVELS))
        effect = pmx.RandomEffect("g", pmx.Kinship((self.k, labels)), labels)
        linear = pmx.LinearEffect("beta")
        index, x, y = torch.from_numpy(self.index), torch.from_numpy(self.x), torch.from_numpy(self.y)
        design = None if self.design is None else torch.from_numpy(self.design)
        weights = None if self.counts is None else torch.from_numpy(self.counts.astype(float))

        def program(data: Any) -> None:
            pmx.observe("y", pmx.Gaussian(), linear(x) + effect(index, design), y, weights=weights)

        return program

    def generalised(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients by generalised least squares, and their covariance."""
        x, w = self.x[self.repeat], np.linalg.inv(self.v)
        covariance = np.linalg.inv(x.T @ w @ x)
        return covariance @ x.T @ w @ self.y[self.repeat], covariance

    def log_likelihood(self, coefficients: str) -> float:
        x, y, w = self.x[self.repeat], self.y[self.repeat], np.linalg.inv(self.v)
        beta = self.values["beta"].numpy() if coefficients == "keep" else self.generalised()[0]
        r = y - x @ beta
        value = -0.5 * (len(y) * np.log(2 * np.pi) + np.linalg.slogdet(self.v)[1] + r @ w @ r)
        if coefficients == "integrate":
            value += np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(x.T @ w @ x)[1]
        return float(value)

    def effects(self, coefficients: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of all levels given the data; coefficients that are integrated out add theirs."""
        beta = self.values["beta"].numpy() if coefficients == "keep" else self.generalised()[0]
        gain = SD**2 * self.k @ self.z.T @ np.linalg.inv(self.v)
        covariance = SD**2 * self.k - gain @ self.z @ self.k * SD**2
        if coefficients == "integrate":
            follow = gain @ self.x[self.repeat]
            covariance = covariance + follow @ self.generalised()[1] @ follow.T
        return gain @ (self.y - self.x @ beta)[self.repeat], covariance


def _cases() -> dict[str, Case]:
    rng = np.random.default_rng(8)
    one = rng.permutation(LEVELS)
    several = rng.integers(0, LEVELS - 3, 40)  # three levels without rows
    slopes = np.random.default_rng(2).normal(size=(40, 1))
    return {
        "one row a level": Case(one),
        "singular": Case(one, singular=True),
        "levels without rows": Case(one[:9]),
        "repeated rows": Case(several),
        "repeated, singular": Case(several, singular=True),
        "as many rows each": Case(np.repeat(np.arange(LEVELS), 3)),
        "a slope": Case(several, slopes),
        "frequency weights": Case(several, None, rng.integers(0, 4, 40)),
    }


CASES = _cases()
MODES = ("keep", "profile", "integrate")
cases = pytest.mark.parametrize("name", CASES)
modes = pytest.mark.parametrize("coefficients", MODES)


def bind(case: Case, coefficients: str) -> tuple[BoundRotated, Any]:
    bound = pmx.Exact(coefficients).prepare(case.program, (None,))
    assert isinstance(bound, BoundRotated)
    return bound, run(case.program, (None,), case.values)


@modes
@cases
def test_the_likelihood_is_the_dense_one(name: str, coefficients: str) -> None:
    case = CASES[name]
    bound, record = bind(case, coefficients)
    assert float(bound.log_marginal(record)) == pytest.approx(case.log_likelihood(coefficients), rel=1e-11)
    if coefficients != "keep":
        estimate, covariance = bound.coefficients_at(record)["beta"]
        expected = case.generalised()
        assert_allclose(estimate, expected[0], rtol=1e-9)
        assert_allclose(covariance, expected[1], rtol=1e-9)


@modes
@cases
def test_effects_given_the_data_are_the_dense_ones(name: str, coefficients: str) -> None:
    case = CASES[name]
    bound, record = bind(case, coefficients)
    mean, covariance = case.effects(coefficients)
    found = bound.conditional(record)
    assert_allclose(found.mode["g"][:, 0], mean, atol=1e-11)
    assert_allclose(found.sd["g"][:, 0] ** 2, covariance.diagonal(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("coefficients", ["keep", "integrate"])
@cases
def test_the_general_way_agrees(name: str, coefficients: str) -> None:
    case = CASES[name]
    bound, record = bind(case, coefficients)
    general = bound.general()
    assert isinstance(general, BoundCorrelated)
    assert float(bound.log_marginal(record)) == pytest.approx(float(general.log_marginal(record)), rel=1e-10)
    ours, theirs = bound.conditional(record), general.conditional(record)
    assert_allclose(ours.mode["g"], theirs.mode["g"], atol=1e-9)
    assert_allclose(ours.sd["g"], theirs.sd["g"], atol=1e-7)
    for site, (estimate, covariance) in general.coefficients_at(record).items():
        assert_allclose(bound.coefficients_at(record)[site][0], estimate, rtol=1e-8)
        assert_allclose(bound.coefficients_at(record)[site][1], covariance, rtol=1e-8)


@modes
@cases
def test_gradients_are_those_of_differences(name: str, coefficients: str) -> None:
    case = CASES[name]
    bound, _ = bind(case, coefficients)
    values = dict(case.values) if coefficients == "keep" else {**case.values, "beta": double(0.0, 0.0)}
    free = {key: value.clone().requires_grad_(True) for key, value in values.items()}
    wanted = [key for key in free if coefficients == "keep" or key != "beta"]
    slopes = torch.autograd.grad(bound.log_marginal(run(case.program, (None,), free)), [free[key] for key in wanted])
    for key, slope in zip(wanted, slopes, strict=True):
        for i in range(slope.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                moved = values[key].clone()
                moved.view(-1)[i] += step
                sides.append(float(bound.log_marginal(run(case.program, (None,), {**values, key: moved}))))
            assert float(slope.view(-1)[i]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("way", ["rotated", "general"])
@pytest.mark.parametrize("name", ["one row a level", "levels without rows", "repeated rows"])
def test_draws_have_the_joint_distribution_of_coefficients_and_effects(name: str, way: str) -> None:
    """40,000 draws: five standard errors of every covariance; false alarm below 1e-3 over all entries."""
    case = CASES[name]
    bound, record = bind(case, "integrate")
    beta, spread = case.generalised()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((40_000, 2), generator=generator, dtype=torch.float64)
    shift = noise @ torch.linalg.cholesky(torch.from_numpy(spread)).T
    chosen = bound if way == "rotated" else bound.general()
    drawn = chosen.conditional(record).draw(40_000, generator, {"beta": shift})["g"][..., 0]
    mean, covariance = case.effects("integrate")
    follow = -(SD**2) * case.k @ case.z.T @ np.linalg.inv(case.v) @ case.x[case.repeat]
    expected = np.block([[covariance, follow @ spread], [spread @ follow.T, spread]])
    found = torch.cat([drawn, shift], 1).T.cov().numpy()
    sd = np.sqrt(expected.diagonal())
    assert (np.abs((found - expected) / np.outer(sd, sd)) < 5 * 2**0.5 / 200).all()
    assert_allclose(drawn.mean(0), mean, atol=5 * sd.max() / 200)


def test_a_zero_sd_is_an_ordinary_value() -> None:
    case = CASES["repeated rows"]
    bound, _ = bind(case, "keep")
    record = run(case.program, (None,), {**case.values, "g.sd": double(0.0)})
    r = case.y - case.x @ case.values["beta"].numpy()
    expected = -0.5 * (r @ r / SIGMA**2 + len(r) * np.log(2 * np.pi * SIGMA**2))
    assert float(bound.log_marginal(record)) == pytest.approx(expected, rel=1e-12)
    found = bound.conditional(record)
    assert float(found.mode["g"].abs().max()) == 0.0 == float(found.sd["g"].max())


def test_a_small_residual_costs_no_digits() -> None:
    """The response all but interpolated: residual SDs 1e-5 of the effects', against 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    case = CASES["one row a level"]
    bound, _ = bind(case, "keep")
    sigma = 1e-5
    record = run(case.program, (None,), {**case.values, "y.sigma": number(sigma)})
    with mpmath.workdps(60):
        z, k = mpmath.matrix(case.z.tolist()), mpmath.matrix(case.k.tolist())
        tau = mpmath.mpf(SD)
        v = tau**2 * z * k * z.T + mpmath.mpf(sigma) ** 2 * mpmath.eye(LEVELS)
        beta = mpmath.matrix(case.values["beta"].tolist())
        r = mpmath.matrix(case.y.tolist()) - mpmath.matrix(case.x.tolist()) * beta
        solved = mpmath.lu_solve(v, r)
        log_likelihood = -((r.T * solved)[0] + mpmath.log(mpmath.det(v)) + LEVELS * mpmath.log(2 * mpmath.pi)) / 2
        mode = tau**2 * k * z.T * solved
        left = tau**2 * k - tau**4 * k * z.T * mpmath.inverse(v) * z * k
        sd = [float(mpmath.sqrt(left[i, i])) for i in range(LEVELS)]
        expected, mode = float(log_likelihood), [float(x) for x in mode]
    assert float(bound.log_marginal(record)) == pytest.approx(expected, rel=1e-11)
    found = bound.conditional(record)
    assert_allclose(found.mode["g"][:, 0], mode, rtol=1e-11)
    assert_allclose(found.sd["g"][:, 0], sd, rtol=1e-9)


# -- which programs take it, and what they cost ----------------------------------------------------------------------
def frame(n: int = LEVELS) -> tuple[pd.DataFrame, pmx.Kinship]:
    rng = np.random.default_rng(1)
    labels = [f"id {k}" for k in range(LEVELS)]
    data = pd.DataFrame({"id": np.resize(labels, n), "h": np.resize(list("abcdefg"), n), "x": rng.normal(size=n)})
    u = np.linalg.cholesky(relationship(False)) @ rng.normal(size=LEVELS)
    y = data["x"] + u[data["id"].str[3:].astype(int)] + 0.5 * rng.normal(size=n)
    return data.assign(y=y), pmx.Kinship((relationship(False), labels))


OTHERS = {
    "y ~ x + (1 | id) + (1 | h)": {},
    "y ~ x + (1 + x | id)": {},
    "y ~ x + (1 | id)": {"precision_weights": np.linspace(1, 2, 3 * LEVELS)},
}


@pytest.mark.parametrize("formula", OTHERS)
def test_other_programs_go_the_general_way(formula: str) -> None:
    data, kinship = frame(3 * LEVELS)
    model = pmx.model(formula, data, covariances={"id": kinship}, **OTHERS[formula])
    assert isinstance(pmx.Exact().prepare(model.program, (model.design,)), BoundCorrelated)


@pytest.mark.parametrize(
    ("structure", "is_rotated"),
    [
        (pmx.AR1(rho=0.6), True),
        (pmx.AR1(), False),
        (pmx.OU(rate=0.5), True),
        (pmx.ARMA(1, 1), False),
        (pmx.ARMA(1, 1, pacf_ar=0.5, pacf_ma=0.3), True),
    ],
    ids=repr,
)
def test_any_structure_that_is_only_scaled_is_rotated(structure: Any, is_rotated: bool) -> None:
    rng = np.random.default_rng(4)
    effect, index = pmx.RandomEffect("t", structure, tuple(range(9))), torch.from_numpy(rng.integers(0, 9, 30))
    y = torch.from_numpy(rng.normal(size=30))

    def program(data: Any) -> None:
        pmx.observe("y", pmx.Gaussian(), effect(index), y)

    bound = pmx.Exact().prepare(program, (None,))
    assert isinstance(bound, BoundRotated if is_rotated else BoundCorrelated)
    if is_rotated:
        record = run(program, (None,), hypers="moderate", seed=2)
        general = bound.general()
        assert float(bound.log_marginal(record)) == pytest.approx(float(general.log_marginal(record)), rel=1e-10)
        assert_allclose(bound.conditional(record).mode["t"], general.conditional(record).mode["t"], atol=1e-10)


def test_a_fit_decomposes_once_and_makes_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, made = [], known.semidefinite_eigen
    monkeypatch.setattr(known, "semidefinite_eigen", lambda m: calls.append(len(m)) or made(m))
    data, kinship = frame(3 * LEVELS)
    monkeypatch.setattr("pyromix.covariances.known_matrix.semidefinite_root", lambda m: pytest.fail("a root was made"))
    model = pmx.model("y ~ x + (1 | id)", data, covariances={"id": kinship})
    for criterion in ("reml", "ml"):
        fit = model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)
        fit.random_effects("id", "sd"), fit.summary(), fit.variance_components(), fit.predict()
    assert calls == [LEVELS]


def test_sds_of_the_effects_are_computed_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, made = [], rotated._Effects.variance
    monkeypatch.setattr(rotated._Effects, "variance", lambda self: calls.append(1) or made(self))
    data, kinship = frame(3 * LEVELS)
    fit = pmx.model("y ~ x + (1 | id)", data, covariances={"id": kinship}).fit(progress=False)
    fit.summary(), fit.predict(), fit.heritability()
    assert not calls
    assert (fit.random_effects("id", "sd") > 0).all(axis=None)
    fit.random_effects("id", "sd")
    assert len(calls) == 1


@pytest.mark.parametrize("criterion", ["reml", "ml", "map"])
def test_fits_are_those_of_the_general_way(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kinship = frame(3 * LEVELS)
    model = pmx.model("y ~ x + (1 | id)", data, covariances={"id": kinship})
    ours = model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)
    monkeypatch.setattr("pyromix.marginal.exact.known_covariance", lambda *_: None)
    theirs = model.fit(pmx.MaximumLikelihood(criterion=criterion), progress=False)
    assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-8)
    assert_allclose(ours.variance_components()["sd"], theirs.variance_components()["sd"], rtol=1e-5)
    assert_allclose(ours.fixed_effects()["estimate"], theirs.fixed_effects()["estimate"], rtol=1e-5)
    assert_allclose(ours.random_effects("id"), theirs.random_effects("id"), atol=1e-5)
