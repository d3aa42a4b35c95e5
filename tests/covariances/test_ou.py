"""The Ornstein-Uhlenbeck process."""

from __future__ import annotations

import math
from collections.abc import Mapping

import mpmath
import pyro.distributions as dist
import pytest
import torch

from pyromix import AR1, OU
from pyromix.covariances import Coords
from pyromix.errors import ConfigError, StructureError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number

Theta = Mapping[str, torch.Tensor]


def dense(theta: Theta, coords: Coords) -> torch.Tensor:
    """Entry by entry from the definition."""
    where = coords.levels if coords.values is None else list(coords.values)
    where = [w if isinstance(w, tuple) else (0, w) for w in where]
    apart = torch.tensor([[abs(t - s) for _, s in where] for _, t in where], dtype=torch.float64)
    same = torch.tensor([[a == b for b, _ in where] for a, _ in where])
    correlation = torch.where(same, (-theta["rate"] * apart).exp(), 0.0)
    return theta["sd"] ** 2 * torch.kron(correlation, torch.eye(len(coords.terms), dtype=torch.float64))


class TestOU(CovarianceSuite):
    def make(self) -> OU:
        return OU()

    def coords(self) -> Coords:
        return Coords((3.5, 0.25, 0.3, 7.0), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3), "rate": number(0.6)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense(theta, coords)


class TestOUInSeries(TestOU):
    def coords(self) -> Coords:
        return Coords((("b", 2.5), ("a", 5), ("b", 1), ("a", -2.0), ("c", 2)), ("Intercept", "x"))


class TestOUAtValues(TestOU):
    def coords(self) -> Coords:
        return Coords(("x", "y", "z"), ("Intercept",), [7.5, 4, 5])


@pytest.mark.parametrize("rho", [0.05, 0.6, 0.999])
def test_on_whole_steps_it_is_ar1(rho: float) -> None:
    coords = Coords((("b", 2), ("a", 5), ("b", 1), ("a", 2), ("a", 3)), ("Intercept",))
    u = torch.randn(5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ou = OU().operator({"sd": number(0.7), "rate": -torch.log(number(rho))}, coords)
    ar1 = AR1().operator({"sd": number(0.7), "rho": number(rho)}, coords)
    close(ou.dense(), ar1.dense(), 0.0, 1e-12)
    close(ou.log_prob(u), ar1.log_prob(u), 1e-11)


@pytest.mark.parametrize("rate", [1e-14, 1e-6, 1.0, 40.0, 1e4, 1e300])
def test_tiny_and_huge_rates(rate: float) -> None:
    """Against the dense covariance in 80 digits."""
    times, u = [0.0, 0.5, 2.0], [0.3, -0.2, 1.1]
    coords = Coords(tuple(times), ("Intercept",))
    free = number(rate).requires_grad_(True)
    operator = OU().operator({"sd": number(1.0), "rate": free}, coords)
    with mpmath.workdps(80):
        exact = mpmath.mpf(rate)
        matrix = mpmath.matrix([[mpmath.exp(-exact * abs(s - t)) for s in times] for t in times])
        logdet = mpmath.log(mpmath.det(matrix))
        vector = mpmath.matrix(u)
        quadratic = (vector.T * mpmath.lu_solve(matrix, vector))[0]
    expected = -0.5 * float(quadratic) - 0.5 * float(logdet) - 1.5 * math.log(2 * math.pi)
    value = operator.log_prob(torch.tensor(u, dtype=torch.float64)[:, None])
    assert float(operator.logdet_factor().detach()) == pytest.approx(0.5 * float(logdet), rel=1e-13, abs=1e-13)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(value, free)
    assert torch.isfinite(slope)


def test_the_default_prior_follows_the_unit_of_time() -> None:
    days = Coords((("a", 0), ("a", 14), ("b", 0), ("b", 42)), ("Intercept",))
    weeks = Coords((("a", 0), ("a", 2), ("b", 0), ("b", 6)), ("Intercept",))
    by_day, by_week = (OU().parameters(coords)[1].prior for coords in (days, weeks))
    assert float(by_day.loc.exp()) == pytest.approx(3 / 42)
    close(by_week.loc - by_day.loc, torch.log(number(7.0)))
    assert by_day.scale == by_week.scale == 1.5
    alone = OU().parameters(Coords((5.0,), ("Intercept",)))[1].prior
    assert float(alone.loc.exp()) == pytest.approx(3.0)


REFUSED = [
    (lambda: OU(rate=0.0), r"OU\(rate=\.\.\.\): 0\.0 is not allowed; it must be positive"),
    (lambda: OU(rate=math.inf), r"OU\(rate=\.\.\.\): inf is not allowed"),
    (lambda: OU(rate="fast"), r"OU\(rate=\.\.\.\): got 'fast'"),
    (lambda: OU(rate=dist.Normal(1.0, 1.0)), r"its prior Normal reaches below zero, but it must be positive"),
    (lambda: OU(sd=-1.0), r"OU\(sd=\.\.\.\): -1\.0 is not allowed"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_levels_that_are_no_times() -> None:
    with pytest.raises(StructureError, match=r"OU: level 'mon' is no number"):
        OU().parameters(Coords(("mon", "tue"), ("Intercept",)))


TIMES = (0.0, 0.3, 1.1, 1.9, 4.0, 4.2, 7.5, 8.1)
SERIES = Coords(tuple((s, t) for s in "abcdef" for t in TIMES), ("Intercept",))


def test_fit() -> None:
    check_gaussian_fit(OU(), SERIES, dense, {"sd": number(1.0), "rate": number(0.5)})


def test_counts() -> None:
    check_counts(OU(), SERIES, dense, {"sd": number(1.0), "rate": number(0.5)})
