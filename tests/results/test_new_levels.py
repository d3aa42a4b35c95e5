"""Levels that the fit has not seen, where levels are correlated: against Gaussian algebra."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix.covariances import Coords
from pyromix.errors import PyromixError, StructureError, UnsupportedError
from pyromix.results.new_levels import law
from pyromix.sites import Latent, RowMap
from tests.marginal.correlated_structures import Decaying, number

KINDS = ("root", "precision", "whole")
KNOWN, NEW = 6, 3


def covariance(levels: int) -> torch.Tensor:
    at = torch.arange(levels, dtype=torch.float64)
    tril = torch.tensor([[1.0, 0.0], [0.4, 1.0]], dtype=torch.float64)
    return 0.49 * torch.kron(0.6 ** (at[:, None] - at).abs(), tril @ tril.T)


@pytest.fixture(params=KINDS)
def role(request: pytest.FixtureRequest) -> Latent:
    theta = {"sd": number(0.7), "rho": number(0.6)}
    labels, terms = tuple(range(KNOWN)), ("a", "b")

    def extend(new: tuple[int, ...]):  # type: ignore[no-untyped-def]
        return Decaying(request.param).operator(theta, Coords(labels + new, terms))

    return Latent(RowMap(torch.arange(KNOWN)), labels, terms, "t", extend)


def test_conditional_is_that_of_the_joint_gaussian(role: Latent, rng: np.random.Generator) -> None:
    u = torch.from_numpy(rng.standard_normal((KNOWN, 2)))
    mean, root = law("t", role, "conditional", [6, 7, 8], u)
    joint, old = covariance(KNOWN + NEW), 2 * KNOWN
    gain = torch.linalg.solve(joint[:old, :old], joint[:old, old:]).T
    assert_allclose(mean.reshape(-1), gain @ u.reshape(-1), atol=1e-12)
    assert_allclose(root @ root.T, joint[old:, old:] - gain @ joint[:old, old:], atol=1e-12)


def test_marginal_is_the_prior(role: Latent) -> None:
    mean, root = law("t", role, "marginal", [6, 7, 8], torch.ones(KNOWN, 2, dtype=torch.float64))
    assert not mean.any()
    assert_allclose(root @ root.T, covariance(KNOWN + NEW)[2 * KNOWN :, 2 * KNOWN :], atol=1e-12)


def test_levels_without_labels_have_no_place(role: Latent) -> None:
    with pytest.raises(UnsupportedError, match=r"'t'.*no labels.*RandomEffect\(levels"):
        law("t", role, "conditional", [], torch.zeros(KNOWN, 2, dtype=torch.float64))


# -- through a formula ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def series() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    u = np.zeros(30)
    for k in range(1, 30):
        u[k] = 0.8 * u[k - 1] + 0.6 * rng.standard_normal()
    time = np.repeat(np.arange(30), 3)
    return pd.DataFrame({"time": time, "y": 2.0 + u[time] + 0.3 * rng.standard_normal(90)})


@pytest.mark.parametrize("kind", KINDS)
def test_forecast_is_the_kriging_of_all_rows(kind: str, series: pd.DataFrame) -> None:
    model = pmx.model("y ~ 1 + (1 | time)", series, covariances={"time": Decaying(kind)})
    fit = model.fit(progress=False)
    point = {name: float(np.ravel(value)[0]) for name, value in fit.estimate.point.items()}
    sd, rho, sigma, mean = (point[name] for name in ("time.sd", "time.rho", "y.sigma", "beta"))
    new = pd.DataFrame({"time": [29, 30, 33, 31]})
    at = series["time"].to_numpy()
    data = sd**2 * rho ** np.abs(at[:, None] - at) + sigma**2 * np.eye(90)
    across = sd**2 * rho ** np.abs(new["time"].to_numpy()[:, None] - at)
    expected = mean + across @ np.linalg.solve(data, series["y"] - mean)
    # the three unseen times are placed in the order they appear in, whatever lies between them
    assert_allclose(fit.predict(new, new_groups="conditional")[:2], expected[:2], rtol=1e-8)
    assert_allclose(fit.predict(new, new_groups="marginal")[1:], mean, rtol=1e-10)
    assert_allclose(fit.predict(new, new_groups="zero")[1:], mean, rtol=1e-10)


def test_wrappers_in_a_formula_are_the_structures(series: pd.DataFrame) -> None:
    handed = pmx.model("y ~ 1 + (1 | time)", series, covariances={"time": pmx.AR1()}).fit(progress=False)
    written = pmx.model("y ~ 1 + ar1(1 | time)", series).fit(progress=False)
    assert written.log_likelihood == pytest.approx(handed.log_likelihood, abs=1e-9)
    assert "time.rho" in written.summary()
    process = pmx.model("y ~ 1 + ou(1 | time)", series).fit(progress=False)  # rho is positive here: the same model
    assert process.log_likelihood == pytest.approx(handed.log_likelihood, abs=1e-6)
    ahead = pd.DataFrame({"time": [30, 45]})
    expected = handed.predict(ahead, new_groups="conditional")
    assert_allclose(process.predict(ahead, new_groups="conditional"), expected, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_comes_before_the_start_of_a_walk(order: int) -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(["a", "b"], 20), "t": np.tile(np.arange(5, 25), 2), "y": rng.normal(size=40)})
    known = {"g:t.sd": 0.5, "y.sigma": 0.5}
    fit = pmx.model(f"y ~ 1 + rw(1 | g:t, order={order})", data, priors=known).fit(progress=False)
    early = pd.DataFrame({"g": ["a", "b"], "t": [25, 4]})
    for policy in ("conditional", "marginal"):
        with pytest.raises(StructureError, match=r"RandomWalk: level \('b', 4\) lies before \('b', 5\)"):
            fit.predict(early, new_groups=policy)
        assert np.isfinite(fit.predict(early.assign(g=["a", "c"]), new_groups=policy)).all()  # c is a walk of its own
    assert np.isfinite(fit.predict(early, new_groups="zero")).all()


def test_nothing_comes_before_a_walk_in_a_product() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(list("abcdef"), 6), "t": np.tile(np.arange(5, 11), 6)})
    data["y"] = rng.normal(size=36)
    model = pmx.model("y ~ 1 + kron(1 | g:t, iid, rw)", data, priors={"g:t.sd": 0.5, "y.sigma": 0.5})
    fit = model.fit(progress=False)
    with pytest.raises(StructureError, match="RandomWalk: level 4 lies before 5"):
        fit.predict(pd.DataFrame({"g": ["a"], "t": [4]}), new_groups="conditional")
    assert np.isfinite(fit.predict(pd.DataFrame({"g": ["new"], "t": [5]}), new_groups="conditional")).all()


def test_a_walk_of_second_order_is_forecast_step_by_step() -> None:
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"t": np.repeat(np.arange(20), 2), "y": rng.normal(size=40)})
    fit = pmx.model("y ~ 1 + rw(1 | t, order=2)", data, priors={"t.sd": 0.3, "y.sigma": 1.0}).fit(progress=False)
    with pytest.raises(StructureError, match="levels 19 and 22 are 3 apart.*Predict the steps between as well"):
        fit.predict(pd.DataFrame({"t": [22]}), new_groups="conditional")
    u, beta = fit.estimate.latents["t"][:, 0].numpy(), float(fit.estimate.point["beta"][0])
    found = fit.predict(pd.DataFrame({"t": [20, 21, 22]}), new_groups="conditional") - beta
    np.testing.assert_allclose(found, u[19] + (u[19] - u[18]) * np.arange(1, 4), rtol=1e-8)


@pytest.mark.parametrize("wrapper", ["gp(day)", "spde(day)", "ar1(1 | day)", "rw(1 | day)"])
def test_dates_are_to_be_numbers(wrapper: str) -> None:
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.repeat(np.arange(12), 2), unit="D")
    data = pd.DataFrame({"day": day, "y": np.random.default_rng(0).normal(size=24)})
    with pytest.raises(PyromixError, match=r"make (a number of it|numbers of them), such as \(date - date.min\(\)\)"):
        pmx.model(f"y ~ 1 + {wrapper}", data).fit(progress=False)
