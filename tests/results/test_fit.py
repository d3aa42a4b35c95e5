"""Tables and criteria of a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import pyromix as pmx
from pyromix.errors import ConfigError, DataError, Status
from pyromix.results import Fit, HealthRecord
from pyromix.results.health import Health
from pyromix.results.storage import StoredDraws
from tests.results.models import (
    BETA,
    FITTED,
    MODES,
    RHO,
    SD,
    SIGMA,
    SUBJECTS,
    Term,
    glmm_fit,
    sleepstudy,
    sleepstudy_fit,
    tensor,
    warning,
)


def test_criteria_are_lme4s() -> None:
    fit = sleepstudy_fit()
    # AIC(fm1) and BIC(fm1) of lme4: 1755.628 and 1774.786
    assert fit.aic == pytest.approx(1755.628, abs=5e-4)
    assert fit.bic == pytest.approx(1774.786, abs=5e-4)
    assert (fit.n_obs, fit.n_parameters, fit.status) == (180, 6, Status.CONVERGED)


def test_fixed_effects() -> None:
    table = sleepstudy_fit().fixed_effects()
    assert list(table.index) == ["Intercept", "Days"]
    assert list(table.columns) == ["estimate", "se", "lower", "upper"]
    # confint(fm1, method = "Wald") of lme4: Days 7.437592 13.496980
    assert table.loc["Days"].to_numpy() == pytest.approx([10.467286, 1.545789, 7.437592, 13.496980], abs=1e-5)
    narrow = sleepstudy_fit().fixed_effects(level=0.5)
    assert (narrow["upper"] - narrow["estimate"]).to_numpy() == pytest.approx(0.6744898 * table["se"].to_numpy())


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_level_of_an_interval_is_a_probability(level: float) -> None:
    with pytest.raises(ConfigError, match="level=.*between 0 and 1"):
        sleepstudy_fit().fixed_effects(level)


def test_variance_components_and_correlations() -> None:
    fit = sleepstudy_fit()
    table = fit.variance_components()
    assert table["group"].tolist() == ["Subject", "Subject", "Residual"]
    assert table["name"].tolist() == ["Intercept", "Days", ""]
    assert table["sd"].to_numpy() == pytest.approx([*SD, SIGMA], rel=1e-12)
    assert table["variance"].to_numpy() == pytest.approx(np.square([*SD, SIGMA]), rel=1e-12)
    matrix = fit.correlations("Subject")
    assert matrix.loc["Intercept", "Days"] == pytest.approx(RHO, rel=1e-12)
    assert np.diag(matrix).tolist() == [1.0, 1.0]
    assert "Residual" not in glmm_fit(pmx.Poisson()).variance_components()["group"].tolist()


def test_random_effects() -> None:
    fit = sleepstudy_fit()
    modes = fit.random_effects("Subject")
    assert modes.index.tolist() == SUBJECTS and modes.index.name == "Subject"
    assert modes.columns.tolist() == ["Intercept", "Days"]
    assert modes.to_numpy() == pytest.approx(np.array(MODES), rel=1e-14)
    assert fit.random_effects("Subject", "sd").iloc[0].tolist() == pytest.approx([12.0708374395604, 2.30483708127945])
    assert fit.fitted()[:4] == pytest.approx(FITTED, rel=1e-9)


def test_effects_of_one_group_are_merged() -> None:
    """(1 | g) and (0 + x | g), as lme4's ranef does."""
    fit = _two_effects()
    modes = fit.random_effects("g")
    assert modes.columns.tolist() == ["Intercept", "x"]
    assert modes.loc["b"].tolist() == [0.2, -0.4]
    assert fit.correlations("g").to_numpy().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    table = fit.variance_components()
    assert table["group"].tolist() == ["g", "g", "Residual"]
    assert table["sd"].tolist() == pytest.approx([0.5, 2.0, 1.5])
    assert "Std.Dev.\n" in str(fit.summary()), "no column of correlations without correlations"


def _two_effects() -> Fit:
    base = glmm_fit(pmx.Gaussian())
    rows = base.args[0]
    (term,) = rows.terms
    slope = Term("g.1", "g", term.index, rows.x[:, 1:], term.levels, ("x",))

    def program(d) -> None:
        eta = pmx.LinearEffect("beta", labels=d.columns)(d.x)
        for t in (term, slope):
            effect = pmx.RandomEffect(t.name, pmx.IID(), levels=t.levels, terms=t.terms, group=t.group)
            eta = eta + effect(t.index, t.design)
        pmx.observe("y", pmx.Gaussian(), eta, d.y)

    first, second = torch.zeros(8, 1, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64)
    first[1], second[1] = 0.2, -0.4
    point = {"beta": tensor([0.3, -0.5]), "g.sd": tensor(0.5), "g.1.sd": tensor(2.0), "y.sigma": tensor(1.5)}
    latents = {"g": first, "g.1": second}
    estimate = glmm_fit(pmx.Gaussian(), point=point, latents=latents, latent_sd=latents).estimate
    return Fit(estimate, program, (rows,))


