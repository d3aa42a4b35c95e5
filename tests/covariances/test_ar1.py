"""First-order autoregression, over levels and over terms."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyromix import AR1, IID
from pyromix.covariances import Coords
from pyromix.errors import ConfigError, StructureError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number

Theta = Mapping[str, torch.Tensor]
GAPS = Coords((3, 1, 8, 4, 10), ("Intercept",))  # unsorted, odd and even gaps
PAIRS = Coords((("b", 2), ("a", 5), ("b", 1), ("a", 2), ("c", 2), ("b", 6)), ("Intercept", "x"))
TERMS = Coords(("a", "b", "c"), ("t1", "t2", "t3", "t4"))


def dense_over_levels(theta: Theta, coords: Coords) -> torch.Tensor:
    """Entry by entry from the definition."""
    where = coords.levels if coords.values is None else list(coords.values)
    where = [w if isinstance(w, tuple) else (0, w) for w in where]
    rows = []
    for series, at in where:
        rows.append([theta["rho"] ** abs(at - t) if series == s else number(0.0) for s, t in where])
    correlation = torch.stack([torch.stack([torch.as_tensor(r, dtype=torch.float64) for r in row]) for row in rows])
    return theta["sd"] ** 2 * torch.kron(correlation, torch.eye(len(coords.terms), dtype=torch.float64))


def dense_over_terms(theta: Theta, coords: Coords) -> torch.Tensor:
    q = len(coords.terms)
    block = torch.stack([torch.stack([theta["rho"] ** abs(i - j) for j in range(q)]) for i in range(q)])
    return theta["sd"] ** 2 * torch.kron(torch.eye(len(coords.levels), dtype=torch.float64), block)


class TestAR1(CovarianceSuite):
    def make(self) -> AR1:
        return AR1()

    def coords(self) -> Coords:
        return GAPS

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(1.3), "rho": number(0.6)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_over_levels(theta, coords)


class TestAR1WithNegativeRho(TestAR1):
    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.4), "rho": number(-0.7)}


class TestAR1InSeries(TestAR1):
    def coords(self) -> Coords:
        return PAIRS


class TestAR1AtValues(TestAR1):
    def coords(self) -> Coords:
        return Coords(("x", "y", "z"), ("Intercept",), [7, 4, 5])


class TestAR1OverTerms(TestAR1):
    def make(self) -> AR1:
        return AR1(over="terms")

    def coords(self) -> Coords:
        return TERMS

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_over_terms(theta, coords)


@pytest.mark.parametrize(("over", "coords"), [("levels", GAPS), ("levels", PAIRS), ("terms", TERMS)])
def test_without_correlation_it_is_iid(over: str, coords: Coords) -> None:
    theta = {"sd": number(0.8), "rho": number(0.0)}
    close(AR1(over=over).operator(theta, coords).dense(), IID().operator(theta, coords).dense(), 0.0, 1e-15)
    # and its slope there is finite, that of the definition
    rho = number(0.0).requires_grad_(True)
    u = torch.ones(len(coords.levels), len(coords.terms), dtype=torch.float64)
    (slope,) = torch.autograd.grad(AR1(over=over).operator({**theta, "rho": rho}, coords).log_prob(u), rho)
    assert torch.isfinite(slope)


FORMS = [
    (None, [4, 6, 5]),
    ([4, 6, 5], "abc"),
    ((4.0, 6.0, 5.0), "abc"),
    (torch.tensor([4, 6, 5]), "abc"),
    (np.array([4.0, 6.0, 5.0]), "abc"),
    ([("s", 4), ("s", 6), ("s", 5)], "abc"),
    (torch.tensor([[1, 4], [1, 6], [1, 5]]), "abc"),
    (np.array([[1, 4], [1, 6], [1, 5]]), "abc"),
    (None, [("s", 4), ("s", 6), ("s", 5)]),
    (None, [np.int64(4), np.int64(6), np.int64(5)]),
]


@pytest.mark.parametrize(("values", "levels"), FORMS)
def test_times_in_every_form(values, levels) -> None:
    coords = Coords(tuple(levels), ("Intercept",), values)
    expected = torch.tensor([[1.0, 0.25, 0.5], [0.25, 1.0, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64)
    close(AR1().operator({"sd": number(1.0), "rho": number(0.5)}, coords).dense(), expected)


def test_terms_at_many_values_of_the_parameters_at_once() -> None:
    theta = {"sd": torch.tensor([0.5, 2.0]).double(), "rho": torch.tensor([-0.4, 0.9]).double()}
    u = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = AR1(over="terms").operator(theta, TERMS).log_prob(u)
    for i in range(2):
        one = {name: value[i] for name, value in theta.items()}
        close(together[i], AR1(over="terms").operator(one, TERMS).log_prob(u[i]))


@pytest.mark.parametrize("rho", [1 - 1e-9, -1 + 1e-9])
def test_close_to_a_unit_root_the_determinant_is_accurate(rho: float) -> None:
    operator = AR1().operator({"sd": number(1.0), "rho": number(rho)}, Coords((1, 2, 4), ("Intercept",)))
    expected = 0.5 * (math.log((1 - rho) * (1 + rho)) + math.log((1 - rho**2) * (1 + rho**2)))
    assert float(operator.logdet_factor()) == pytest.approx(expected, rel=1e-8)


def test_a_hundred_thousand_levels_need_no_dense_matrix() -> None:
    coords = Coords(tuple((k % 100, k // 100) for k in range(100_000)), ("Intercept",))
    u = torch.randn(100_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho = number(0.9).requires_grad_(True)
    value = AR1().operator({"sd": number(1.0), "rho": rho}, coords).log_prob(u)
    value.backward()
    # series by series, from the innovations
    x = u[:, 0].reshape(1000, 100)
    e = x[1:] - 0.9 * x[:-1]
    expected = -0.5 * (x[0] ** 2).sum() - 0.5 * (e**2).sum() / 0.19 - 0.5 * 99_900 * math.log(0.19)
    assert float(value.detach()) == pytest.approx(float(expected) - 50_000 * math.log(2 * math.pi), rel=1e-10)


REFUSED = [
    (lambda: AR1(rho=1.0), r"AR1\(rho=\.\.\.\): 1\.0 is not allowed; it must be between -1 and 1, ends excluded"),
    (lambda: AR1(rho=float("nan")), r"AR1\(rho=\.\.\.\): nan is not allowed"),
    (lambda: AR1(rho="high"), r"AR1\(rho=\.\.\.\): got 'high'; pass a number"),
    (lambda: AR1(rho=dist.Normal(0.0, 1.0)), r"its prior Normal reaches outside.*use Uniform\(-1, 1\)"),
    (lambda: AR1(sd=-1.0), r"AR1\(sd=\.\.\.\): -1\.0 is not allowed"),
    (lambda: AR1(over="rows"), r"AR1\(over='rows'\): choose \"levels\" or \"terms\""),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


LEVELS = [
    (("mon", "tue"), None, r"level 'mon' is no number; levels must be times, or pairs \(series, time\), or pass"),
    (("1", "2"), None, r"level '1' is no number"),
    ((True, False), None, r"level True is no number"),
    ((1, float("nan")), None, r"level nan is no finite number"),
    (("a", "b"), [1, math.inf], r"level 'b' has inf, which is no finite number"),
    (("a", "b"), [1, None], r"level 'b' has None, which is no number"),
    (("a", "b"), [1], r"coords has 1 values for 2 levels"),
    (("a", "b"), [3, 3], r"levels 'a' and 'b' are both at time 3 of their series"),
    ((1, 2.5), None, r"levels 1 and 2\.5 are 1\.5 apart in time; it needs whole steps.*use pyromix\.OU"),
    ((("a", 1), 2), None, r"level 2 is no pair \(series, time\)"),
    ((("a", "x"), ("a", 2)), None, r"level \('a', 'x'\) is no number"),
]


@pytest.mark.parametrize(("levels", "values", "message"), LEVELS)
def test_levels_that_are_no_times(levels, values, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        AR1().operator({"sd": number(1.0), "rho": number(0.5)}, Coords(levels, ("Intercept",), values))


def test_steps_from_any_origin() -> None:
    """Times need not be whole numbers themselves: steps between them must be."""
    theta = {"sd": number(1.0), "rho": number(0.5)}
    shifted = AR1().operator(theta, Coords((0.5, 1.5, 3.5), ("Intercept",))).dense()
    close(shifted, AR1().operator(theta, Coords((0, 1, 3), ("Intercept",))).dense())
    rounded = AR1().operator({**theta, "rho": number(-0.5)}, Coords((3.3, 2.3, 0.3), ("Intercept",))).dense()
    close(rounded, AR1().operator({**theta, "rho": number(-0.5)}, Coords((3, 2, 0), ("Intercept",))).dense())


SERIES = Coords(tuple((s, t) for s in "abcdef" for t in (1, 2, 3, 5, 6, 9, 10, 11)), ("Intercept",))
WAVES = Coords(tuple(range(40)), ("t1", "t2", "t3"))


@pytest.mark.parametrize("rho", [0.7, -0.6])
def test_fit_of_series(rho: float) -> None:
    check_gaussian_fit(AR1(), SERIES, dense_over_levels, {"sd": number(1.0), "rho": number(rho)})


def test_fit_over_terms() -> None:
    check_gaussian_fit(AR1(over="terms"), WAVES, dense_over_terms, {"sd": number(1.0), "rho": number(0.6)})


def test_counts() -> None:
    check_counts(AR1(), SERIES, dense_over_levels, {"sd": number(1.0), "rho": number(0.6)})


def test_counts_over_terms() -> None:
    check_counts(AR1(over="terms"), WAVES, dense_over_terms, {"sd": number(1.0), "rho": number(0.6)})
