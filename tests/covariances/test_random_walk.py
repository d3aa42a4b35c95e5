"""Random walks of first and second order."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

import pyromix as pmx
from pyromix import RandomWalk
from pyromix.covariances import Coords
from pyromix.errors import ConfigError, StructureError
from pyromix.testing import CovarianceSuite
from pyromix.testing.checks import close
from tests.covariances.fits import check_counts, check_gaussian_fit, number, program

Theta = Mapping[str, torch.Tensor]


def dense_first(start: float):
    """Two levels share the start and what both have walked."""

    def dense(theta: Theta, coords: Coords) -> torch.Tensor:
        where = [w if isinstance(w, tuple) else (0, w) for w in (coords.values or coords.levels)]
        begin = {s: min(t for r, t in where if r == s) for s, _ in where}
        rows = [[start**2 + min(t, v) - begin[s] if s == r else 0.0 for r, v in where] for s, t in where]
        walked = torch.tensor(rows, dtype=torch.float64)
        return theta["sd"] ** 2 * torch.kron(walked, torch.eye(len(coords.terms), dtype=torch.float64))

    return dense


def dense_second(start: float, slope: float):
    """A level is its start, its first steps and all later changes of slope, each as often as it has been walked."""

    def dense(theta: Theta, coords: Coords) -> torch.Tensor:
        where = [w if isinstance(w, tuple) else (0, w) for w in coords.levels]
        codes = sorted({s for s, _ in where})
        n = len(where)
        root = np.zeros((n, len(codes) * n))
        for i, (s, t) in enumerate(where):
            times = sorted(v for r, v in where if r == s)
            at = times.index(t)
            root[i, codes.index(s) * n] = start
            for k in range(1, at + 1):
                root[i, codes.index(s) * n + k] = (at - k + 1) * (slope if k == 1 else 1.0)
        walked = torch.from_numpy(root @ root.T)
        return theta["sd"] ** 2 * torch.kron(walked, torch.eye(len(coords.terms), dtype=torch.float64))

    return dense


class TestRandomWalk(CovarianceSuite):
    def make(self) -> RandomWalk:
        return RandomWalk()

    def coords(self) -> Coords:
        return Coords((3, 1, 8, 4.5, 10), ("Intercept",))

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": number(0.7)}

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_first(1.0)(theta, coords)


class TestRandomWalkInSeries(TestRandomWalk):
    def make(self) -> RandomWalk:
        return RandomWalk(start=2.5)

    def coords(self) -> Coords:
        return Coords((("b", 2), ("a", 5), ("b", 1), ("a", 2), ("c", 2), ("b", 6)), ("Intercept", "x"))

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_first(2.5)(theta, coords)


class TestRandomWalkOfSecondOrder(TestRandomWalk):
    def make(self) -> RandomWalk:
        return RandomWalk(order=2, start=0.5, slope=3.0)

    def coords(self) -> Coords:
        return Coords((3, 1, 5, 2, 4, 6), ("Intercept",))

    def dense(self, theta: Theta, coords: Coords) -> torch.Tensor:
        return dense_second(0.5, 3.0)(theta, coords)


class TestRandomWalkOfSecondOrderInSeries(TestRandomWalkOfSecondOrder):
    def coords(self) -> Coords:
        return Coords((("b", 2), ("a", 4), ("b", 1), ("a", 3), ("a", 2), ("c", 9), ("b", 3)), ("Intercept", "x"))


def test_increments_are_independent() -> None:
    times = (0, 1, 3, 4, 9)
    covariance = RandomWalk().operator({"sd": number(0.8)}, Coords(times, ("Intercept",))).dense()
    increments = torch.diff(torch.eye(5, dtype=torch.float64), dim=0)
    expected = 0.64 * torch.diag(torch.tensor([1.0, 2.0, 1.0, 5.0], dtype=torch.float64))
    close(increments @ covariance @ increments.T, expected)


def test_changes_of_slope_are_independent() -> None:
    covariance = RandomWalk(2).operator({"sd": number(0.8)}, Coords((0, 2, 4, 6, 8), ("Intercept",))).dense()
    changes = torch.diff(torch.eye(5, dtype=torch.float64), n=2, dim=0)
    # of numbers of some 1e6 that cancel
    close(changes @ covariance @ changes.T, 0.64 * torch.eye(3, dtype=torch.float64), 0.0, 1e-6)


def test_the_precision_is_the_penalty_of_intrinsic_walks_but_for_the_start() -> None:
    """``D^T D``, D the differences: INLA's and mgcv's."""
    coords = Coords(tuple(range(7)), ("Intercept",))
    for order in (1, 2):
        found = RandomWalk(order).operator({"sd": number(1.0)}, coords).separable().precision.dense()
        d = torch.diff(torch.eye(7, dtype=torch.float64), n=order, dim=0)
        rest = torch.zeros(7, 7, dtype=torch.float64)
        rest[0, 0] = 1.0
        if order == 2:
            step = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
            rest[:2, :2] += step.T @ step / 1000**2
        close(found, d.T @ d + rest)


@pytest.mark.parametrize("order", [1, 2])
def test_restricted_estimates_do_not_depend_on_the_start(order: int) -> None:
    """With the intercept (and time) among the coefficients: the intrinsic walk's."""
    rng = np.random.default_rng(5)
    times = torch.arange(30, dtype=torch.float64)
    walk = np.cumsum(rng.standard_normal(30)) if order == 1 else np.cumsum(np.cumsum(0.3 * rng.standard_normal(30)))
    columns = [torch.ones(30, dtype=torch.float64), times][:order]
    data = {
        "x": torch.stack(columns, 1),
        "index": torch.arange(30),
        "y": torch.from_numpy(walk + rng.standard_normal(30)),
    }
    coords = Coords(tuple(range(30)), ("Intercept",))
    sds = []
    for start, slope in ((1.0, 1.0), (8.0, 20.0)):
        covariance = RandomWalk(order, start=start, slope=slope)
        fit = pmx.fit(
            program(covariance, coords, pmx.Gaussian(), data),
            data,
            pmx.MaximumLikelihood(criterion="reml"),
            progress=False,
        )
        sds.append([float(fit.estimate.point[name]) for name in ("g.sd", "y.sigma")])
    assert sds[0] == pytest.approx(sds[1], rel=1e-4)
    # the intrinsic walk's restricted likelihood, from contrasts of the response free of coefficients
    d = torch.diff(torch.eye(30, dtype=torch.float64), n=order, dim=0)
    sd, sigma = (number(value).requires_grad_(True) for value in sds[0])
    of_contrasts = sd**2 * torch.eye(30 - order, dtype=torch.float64) + sigma**2 * d @ d.T
    density = torch.distributions.MultivariateNormal(torch.zeros(30 - order).double(), of_contrasts)
    for slope in torch.autograd.grad(density.log_prob(d @ data["y"]), [sd, sigma]):
        assert abs(float(slope)) < 1e-2


