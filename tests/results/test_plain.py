"""Results of programs that observe by pyro.sample alone."""

from __future__ import annotations

from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyromix as pmx
from pyromix.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from pyromix.persistence import describe_program
from pyromix.results import Fit
from tests.results.models import tensor
from tests.results.posteriors import (
    CHAINS,
    DRAWS,
    INDEX,
    PRIOR_SD,
    SD,
    SIGMA,
    Y,
    declared_fit,
    make,
    plain,
    plain_fit,
    sample,
)


@pytest.fixture(scope="module")
def fit() -> Fit:
    return plain_fit()


def test_the_same_as_with_effects(fit: Fit) -> None:
    """One model written twice, at the same draws."""
    idata, other = fit.idata, declared_fit().idata
    assert idata.posterior["u"].dims == ("chain", "draw", "u_dim_0")
    assert idata.posterior["mean"].dims == ("chain", "draw", "mean_dim_0")
    assert idata.log_likelihood["y"].dims == ("chain", "draw", "obs_id")
    assert idata.log_likelihood["y"].to_numpy() == pytest.approx(other.log_likelihood["y"].to_numpy(), rel=1e-12)
    assert np.array_equal(idata.observed_data["y"], Y) and idata.observed_data["y"].dims == ("obs_id",)
    assert fit.n_obs == 30 == declared_fit().n_obs
    assert np.array_equal(idata.constant_data["g"], INDEX) and "y" not in idata.constant_data
    prior = stats.norm.logpdf(sample()[:, 1:], 0, SD).reshape(CHAINS, DRAWS, -1)
    assert idata.log_prior["u"].dims == ("chain", "draw", "u_dim_0")
    assert idata.log_prior["u"].to_numpy() == pytest.approx(prior, rel=1e-12)
    assert idata.log_prior["beta"].to_numpy() == pytest.approx(
        stats.norm.logpdf(sample()[:, 0], 0, PRIOR_SD).reshape(CHAINS, DRAWS)
    )


def test_replicates_have_the_predictive_distribution(fit: Fit) -> None:
    """Standardised, 60,000 normals: SD of their mean 0.0041, of their SD 0.0029; draws of two runs differ."""
    idata = fit.idata
    noise = (idata.posterior_predictive["y"] - idata.posterior["mean"].to_numpy()).to_numpy() / SIGMA
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.015
    assert len(np.unique(noise)) == noise.size
    assert np.array_equal(plain_fit().idata.posterior_predictive["y"], idata.posterior_predictive["y"])


def test_arviz_and_files_take_it(fit: Fit, tmp_path: Path) -> None:
    assert fit.loo().n_data_points == 30
    assert az.summary(fit.idata, var_names=["u"]).index.tolist() == [f"u[{k}]" for k in range(5)]
    path = str(tmp_path / "fit.nc")
    fit.idata.to_netcdf(path, engine="h5netcdf")
    assert az.from_netcdf(path, engine="h5netcdf").log_likelihood.equals(fit.idata.log_likelihood)


def test_summary_lists_the_sites(fit: Fit) -> None:
    lines = str(fit.summary()).splitlines()
    assert lines[0] == "Program plain: draws from conjugate"
    assert "Number of obs: 30" in lines and "Parameters:" in lines
    names = [line.split()[0] for line in lines[lines.index("Parameters:") + 2 :]]
    assert names[:6] == ["beta", *(f"u[{k}]" for k in range(5))]
    assert names[6] == "mean[0]" and lines[-1] == " ... and 6 more entries: az.summary(fit.idata) has all"


def test_what_needs_a_predictor_says_so(fit: Fit) -> None:
    for call in (fit.predict, fit.fitted, fit.residuals, fit.plot_residuals):
        with pytest.raises(
            UnsupportedError, match="observes 'y' by pyro.sample.*pyromix.observe.*posterior_predictive"
        ):
            call()
    with pytest.raises(DataError, match="no random effects"):
        fit.plot_caterpillar()
    assert fit.fixed_effects().empty and fit.variance_components().empty
    assert np.isnan([fit.log_likelihood, fit.aic, fit.bic]).all()
    assert "plain" in repr(fit)


def test_a_plain_fit_is_saved_and_loaded(tmp_path: Path) -> None:
    stats = {"tree_depth": np.full((CHAINS, DRAWS), 3, dtype=np.uint64)}  # nutpie's type
    fit = plain_fit(sample_stats=stats)
    fit.describe = lambda: describe_program(plain, fit.args, {})
    path = tmp_path / "fit.pmx"
    fit.save(path)
    back = pmx.load(path, program=plain)
    assert back.idata.posterior.equals(fit.idata.posterior)
    assert back.idata.log_likelihood.equals(fit.idata.log_likelihood)
    assert back.idata.sample_stats.equals(fit.idata.sample_stats)
    assert back.idata.sample_stats["tree_depth"].dtype == np.int64
    assert str(back.summary()) == str(fit.summary())
    with pytest.raises(ConfigError, match="pass it"):
        pmx.load(path)
    with pytest.raises(CheckpointError, match="not the one that was fitted"):
        pmx.load(path, program=make)


