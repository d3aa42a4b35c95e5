"""Correlations between the terms of a level by their distance."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pyromix import AR1, IID, Toeplitz
from pyromix.covariances import Coords
from pyromix.errors import ConfigError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number

Theta = Mapping[str, torch.Tensor]
COORDS = Coords(("a", "b", "c"), ("t1", "t2", "t3", "t4"))


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dense(theta: Theta, coords: Coords) -> torch.Tensor:
    """Lag by lag from what a partial correlation is: that of the ends, given what lies between them."""
    q = len(coords.terms)
    corr = [torch.ones((), dtype=torch.float64)]
    for k in range(1, q):
        inner = (
            torch.stack([torch.stack([corr[abs(i - j)] for j in range(k - 1)]) for i in range(k - 1)])
            if k > 1
            else None
        )
        if inner is None:
            corr.append(theta["pacf"][0])
            continue
        near = torch.stack(corr[1:k])
        solved = torch.linalg.solve(inner, near)
        corr.append(solved @ near.flip(0) + theta["pacf"][k - 1] * (1 - solved @ near))
    block = torch.stack([torch.stack([corr[abs(i - j)] for j in range(q)]) for i in range(q)])
    sd = theta["sd"].expand(q)
    return torch.kron(torch.eye(len(coords.levels), dtype=torch.float64), torch.outer(sd, sd) * block)


class TestToeplitz(CovarianceSuite):
    def make(self) -> Toeplitz:
        return Toeplitz()

    def coords(self) -> Coords:
        return COORDS

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3), "pacf": tensor(0.6, -0.4, 0.3)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense(theta, coords)


class TestToeplitzWithSdsOfTerms(TestToeplitz):
    def make(self) -> Toeplitz:
        return Toeplitz(hom=False)

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": tensor(0.3, 1.1, 2.0, 0.7), "pacf": tensor(0.2, 0.5, -0.1)}


class TestToeplitzWithOneTerm(TestToeplitz):
    def coords(self) -> Coords:
        return Coords(("a", "b", "c"), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return theta["sd"] ** 2 * torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.95])
def test_with_one_partial_autocorrelation_it_is_ar1(rho: float) -> None:
    toeplitz = Toeplitz().operator({"sd": number(0.8), "pacf": tensor(rho, 0.0, 0.0)}, COORDS)
    ar1 = AR1(over="terms").operator({"sd": number(0.8), "rho": number(rho)}, COORDS)
    close(toeplitz.dense(), ar1.dense(), 0.0, 1e-14)


def test_without_correlation_it_is_iid() -> None:
    theta = {"sd": number(0.8), "pacf": tensor(0.0, 0.0, 0.0)}
    close(Toeplitz().operator(theta, COORDS).dense(), IID().operator(theta, COORDS).dense(), 0.0, 0.0)


def test_every_value_is_positive_definite_and_recorded() -> None:
    partial = 2 * torch.rand(500, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    corr = Toeplitz().describe({"pacf": partial})["corr"]
    expected = torch.stack([(1 - partial[:, k] ** 2).log() * (5 - k) for k in range(5)], -1).sum(-1)
    close(torch.linalg.slogdet(corr).logabsdet, expected, 1e-7)
    for k in range(1, 6):
        band = corr.diagonal(k, -2, -1)
        close(band, band[:, :1].expand_as(band), 0.0, 1e-13)


def test_many_values_of_the_parameters_at_once() -> None:
    theta = {"sd": torch.rand(2, 4, dtype=torch.float64) + 0.2, "pacf": torch.rand(2, 3, dtype=torch.float64) - 0.5}
    u = torch.ones(2, 3, 4, dtype=torch.float64)
    together = Toeplitz(hom=False).operator(theta, COORDS).log_prob(u)
    for i in range(2):
        one = {name: value[i] for name, value in theta.items()}
        close(together[i], Toeplitz(hom=False).operator(one, COORDS).log_prob(u[i]))


REFUSED = [
    (lambda: Toeplitz(pacf=[0.5, 1.0]), r"Toeplitz\(pacf=\.\.\.\): \[0\.5, 1\.0\] is not allowed; it must be between"),
    (lambda: Toeplitz(sd=[1.0, 2.0]), r"Toeplitz\(sd=\.\.\.\): got shape \(2,\), expected a scalar"),
    (lambda: Toeplitz(pacf=[0.5, 0.1]).parameters(COORDS), r"got shape \(2,\), expected a scalar or shape \(3,\)"),
    (lambda: Toeplitz(False, [1.0, 2.0]).parameters(COORDS), r"got shape \(2,\), expected .* shape \(4,\)"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


WAVES = Coords(tuple(range(40)), ("t1", "t2", "t3"))


def test_fit() -> None:
    check_gaussian_fit(Toeplitz(), WAVES, dense, {"sd": number(1.0), "pacf": tensor(0.5, -0.3)})


def test_fit_with_sds_of_terms() -> None:
    theta = {"sd": tensor(0.6, 1.0, 1.5), "pacf": tensor(0.5, 0.3)}
    check_gaussian_fit(Toeplitz(hom=False), WAVES, dense, theta)


def test_counts() -> None:
    check_counts(Toeplitz(), WAVES, dense, {"sd": number(1.0), "pacf": tensor(0.5, -0.3)})
