"""Point fits along directions that the likelihood does not know: said, held, and nothing else lost with them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from gpytorch.kernels import PeriodicKernel, RBFKernel

import pyromix as pmx


def quiet(model: pmx.Model) -> pmx.Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(progress=False)


@pytest.fixture(scope="module")
def irrelevant() -> tuple[pmx.Fit, pd.DataFrame]:
    """A surface that does not depend on its second coordinate, with a length for each."""
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 10, (50, 2))
    data = pd.DataFrame({"s": np.arange(50), "x": x[:, 0], "z": x[:, 1]})
    data["y"] = 1.5 * np.sin(data["x"]) + 0.3 * rng.normal(size=50)
    new = pd.DataFrame({"s": [100, 101], "x": [2.0, 5.0], "z": [5.0, 5.0]})
    places = pd.concat([data, new]).set_index("s")[["x", "z"]]
    model = pmx.model("y ~ 1 + (1 | s)", data, covariances={"s": pmx.GP(RBFKernel(ard_num_dims=2), sites=places)})
    with pytest.warns(pmx.SingularFitWarning, match=r"standard error of s.lengthscale\[1\].*ran off"):
        return model.fit(progress=False), new


def test_a_length_that_ran_off_is_a_finding_and_is_held(irrelevant: tuple[pmx.Fit, pd.DataFrame]) -> None:
    fit, _ = irrelevant
    assert fit.status is pmx.Status.SINGULAR and fit.status.ok
    draws = fit.draws(200)["s.lengthscale"]
    assert bool((draws[:, 1] == draws[0, 1]).all()) and 0.2 < float(draws[:, 0].std()) < 1.0
    covariance = fit.estimate.covariance["s.lengthscale"]
    assert bool(covariance[1].isnan().all()) and float(covariance[0, 0]) > 0


def test_its_predictions_are_those_without_the_coordinate(irrelevant: tuple[pmx.Fit, pd.DataFrame]) -> None:
    """Widths of 90 % intervals at these places within 10 %, of 1,000 draws each."""
    fit, new = irrelevant
    data = fit.args[0]
    frame = pd.DataFrame({"s": np.arange(50), "y": data.y.numpy()})
    places = fit.program.covariances["s"].sites
    x = pd.DataFrame({"x": places.values[:, 0]}, index=list(places.labels))
    other = quiet(pmx.model("y ~ 1 + (1 | s)", frame, covariances={"s": pmx.GP(RBFKernel(), sites=x)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (f.predict(new[["s"]], new_groups="conditional", kind="interval") for f in (fit, other))
    np.testing.assert_allclose(found["mean"], expected["mean"], atol=0.02)
    np.testing.assert_allclose(found["upper"] - found["lower"], expected["upper"] - expected["lower"], rtol=0.1)


def test_a_flat_direction_takes_no_other_uncertainty_with_it() -> None:
    """The curvature along it is rounding, here of the wrong sign: no Cholesky factor of the information."""
    rng = np.random.default_rng(0)
    t = np.arange(60) / 12
    data = pd.DataFrame({"t": t, "y": 5 + 0.3 * t + np.sin(2 * np.pi * t) + 0.2 * rng.normal(size=60)})
    fit = quiet(pmx.model("y ~ 1 + (1 | t)", data, covariances={"t": pmx.GP(RBFKernel() * PeriodicKernel())}))
    assert any(record.code == "singular" for record in fit.health)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = fit.draws(1000)
    se = float(fit.fixed_effects()["se"].iloc[0])
    assert float(draws["beta"].std()) == pytest.approx(se, rel=0.1)
    assert float(draws["t.sd"].std()) > 0.05 and float(draws["y.sigma"].std()) > 0.005


def test_what_is_hardly_known_is_said_when_draws_are_asked_for() -> None:
    """A rate of decay so fast that levels are as good as independent, not so far out that the fit looks into it."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=6)
    data = pd.DataFrame({"t": np.repeat(np.arange(6), 30), "y": np.repeat(u, 30) + 0.3 * rng.normal(size=180)})
    fit = quiet(pmx.model("y ~ 1 + ou(1 | t)", data))
    assert fit.status is pmx.Status.CONVERGED
    with pytest.warns(pmx.ApproximationWarning, match="flat along t.rate: no standard error"):
        draws = fit.draws(100)
    assert bool((draws["t.rate"] == draws["t.rate"][0]).all())
    assert float(draws["beta"].std()) > 0 and float(draws["t.sd"].std()) > 0


def test_many_rows_do_not_make_a_correlation_of_few_levels_flat() -> None:
    """Its information is that of 30 levels, which is little beside that of 12,000 rows."""
    rng = np.random.default_rng(0)
    u = np.zeros(30)
    for k in range(1, 30):
        u[k] = 0.6 * u[k - 1] + 0.8 * rng.normal()
    level = np.repeat(np.arange(30), 400)
    fit = quiet(pmx.model("y ~ 1 + ar1(1 | t)", pd.DataFrame({"t": level, "y": u[level] + rng.normal(size=12000)})))
    assert all(record.code != "singular" for record in fit.health)
    se = float(fit.estimate.covariance["t.rho"].reshape(()).sqrt())
    assert 0.1 < se < 0.25  # sqrt((1 - rho^2) / 30) = 0.17 for a series seen without noise
