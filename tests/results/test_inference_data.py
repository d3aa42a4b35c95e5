"""ArviZ groups: names, dimensions, labels, values, files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm

import pyromix as pmx
from pyromix.results import Fit, inference_data
from tests.results.models import SUBJECTS, glmm_fit, sleepstudy_fit, tensor, warning


@pytest.fixture(scope="module")
def fit() -> Fit:
    return sleepstudy_fit(health=(warning(),))


def test_groups_dimensions_and_labels(fit: Fit) -> None:
    idata = fit.idata
    assert fit.idata is idata, "made once"
    expected = {"posterior", "log_likelihood", "posterior_predictive", "observed_data", "constant_data"}
    assert set(idata.groups()) == expected
    posterior = idata.posterior
    assert posterior["Subject"].dims == ("chain", "draw", "Subject_level", "Subject_term")
    assert posterior["Subject.sd"].dims == ("chain", "draw", "Subject_term")
    assert posterior["Subject.corr"].dims == ("chain", "draw", "Subject_term", "Subject_term_bis")
    assert posterior["beta"].dims == ("chain", "draw", "beta_coef")
    assert posterior["Reaction.sigma"].dims == ("chain", "draw")
    assert dict(posterior.sizes)["chain"] == 1 and posterior.sizes["draw"] == 500
    assert posterior["Subject_level"].to_numpy().tolist() == SUBJECTS
    for name in ("beta_coef", "Subject_term", "Subject_term_bis"):
        assert posterior[name].to_numpy().tolist() == ["Intercept", "Days"]
    for group in ("log_likelihood", "posterior_predictive"):
        assert idata[group]["Reaction"].dims == ("chain", "draw", "obs_id")
    assert idata.observed_data["Reaction"].dims == ("obs_id",)
    assert all(v.dtype == np.float64 for v in posterior.data_vars.values())


def test_values(fit: Fit) -> None:
    draws, idata = fit.draws(), fit.idata
    assert np.array_equal(idata.posterior["Subject"][0], draws["Subject"])
    x = fit.args[0].x.numpy()
    y = fit.args[0].y.numpy()
    assert np.array_equal(idata.observed_data["Reaction"], y)
    s = 17
    u = draws["Subject"][s].numpy().repeat(10, axis=0)
    eta = x @ draws["beta"][s].numpy() + (u * x).sum(1)
    sigma = float(draws["Reaction.sigma"][s])
    assert idata.log_likelihood["Reaction"][0, s].to_numpy() == pytest.approx(norm.logpdf(y, eta, sigma), rel=1e-12)
    factor = draws["Subject.corr_cholesky"][s].numpy()
    assert idata.posterior["Subject.corr"][0, s].to_numpy() == pytest.approx(factor @ factor.T)
    assert np.array_equal(idata.constant_data["beta.x"], x)
    assert np.array_equal(idata.constant_data["Subject.index"], np.repeat(np.arange(18), 10))
    replicated = idata.posterior_predictive["Reaction"].to_numpy()[0]
    residual = (replicated - fit.predict(kind="draws").to_numpy()[0]) / draws["Reaction.sigma"].numpy()[:, None]
    # 90,000 standard normals: SD of their mean 0.0033, of their SD 0.0024
    assert abs(residual.mean()) < 0.017 and abs(residual.std() - 1) < 0.012


def test_attributes_say_what_the_draws_are(fit: Fit) -> None:
    for group in fit.idata.groups():
        attrs = fit.idata[group].attrs
        assert attrs["inference_library"] == "pyromix" and attrs["inference_library_version"] == pmx.__version__
        assert attrs["inference"] == "REML, Exact" and attrs["status"] == "converged"
        assert "Gaussian approximation" in attrs["note"] and attrs["draws"] == 500
        assert json.loads(attrs["health"])[0]["code"] == "singular"
        assert attrs["formula"] == "Reaction ~ Days + (Days | Subject)"
        assert "T" in attrs["created_at"]


def test_netcdf_round_trip(fit: Fit, tmp_path: Path) -> None:
    path = tmp_path / "fit.nc"
    fit.idata.to_netcdf(str(path), engine="h5netcdf")
    back = az.from_netcdf(str(path), engine="h5netcdf")
    for group in fit.idata.groups():
        assert back[group].equals(fit.idata[group])
        assert back[group].attrs["note"] == fit.idata[group].attrs["note"]


def test_arviz_can_use_it(fit: Fit) -> None:
    table = az.summary(fit.idata, var_names=["beta", "Reaction.sigma"])
    assert table.index.tolist() == ["beta[Intercept]", "beta[Days]", "Reaction.sigma"]
    assert table["r_hat"].isna().all(), "one chain of independent draws has no R-hat"
    with warnings.catch_warnings():
        # the effects of this fit's draws vary independently of the coefficients, so they are wide, and loo says so
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution", UserWarning)
        assert az.loo(fit.idata).n_data_points == 180
    axes = az.plot_forest(fit.idata, var_names=["beta"])
    assert len(axes) == 1
    plt.close(axes[0].figure)


def test_samplers_keep_chains_and_statistics() -> None:
    stats = {"diverging": np.zeros((2, 250), dtype=bool), "energy": np.ones((2, 250))}
    fit = sleepstudy_fit(kind="draws", inference="NUTS", n_draws=500, chains=2, sample_stats=stats)
    idata = fit.idata
    assert dict(idata.posterior.sizes)["chain"] == 2 and dict(idata.posterior.sizes)["draw"] == 250
    assert idata.sample_stats["diverging"].dims == ("chain", "draw")
    assert np.array_equal(idata.posterior["beta"][1, 0], fit.draws()["beta"][250])
    assert "note" not in idata.posterior.attrs


def test_long_data_get_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_data, "MAX_ENTRIES", 180 * 150)
    idata = sleepstudy_fit().idata
    assert idata.log_likelihood.sizes["draw"] == 150 == idata.posterior.sizes["draw"]
    assert idata.posterior.attrs["draws"] == 150


def test_binomial_constants() -> None:
    fit = glmm_fit(pmx.Binomial(), trials=True)
    constant = fit.idata.constant_data
    assert np.array_equal(constant["y.trials"], fit.args[0].trials)
    assert constant["g.design"].dims == ("obs_id", "g_term")
    counts = fit.idata.posterior_predictive["y"].to_numpy()
    assert (counts == counts.round()).all() and (counts <= fit.args[0].trials.numpy()).all()


def test_multiple_membership_weights_and_awkward_names(tmp_path: Path) -> None:
    """Labels of mixed type, a slash in a name, a site named like a dimension, rows with several levels."""
    index = torch.tensor([[0, 1], [1, 2], [2, 0]])
    weight = tensor([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0]])

    def program(y: torch.Tensor) -> None:
        eta = pmx.RandomEffect("a/b", pmx.IID(), levels=(1, "x", (2, 3)))(index, weight=weight)
        eta = eta + pmx.LinearEffect("a/b_level")(torch.ones(3, 1, dtype=torch.float64))
        pmx.observe("y", pmx.Poisson(), eta, y, weights=tensor([1.0, 2.0, 1.0]))

    point = {"a/b.sd": tensor(0.5), "a/b_level": tensor([0.1])}
    latents = {"a/b": tensor([[0.1], [0.2], [0.3]])}
    fit = Fit(glmm_fit(pmx.Poisson(), point=point, latents=latents, covariance={}).estimate, program,
              (tensor([1.0, 0.0, 2.0]),))  # fmt: skip
    idata = fit.idata
    assert idata.posterior["a|b"].dims == ("chain", "draw", "a|b_level_", "a|b_term")
    assert idata.posterior["a|b_level_"].to_numpy().tolist() == ["1", "x", "2:3"]
    assert idata.constant_data["a|b.weight"].dims == ("obs_id", "a|b_member")
    path = tmp_path / "fit.nc"
    idata.to_netcdf(str(path), engine="h5netcdf")
    assert az.from_netcdf(str(path), engine="h5netcdf").posterior.equals(idata.posterior)
    # a row of frequency weight two counts twice
    eta = 0.1 + 0.2 * 0.2 + 0.8 * 0.3
    fixed = {name: value.expand(1, *value.shape) for name, value in {**point, **latents}.items()}
    single = Fit(glmm_fit(pmx.Poisson(), point=point, latents=latents, covariance={}, draw=lambda n, s: fixed,
                          n_draws=1).estimate, program, fit.args)  # fmt: skip
    assert single.idata.log_likelihood["y"].to_numpy()[0, 0, 1] == pytest.approx(-2 * np.exp(eta))


def test_weights_of_a_network_are_named_by_position() -> None:
    def program(y: torch.Tensor) -> None:
        x = torch.ones(3, 2, dtype=torch.float64)
        module = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)).double()
        eta = pmx.NeuralEffect("net", module, prior=dist.Normal(tensor(0.0), tensor(1.0)))(x)
        pmx.observe("y", pmx.Poisson(), eta, y)

    point = {"net.0.weight": tensor([[0.1, 0.2]]), "net.0.bias": tensor([0.3])}
    fit = Fit(glmm_fit(pmx.Poisson(), point=point, latents={}, covariance={}).estimate, program,
              (tensor([1.0, 0.0, 2.0]),))  # fmt: skip
    posterior = fit.idata.posterior
    assert posterior["net.0.weight"].dims == ("chain", "draw", "net.0.weight_dim_0", "net.0.weight_dim_1")
    assert "net" not in posterior
    assert "Network: net, Sequential with 3 weights" in str(fit.summary())


def test_ratios_of_residuals_are_named_by_their_strata() -> None:
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"s": np.tile(list("abc"), 20), "y": rng.normal(size=60)})
    fit = pmx.model("y ~ 1", data, pmx.Gaussian(variance=pmx.VarIdent("s"))).fit(progress=False)
    assert fit.idata.posterior["y.ratio"].coords["y.ratio_dim_0"].values.tolist() == ["b", "c"]
