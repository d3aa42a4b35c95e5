"""Gaussian processes as sums of functions: against dense algebra, and ever closer to the process itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, RQKernel, ScaleKernel
from torch.distributions import MultivariateNormal

import pyromix as pmx
from pyromix.covariances import GP, Coords, HilbertSpace, InducingPoints, Kronecker, Unstructured, from_config
from pyromix.errors import ConfigError, DataError
from pyromix.testing import CovarianceSuite

ONE = ("Intercept",)
PLACES = torch.tensor([[0.0, 0.3], [1.2, -0.4], [2.0, 1.0], [0.4, 2.2], [3.1, 0.1]], dtype=torch.float64)


def _number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class _OfFunctions(CovarianceSuite):
    """The array is of coefficients: one row of functions times terms."""

    functions = 0

    def shape(self) -> tuple[int, int]:
        return 1, self.functions * len(self.coords().terms)

    def coords(self) -> Coords:
        return Coords(tuple("abcde"), ONE, PLACES)


class TestHilbertSpace(_OfFunctions):
    functions = 12

    def make(self) -> GP:
        return GP(MaternKernel(nu=1.5, ard_num_dims=2), approximation=HilbertSpace((3, 4), 1.4))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(0.8), "lengthscale": _double(0.9, 1.4)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        half = 1.4 * _double(3.1, 2.6) / 2
        variances = []
        for j in range(1, 4):
            for k in range(1, 5):
                omega = _double(j, k) * math.pi / (2 * half)
                squares = (theta["lengthscale"] * omega).square().sum()
                # 2^d pi^(d/2) Gamma(nu + d/2) (2 nu)^nu / Gamma(nu), d = 2 and nu = 3/2
                constant = 4 * math.pi * math.gamma(2.5) * 3**1.5 / math.gamma(1.5)
                variances.append(constant * theta["lengthscale"].prod() * (3 + squares) ** -2.5)
        return theta["sd"] ** 2 * torch.diag(torch.stack(variances))


class TestHilbertSpaceOfASum(_OfFunctions):
    """Correlated terms, a weighed part."""

    functions = 5

    def make(self) -> GP:
        kernel = RBFKernel() + ScaleKernel(MaternKernel(nu=0.5))
        return GP(kernel, terms=Unstructured(), approximation=HilbertSpace(5))

    def coords(self) -> Coords:
        return Coords((0.0, 0.7, 1.5, 3.0), ("Intercept", "x"))

    def permuted(self, coords: Coords, order: list[int]) -> Coords:
        return Coords(tuple(coords.levels[i] for i in order), coords.terms)

    def theta(self) -> dict[str, torch.Tensor]:
        corr = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)
        of_kernel = {"lengthscale_1": _number(0.9), "outputscale": _number(0.5), "lengthscale_2": _number(2.0)}
        return {"sd": _double(0.8, 1.7), "corr_cholesky": corr, **of_kernel}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        omega = torch.arange(1, 6, dtype=torch.float64) * math.pi / (2 * 1.5 * 1.5)
        smooth = math.sqrt(2 * math.pi) * theta["lengthscale_1"] * (-0.5 * (theta["lengthscale_1"] * omega) ** 2).exp()
        rough = theta["outputscale"] * 2 * theta["lengthscale_2"] / (1 + (theta["lengthscale_2"] * omega) ** 2)
        root = torch.diag(theta["sd"]) @ theta["corr_cholesky"]
        return torch.kron(torch.diag(smooth + rough), root @ root.T)


class TestInducingPoints(_OfFunctions):
    functions = 3
    points = torch.tensor([[0.0, 0.0], [2.0, 0.5], [1.0, 2.0]], dtype=torch.float64)

    def make(self) -> GP:
        return GP(RBFKernel(), nugget=0.01, approximation=InducingPoints(self.points))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(0.8), "lengthscale": _number(1.3)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        apart = (self.points[:, None] - self.points).square().sum(-1)
        c = torch.exp(-0.5 * apart / theta["lengthscale"] ** 2) + 0.01 * torch.eye(3, dtype=torch.float64)
        return theta["sd"] ** 2 * c


# -- closer to the process --------------------------------------------------------------------------------------------
def _implied(structure: GP, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
    f, inner = structure.functions(theta, coords), structure.operator(theta, coords).dense()
    assert f is not None
    return f @ inner @ f.mT


KERNELS = [
    (RBFKernel(), 1e-10),
    (MaternKernel(nu=2.5), 1e-5),
    (MaternKernel(nu=1.5), 2e-4),
    (MaternKernel(nu=0.5), 8e-3),
]


@pytest.mark.parametrize(("kernel", "limit"), KERNELS)
@pytest.mark.parametrize("make", [lambda m: HilbertSpace(m, 4.0), lambda m: InducingPoints(m)])
def test_the_error_falls_with_the_number_of_functions(kernel: Any, limit: float, make: Any) -> None:
    """At a length of half the half range; the last errors are of the order that the spectrum's tail leaves."""
    coords = Coords(tuple(np.linspace(0.0, 10.0, 300).tolist()), ONE)
    theta = {"sd": _double(1.0), "lengthscale": _number(2.5)}
    exact = GP(kernel, nugget=0.0).operator(theta, coords).dense()
    errors = []
    for m in (10, 30, 120):
        found = _implied(GP(kernel, nugget=1e-12, approximation=make(m)), theta, coords)
        errors.append(float((found - exact).abs().max()))
    assert errors[0] > errors[1] >= errors[2] or errors[2] < 1e-9
    assert errors[2] < max(limit, 1e-9) * 10


