"""Results of posterior draws, against a posterior in closed form."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import pyromix as pmx
from pyromix.errors import ApproximationWarning, ConfigError, Status
from pyromix.results import Fit, HealthRecord, inference_data
from tests.results.models import glmm_fit, sleepstudy_estimate, sleepstudy_fit, slope_program, tensor
from tests.results.posteriors import (
    CHAINS,
    DRAWS,
    INDEX,
    PRIOR_SD,
    SIGMA,
    Y,
    declared_fit,
    make,
    marginal_covariance,
    sample,
)

STATS = {
    "lp": np.arange(CHAINS * DRAWS, dtype=float).reshape(CHAINS, DRAWS),
    "diverging": np.zeros((CHAINS, DRAWS), dtype=bool),
}
APPROXIMATION = {"exact": False, "khat": 0.31, "effective_size": 1403.2, "sampling_time": 0.25}


@pytest.fixture(scope="module")
def fit() -> Fit:
    settings = {"sampling_time": 3.2, "tuning_steps": 1000}
    return declared_fit(sample_stats=STATS, settings=settings, inference="NUTS", log_evidence=-47.25)


def test_groups_hold_the_same_draws(fit: Fit) -> None:
    idata = fit.idata
    names = {"posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive"}
    assert set(idata.groups()) == names | {"observed_data", "constant_data"}
    for name in names:
        assert dict(idata[name].sizes)["chain"] == CHAINS and dict(idata[name].sizes)["draw"] == DRAWS
    values = sample().reshape(CHAINS, DRAWS, -1)
    assert np.array_equal(idata.posterior["beta"][..., 0], values[..., 0])
    assert np.array_equal(idata.posterior["g"].sel(g_level="c")[..., 0], values[..., 3])
    mean = values[..., :1] + values[..., 1 + INDEX.numpy()]
    assert idata.log_likelihood["y"].to_numpy() == pytest.approx(stats.norm.logpdf(Y.numpy(), mean, SIGMA), rel=1e-12)
    assert idata.log_prior["beta"].to_numpy() == pytest.approx(stats.norm.logpdf(values[..., 0], 0, PRIOR_SD))
    assert np.array_equal(idata.sample_stats["lp"], STATS["lp"])
    residual = (idata.posterior_predictive["y"].to_numpy() - mean) / SIGMA
    # 60,000 standard normals: SD of their mean 0.0041, of their SD 0.0029
    assert abs(residual.mean()) < 0.02 and abs(residual.std() - 1) < 0.015
    attrs = idata.posterior.attrs
    assert (attrs["sampling_time"], attrs["tuning_steps"], attrs["log_evidence"]) == (3.2, 1000, -47.25)
    assert "note" not in attrs and json.loads(attrs["health"]) == []


def test_long_data_thin_every_group_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_data, "MAX_ENTRIES", 30 * 200)
    idata = declared_fit(sample_stats=STATS).idata
    number = idata.sample_stats["lp"].to_numpy().reshape(-1).astype(int)
    assert idata.sample_stats["diverging"].shape == (CHAINS, 50) and number[[0, -1]].tolist() == [0, 1999]
    assert np.array_equal(idata.posterior["beta"].to_numpy().reshape(-1), sample()[number, 0])
    assert idata.log_likelihood.sizes["draw"] == idata.posterior_predictive.sizes["draw"] == 50


def test_netcdf_round_trip(fit: Fit, tmp_path: Path) -> None:
    path = str(tmp_path / "fit.nc")
    fit.idata.to_netcdf(path, engine="h5netcdf")
    back = az.from_netcdf(path, engine="h5netcdf")
    for group in fit.idata.groups():
        assert back[group].equals(fit.idata[group]) and back[group].attrs == fit.idata[group].attrs


def test_leave_one_out_is_that_of_the_closed_form(fit: Fit) -> None:
    r"""Exact: log p(y_i | y_-i) is normal with precision :math:`Q_{ii}` and mean :math:`y_i - (Qy)_i / Q_{ii}`.

    The weights of the most extreme rows leave a few hundredths of error at 2000 draws.
    """
    found = fit.loo()
    y, precision = Y.numpy(), np.linalg.inv(marginal_covariance())
    sd = precision.diagonal() ** -0.5
    expected = stats.norm.logpdf(y, y - (precision @ y) * sd**2, sd)
    assert found["loo_i"].dims == ("obs_id",)
    assert found["loo_i"].to_numpy() == pytest.approx(expected, abs=0.12)
    assert found["elpd_loo"] == pytest.approx(expected.sum(), abs=0.25)


def test_rows_that_leave_one_out_cannot_leave_out_are_named() -> None:
    """One row far from the others decides alone; its weights have no variance."""
    y = Y.clone()
    y[7] += 12.0
    fit = make(declared_fit().program, dict(declared_fit().draws()), {"y": y, "g": INDEX})
    with pytest.warns(ApproximationWarning, match=r"loo_khat: rows 7 \(\d\.\d\d\).*limit 0.70.*1 of 30 rows"):
        fit.loo()


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # ArviZ's own, with pandas 3.1
def test_models_are_compared_by_arviz(fit: Fit) -> None:
    def pooled(data: dict[str, torch.Tensor]) -> None:
        x = torch.ones(len(data["y"]), 1, dtype=torch.float64)
        pmx.observe("y", pmx.Gaussian(), pmx.LinearEffect("beta")(x), data["y"], sigma=SIGMA)

    sd = SIGMA / len(Y) ** 0.5
    draws = Y.mean() + sd * torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = az.compare({"groups": fit.idata, "pooled": make(pooled, {"beta": draws}).idata})
    assert table.index.tolist() == ["groups", "pooled"] and table["weight"].iloc[0] > 0.9


@pytest.mark.filterwarnings("ignore:Passing a dict:DeprecationWarning")  # ArviZ's own, with matplotlib 3.11
def test_arviz_draws_it(fit: Fit) -> None:
    table = az.summary(fit.idata, var_names=["beta", "g"])
    assert table.index.tolist() == ["beta[Intercept]", *(f"g[{level}, Intercept]" for level in "abcde")]
    assert (table["r_hat"] < 1.02).all()
    for axes in (
        az.plot_trace(fit.idata, var_names=["beta"]),
        az.plot_forest(fit.idata, var_names=["g"]),
        az.plot_ppc(fit.idata, num_pp_samples=20),
    ):
        plt.close(np.atleast_1d(axes).reshape(-1)[0].figure)


def test_approximations_are_one_chain_and_say_so() -> None:
    weights = {"log_weight": np.zeros((1, CHAINS * DRAWS))}
    fit = declared_fit(chains=1, settings=APPROXIMATION, sample_stats=weights, inference="nested Laplace")
    idata = fit.idata
    assert idata.posterior.sizes["chain"] == 1 == idata.sample_stats.sizes["chain"]
    assert "approximation" in idata.posterior.attrs["note"] and idata.posterior.attrs["khat"] == 0.31
    assert az.summary(idata, var_names=["beta"])["r_hat"].isna().all()
    text = str(fit.summary())
    assert "2000 draws in 0.25 s, k-hat 0.31, effective size 1403 (an approximation: no R-hat)" in text
    assert "ESS" not in text and "R-hat" not in text.replace("no R-hat", "")


def test_chains_on_an_approximate_posterior_have_their_rhat() -> None:
    fit = declared_fit(settings={"exact": False, "sampling_time": 0.25}, inference="NUTS, Laplace")
    assert fit.idata.posterior.sizes["chain"] == CHAINS
    assert fit.idata.posterior.attrs["note"].startswith("Markov chains on an approximate posterior")
    text = str(fit.summary())
    assert "4 chains of 500 draws in 0.25 s (of an approximate posterior)" in text and "R-hat" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"elbo": -47.25}, "Log evidence: -47.25 (ELBO, a lower bound)"),
        ({"evidence_error": 0.031}, "Log evidence: -47.25 +- 0.03 (importance sampling)"),
    ],
)
def test_the_summary_says_how_the_evidence_was_found(settings: dict, said: str) -> None:
    assert said in str(declared_fit(chains=1, settings={"exact": False, **settings}, log_evidence=-47.25).summary())


def test_summary_has_what_arviz_computes(fit: Fit) -> None:
    lines = str(fit.summary()).splitlines()
    assert lines[0] == "Linear mixed model draws from NUTS"
    assert "4 chains of 500 draws in 3.2 s" in lines and "Log evidence: -47.25" in lines
    assert "Number of obs: 30, groups: g, 5" in lines
    row = next(line for line in lines if line.startswith(" Intercept")).split()
    values = sample()[:, 0].reshape(CHAINS, DRAWS)
    expected = [values.mean(), values.std(ddof=1), *np.quantile(values, [0.05, 0.5, 0.95])]
    assert [float(cell) for cell in row[1:6]] == pytest.approx(expected, abs=0.006)
    assert row[6] == f"{az.ess(values):.0f}" and row[7] == f"{az.rhat(values):.3f}"


def covariance_draws(rng: np.random.Generator, n: int = 200) -> dict[str, torch.Tensor]:
    rho = tensor(rng.uniform(-0.5, 0.9, size=n))
    factor = torch.zeros(n, 2, 2, dtype=torch.float64)
    factor[:, 0, 0], factor[:, 1, 0], factor[:, 1, 1] = 1.0, rho, (1 - rho**2).sqrt()
    return {
        "beta": tensor(rng.normal(size=(n, 2))),
        "Subject.sd": tensor(np.abs(rng.normal(20.0, 3.0, size=(n, 2)))),
        "Subject.corr_cholesky": factor,
        "Reaction.sigma": tensor(rng.uniform(20, 30, size=n)),
        "Subject": tensor(rng.normal(size=(n, 18, 2))),
    }


def sleepstudy_posterior(draws: dict[str, torch.Tensor], **changes) -> Fit:
    base = sleepstudy_fit()
    fit = make(base.program, draws, base.args[0], **{"chains": 2, **changes})
    return Fit(fit.estimate, fit.program, fit.args, design=base.design, formula_text=base.formula)


def test_group_level_table_and_variance_components(rng: np.random.Generator) -> None:
    draws = covariance_draws(rng)
    fit = sleepstudy_posterior(draws)
    table = fit.variance_components()
    sds = np.column_stack([draws["Subject.sd"].numpy(), draws["Reaction.sigma"].numpy()])
    assert table["sd"].to_numpy() == pytest.approx(sds.mean(0))
    assert table["variance"].to_numpy() == pytest.approx((sds**2).mean(0))
    assert table["se"].to_numpy() == pytest.approx(sds.std(0, ddof=1))
    assert table[["lower", "upper"]].to_numpy() == pytest.approx(np.quantile(sds, [0.025, 0.975], axis=0).T)
    lines = str(fit.summary()).splitlines()
    head = lines.index("Group-level effects:") + 1
    assert lines[head + 1].split()[:2] == ["Subject", "sd(Intercept)"] and lines[head + 2].split()[0] == "sd(Days)"
    rho = draws["Subject.corr_cholesky"][:, 1, 0].numpy()
    row = lines[head + 3].split("corr(Intercept, Days)")[1].split()
    assert [float(cell) for cell in row[:2]] == pytest.approx([rho.mean(), rho.std(ddof=1)], abs=6e-4)


def test_draws_that_are_not_to_be_trusted_show_means_alone(rng: np.random.Generator) -> None:
    record = HealthRecord("rhat", "error", 1.3, 1.01, "beta[Days] 1.3", "The chains found different distributions.")
    fit = sleepstudy_posterior(covariance_draws(rng), status=Status.NOT_MIXED, health=(record,))
    assert not fit.trusted and not fit.health.ok
    text = str(fit.summary())
    assert text.startswith("Status: not mixed") and text.index("rhat") < text.index("Group-level")
    row = next(line for line in text.splitlines() if line.startswith(" Days")).split()
    assert row[2:6] == ["NaN"] * 4 and row[1] != "NaN"
    for table in (fit.fixed_effects(), fit.variance_components()):
        assert table[["se", "lower", "upper"]].isna().all(axis=None)
    assert fit.random_effects("Subject", "sd").isna().all(axis=None)
    forced = fit.force()
    assert forced.fixed_effects().notna().all(axis=None) and "NaN" not in str(forced.summary()).split("Group-level")[1]
    assert json.loads(fit.idata.posterior.attrs["health"])[0]["code"] == "rhat"


def test_criteria_of_a_posterior_are_not_those_of_a_maximum(fit: Fit) -> None:
    assert np.isnan([fit.log_likelihood, fit.aic, fit.bic]).all()
    assert fit.log_evidence == -47.25 and np.isnan(sleepstudy_fit().log_evidence)
    assert repr(fit) == "<Fit 'declared': NUTS, 4 x 500 draws, converged>"


def test_residuals_are_about_the_posterior_mean() -> None:
    """For Poisson counts, whose mean is not linear in the draws."""
    base = glmm_fit(pmx.Poisson())
    fit = make(slope_program(pmx.Poisson(), pmx.IID()), base.draws(300), base.args[0], chains=1)
    y, mean = fit.args[0].y.numpy(), fit.predict()
    assert fit.residuals() == pytest.approx(y - mean, rel=1e-9)
    assert fit.residuals("pearson") == pytest.approx((y - mean) / np.sqrt(mean), rel=1e-9)
    assert not np.allclose(fit.residuals(), y - fit.run(fit.estimate.point | dict(fit.estimate.latents)).data["y"].role
                           .eta.exp().numpy(), atol=1e-3)  # fmt: skip


def test_caterpillars_of_draws_show_quantiles() -> None:
    fit = declared_fit()
    axis = fit.plot_caterpillar().axes[0]
    lines = np.array(axis.collections[0].get_segments())[:, :, 0]
    order = np.argsort(sample()[:, 1:].mean(0))
    assert lines == pytest.approx(np.quantile(sample()[:, 1:], [0.025, 0.975], axis=0).T[order])
    assert "posterior mean" in fit.plot_caterpillar().get_supxlabel()


def test_counts_are_integers() -> None:
    fit = glmm_fit(pmx.Binomial(), trials=True)
    assert fit.idata.observed_data["y"].dtype == np.int64 == fit.idata.posterior_predictive["y"].dtype
    assert np.array_equal(fit.idata.observed_data["y"], fit.args[0].y)
    axes = az.plot_ppc(fit.idata, num_pp_samples=10)
    plt.close(axes.figure)


def test_several_responses_are_chosen_by_name() -> None:
    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(30, 1, dtype=torch.float64))
        pmx.observe("a", pmx.Gaussian(), eta, data["y"], sigma=SIGMA)
        pmx.observe("b", pmx.Poisson(), eta, (data["y"] > 2).double())

    fit = make(program, {"beta": tensor(sample()[:, :1] * 0.1)})
    assert fit.n_obs == 60
    assert fit.idata.log_likelihood["b"].dims == ("chain", "draw", "b_obs_id")
    with pytest.raises(ConfigError, match=r"loo\(\): the program observes 'a', 'b'; choose one: loo\(var_name=...\)"):
        fit.loo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ApproximationWarning)
        assert fit.loo(var_name="b").n_data_points == 30


def test_weights_of_a_network_stay_out_of_the_summary() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1), torch.nn.Flatten(0))
    module = module.double()

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.NeuralEffect("net", module, prior=dist.Normal(tensor(0.0), tensor(1.0)))(data["y"][:, None])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    generator = torch.Generator().manual_seed(0)
    shapes = {f"net.{name}": weight.shape for name, weight in module.named_parameters()}
    draws = {name: torch.randn(80, *shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()}
    draws["y.sigma"] = torch.rand(80, dtype=torch.float64, generator=generator) + 0.5
    text = str(make(program, draws, chains=2).summary())
    assert "Network: net, Sequential with 91 weights" in text and "net.0.weight" not in text
    assert "Parameters:\n" in text and " y.sigma" in text


def test_a_point_fit_has_no_evidence_and_one_chain() -> None:
    fit = sleepstudy_fit()
    assert not sleepstudy_estimate().exact and fit.idata.posterior.sizes["chain"] == 1
    assert "log_prior" not in fit.idata.groups()