def test_unknown_group_lists_the_groups() -> None:
    fit = sleepstudy_fit()
    for ask in (fit.random_effects, fit.correlations, fit.plot_caterpillar):
        with pytest.raises(DataError, match="group 'subject'.*it has: 'Subject'"):
            ask("subject")
    with pytest.raises(ConfigError, match="'se'.*'mode' or 'sd'"):
        fit.random_effects("Subject", "se")


def test_without_convergence_uncertainty_is_nan_unless_forced() -> None:
    fit = sleepstudy_fit(status=Status.NOT_A_MODE)
    assert np.isnan([fit.log_likelihood, fit.aic, fit.bic]).all()
    assert fit.fixed_effects()[["se", "lower", "upper"]].isna().all(axis=None)
    assert fit.random_effects("Subject", "sd").isna().all(axis=None)
    assert fit.fixed_effects()["estimate"].tolist() == BETA
    forced = fit.force()
    assert forced.aic == pytest.approx(1755.628, abs=5e-4)
    assert forced.fixed_effects().notna().all(axis=None)
    assert np.isnan(fit.aic), "forcing makes a new fit"


def test_missing_covariance_gives_nan_for_that_site_alone() -> None:
    fit = sleepstudy_fit(covariance={})
    assert fit.fixed_effects()["se"].isna().all()
    assert fit.aic == pytest.approx(1755.628, abs=5e-4)


def test_residuals() -> None:
    fit = sleepstudy_fit()
    response = sleepstudy()["Reaction"].to_numpy() - fit.fitted()
    assert fit.residuals() == pytest.approx(response, rel=1e-12)
    assert fit.residuals("pearson") == pytest.approx(response / SIGMA, rel=1e-12)
    # lme4: sum(residuals(fm1)^2)
    assert np.square(response).sum() == pytest.approx(98881.6403392949, rel=1e-9)
    binomial = glmm_fit(pmx.Binomial(), trials=True)
    p, rows = binomial.fitted(), binomial.args[0]
    m, y = rows.trials.numpy(), rows.y.numpy()
    assert binomial.residuals() == pytest.approx(y / m - p, rel=1e-12)
    assert binomial.residuals("pearson") == pytest.approx((y - m * p) / np.sqrt(m * p * (1 - p)), rel=1e-12)
    with pytest.raises(ConfigError, match="'working'.*'response', 'pearson'"):
        fit.residuals("working")


def test_frequency_weights_count_rows_and_masked_rows_do_not() -> None:
    y = tensor([0.0, 1.0, 2.0, 1.0])
    weights, mask = tensor([2.0, 1.0, 1.0, 5.0]), torch.tensor([True, True, True, False])

    def program(y: torch.Tensor) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(4, 1, dtype=torch.float64))
        pmx.observe("y", pmx.Poisson(), eta, y, weights=weights, mask=mask)

    fit = Fit(glmm_fit(pmx.Poisson(), point={"beta": tensor([0.1])}, latents={}, covariance={}).estimate, program, (y,))
    assert fit.n_obs == 4
    assert np.isnan(fit.residuals()).tolist() == [False, False, False, True]
    loglik = fit.idata.log_likelihood["y"].to_numpy()[0]
    assert (loglik[:, 3] == 0).all()
    assert fit.fixed_effects().index.tolist() == ["beta[0]"]
    assert fit.variance_components().empty
    assert "Number of obs: 4" in str(fit.summary())