def test_two_dimensions_and_a_product() -> None:
    rng = np.random.default_rng(0)
    places = torch.from_numpy(rng.random((40, 2)) * 4)
    coords = Coords(tuple(range(40)), ONE, places)
    kernel = RBFKernel(active_dims=(0,)) * MaternKernel(nu=2.5, active_dims=(1,))
    theta = {"sd": _double(1.0), "lengthscale_1": _number(1.0), "lengthscale_2": _number(0.8)}
    exact = GP(kernel, nugget=0.0).operator(theta, coords).dense()
    errors = []
    for m in (6, 12, 24):
        approximate = GP(kernel, approximation=HilbertSpace(m, 2.5))
        errors.append(float((_implied(approximate, theta, coords) - exact).abs().max()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 5e-3


def test_points_at_all_places_are_the_process() -> None:
    coords = Coords((0.0, 0.7, 1.5, 3.0, 0.7), ONE)
    coords = Coords(tuple("abcde"), ONE, [0.0, 0.7, 1.5, 3.0, 0.7])
    theta = {"sd": _double(2.0), "lengthscale": _number(1.1)}
    exact = GP(MaternKernel(), nugget=0.0).operator(theta, coords).dense()
    found = _implied(GP(MaternKernel(), nugget=1e-12, approximation=InducingPoints(4)), theta, coords)
    torch.testing.assert_close(found, exact, atol=1e-7, rtol=0)


# -- fits -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def series() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    t = np.round(rng.random(120) * 10, 3)
    t[100:] = t[:20]  # some times twice
    curve = np.sin(t) + 0.5 * np.cos(2.3 * t)
    return pd.DataFrame({"t": t, "x": rng.standard_normal(120), "y": 1.0 + curve + 0.3 * rng.standard_normal(120)})


APPROXIMATIONS = [HilbertSpace(30, 2.0), InducingPoints(30)]


def _model(series: pd.DataFrame, approximation: Any, **arguments: Any) -> pmx.Model:
    structure = GP(MaternKernel(nu=2.5), approximation=approximation, **arguments)
    return pmx.model("y ~ x + (1 | t)", series, covariances={"t": structure})


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_a_fit_is_that_of_the_dense_normal(series: pd.DataFrame, approximation: Any) -> None:
    """Likelihood, its slope, modes, SDs and kriging against the algebra of the implied covariance."""
    fit = _model(series, approximation).fit(progress=False)
    at = {name: value.clone().requires_grad_(True) for name, value in fit.estimate.point.items()}
    levels = tuple(fit.random_effects("t").index)
    coords = Coords((*levels, 2.22, 9.5), ONE)
    theta = {"sd": at["t.sd"], "lengthscale": at["t.lengthscale"]}
    structure = GP(MaternKernel(nu=2.5), approximation=_fixed(approximation, levels))
    whole = _implied(structure, theta, coords)
    n, index = len(levels), pd.Index(levels).get_indexer(series["t"])
    x = torch.from_numpy(np.column_stack([np.ones(len(series)), series["x"]]))
    y = torch.tensor(series["y"].tolist(), dtype=torch.float64)
    marginal = whole[index][:, index] + at["y.sigma"] ** 2 * torch.eye(len(y), dtype=torch.float64)
    expected = MultivariateNormal(x @ at["beta"], marginal).log_prob(y)
    assert fit.log_likelihood == pytest.approx(float(expected.detach()), abs=1e-6)
    for slope in torch.autograd.grad(expected, list(at.values()), retain_graph=True):
        assert float(slope.abs().max()) < 1e-2
    with torch.no_grad():
        gain = torch.linalg.solve(marginal, whole[index]).mT
        mean = gain @ (y - x @ at["beta"])
        variance = (whole - gain @ whole[index]).diagonal()
    np.testing.assert_allclose(fit.random_effects("t").iloc[:, 0], mean[:n], atol=1e-6)
    np.testing.assert_allclose(fit.random_effects("t", "sd").iloc[:, 0], variance[:n].sqrt(), rtol=1e-5)
    new = pd.DataFrame({"t": [2.22, 9.5, levels[3]], "x": [0.0, 1.0, 0.0]})
    linear = (at["beta"][0] + at["beta"][1] * _double(0.0, 1.0, 0.0)).detach()
    wanted = linear + mean[[n, n + 1, 3]]
    np.testing.assert_allclose(fit.predict(new, new_groups="conditional"), wanted, atol=1e-6)
    np.testing.assert_allclose(fit.predict(new, new_groups="zero")[:2], linear[:2], atol=1e-9)
    np.testing.assert_allclose(fit.predict(new, new_groups="marginal")[:2], linear[:2], atol=1e-9)


def _fixed(approximation: Any, levels: tuple[float, ...]) -> Any:
    """The same functions whatever places come beside: the box, or the points, that these levels give."""
    if isinstance(approximation, HilbertSpace):
        low, high = min(levels), max(levels)
        assert low < 2.22 < 9.5 < high  # further places do not move the box
        return approximation
    chosen = GP(MaternKernel(), approximation=approximation)
    x = chosen._sites(Coords(levels, ONE))
    return InducingPoints(approximation._points(x))


@pytest.mark.parametrize("approximation", [HilbertSpace(60, 3.0), InducingPoints(40)])
def test_it_comes_close_to_the_process(series: pd.DataFrame, approximation: Any) -> None:
    exact, close = (_model(series, made).fit(progress=False) for made in (None, approximation))
    assert close.log_likelihood == pytest.approx(exact.log_likelihood, abs=0.2)
    both = [fit.random_effects("t").iloc[:, 0] for fit in (exact, close)]
    assert float((both[0] - both[1]).abs().max()) < 0.02
    new = pd.DataFrame({"t": [1.234, 8.765], "x": [0.0, 0.0]})
    bands = [fit.predict(new, new_groups="conditional", kind="interval") for fit in (exact, close)]
    assert float((bands[0] - bands[1]).abs().to_numpy().max()) < 0.15  # quantiles of 1,000 draws each
    assert "t.lengthscale" in close.summary() and f"groups: t, {len(both[0])}" in close.summary()


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_correlated_terms(series: pd.DataFrame, approximation: Any) -> None:
    structure = GP(RBFKernel(), terms=Unstructured(), approximation=approximation)
    more = 0.7 * np.sin(series["t"]) + 0.7 * np.cos(3.1 * series["t"])
    slopes = series.assign(y=series["y"] + series["x"] * more)
    fit = pmx.model("y ~ x + (x | t)", slopes, covariances={"t": structure}).fit(progress=False)
    assert fit.random_effects("t").shape == fit.random_effects("t", "sd").shape == (100, 2)
    assert fit.idata.posterior["t"].dims == ("chain", "draw", "t_part", "t_function")
    assert list(fit.variance_components()["name"][:2]) == ["Intercept", "x"]


def test_it_is_saved_and_loaded(series: pd.DataFrame, tmp_path: Any) -> None:
    for approximation in (*APPROXIMATIONS, HilbertSpace((12,), (1.7,)), InducingPoints([0.0, 3.0, 5.0, 7.0, 10.0])):
        structure = GP(RBFKernel(), approximation=approximation)
        config = json.loads(json.dumps(structure.config()))
        assert from_config(config).config() == structure.config()
    fit = _model(series, HilbertSpace(20, 2.0)).fit(progress=False)
    fit.save(tmp_path / "fit")
    again = pmx.load(tmp_path / "fit")
    pd.testing.assert_frame_equal(again.random_effects("t", "sd"), fit.random_effects("t", "sd"))
    new = pd.DataFrame({"t": [1.234], "x": [0.0]})
    np.testing.assert_allclose(*(f.predict(new, new_groups="conditional") for f in (fit, again)), rtol=1e-12)


BACKENDS = [
    pmx.NestedLaplace(draws=200),
    pmx.NUTS(draws=400, tune=400, chains=2),
    pmx.SVI(steps=600, draws=200),
    pmx.MaximumLikelihood(criterion="map"),
]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: type(b).__name__)
def test_every_backend(series: pd.DataFrame, backend: Any) -> None:
    model = _model(series, HilbertSpace(15, 1.6))
    fit = model.fit(backend, seed=1, progress=False)
    truth = np.sin(series["t"]) + 0.5 * np.cos(2.3 * series["t"])
    found = fit.random_effects("t")["Intercept"].reindex(series["t"]).to_numpy()
    error = (found - found.mean()) - (truth - truth.mean())
    assert float(np.sqrt((error**2).mean())) < 0.2
    assert (fit.random_effects("t", "sd").to_numpy() > 0).all()
    new = pd.DataFrame({"t": [1.234, 8.765], "x": [0.0, 0.0]})
    assert np.isfinite(fit.predict(new, new_groups="conditional", kind="interval").to_numpy()).all()


@pytest.mark.parametrize("approximation", [HilbertSpace(60, 3.0), InducingPoints(40)])
def test_counts(series: pd.DataFrame, approximation: Any) -> None:
    rng = np.random.default_rng(1)
    counts = series.assign(y=rng.poisson(np.exp(0.5 * series["y"])))
    structure = GP(MaternKernel(nu=2.5), approximation=approximation)
    made = pmx.model("y ~ x + (1 | t)", counts, pmx.Poisson(), covariances={"t": structure}).fit(progress=False)
    exact = pmx.model("y ~ x + (1 | t)", counts, pmx.Poisson(), covariances={"t": GP(MaternKernel(nu=2.5))})
    assert made.log_likelihood == pytest.approx(exact.fit(progress=False).log_likelihood, abs=0.05)


# -- bad input --------------------------------------------------------------------------------------------------------
LINE = Coords((0.0, 1.0, 2.5), ONE)
BAD = [
    (lambda: HilbertSpace(1), r"HilbertSpace\(functions=1\): pass whole numbers from 2 on"),
    (lambda: HilbertSpace(2.5), r"functions=2\.5"),
    (lambda: HilbertSpace(10, 1.0), r"boundary=1\.0\): pass numbers above 1"),
    (lambda: InducingPoints(1), r"InducingPoints\(1\): pass a number of points from 2 to 2000"),
    (lambda: InducingPoints([1.0, math.nan]), r"finite numbers"),
    (lambda: InducingPoints("many"), r"pass a number, or places as an array"),
    (lambda: GP(RBFKernel(), approximation="hilbert"), r"GP\(approximation='hilbert'\): pass HilbertSpace"),
    (lambda: GP(RBFKernel(), approximation=["Nystroem", {}]), r"saved approximation 'Nystroem' is unknown"),
    (lambda: Kronecker(GP(RBFKernel(), approximation=HilbertSpace(5)), GP(RBFKernel())), r"its parts are exact"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_refused_where_it_is_written(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


LATE = [
    (PeriodicKernel(), HilbertSpace(5), LINE, r"the spectral density of PeriodicKernel is not known; known are RBF"),
    (RBFKernel() * RQKernel(), HilbertSpace(5), LINE, r"RQKernel is not known"),
    (RBFKernel() * RBFKernel(), HilbertSpace(5), LINE, r"a product of kernels over the same dimensions"),
    (RBFKernel(active_dims=(0,)), HilbertSpace(5), Coords(tuple("abcde"), ONE, PLACES), r"does not use all coord"),
    (RBFKernel(), HilbertSpace((5, 5)), LINE, r"functions=\(5, 5\)\): the places have 1 dimensions"),
    (RBFKernel(), HilbertSpace(50), Coords(tuple("abcde"), ONE, PLACES), r"2500 functions; it takes 3 dim.* and 2000"),
    (RBFKernel(), HilbertSpace(5), Coords((1.0,), ONE), r"all places have one 'x1'"),
    (LinearKernel() * RBFKernel(), InducingPoints([[0.0, 1.0], [1.0, 0.0]]), LINE, r"they have 2 coordinates"),
]


@pytest.mark.parametrize(("kernel", "approximation", "coords", "message"), LATE)
def test_refused_where_the_effect_is_used(kernel: Any, approximation: Any, coords: Coords, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GP(kernel, sd=1.0, approximation=approximation).parameters(coords)


def test_sums_over_different_dimensions_are_refused() -> None:
    kernel = RBFKernel(active_dims=(0,)) + RBFKernel(active_dims=(1,))
    with pytest.raises(ConfigError, match="a sum of kernels over different dimensions"):
        GP(kernel, approximation=HilbertSpace(5)).parameters(Coords(tuple("abcde"), ONE, PLACES))


def test_places_outside_the_box_are_refused(series: pd.DataFrame) -> None:
    fit = _model(series, HilbertSpace(15, 1.2)).fit(progress=False)
    with pytest.raises(
        DataError, match=r"the place \[12\.0\] is outside the box \(-0\.957 to 10\.707\), .*larger boundary"
    ):
        fit.predict(pd.DataFrame({"t": [12.0], "x": [0.0]}), new_groups="conditional")


def test_too_many_places_name_the_options() -> None:
    coords = Coords(tuple(range(4001)), ONE)
    with pytest.raises(ConfigError, match=r"4001 sites, .* at most 4000; .*HilbertSpace\(\.\.\.\).*InducingPoints"):
        GP(RBFKernel()).parameters(coords)
    prior = GP(RBFKernel(), approximation=HilbertSpace(10)).parameters(coords)[1].prior
    assert isinstance(prior, dist.LogNormal)
    torch.testing.assert_close(prior.cdf(_double(400.0, 4000.0)), _double(0.01, 0.99), atol=1e-3, rtol=0)
