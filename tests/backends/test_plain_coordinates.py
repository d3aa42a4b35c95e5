"""Coordinates of plain Pyro programs: white at a mode that stands for the posterior, untouched where none does."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyromix.backends.targets import JointTarget, joint_target


def f64(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def target(program: object, *args: torch.Tensor) -> JointTarget:
    return joint_target(program, args, None, "auto", evaluations=1, progress=False)


def centred(y: torch.Tensor) -> None:
    """Its joint density has no bound: it grows as sd falls to zero and every effect to mu."""
    mu = pyro.sample("mu", dist.Normal(f64(0.0), f64(5.0)))
    sd = pyro.sample("sd", dist.HalfCauchy(f64(5.0)))
    with pyro.plate("groups", len(y)):
        u = pyro.sample("u", dist.Normal(mu, sd))
        pyro.sample("y", dist.Normal(u, f64(12.0)), obs=y)


def line(x: torch.Tensor, y: torch.Tensor) -> None:
    """Coefficients on very different scales, one of them all but a multiple of another."""
    a, b, c = (pyro.sample(name, dist.Normal(f64(0.0), f64(1e3))) for name in "abc")
    sd = pyro.sample("sd", dist.HalfNormal(f64(1e3)))
    mean = a + b * x + c * (1e3 * x + x**2)
    pyro.sample("y", dist.Normal(mean, sd).to_event(1), obs=y)


def test_a_spike_is_no_place_to_start_from() -> None:
    found = target(centred, torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64))
    assert np.array_equal(found.coordinates.z(np.zeros(found.size)), np.zeros(found.size))
    assert np.array_equal(found.coordinates.z(np.ones(found.size)), np.ones(found.size))


def test_a_regression_becomes_white_noise() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=60))
    found = target(line, x, 3 + 2 * x + torch.from_numpy(rng.normal(size=60)))
    values = [found.density(w)[0] + 0.5 * w @ w for w in rng.standard_normal((50, 4))]
    assert np.std(values) < 1.0  # zero for a Gaussian; sd makes it a Student's t
    raw = found.potential.values(torch.from_numpy(found.coordinates.centre))
    assert abs(float(raw["b"] + 1e3 * raw["c"]) - 2) < 0.5


def years(x: torch.Tensor, y: torch.Tensor) -> None:
    """A line through calendar years: the intercept stands for the year 0, far from all data."""
    a = pyro.sample("a", dist.Normal(f64(0.0), f64(100.0)))
    b = pyro.sample("b", dist.Normal(f64(0.0), f64(1.0)))
    sd = pyro.sample("sd", dist.HalfNormal(f64(10.0)))
    pyro.sample("y", dist.Normal(a + b * x, sd).to_event(1), obs=y)


def test_the_top_of_a_ridge_is_reached() -> None:
    rng = np.random.default_rng(1)
    x = torch.arange(1952.0, 2014.0, dtype=torch.float64)
    found = target(years, x, 9 + 0.02 * (x - 1983) + torch.from_numpy(rng.normal(size=62)))
    assert np.abs(found.density(np.zeros(3))[1]).max() < 0.02  # a gradient in SDs
    values = [found.density(w)[0] + 0.5 * w @ w for w in rng.standard_normal((50, 3))]
    assert np.std(values) < 0.5


def bumps(weights: list[float]) -> JointTarget:
    """A mixture of two normal densities, so far apart that no chain goes from one to the other."""
    parts = dist.Normal(torch.tensor([-2.0, 2.0], dtype=torch.float64), f64(0.3))
    prior = dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights, dtype=torch.float64)), parts)

    def program() -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(0 * x, f64(1.0)), obs=f64(0.0))

    return target(program)


@pytest.mark.parametrize(("weights", "centre"), [([1.0, 1e-7], -2.0), ([1e-7, 1.0], 2.0)])
def test_of_two_modes_the_one_with_the_probability_is_taken(weights: list[float], centre: float) -> None:
    assert abs(bumps(weights).coordinates.centre[0] - centre) < 1e-3


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.99, 0.01]])
def test_with_two_modes_of_weight_chains_start_anywhere(weights: list[float]) -> None:
    assert bumps(weights).coordinates.centre.tolist() == [0.0]