def test_draws_give_means_quantiles_and_averaged_covariances(rng: np.random.Generator) -> None:
    sds = tensor(np.abs(rng.normal(1.0, 0.1, size=(200, 2))).tolist())
    rhos = rng.uniform(-0.5, 0.9, size=200)
    factors = torch.stack([tensor([[1.0, 0.0], [r, (1 - r * r) ** 0.5]]) for r in rhos])
    draws = {
        "beta": tensor(rng.normal(size=(200, 2)).tolist()),
        "Subject.sd": sds,
        "Subject.corr_cholesky": factors,
        "Reaction.sigma": tensor(rng.uniform(1, 2, size=200).tolist()),
        "Subject": tensor(rng.normal(size=(200, 18, 2)).tolist()),
    }
    point = {name: value.mean(0) for name, value in draws.items() if name != "Subject"}
    stored = StoredDraws(draws, chains=2)
    fit = sleepstudy_fit(kind="draws", inference="NUTS", point=point, draw=stored, n_draws=200, chains=2)
    table = fit.fixed_effects()
    beta = draws["beta"].numpy()
    assert table["estimate"].to_numpy() == pytest.approx(beta.mean(0))
    assert table["se"].to_numpy() == pytest.approx(beta.std(0, ddof=1))
    assert table["lower"].to_numpy() == pytest.approx(np.quantile(beta, 0.025, axis=0))
    assert fit.correlations("Subject").iloc[0, 1] == pytest.approx(rhos.mean())
    assert fit.variance_components()["sd"].to_numpy()[:2] == pytest.approx(sds.numpy().mean(0))
    assert "R-hat" in str(fit.summary()) and "draws from NUTS" in str(fit.summary())
    x, u = fit.args[0].x.numpy(), draws["Subject"].numpy().repeat(10, axis=1)
    eta = np.einsum("np,sp->sn", x, beta) + (u * x).sum(-1)
    assert fit.predict() == pytest.approx(eta.mean(0), rel=1e-10)
    array = fit.predict(kind="draws")
    assert array.shape == (2, 100, 180)
    assert array.to_numpy()[1, 3] == pytest.approx(eta[103])
    assert fit.idata.posterior.sizes["chain"] == 2
    assert "note" not in fit.idata.posterior.attrs


def test_stored_draws_are_thinned_within_chains() -> None:
    stored = StoredDraws({"a": torch.arange(12.0)}, chains=2)
    assert stored(12, 0)["a"].tolist() == list(range(12))
    assert stored(4, 0)["a"].tolist() == [0, 5, 6, 11]
    assert len(stored(5, 0)["a"]) == 5
    with pytest.raises(ConfigError, match="draws\\(13\\): the fit holds 12"):
        stored(13, 0)


def test_draws_of_a_point_fit_repeat_with_their_seed() -> None:
    fit = sleepstudy_fit()
    assert torch.equal(fit.draws(5, 1)["beta"], fit.draws(5, 1)["beta"])
    assert not torch.equal(fit.draws(5, 1)["beta"], fit.draws(5, 2)["beta"])
    with pytest.raises(ConfigError, match="draws\\(-1\\): at least one"):
        fit.draws(-1)


def test_coefficients_of_two_sites_keep_their_names_apart() -> None:
    def program(y: torch.Tensor) -> None:
        x = torch.ones(3, 1, dtype=torch.float64)
        eta = pmx.LinearEffect("a", labels=("x",))(x) + pmx.LinearEffect("b", labels=("x",))(x)
        pmx.observe("y", pmx.Poisson(), eta, y)

    point = {"a": tensor([1.0]), "b": tensor([2.0])}
    fit = Fit(glmm_fit(pmx.Poisson(), point=point, latents={}).estimate, program, (tensor([1.0, 2.0, 0.0]),))
    assert fit.fixed_effects()["estimate"].to_dict() == {"a[x]": 1.0, "b[x]": 2.0}


def test_health_is_a_list_that_knows_whether_it_is_ok() -> None:
    info, bad = warning("info", "rows"), warning("error", "gradient")
    health = Health((info, warning(), bad))
    assert [record.code for record in health] == ["gradient", "singular", "rows"]
    assert not health.ok and Health((info, warning())).ok and Health().ok
    assert repr(Health()) == "Health: ok, no findings"
    lines = repr(health).splitlines()
    assert lines[0] == "Health: NOT ok (1 error, 1 warn, 1 info)"
    assert lines[1].split() == ["severity", "code", "parameter", "value", "threshold", "remedy"]
    assert lines[2].startswith("error     gradient  Subject.sd  1e-06  0.0001")
    assert "<td>gradient</td>" in health._repr_html_()
    assert "<script" not in Health((HealthRecord("<script>", "warn", 0.0, 0.0, "", ""),))._repr_html_()


def test_repr_is_one_line() -> None:
    text = repr(sleepstudy_fit())
    assert text == "<Fit 'Reaction ~ Days + (Days | Subject)': REML, Exact, logLik -871.81, converged>"


def test_a_run_changes_no_global_state() -> None:
    state = torch.random.get_rng_state()
    fit = sleepstudy_fit()
    fit.summary()
    fit.predict(kind="interval")
    assert torch.equal(state, torch.random.get_rng_state())


def test_levels_of_another_type_keep_it() -> None:
    assert isinstance(sleepstudy_fit().random_effects("Subject").index, pd.Index)
