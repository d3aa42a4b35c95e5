"""Predictions against closed forms and dense algebra."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

import pyromix as pmx
from pyromix.errors import ConfigError, UnseenLevelError, UnsupportedError
from pyromix.formula.design import Design
from pyromix.linalg.operators import AbstractOperator
from pyromix.results import Fit
from pyromix.results.predict import new_level_variance
from pyromix.results.rows import row_labels, tidy_labels
from pyromix.sites import RowMap
from tests.results.models import (
    BETA,
    FITTED,
    MODES,
    RHO,
    SD,
    SIGMA,
    SUBJECTS,
    corr_cholesky,
    glmm_fit,
    sleepstudy,
    sleepstudy_estimate,
    sleepstudy_fit,
    slope_program,
    tensor,
)

NEW = pd.DataFrame({"Days": [0.0, 4.0, 9.0, 4.0], "Subject": ["999", "308", "1000", "999"]}, index=list("dbca"))
SIGMA_U = np.array([[SD[0] ** 2, RHO * SD[0] * SD[1]], [RHO * SD[0] * SD[1], SD[1] ** 2]])


def design_fit() -> Fit:
    """The sleepstudy fit on a design made from its formula."""
    formula = "Reaction ~ Days + (Days | Subject)"
    design = Design.from_formula(formula, sleepstudy(), family=pmx.Gaussian())
    program = slope_program(pmx.Gaussian())
    return Fit(sleepstudy_estimate(), program, (design,), design=design, formula_text=formula, new_design=design.new)


FITS = [sleepstudy_fit, design_fit]


@pytest.mark.parametrize("make", FITS)
def test_known_groups_are_predicted_at_their_modes(make) -> None:
    fit = make()
    assert fit.predict()[:4] == pytest.approx(FITTED, rel=1e-9)
    assert fit.predict().dtype == np.float64 and fit.predict().shape == (180,)
    frame = sleepstudy()
    assert np.array_equal(fit.predict(frame.assign(Reaction="never read")), fit.predict())
    assert np.array_equal(fit.predict(frame.drop(columns="Reaction"), kind="linear"), fit.predict())
    assert fit.predict(new_groups="marginal") == pytest.approx(fit.predict(), abs=0)


@pytest.mark.parametrize("make", FITS)
@pytest.mark.parametrize("kind", ["mean", "linear"])
def test_rows_are_predicted_one_by_one(make, kind: str, rng: np.random.Generator) -> None:
    fit, frame = make(), sleepstudy()
    whole = fit.predict(frame, kind=kind)
    for rows in (rng.permutation(180), np.array([7]), np.array([3, 3, 170])):
        np.testing.assert_allclose(fit.predict(frame.iloc[rows], kind=kind), whole[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", FITS)
def test_unseen_levels_are_refused_by_name(make) -> None:
    with pytest.raises(UnseenLevelError) as caught:
        make().predict(NEW)
    text = str(caught.value)
    assert "column 'Subject': 2 levels not seen in the fit" in text
    assert "'999'" in text and "'1000'" in text
    assert "3 rows, first at row 'd' (position 0)" in text
    for option in ("'zero'", "'marginal'", "'conditional'"):
        assert option in text


def test_many_unseen_levels_are_counted() -> None:
    new = pd.DataFrame({"Days": 1.0, "Subject": [f"s{k}" for k in range(9)]})
    with pytest.raises(UnseenLevelError, match="9 levels not seen in the fit: 's0'.*'s4' and 4 more; 9 rows"):
        sleepstudy_fit().predict(new)


@pytest.mark.parametrize("make", FITS)
@pytest.mark.parametrize("policy", ["zero", "marginal", "conditional"])
def test_new_levels_of_a_gaussian_fit_get_the_population_mean(make, policy: str) -> None:
    days = NEW["Days"].to_numpy()
    expected = BETA[0] + BETA[1] * days
    expected[1] += MODES[0][0] + MODES[0][1] * 4
    for kind in ("mean", "linear"):
        assert make().predict(NEW, kind=kind, new_groups=policy) == pytest.approx(expected, rel=1e-12)


def _poisson_slopes() -> Fit:
    base = glmm_fit(pmx.Poisson())
    rows = base.args[0]
    from dataclasses import replace

    term = replace(rows.terms[0], design=rows.x, terms=("Intercept", "x"))
    rows = replace(rows, terms=(term,))
    factor = tensor([[1.0, 0.0], [-0.3, (1 - 0.09) ** 0.5]])
    point = {"beta": tensor([0.3, -0.5]), "g.sd": tensor([0.7, 0.4]), "g.corr_cholesky": factor}
    latents = {"g": torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(8, 2)}
    fit = glmm_fit(pmx.Poisson(), point=point, latents=latents)
    return Fit(fit.estimate, slope_program(pmx.Poisson()), (rows,), new_design=rows.new)


def test_marginal_mean_of_a_new_poisson_group_in_closed_form() -> None:
    """exp(f + z' Sigma z / 2), not exp(f)."""
    fit = _poisson_slopes()
    new = pd.DataFrame({"x": [0.0, 1.0, -2.0, 1.0], "g": ["n1", "n1", "n2", "a"]})
    x = new["x"].to_numpy()
    f = 0.3 - 0.5 * x
    variance = 0.49 + 2 * x * (-0.3 * 0.7 * 0.4) + x**2 * 0.16
    found = fit.predict(new, new_groups="marginal")
    assert found[:3] == pytest.approx(np.exp(f + variance / 2)[:3], rel=1e-13)
    u = fit.estimate.latents["g"][0].numpy()
    assert found[3] == pytest.approx(np.exp(f[3] + u[0] + u[1]), rel=1e-13)
    assert fit.predict(new, new_groups="zero")[:3] == pytest.approx(np.exp(f)[:3], rel=1e-13)
    assert fit.predict(new, "linear", new_groups="marginal")[:3] == pytest.approx(f[:3], rel=1e-13)
    assert np.array_equal(found, fit.predict(new, new_groups="marginal", seed=9)), "no seed in it"


def test_marginal_mean_of_a_new_binomial_group_by_simulation(rng: np.random.Generator) -> None:
    fit = glmm_fit(pmx.Binomial(), trials=True, sd=1.5)
    found = fit.predict(pd.DataFrame({"x": [-1.0, 2.0], "g": "new", "trials": 4}), new_groups="marginal")
    f = np.array([0.8, -0.7])
    sample = 1 / (1 + np.exp(-(f + 1.5 * rng.normal(size=(400_000, 1)))))
    error = sample.std(0) / 400_000**0.5
    assert (np.abs(found - sample.mean(0)) < 5 * error).all()
    assert (np.abs(found - 1 / (1 + np.exp(-f))) > 0.03).all()


@pytest.mark.parametrize("make", FITS)
def test_rows_with_missing_values_are_nan_and_alone(make) -> None:
    frame = sleepstudy().iloc[:6].astype({"Subject": object})
    frame.loc[[1, 4], "Days"] = np.nan
    fit = make()
    found = fit.predict(frame)
    assert np.isnan(found).tolist() == [False, True, False, False, True, False]
    whole = [0, 2, 3, 5]
    np.testing.assert_allclose(found[whole], fit.predict()[whole], rtol=0, atol=1e-12)
    interval = fit.predict(frame, kind="interval")
    assert interval.isna().all(axis=1).tolist() == np.isnan(found).tolist()
    assert np.isnan(fit.predict(frame, kind="draws").to_numpy()[0, 0]).tolist() == np.isnan(found).tolist()
    nothing = frame.assign(Days=np.nan)
    assert np.isnan(fit.predict(nothing)).all() and len(fit.predict(nothing)) == 6
    assert fit.predict(nothing, kind="interval").isna().all(axis=None)
    assert np.isnan(fit.predict(nothing, kind="draws")).all()


def test_a_network_never_sees_missing_values() -> None:
    """One incomplete row must not cost the others their prediction, though a network refuses NaN."""
    design = Design.from_formula("Reaction ~ Days + (1 | Subject)", sleepstudy(), family=pmx.Gaussian())
    module = torch.nn.Linear(1, 1).double()

    def program(d: Design) -> None:
        net = pmx.NeuralEffect("net", torch.nn.Sequential(module, torch.nn.Flatten(0)))(d.x[:, 1:])
        (term,) = d.terms
        eta = net + pmx.RandomEffect("Subject", pmx.IID(), levels=term.levels)(term.index)
        pmx.observe("Reaction", pmx.Gaussian(), eta, d.y)

    point = {"Subject.sd": tensor(20.0), "Reaction.sigma": tensor(25.0)}
    latents = {"Subject": tensor([[float(k)] for k in range(18)])}
    estimate = sleepstudy_estimate(point=point, latents=latents, latent_sd=latents)
    fit = Fit(estimate, program, (design,), design=design, new_design=design.new)
    frame = sleepstudy().iloc[:3]
    frame.loc[1, "Days"] = np.nan
    found = fit.predict(frame)
    assert np.isnan(found).tolist() == [False, True, False]
    w, b = module.weight.item(), module.bias.item()
    assert found[[0, 2]] == pytest.approx([b, b + 2 * w])
    new = frame.assign(Subject=["308", "308", "nobody"])
    with pytest.raises(UnseenLevelError, match="'nobody'; 1 row, first at row 2 \\(position 2\\)"):
        fit.predict(new)


def test_effects_inside_a_function_are_averaged_by_draws() -> None:
    """eta = 2 u^2 is not linear in u: its marginal mean is 2 sd^2."""

    def program(d: dict) -> None:
        effect = pmx.RandomEffect("g", pmx.IID(), levels=3)(d["g"])
        pmx.observe("y", pmx.Gaussian(), 2 * effect.square(), d.get("y"))

    data = {"g": torch.tensor([0, 1, 2, 0]), "y": tensor([0.0, 1.0, 2.0, 1.0])}
    point = {"g.sd": tensor(1.5), "y.sigma": tensor(1.0)}
    fit = Fit(glmm_fit(pmx.Gaussian(), point=point, latents={"g": tensor([[1.0], [2.0], [3.0]])}).estimate,
              program, (data,))  # fmt: skip
    new = {"g": torch.tensor([-1, 1])}
    found = fit.predict(new, new_groups="marginal")
    assert found[1] == pytest.approx(8.0)
    # sd of 2 u^2 is 2 sqrt(2) sd^2; 1000 draws
    assert abs(found[0] - 4.5) < 5 * 2 * 2**0.5 * 1.5**2 / 1000**0.5
    assert np.array_equal(found, fit.predict(new, new_groups="marginal")), "the same draws every time"
    assert fit.predict(new, new_groups="zero") == pytest.approx([0.0, 8.0])


def test_program_fits_number_new_levels_themselves() -> None:
    fit = _program_fit()
    with pytest.raises(UnseenLevelError, match="column 'g' .*index 5 at row 1 is not one of the 3 levels.*-1, -2"):
        fit.predict({"g": torch.tensor([0, 5])})
    with pytest.raises(UnseenLevelError, match="column 'g': levels not seen in the fit; 1 row, first at position 1"):
        fit.predict({"g": torch.tensor([0, -1])})
    assert fit.predict({"g": torch.tensor([1, 0])}) == pytest.approx([2.0, 1.0]), "fewer levels than in the fit"


def _program_fit() -> Fit:
    def program(d: dict) -> None:
        pmx.observe("y", pmx.Gaussian(), pmx.RandomEffect("g", pmx.IID())(d["g"]), d.get("y"))

    data = {"g": torch.tensor([0, 1, 2]), "y": tensor([0.0, 1.0, 2.0])}
    point = {"g.sd": tensor(1.5), "y.sigma": tensor(1.0)}
    estimate = glmm_fit(pmx.Gaussian(), point=point, latents={"g": tensor([[1.0], [2.0], [3.0]])}).estimate
    return Fit(estimate, program, (data,))


def test_variance_of_new_levels_against_dense_algebra(generator: torch.Generator) -> None:
    n, m, q, levels = 30, 4, 3, 5
    index = torch.randint(-3, levels, (n, m), generator=generator)
    design = torch.randn(n, q, dtype=torch.float64, generator=generator)
    weight = torch.rand(n, m, dtype=torch.float64, generator=generator)
    block = torch.tril(torch.randn(q, q, dtype=torch.float64, generator=generator))
    dense = torch.zeros(n, 3, q, dtype=torch.float64)  # only the three new levels
    for row in range(n):
        for k in range(m):
            if index[row, k] < 0:
                dense[row, index[row, k] + 3] += weight[row, k] * design[row]
    covariance = torch.kron(torch.eye(3, dtype=torch.float64), block @ block.T)
    expected = ((dense.reshape(n, -1) @ covariance) * dense.reshape(n, -1)).sum(1)
    found = new_level_variance(RowMap(index, design, weight), block)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    single = new_level_variance(RowMap(index[:, 0], design), block)
    alone = (design @ block).square().sum(1) * (index[:, 0] < 0)
    torch.testing.assert_close(single, alone, rtol=1e-12, atol=1e-12)


def test_draws_of_new_levels_have_their_prior_covariance() -> None:
    estimate = sleepstudy_estimate()
    point = {**estimate.point, "Subject.sd": tensor([30.0, 5.0]), "Subject.corr_cholesky": corr_cholesky(0.9)}
    values = {**point, **estimate.latents}  # the same at every draw, so that only new effects vary
    fit = sleepstudy_fit(
        point=point,
        draw=lambda count, seed: {name: value.expand(count, *value.shape) for name, value in values.items()},
    )
    sample = fit.predict(NEW, "draws", new_groups="marginal").to_numpy()[0]
    assert sample.shape == (500, 4)
    z = np.array([[1.0, 0.0], [1.0, 9.0], [1.0, 4.0]])
    expected = z @ np.array([[900.0, 135.0], [135.0, 25.0]]) @ z.T
    expected[1, [0, 2]] = expected[[0, 2], 1] = 0  # subject 1000 is independent of subject 999
    found = np.cov(sample[:, [0, 2, 3]].T)
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    # a correlation's SD is at most 1 / sqrt(500), a variance's relative SD is sqrt(2 / 500)
    assert (np.abs(found - expected) / scale < 5 * (2 / 500) ** 0.5).all()
    assert sample[:, 1].std() < 1e-9
    assert (fit.predict(NEW, "draws", new_groups="zero").to_numpy().std(axis=1) < 1e-9).all()


def test_draws_are_labelled_and_repeatable() -> None:
    fit = sleepstudy_fit()
    array = fit.predict(NEW, "draws", new_groups="marginal")
    assert array.dims == ("chain", "draw", "obs_id") and array["obs_id"].to_numpy().tolist() == list("dbca")
    assert array.attrs["inference"] == "REML, Exact"
    assert np.array_equal(array, fit.predict(NEW, "draws", new_groups="marginal"))
    assert not np.array_equal(array, fit.predict(NEW, "draws", new_groups="marginal", seed=1))


def test_new_levels_and_parameters_are_drawn_from_different_noise() -> None:
    """One coefficient that varies, one new level: made of the same normals they would move together."""
    base = glmm_fit(pmx.Poisson())
    values = {**base.estimate.point, **base.estimate.latents}

    def draw(count: int, seed: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        moved = {name: value.expand(count, *value.shape) for name, value in values.items()}
        return {**moved, "beta": values["beta"] + noise * tensor([1.0, 0.0])}

    fit = glmm_fit(pmx.Poisson(), draw=draw)
    new = pd.DataFrame({"x": [0.0], "g": "new"})
    both, alone = (
        np.log(fit.predict(new, "draws", new_groups=policy).to_numpy().reshape(-1)) for policy in ("marginal", "zero")
    )
    # correlation of 500 independent pairs: SD 0.045
    assert abs(np.corrcoef(both - alone, alone)[0, 1]) < 5 * 500**-0.5


def test_interval_of_a_new_observation_against_the_normal_quantiles() -> None:
    fit = sleepstudy_fit()
    table = fit.predict(NEW, "interval", new_groups="marginal", level=0.8)
    assert table.columns.tolist() == ["mean", "lower", "upper"] and table.index.tolist() == list("dbca")
    assert table["mean"].to_numpy() == pytest.approx(fit.predict(NEW, new_groups="marginal"))
    z = np.array([[1.0, 0.0], [1.0, 4.0], [1.0, 9.0], [1.0, 4.0]])
    covariance = fit.estimate.covariance["beta"].numpy()
    effect = np.einsum("nk,kl,nl->n", z, SIGMA_U, z)
    effect[1] = np.square(z[1] * fit.estimate.latent_sd["Subject"].numpy()[0]).sum()
    sd = np.sqrt(np.einsum("nk,kl,nl->n", z, covariance, z) + effect + SIGMA**2)
    half = norm.ppf(0.9) * sd
    # the SD of a sample quantile at 0.9 is 1.71 sd / sqrt(1000)
    allowed = 5 * 1.71 * sd / 1000**0.5
    assert (np.abs(table["upper"] - table["mean"] - half) < allowed).all()
    assert (np.abs(table["mean"] - table["lower"] - half) < allowed).all()


def test_intervals_of_counts_are_counts_and_of_trials_proportions() -> None:
    poisson = glmm_fit(pmx.Poisson()).predict(kind="interval")
    assert (poisson[["lower", "upper"]] % 1 == 0).all(axis=None)
    assert (poisson["lower"] <= poisson["mean"]).all() and (poisson["mean"] <= poisson["upper"] + 1).all()
    binomial = glmm_fit(pmx.Binomial(), trials=True)
    table = binomial.predict(kind="interval")
    assert table.to_numpy().min() >= 0 and table.to_numpy().max() <= 1
    counts = table["upper"].to_numpy() * binomial.args[0].trials.numpy()
    assert counts == pytest.approx(counts.round())


BAD = [
    ({"kind": "response"}, "predict\\(kind='response'\\): choose one of 'mean', 'linear', 'interval', 'draws'"),
    ({"new_groups": "allow"}, "predict\\(new_groups='allow'\\): choose one of 'error', 'zero'"),
    ({"kind": "interval", "level": 90}, "level=90\\): must lie between 0 and 1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sleepstudy_fit().predict(**arguments)


class _Chained(pmx.IID):
    """Levels that depend on each other, without a block."""

    def operator(self, theta, coords):
        return _Walk(theta["sd"], len(coords.levels))


class _Walk(AbstractOperator):
    def __init__(self, sd: torch.Tensor, levels: int) -> None:
        self.sd, self.levels = sd, levels

    shape = property(lambda self: (self.levels, 1))

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        return self.sd * b.cumsum(-2)

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        return torch.diff(u, dim=-2, prepend=torch.zeros_like(u[..., :1, :])) / self.sd

    def logdet_factor(self) -> torch.Tensor:
        return self.levels * self.sd.log()


def test_dependent_levels() -> None:
    base = glmm_fit(pmx.Poisson())
    program = slope_program(pmx.Poisson(), _Chained())
    fit = Fit(base.estimate, program, base.args, new_design=base.new_design)
    new = pd.DataFrame({"x": [0.1], "g": ["new"]})
    last = float(fit.random_effects("g").to_numpy()[-1, 0])
    # one more step of the walk, from its last level or from nowhere: a log-normal mean
    assert fit.predict(new, new_groups="conditional") == pytest.approx(np.exp(0.3 - 0.05 + last + 0.5 * 0.64))
    assert fit.predict(new, new_groups="marginal") == pytest.approx(np.exp(0.3 - 0.05 + 0.5 * 9 * 0.64))
    assert fit.predict(new, new_groups="zero") == pytest.approx(np.exp(0.3 - 0.05))
    # a random walk: the variance of level k is k sd^2, on average 4.5 sd^2 over eight levels
    assert fit.variance_components()["variance"].tolist() == pytest.approx([4.5 * 0.64])


def test_several_responses_are_refused() -> None:
    def program(y: torch.Tensor) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(3, 1, dtype=torch.float64))
        for name in ("y1", "y2"):
            pmx.observe(name, pmx.Poisson(), eta, y)

    estimate = glmm_fit(pmx.Poisson(), point={"beta": tensor([0.1])}, latents={}, covariance={}).estimate
    fit = Fit(estimate, program, (tensor([1.0, 0.0, 2.0]),))
    with pytest.raises(UnsupportedError, match="several responses \\('y1', 'y2'\\)"):
        fit.predict()
    assert fit.n_obs == 6 and len(fit.residuals()) == 6
    assert set(fit.idata.observed_data.dims) == {"y1_obs_id", "y2_obs_id"}


def test_row_labels() -> None:
    assert row_labels(pd.Index(["b", "a"]), 2).tolist() == ["b", "a"]
    for index in (None, pd.Index([1, 1]), pd.MultiIndex.from_tuples([(1, 2), (3, 4)]), pd.RangeIndex(3)):
        assert row_labels(index, 2).tolist() == [0, 1]
    assert tidy_labels([1, "a"]).tolist() == ["1", "a"]
    assert tidy_labels([1, 2]).dtype == np.int64 and tidy_labels([1, 2.5]).dtype == np.float64
    assert tidy_labels([True, False]).tolist() == ["True", "False"]


def test_levels_of_the_fit_are_matched_by_label_not_by_order() -> None:
    frame = pd.DataFrame({"Days": 0.0, "Subject": SUBJECTS[::-1]})
    expected = BETA[0] + np.array(MODES)[::-1, 0]
    assert design_fit().predict(frame) == pytest.approx(expected, rel=1e-12)
