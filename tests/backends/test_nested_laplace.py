"""Nested Laplace against closed forms, and what it reports of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix.errors import Status
from tests.backends import posterior_programs as programs

ROOT = {"progress": False}


def close(draws: torch.Tensor, mean: np.ndarray, sd: np.ndarray, effective: float) -> None:
    """Means within 5 standard errors (false alarm 1 in 2 million an entry), SDs within 5 of theirs."""
    got = draws.reshape(len(draws), -1).numpy()
    assert_allclose(got.mean(0), mean, atol=5 * float(np.max(sd)) / effective**0.5)
    assert_allclose(got.std(0) / sd, 1.0, atol=5 / (2 * effective) ** 0.5)


def test_conjugate_posterior_and_evidence() -> None:
    data = programs.grouped()
    fit = pmx.fit(programs.conjugate, data, backend=pmx.NestedLaplace(2000, cores=1), **ROOT)
    exact = programs.Closed(data, programs.SD)
    sd = np.sqrt(np.diag(exact.covariance))
    draws = fit.draws()
    close(draws["beta"], exact.mean[:2], sd[:2], 1500)
    close(draws["group"], exact.mean[2:], sd[2:], 1500)
    assert fit.estimate.log_evidence == pytest.approx(
        exact.log_evidence, abs=5 * fit.estimate.settings["evidence_error"]
    )
    assert fit.estimate.settings["khat"] < 0.5
    assert fit.status is Status.CONVERGED


def test_unknown_variance_against_a_grid() -> None:
    data = programs.grouped()
    fit = pmx.fit(programs.variance, data, backend=pmx.NestedLaplace(3000, cores=1), **ROOT)
    exact = programs.Integrated(data)
    effective = fit.estimate.settings["effective_size"]
    assert effective > 1500
    sd = np.sqrt(np.diag(exact.covariance))
    draws = fit.draws()
    close(draws["group.sd"], exact.sd_mean, exact.sd_sd, effective / 3)  # its tail is heavier than a normal one
    close(draws["beta"], exact.mean[:2], sd[:2], effective)
    close(draws["group"], exact.mean[2:], sd[2:], effective)
    # coefficients and effects move together: their cross-covariance is not that of independent draws
    cross = np.cov(draws["beta"][:, 0].numpy(), draws["group"][:, 0, 0].numpy())[0, 1]
    assert cross == pytest.approx(exact.covariance[0, 2], abs=5 * sd[0] * sd[2] / effective**0.5)
    assert fit.estimate.log_evidence == pytest.approx(
        exact.log_evidence, abs=5 * fit.estimate.settings["evidence_error"]
    )


def test_correction_brings_binary_data_to_the_quadrature() -> None:
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(30), 4)
    eta = rng.normal(0, 2.0, 30)[g]
    data = {"g": torch.from_numpy(g), "y": torch.from_numpy((rng.uniform(size=120) < 1 / (1 + np.exp(-eta))) * 1.0)}

    def program(data: programs.Data) -> None:
        effect = pmx.RandomEffect("g", pmx.IID(), levels=30)(data["g"])
        pmx.observe("y", pmx.Binomial(), effect, data["y"])

    def mean(backend: pmx.NestedLaplace) -> float:
        return float(pmx.fit(program, data, backend=backend, **ROOT).estimate.point["g.sd"])

    exact = mean(pmx.NestedLaplace(1500, marginal=pmx.GaussHermite(40), cores=1))
    fit = pmx.fit(program, data, backend=pmx.NestedLaplace(1500, correct=20, cores=1), **ROOT)
    sd = float(fit.estimate.covariance["g.sd"][0, 0] ** 0.5)
    assert abs(mean(pmx.NestedLaplace(1500, cores=1)) - exact) > 0.25 * sd  # Laplace alone is off
    assert abs(float(fit.estimate.point["g.sd"]) - exact) < 0.2 * sd  # six standard errors of 900 effective draws
    assert fit.estimate.settings["correct"] == 20


def test_seeds_and_cores_do_not_change_more_than_they_should() -> None:
    data = programs.grouped()

    def draws(seed: int, cores: int) -> dict[str, torch.Tensor]:
        backend = pmx.NestedLaplace(200, cores=cores)
        return pmx.fit(programs.variance, data, backend=backend, seed=seed, **ROOT).draws()

    one, two, other = draws(1, 1), draws(1, 2), draws(2, 1)
    for name in one:
        assert torch.equal(one[name], two[name])
        assert not torch.equal(one[name], other[name])


def test_an_unreliable_approximation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyromix.backends import nested_laplace
    from pyromix.backends.proposals import SplitStudent

    def narrow(density: object, mode: np.ndarray, root: np.ndarray, top: float, inner: object) -> SplitStudent:
        return SplitStudent.symmetric(mode + 4 * root[:, 0], 0.2 * root, df=100.0)

    monkeypatch.setattr(nested_laplace, "proposal_at", narrow)
    monkeypatch.setattr(nested_laplace, "ROUNDS", 1)
    fit = pmx.fit(programs.variance, programs.grouped(), backend=pmx.NestedLaplace(100, cores=1), **ROOT)
    assert fit.status is Status.UNRELIABLE
    assert not fit.health.ok
    assert {record.code for record in fit.health} >= {"pareto_k"}


def test_a_formula_fit_is_complete() -> None:
    df = pmx.datasets.load("sleepstudy")
    fit = pmx.model("Reaction ~ Days + (Days | Subject)", df).fit(pmx.NestedLaplace(200, cores=1), **ROOT)
    assert set(fit.draws()) == {
        "beta", "Subject", "Subject.sd", "Subject.corr_cholesky", "Reaction.sigma",
    }  # fmt: skip
    assert fit.idata.posterior["Subject"].shape == (1, 200, 18, 2)
    assert fit.random_effects("Subject").shape == (18, 2)
    assert fit.estimate.settings["exact"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, r"draws=0.*at least 1"),
        ({"draws": 10.0}, r"draws=10.0.*integer"),
        ({"marginal": "laplace"}, r"marginal='laplace'.*pass an instance"),
        ({"correct": -1}, r"correct=-1.*at least 0"),
        ({"evaluations": 3}, r"evaluations=3.*at least 50"),
        ({"cores": 0}, r"cores=0"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        pmx.NestedLaplace(**arguments)


def test_plain_sites_are_refused() -> None:
    with pytest.raises(pmx.UnsupportedError, match="NUTS"):
        pmx.fit(programs.plain, programs.grouped(), backend=pmx.NestedLaplace(100, cores=1), **ROOT)
