"""Equal correlations between the terms of a level."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import pytest
import torch

from pyromix import IID, CompoundSymmetry
from pyromix.covariances import Coords
from pyromix.errors import ConfigError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number

Theta = Mapping[str, torch.Tensor]
COORDS = Coords(("a", "b", "c"), ("t1", "t2", "t3", "t4"))


def dense(theta: Theta, coords: Coords) -> torch.Tensor:
    q = len(coords.terms)
    eye = torch.eye(q, dtype=torch.float64)
    correlation = (1 - theta["corr"]) * eye + theta["corr"] * torch.ones(q, q, dtype=torch.float64)
    sd = theta["sd"].expand(q)
    return torch.kron(torch.eye(len(coords.levels), dtype=torch.float64), torch.outer(sd, sd) * correlation)


class TestCompoundSymmetry(CovarianceSuite):
    def make(self) -> CompoundSymmetry:
        return CompoundSymmetry()

    def coords(self) -> Coords:
        return COORDS

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3), "corr": number(0.6)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense(theta, coords)


class TestCompoundSymmetryOfNegativeCorrelation(TestCompoundSymmetry):
    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.5), "corr": number(-0.3)}


class TestCompoundSymmetryWithSdsOfTerms(TestCompoundSymmetry):
    def make(self) -> CompoundSymmetry:
        return CompoundSymmetry(hom=False)

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor([0.3, 1.1, 2.0, 0.7]).double(), "corr": number(0.2)}


class TestCompoundSymmetryWithOneTerm(TestCompoundSymmetry):
    def coords(self) -> Coords:
        return Coords(("a", "b", "c"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return theta["sd"] ** 2 * torch.eye(3, dtype=torch.float64)


def test_it_is_a_shared_intercept_plus_independent_effects() -> None:
    shared, own = 0.8, 0.6
    sd = (shared**2 + own**2) ** 0.5
    operator = CompoundSymmetry().operator({"sd": number(sd), "corr": number(shared**2 / sd**2)}, COORDS)
    levels, ones = torch.eye(3, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64)
    close(operator.dense(), shared**2 * torch.kron(levels, ones) + own**2 * torch.eye(12, dtype=torch.float64))


def test_without_correlation_it_is_iid() -> None:
    theta = {"sd": number(0.8), "corr": number(0.0)}
    close(CompoundSymmetry().operator(theta, COORDS).dense(), IID().operator(theta, COORDS).dense(), 0.0, 0.0)


@pytest.mark.parametrize("corr", [1.0, -1 / 3])
def test_at_the_ends_the_factor_is_finite_and_right(corr: float) -> None:
    theta = {"sd": number(2.0), "corr": number(corr)}
    close(CompoundSymmetry().operator(theta, COORDS).dense(), dense(theta, COORDS), 0.0, 1e-7)


def test_many_values_of_the_parameters_at_once() -> None:
    theta = {"sd": torch.rand(2, 4, dtype=torch.float64) + 0.2, "corr": torch.tensor([-0.2, 0.9]).double()}
    u = torch.ones(2, 3, 4, dtype=torch.float64)
    together = CompoundSymmetry(hom=False).operator(theta, COORDS).log_prob(u)
    for i in range(2):
        one = {name: value[i] for name, value in theta.items()}
        close(together[i], CompoundSymmetry(hom=False).operator(one, COORDS).log_prob(u[i]))


def test_the_default_prior_reaches_from_the_lowest_correlation_to_one() -> None:
    (_, corr) = CompoundSymmetry().parameters(COORDS)
    assert float(corr.prior.low) == pytest.approx(-1 / 3) and float(corr.prior.high) == 1.0


REFUSED = [
    (lambda: CompoundSymmetry(corr=1.0), r"CompoundSymmetry\(corr=\.\.\.\): 1\.0 is not allowed; it must be between"),
    (lambda: CompoundSymmetry(sd=[1.0, 2.0]), r"CompoundSymmetry\(sd=\.\.\.\): got shape \(2,\), expected a scalar"),
    (lambda: CompoundSymmetry(corr=dist.Normal(0.0, 1.0)), r"its prior Normal reaches outside"),
    (
        lambda: CompoundSymmetry(corr=-0.4).parameters(COORDS),
        r"-0\.4 is not allowed; it must be between -0\.3333 and 1, ends excluded",
    ),
    (lambda: CompoundSymmetry(corr=dist.Uniform(-1.0, 1.0)).parameters(COORDS), r"its prior Uniform reaches outside"),
    (lambda: CompoundSymmetry(False, [1.0, 2.0]).parameters(COORDS), r"got shape \(2,\), expected .* shape \(4,\)"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


WAVES = Coords(tuple(range(40)), ("t1", "t2", "t3"))


def test_fit() -> None:
    check_gaussian_fit(CompoundSymmetry(), WAVES, dense, {"sd": number(1.0), "corr": number(0.5)})


def test_fit_with_sds_of_terms() -> None:
    theta = {"sd": torch.tensor([0.6, 1.0, 1.5]).double(), "corr": number(0.5)}
    check_gaussian_fit(CompoundSymmetry(hom=False), WAVES, dense, theta)


def test_counts() -> None:
    check_counts(CompoundSymmetry(), WAVES, dense, {"sd": number(1.0), "corr": number(0.5)})
