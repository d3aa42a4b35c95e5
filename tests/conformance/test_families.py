"""Every family and link against mpmath and autograd, and that none is left out."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch

from pyromix.families import AbstractFamily, Binomial, Gaussian, Poisson
from pyromix.families.base import Derivatives
from pyromix.testing import FamilySuite, without_suite

mp.mp.dps = 50
COUNTS = [0.0, 1.0, 2.0, 3.0, 7.0, 20.0, 150.0, 1e4, 1e8, 1e12]
MEASURED = [-20.0, -3.0, -0.5, 0.0, 0.3, 1.0, 2.5, 9.0, 40.0]


def _probabilities(link: str, eta: float) -> tuple[mp.mpf, mp.mpf]:
    """Probabilities of success and failure; each computed on its own, at a precision that holds the tails."""
    with mp.workdps(700):
        x = mp.mpf(eta)
        if link == "logit":
            return 1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(x))
        if link == "probit":
            return mp.erfc(-x / mp.sqrt(2)) / 2, mp.erfc(x / mp.sqrt(2)) / 2
        return -mp.expm1(-mp.exp(x)), mp.exp(-mp.exp(x))


def _binomial(link: str, eta: float, y: float, trials: float | None) -> float:
    p, q = _probabilities(link, eta)
    n = mp.mpf(1 if trials is None else trials)
    y = mp.mpf(y)
    choose = mp.loggamma(n + 1) - mp.loggamma(y + 1) - mp.loggamma(n - y + 1)
    with mp.workdps(60):
        # mpmath's exponents are unbounded, so these logarithms exist wherever the density does
        return float(choose + (y * mp.log(p) if y else 0) + ((n - y) * mp.log(q) if n > y else 0))


class TestGaussian(FamilySuite):
    def make(self) -> Gaussian:
        return Gaussian()

    def responses(self) -> tuple[list[float], None]:
        return MEASURED, None

    def dispersion(self) -> dict[str, float]:
        return {"sigma": 1.7}

    def scipy_log_prob(self, eta: float, y: float, trials: float | None, **dispersion: float) -> float:
        s = mp.mpf(dispersion["sigma"])
        return float(-((mp.mpf(y) - eta) ** 2) / (2 * s**2) - mp.log(s) - mp.log(2 * mp.pi) / 2)


class TestGaussianLog(TestGaussian):
    # exp(700) squared is beyond float64
    extreme = (-700.0, -300.0, -40.0, -20.0, 20.0, 40.0, 100.0)

    def make(self) -> Gaussian:
        return Gaussian("log")

    def scipy_log_prob(self, eta: float, y: float, trials: float | None, **dispersion: float) -> float:
        return super().scipy_log_prob(mp.exp(mp.mpf(eta)), y, trials, **dispersion)


class TestPoisson(FamilySuite):
    def make(self) -> Poisson:
        return Poisson()

    def responses(self) -> tuple[list[float], None]:
        return COUNTS, None

    def scipy_log_prob(self, eta: float, y: float, trials: float | None, **dispersion: float) -> float:
        return float(mp.mpf(y) * eta - mp.exp(mp.mpf(eta)) - mp.loggamma(mp.mpf(y) + 1))


class TestPoissonNearLargeCounts(TestPoisson):
    """Predictors at which the huge terms of the density all but cancel."""

    ordinary = tuple(float(mp.log(count)) + shift for count in (1e8, 1e12) for shift in (-1e-5, -1e-6, 0.0, 2e-6, 0.1))
    extreme = (23.0,)


class TestBernoulliLogit(FamilySuite):
    link = "logit"

    def make(self) -> Binomial:
        return Binomial(self.link)

    def responses(self) -> tuple[list[float], list[float] | None]:
        return [0.0, 1.0] * 5, None

    def scipy_log_prob(self, eta: float, y: float, trials: float | None, **dispersion: float) -> float:
        return _binomial(self.link, eta, y, trials)


class TestBernoulliProbit(TestBernoulliLogit):
    link = "probit"
    ordinary = (*FamilySuite.ordinary, -5.0 - 1e-9, -4.9, -5.1, 4.9, 5.1, -0.0)


class TestBernoulliCloglog(TestBernoulliLogit):
    link = "cloglog"
    ordinary = (*FamilySuite.ordinary, -6.9, -6.91, -0.69, -0.7, -15.0)


class TestBinomialLogit(TestBernoulliLogit):
    def responses(self) -> tuple[list[float], list[float]]:
        trials = [1.0, 1.0, 3.0, 10.0, 10.0, 10.0, 97.0, 1e4, 1e8, 1e12]
        return [0.0, 1.0, 2.0, 0.0, 4.0, 10.0, 60.0, 9999.0, 3e7, 1e12 - 1], trials


class TestBinomialProbit(TestBinomialLogit):
    link = "probit"


class TestBinomialCloglog(TestBinomialLogit):
    link = "cloglog"
    # 1e12 exp(700) is beyond float64
    extreme = (-700.0, -300.0, -40.0, -20.0, 20.0, 40.0, 300.0, 600.0)


class TestBinomialLogitLargeCounts(TestBinomialLogit):
    """Predictors at which the huge terms of the density all but cancel."""

    ordinary = tuple(float(mp.log(mp.mpf(3) / 7)) + shift for shift in (-1e-4, -1e-6, 0.0, 1e-7, 2e-6, 0.01))
    extreme = (-0.9, -0.8, -0.5, 0.0)

    def responses(self) -> tuple[list[float], list[float]]:
        trials = [10.0**k for k in range(1, 13)]
        return [0.3 * m for m in trials], trials


SUITES = (TestGaussian, TestPoisson, TestBernoulliLogit)


def test_every_family_has_a_suite() -> None:
    assert without_suite(AbstractFamily, SUITES, "pyromix.families") == []


def test_a_family_without_a_suite_is_found() -> None:
    assert without_suite(AbstractFamily, SUITES[:2], "pyromix.families") == ["Binomial"]


def test_every_link_has_a_suite() -> None:
    checked = {(type(s().make()), s().make().link.name) for s in FamilySuite.__subclasses__() for s in (s, *_below(s))}
    assert checked >= {(cls, link) for cls in (Gaussian, Poisson, Binomial) for link in cls.links}


def _below(suite: type) -> list[type]:
    return [x for cls in suite.__subclasses__() for x in (cls, *_below(cls))]


class _Broken(Poisson):
    """A family with one mistake, chosen by name: the suite must see it."""

    def __init__(self, link: str = "log", mistake: str = "") -> None:
        super().__init__(link)
        self.mistake = mistake

    def log_prob(self, eta: torch.Tensor, y: torch.Tensor, trials=None, *, prepared=None, **phi) -> torch.Tensor:
        value = super().log_prob(eta, y, trials, prepared=prepared)
        if self.mistake == "constant":
            return value + torch.lgamma(y + 1)
        return (y * eta - eta.exp() - torch.lgamma(y + 1)) if self.mistake == "cancels" else value

    def derivatives(self, eta: torch.Tensor, y: torch.Tensor, trials=None, *, prepared=None, **phi) -> Derivatives:
        given = super().derivatives(eta, y, trials, prepared=prepared)
        if self.mistake == "weight":
            return given._replace(weight=given.weight * 1.001)
        if self.mistake == "graph":
            return given._replace(weight=given.weight.detach())
        if self.mistake == "overflow":
            return given._replace(slope=given.slope.square().sqrt())
        return given


CAUGHT = [
    ("constant", "test_log_prob_equals_the_reference"),
    ("constant", "test_distribution_has_this_log_prob"),
    ("cancels", "test_log_prob_equals_the_reference"),
    ("weight", "test_derivatives_equal_autograd_at_ordinary_predictors"),
    ("graph", "test_each_derivative_is_that_of_the_one_before"),
    ("overflow", "test_finite_at_extreme_predictors"),
]


@pytest.mark.parametrize(("mistake", "check"), CAUGHT)
def test_the_suite_catches_a_mistake(mistake: str, check: str) -> None:
    base = TestPoissonNearLargeCounts if mistake == "cancels" else TestPoisson

    class Suite(base):
        def make(self) -> Poisson:
            return _Broken(mistake=mistake)

    with pytest.raises(AssertionError):
        getattr(Suite(), check)()
