"""Means of Gaussian predictors against arbitrary-precision integrals."""

from __future__ import annotations

import mpmath
import pytest
import torch

import pyromix as pmx
from pyromix.results.quadrature import gaussian_mean

INVERSE = {
    "logit": lambda x: 1 / (1 + mpmath.exp(-x)),
    "probit": mpmath.ncdf,
    "cloglog": lambda x: -mpmath.expm1(-mpmath.exp(x)),
}


def _exact(link: str, eta: float, sd: float) -> float:
    with mpmath.workdps(25):

        def integrand(z):
            return INVERSE[link](eta + sd * z) * mpmath.npdf(z)

        return float(mpmath.quad(integrand, mpmath.linspace(-14, 14, 41)))


@pytest.mark.parametrize("family", [pmx.Binomial(link) for link in INVERSE], ids=str)
@pytest.mark.parametrize("sd", [0.01, 1.0, 4.0, 12.0])
def test_binomial_means_against_mpmath(family: pmx.Binomial, sd: float) -> None:
    eta = torch.tensor([-7.0, -1.3, 0.0, 2.5], dtype=torch.float64)
    found = gaussian_mean(family.mean, eta, torch.full_like(eta, sd**2))
    exact = [_exact(family.link.name, value, sd) for value in eta.tolist()]
    assert found.tolist() == pytest.approx(exact, rel=1e-10, abs=1e-12)


def test_probit_mean_in_closed_form() -> None:
    eta = torch.linspace(-4, 4, 9, dtype=torch.float64)
    variance = torch.linspace(0, 8, 9, dtype=torch.float64)
    closed = torch.special.ndtr(eta / (1 + variance).sqrt())
    torch.testing.assert_close(
        gaussian_mean(pmx.Binomial("probit").mean, eta, variance), closed, rtol=1e-11, atol=1e-13
    )


def test_identity_and_log_links_are_exact() -> None:
    eta = torch.tensor([-30.0, -1.0, 0.0, 3.0, 20.0], dtype=torch.float64)
    variance = torch.tensor([0.0, 0.5, 4.0, 100.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gaussian_mean(lambda x: x, eta, variance), eta, rtol=0, atol=0)
    found = gaussian_mean(pmx.Poisson().mean, eta, variance)
    torch.testing.assert_close(found, torch.exp(eta + variance / 2), rtol=1e-14, atol=0)


def test_a_logistic_tail_is_not_taken_for_an_exponential() -> None:
    """Far out the logistic curve is exponential to the last digit; a large variance leads back from there."""
    eta = torch.tensor([-45.0], dtype=torch.float64)
    found = gaussian_mean(torch.sigmoid, eta, torch.tensor([144.0], dtype=torch.float64))
    assert found.item() == pytest.approx(_exact("logit", -45.0, 12.0), rel=1e-9)
    assert found.item() < 1e-3


def test_rows_without_variance_and_nan_rows_are_left_alone() -> None:
    eta = torch.tensor([0.3, float("nan"), 0.3], dtype=torch.float64)
    variance = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    found = gaussian_mean(torch.sigmoid, eta, variance)
    assert found[0] == torch.sigmoid(eta[0])
    assert torch.isnan(found[1])
    assert found[2].item() == pytest.approx(_exact("logit", 0.3, 1.0), rel=1e-12)
    assert torch.equal(gaussian_mean(torch.sigmoid, eta[:1], variance[:1]), torch.sigmoid(eta[:1]))
