"""The logarithms of both outcomes' probabilities and their derivatives, to their last digits in both tails."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch

from pyromix.errors import ConfigError
from pyromix.families import Binomial
from pyromix.families.links import LINKS, AbstractBinaryLink
from pyromix.families.stirling import remainder

ORDINARY = [-5.0, -2.5, -1.0, -0.1, 0.0, 0.3, 1.0, 2.0, 3.5, 5.0]
TAILS = [-700.0, -50.0, -12.0, -5.01, -4.99, 5.01, 12.0, 30.0]
SWITCHES = [-6.907756, -6.9077, -0.6932, -0.6931, 0.0, 1e-12, -1e-12]
BINARY = [link for link in LINKS.values() if isinstance(link, AbstractBinaryLink)]


def _exact(name: str, success: bool) -> object:
    """Log probability of one outcome as an mpmath function."""
    if name == "logit":
        return lambda x: -mp.log1p(mp.exp(-x if success else x))
    if name == "probit":
        return lambda x: mp.log(mp.erfc((-x if success else x) / mp.sqrt(2)) / 2)
    return (lambda x: mp.log(-mp.expm1(-mp.exp(x)))) if success else (lambda x: -mp.exp(x))


def _derivative(function: object, x: float, order: int) -> mp.mpf:
    """By differences at a precision that leaves digits over, also where the value is 1e-300."""
    with mp.workdps(420 if 5 < abs(x) < 40 else 120):
        return mp.diff(function, mp.mpf(x), order, h=mp.mpf(10) ** -25)


@pytest.mark.parametrize("success", [True, False], ids=["success", "failure"])
@pytest.mark.parametrize("link", BINARY, ids=lambda link: link.name)
@pytest.mark.parametrize("etas", [ORDINARY, TAILS, SWITCHES], ids=["ordinary", "tails", "switches"])
def test_logarithm_and_derivatives_keep_their_digits(
    link: AbstractBinaryLink, success: bool, etas: list[float]
) -> None:
    eta = torch.tensor(etas, dtype=torch.float64)
    log, derivatives = (
        (link.log_success, link.success_derivatives) if success else (link.log_failure, link.failure_derivatives)
    )
    function = _exact(link.name, success)
    for order, got in enumerate([log(eta), *(-x for x in derivatives(eta))]):
        for x, value in zip(etas, got.tolist(), strict=True):
            expected = float(_derivative(function, x, order))
            # a zero curvature slope at a point of symmetry has no relative error
            assert value == pytest.approx(expected, rel=1e-10, abs=1e-15 if abs(x) < 1e-3 else 1e-300), (x, order)


@pytest.mark.parametrize("link", BINARY, ids=lambda link: link.name)
def test_probabilities_add_to_one(link: AbstractBinaryLink) -> None:
    eta = torch.linspace(-30, 30, 601, dtype=torch.float64)
    total = link.log_success(eta).exp() + link.log_failure(eta).exp()
    assert torch.allclose(total, torch.ones_like(total), rtol=1e-14, atol=0)
    assert torch.allclose(link.log_success(eta).exp(), link.inverse(eta), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("link", [link for link in BINARY if link.symmetric], ids=lambda link: link.name)
def test_a_symmetric_link_mirrors_its_outcomes(link: AbstractBinaryLink) -> None:
    eta = torch.linspace(-40, 40, 801, dtype=torch.float64)
    assert torch.equal(link.log_success(eta), link.log_failure(-eta))


@pytest.mark.parametrize("x", [1.0, 2.0, 7.0, 15.0, 16.0, 17.0, 100.0, 1e4, 1e8, 1e12])
def test_remainder_of_stirlings_formula(x: float) -> None:
    with mp.workdps(60):
        y = mp.mpf(x)
        expected = mp.loggamma(y + 1) - ((y + 0.5) * mp.log(y) - y + mp.log(2 * mp.pi) / 2)
    got = float(remainder(torch.tensor(x, dtype=torch.float64)))
    assert got == pytest.approx(float(expected), rel=1e-12, abs=2e-14)


def test_unknown_link() -> None:
    with pytest.raises(ConfigError, match=r"Binomial\(link='loglog'\): unknown link; choose one of 'logit', 'probit'"):
        Binomial("loglog")