REFUSED = [
    (lambda: RandomWalk(order=3), r"RandomWalk\(order=3\): choose 1 or 2"),
    (lambda: RandomWalk(order=True), r"RandomWalk\(order=True\)"),
    (lambda: RandomWalk(start=0.0), r"RandomWalk\(start=0\.0\): pass a positive number, in units of sd"),
    (lambda: RandomWalk(slope=math.inf), r"RandomWalk\(slope=inf\)"),
    (lambda: RandomWalk(start="far"), r"RandomWalk\(start='far'\)"),
    (lambda: RandomWalk(sd=-1.0), r"RandomWalk\(sd=\.\.\.\): -1\.0 is not allowed"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_second_order_needs_equal_steps() -> None:
    theta = {"sd": number(1.0)}
    with pytest.raises(StructureError, match=r"levels 2 and 4 are 2 apart, others 1; it needs equal steps"):
        RandomWalk(order=2).operator(theta, Coords((1, 2, 4), ("Intercept",)))
    RandomWalk(order=2).operator(theta, Coords((0.1, 0.2, 0.3, 0.4), ("Intercept",)))  # equal but for rounding
    RandomWalk(order=2).operator(theta, Coords((5,), ("Intercept",)))


SERIES = Coords(tuple((s, t) for s in "abcd" for t in (1, 2, 3, 5, 6, 9, 10, 11)), ("Intercept",))
YEARS = Coords(tuple(range(2000, 2030)), ("Intercept",))


def test_fit() -> None:
    check_gaussian_fit(RandomWalk(), SERIES, dense_first(1.0), {"sd": number(0.8)})


def test_fit_of_second_order() -> None:
    check_gaussian_fit(RandomWalk(2, slope=10.0), YEARS, dense_second(1.0, 10.0), {"sd": number(0.2)})


def test_counts() -> None:
    check_counts(RandomWalk(), SERIES, dense_first(1.0), {"sd": number(0.4)})


def test_counts_of_second_order() -> None:
    check_counts(RandomWalk(2, slope=2.0), YEARS, dense_second(1.0, 2.0), {"sd": number(0.02)})