def normal(count: int = 300) -> torch.Tensor:
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_mixed_programs_and_shapes_of_observed_sites() -> None:
    """A family's response, a vector with one density, a matrix of rows, an unbatched density, a scalar, a factor."""
    data = {
        "y": tensor([1.0, 0.0, 2.0]),
        "pair": tensor([[0.1, 0.2], [0.3, -0.1], [1.0, 2.0]]),
        "table": tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]),
        "loose": tensor([0.5, -0.5]),
        "one": tensor(0.7),
    }

    def program(data: dict[str, torch.Tensor]) -> None:
        a = pyro.sample("a", dist.Normal(tensor(0.0), tensor(1.0)))
        pmx.observe("y", pmx.Poisson(), a.expand(3), data["y"])
        with pyro.plate("n", 3, dim=-1):
            pyro.sample("pair", dist.MultivariateNormal(a.expand(2), torch.eye(2).double()), obs=data["pair"])
        with pyro.plate("columns", 2, dim=-1), pyro.plate("lines", 3, dim=-2):
            pyro.sample("table", dist.Poisson(a.exp()), obs=data["table"])
        pyro.sample("loose", dist.Normal(a, tensor(1.0)), obs=data["loose"])
        pyro.sample("one", dist.Normal(a, tensor(1.0)), obs=data["one"])
        pyro.factor("penalty", -a.square())

    draws = normal()
    fit = make(program, {"a": draws}, data, chains=2)
    idata = fit.idata
    likelihood, a = idata.log_likelihood, draws.numpy().reshape(2, 150)
    assert fit.n_obs == 3 + 3 + 6 + 2 + 1
    assert set(likelihood.data_vars) == set(data) == set(idata.posterior_predictive.data_vars), "a factor is no data"
    assert likelihood["y"].dims[2:] == ("y_obs_id",) and likelihood["pair"].dims[2:] == ("pair_obs_id",)
    assert likelihood["table"].dims[2:] == ("table_dim_0", "table_dim_1") and likelihood["one"].dims == (
        "chain",
        "draw",
    )
    assert likelihood["table"].to_numpy() == pytest.approx(
        stats.poisson.logpmf(data["table"].numpy(), np.exp(a)[..., None, None]), rel=1e-9
    )
    expected = stats.norm.logpdf(data["pair"].numpy(), a[..., None, None]).sum(-1)
    assert likelihood["pair"].to_numpy() == pytest.approx(expected, rel=1e-9)
    predictive = idata.posterior_predictive
    assert predictive["pair"].dims[2:] == ("pair_obs_id", "pair_dim_1") == ("pair_obs_id", "pair_dim_1")
    assert predictive["loose"].shape == (2, 150, 2)
    assert not np.allclose(predictive["loose"][..., 0], predictive["loose"][..., 1])
    assert predictive["table"].dtype == np.int64 == idata.observed_data["table"].dtype
    for name, value in data.items():
        assert np.array_equal(idata.observed_data[name], value)


def test_masked_rows_are_zero_and_scales_multiply() -> None:
    y, keep, weight = tensor([0.5, 1.0, -1.0]), torch.tensor([True, False, True]), tensor([1.0, 1.0, 3.0])

    def program(y: torch.Tensor) -> None:
        a = pyro.sample("a", dist.Normal(tensor(0.0), tensor(1.0)))
        with pyro.plate("n", 3), pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=weight):
            pyro.sample("y", dist.Normal(a, tensor(1.0)), obs=y)

    fit = make(program, {"a": normal()}, y, chains=1)
    expected = stats.norm.logpdf(y.numpy(), normal().numpy()[:, None]) * [1, 0, 3]
    assert fit.idata.log_likelihood["y"].to_numpy()[0] == pytest.approx(expected, rel=1e-12)
    assert fit.n_obs == 4


def test_replicates_of_a_series_run_freely() -> None:
    """What follows from a replicated value follows from it, not from the data: its variance builds up.

    Var(y_t) = sum of phi^(2 k): 1, 1.64, 2.05 for phi = 0.8; 20,000 draws, SD of a variance about one per cent.
    """
    data = tensor([50.0, 50.0, 50.0])

    def program(y: torch.Tensor) -> None:
        last = pyro.sample("start", dist.Normal(tensor(0.0), tensor(1.0)))
        for t in range(3):
            last = pyro.sample(f"y{t}", dist.Normal(0.8 * last, tensor(1.0)), obs=y[t])

    start = torch.zeros(4000, dtype=torch.float64)
    predictive = make(program, {"start": start}, data).idata.posterior_predictive
    found = [float(predictive[f"y{t}"].var()) for t in range(3)]
    assert found == pytest.approx([1.0, 1.64, 2.0496], rel=0.08)
    assert abs(float(predictive["y2"].mean())) < 0.15
