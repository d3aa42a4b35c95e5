"""Autoregressive moving averages."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyromix import AR1, ARMA
from pyromix.covariances import Coords
from pyromix.covariances.arma import autocovariances
from pyromix.covariances.partial import regressions
from pyromix.errors import ConfigError, NumericalError, StructureError, UnsupportedError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number

Theta = Mapping[str, torch.Tensor]
GAPS = Coords((3, 1, 8, 4, 10), ("Intercept",))
RUN = Coords((3, 1, 2, 5, 4, 6), ("Intercept",))
PAIRS = Coords((("b", 2), ("a", 5), ("b", 1), ("a", 2), ("c", 2), ("b", 3)), ("Intercept", "x"))
FAR = 400  # terms of the impulse response; what is left out is below 1e-13 at the values used here


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def coefficients(partial: list[torch.Tensor], sign: float) -> list[torch.Tensor]:
    """Of the polynomial that a partial autocorrelation at a time builds (step-up), in the given sign."""
    out: list[torch.Tensor] = []
    for r in partial:
        out = [a - sign * r * b for a, b in zip(out, out[::-1], strict=True)] + [sign * r]
    return [sign * a for a in out]


def by_impulses(theta: Theta, last: int) -> torch.Tensor:
    """Autocorrelations as sums of products of the impulse response."""
    ar = coefficients(list(theta["pacf_ar"]) if "pacf_ar" in theta else [], 1.0)
    ma = coefficients(list(theta["pacf_ma"]) if "pacf_ma" in theta else [], -1.0)
    psi = [number(1.0)]
    for j in range(1, FAR):
        value = ma[j - 1] if j <= len(ma) else number(0.0)
        for i, phi in enumerate(ar, start=1):
            value = value + (phi * psi[j - i] if j >= i else 0.0)
        psi.append(value)
    response = torch.stack(psi)
    gamma = torch.stack([(response[: FAR - k] * response[k:]).sum() for k in range(last + 1)])
    return gamma / gamma[0]


def dense(theta: Theta, coords: Coords) -> torch.Tensor:
    where = [w if isinstance(w, tuple) else (0, w) for w in coords.levels]
    times = [t for _, t in where]
    rho = by_impulses(theta, max(times) - min(times))
    rows = [torch.stack([rho[abs(t - v)] if s == r else number(0.0) for r, v in where]) for s, t in where]
    return theta["sd"] ** 2 * torch.kron(torch.stack(rows), torch.eye(len(coords.terms), dtype=torch.float64))


class TestARMA(CovarianceSuite):
    def make(self) -> ARMA:
        return ARMA(2, 1)

    def coords(self) -> Coords:
        return GAPS

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3), "pacf_ar": tensor(0.6, -0.4), "pacf_ma": tensor(0.5)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense(theta, coords)


class TestARMAOfManyAverages(TestARMA):
    def make(self) -> ARMA:
        return ARMA(1, 3)

    def coords(self) -> Coords:
        return RUN

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.6), "pacf_ar": tensor(-0.5), "pacf_ma": tensor(0.5, -0.3, 0.4)}


class TestMovingAverage(TestARMA):
    def make(self) -> ARMA:
        return ARMA(0, 2)

    def coords(self) -> Coords:
        return PAIRS

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.6), "pacf_ma": tensor(0.5, -0.3)}


class TestAutoregression(TestARMA):
    """Banded."""

    def make(self) -> ARMA:
        return ARMA(3)

    def coords(self) -> Coords:
        return RUN

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.6), "pacf_ar": tensor(0.5, -0.3, 0.4)}


class TestAutoregressionInShortSeries(TestAutoregression):
    def coords(self) -> Coords:
        return Coords((("b", 2), ("a", 5), ("b", 1), ("a", 4), ("c", 2), ("b", 3)), ("Intercept", "x"))


class TestAutoregressionWithGaps(TestAutoregression):
    def coords(self) -> Coords:
        return GAPS


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.95])
@pytest.mark.parametrize("coords", [GAPS, RUN, PAIRS])
def test_of_order_one_it_is_ar1(rho: float, coords: Coords) -> None:
    arma = ARMA(1).operator({"sd": number(0.8), "pacf_ar": tensor(rho)}, coords)
    close(arma.dense(), AR1().operator({"sd": number(0.8), "rho": number(rho)}, coords).dense(), 0.0, 1e-13)


def test_equal_roots_cancel() -> None:
    """(1 - a B) u = (1 - a B) e is white noise."""
    theta = {"sd": number(1.0), "pacf_ar": tensor(0.7), "pacf_ma": tensor(-0.7)}
    close(ARMA(1, 1).operator(theta, RUN).dense(), torch.eye(6, dtype=torch.float64), 0.0, 1e-14)


def test_bands_and_dense_factor_agree() -> None:
    """An autoregression without missing steps, and the same one beside a moving average of zero."""
    u = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theta = {"sd": number(0.8), "pacf_ar": tensor(0.9, -0.5, 0.3)}
    banded = ARMA(3).operator(theta, RUN).log_prob(u)
    close(banded, ARMA(3, 1).operator({**theta, "pacf_ma": tensor(0.0)}, RUN).log_prob(u), 1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_stationary_and_invertible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    partial = torch.from_numpy(rng.uniform(-1, 1, (2, 5)))
    found = ARMA(5, 5).describe({"pacf_ar": partial[0], "pacf_ma": partial[1]})
    assert abs(np.roots([1.0, *(-found["ar"].numpy())])).max() < 1
    assert abs(np.roots([1.0, *found["ma"].numpy()])).max() < 1


def test_coefficients_of_order_two() -> None:
    found = ARMA(2, 2).describe({"pacf_ar": tensor(0.5, -0.4), "pacf_ma": tensor(0.5, -0.4)})
    close(found["ar"], tensor(0.5 * 1.4, -0.4))
    close(found["ma"], tensor(0.5 * 0.6, -0.4))


def test_many_values_of_the_parameters_are_recorded_at_once() -> None:
    partial = torch.rand(7, 3, dtype=torch.float64) - 0.5
    close(regressions(partial)[-1][4], regressions(partial[4])[-1])


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4, 5, 9, 37])
def test_autocovariances_are_sums_over_impulses(last: int) -> None:
    ar, ma = tensor(0.5, 0.2), tensor(0.4, -0.3, 0.1)
    psi = [1.0]
    for j in range(1, FAR):
        psi.append((float(ma[j - 1]) if j <= 3 else 0.0) + sum(float(ar[i]) * psi[j - 1 - i] for i in range(min(2, j))))
    response = np.array(psi)
    expected = [response[: FAR - k] @ response[k:] for k in range(last + 1)]
    partial = tensor(0.5 / (1 - 0.2), 0.2)
    close(regressions(partial)[-1], ar, 1e-15)
    close(autocovariances(partial, ma, last), tensor(*expected), 1e-11)


def test_long_autoregressions_are_linear_in_the_levels() -> None:
    """A dense covariance of so many levels would take 80 GB."""
    coords = Coords(tuple(range(100_000)), ("Intercept",))
    u = torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    partial = tensor(0.5, 0.2).requires_grad_(True)
    value = ARMA(2).operator({"sd": number(1.0), "pacf_ar": partial}, coords).log_prob(u)
    value.backward()
    x = u[:, 0]
    first = torch.distributions.Normal(0.0, 1.0).log_prob(x[0])
    second = torch.distributions.Normal(0.5 * x[0], 0.75**0.5).log_prob(x[1])
    rest = torch.distributions.Normal(0.4 * x[1:-1] + 0.2 * x[:-2], (0.75 * 0.96) ** 0.5).log_prob(x[2:])
    assert float(value.detach()) == pytest.approx(float(first + second + rest.sum()), rel=1e-10)


def test_long_averages_are_refused() -> None:
    theta = {"sd": number(1.0), "pacf_ma": tensor(0.5)}
    with pytest.raises(
        UnsupportedError, match=r"ARMA\(p=0, q=1\): 2001 levels would be factored densely, at most 2000"
    ):
        ARMA(0, 1).operator(theta, Coords(tuple(range(2001)), ("Intercept",)))
    with pytest.raises(UnsupportedError, match=r"levels lie up to 2e\+09 steps apart, at most 1e\+06"):
        ARMA(0, 1).operator(theta, Coords((0, 2_000_000_000), ("Intercept",)))


@pytest.mark.parametrize("partial", [(1.0, 0.0), (1 - 1e-9, 1 - 1e-9)])
def test_a_unit_root_is_named(partial: tuple[float, float]) -> None:
    theta = {"sd": number(1.0), "pacf_ar": tensor(*partial), "pacf_ma": tensor(0.0)}
    with pytest.raises(NumericalError, match=r"ARMA: .*too close to one"):
        ARMA(2, 1).operator(theta, Coords(tuple(range(30)), ("Intercept",)))


REFUSED = [
    (lambda: ARMA(0, 0), r"ARMA\(p=0, q=0\): nothing is correlated; use pyromix\.IID"),
    (lambda: ARMA(-1), r"ARMA\(p=-1\): pass an order from 0 to 10"),
    (lambda: ARMA(1, 1.0), r"ARMA\(q=1\.0\): pass an order"),
    (lambda: ARMA(1, pacf_ma=0.3), r"ARMA\(pacf_ma=0\.3\): the order of that part is zero"),
    (lambda: ARMA(2, pacf_ar=[0.3, 1.0]), r"ARMA\(pacf_ar=\.\.\.\): \[0\.3, 1\.0\] is not allowed"),
    (lambda: ARMA(2, pacf_ar=[0.3, 0.1, 0.1]), r"got shape \(3,\), expected a scalar or shape \(2,\)"),
    (lambda: ARMA(1, pacf_ar=dist.Normal(0.0, 1.0)), r"its prior Normal reaches outside"),
    (lambda: ARMA(1, sd=-1.0), r"ARMA\(sd=\.\.\.\): -1\.0 is not allowed"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_times_between_steps_are_refused() -> None:
    with pytest.raises(StructureError, match=r"ARMA: levels 1 and 2\.5 are 1\.5 apart in time; it needs whole steps"):
        ARMA(1).operator({"sd": number(1.0), "pacf_ar": tensor(0.5)}, Coords((1, 2.5), ("Intercept",)))


SERIES = Coords(tuple((s, t) for s in "abcdef" for t in (1, 2, 3, 5, 6, 9, 10, 11)), ("Intercept",))
WHOLE = Coords(tuple((s, t) for s in "abcdef" for t in range(8)), ("Intercept",))


def test_fit() -> None:
    theta = {"sd": number(1.0), "pacf_ar": tensor(0.6), "pacf_ma": tensor(0.4)}
    check_gaussian_fit(ARMA(1, 1), SERIES, dense, theta)


def test_fit_of_an_autoregression() -> None:
    check_gaussian_fit(ARMA(2), WHOLE, dense, {"sd": number(1.0), "pacf_ar": tensor(0.6, 0.3)})


def test_counts() -> None:
    check_counts(ARMA(1, 1), WHOLE, dense, {"sd": number(1.0), "pacf_ar": tensor(0.6), "pacf_ma": tensor(0.4)})
