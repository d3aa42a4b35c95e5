"""Densities that nutpie calls without Python: the numbers of the density in Python, at every kind of root."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix import native
from pyromix.backends import nutpie_engine
from pyromix.backends.coordinates import Coordinates, NestedRoot
from pyromix.backends.native_walk import NativeWalk, native_walk
from pyromix.compile import Compiled
from pyromix.linalg.block import Layout, Slot, Term
from pyromix.linalg.factor import Factor
from pyromix.marginal.roots import AbstractRoot, BorderedRoot, DenseRoot, DiagonalRoot
from pyromix.potential import value_and_gradient

pytestmark = pytest.mark.skipif(native.compiler_problem() is not None, reason="no C compiler")


def called(walk: NativeWalk, w: np.ndarray) -> tuple[int, float, np.ndarray]:
    kind = ctypes.CFUNCTYPE(ctypes.c_longlong, ctypes.c_ulonglong, *[ctypes.c_void_p] * 4)
    gradient, value = np.empty_like(w), np.empty(1)
    code = kind(walk.density)(len(w), w.ctypes.data, gradient.ctypes.data, value.ctypes.data, walk.data)
    return code, float(value[0]), gradient


def potential(size: int) -> Compiled:
    """Not symmetric in its arguments, so that a wrong place shows; none where the first exceeds a hundred."""
    weights = torch.arange(1.0, size + 1, dtype=torch.float64)

    def function(z: torch.Tensor) -> torch.Tensor:
        return (weights * z).sin().sum() + 0.5 * (z * z.roll(1) * weights).sum() - (100.0 - z[0]).log()

    return value_and_gradient(function, torch.zeros(size, dtype=torch.float64), mode="compiled", evaluations=1)


def bordered(rng: np.random.Generator) -> BorderedRoot:
    """Two effects in each of four levels, crossed with three levels of another factor."""
    lead = Slot(rng.permutation(np.repeat(np.arange(4), 5)), rng.standard_normal((20, 2)))
    other = Slot(rng.integers(0, 3, 20), None)
    layout = Layout([Term(3, 1, (other,)), Term(4, 2, (lead,))])
    factor = Factor(
        layout, layout.gram(rng.uniform(0.5, 2, 20)), [np.array([[0.7]]), np.tril(rng.uniform(0.2, 1, (2, 2)))]
    )
    found = BorderedRoot.of(factor)
    assert found is not None
    return found


def nested(rng: np.random.Generator) -> NestedRoot:
    inner, order = bordered(rng), rng.permutation(13)
    scale = ((slice(3, 11), np.tril(rng.uniform(0.3, 1.0, (2, 2)))),)
    return NestedRoot(order[:2], order[2:], rng.standard_normal((2, 2)), rng.standard_normal((11, 2)), inner, scale)


ROOTS = {
    "diagonal": lambda rng: DiagonalRoot(rng.uniform(0.5, 2, 13)),
    "dense": lambda rng: DenseRoot(rng.standard_normal((13, 13))),
    "bordered": bordered,
    "nested": nested,
}


@pytest.mark.parametrize("kind", list(ROOTS))
def test_density_and_gradient(kind: str, rng: np.random.Generator) -> None:
    root: AbstractRoot = ROOTS[kind](rng)
    size = 11 if kind == "bordered" else 13
    function = potential(size)
    coordinates = Coordinates(0.1 * rng.standard_normal(size), root)
    walk = native_walk(function, coordinates, size)
    assert walk is not None
    matrix = np.stack([root.times(column) for column in np.eye(size)], axis=1)
    for _ in range(3):
        w = rng.standard_normal(size)
        value, slope = function(torch.from_numpy(coordinates.centre + matrix @ w))
        code, got, gradient = called(walk, w)
        assert code == 0
        assert got == pytest.approx(-float(value), rel=1e-12)
        assert_allclose(gradient, -matrix.T @ slope.numpy(), rtol=1e-11, atol=1e-11)


def test_a_point_without_density_is_told(rng: np.random.Generator) -> None:
    walk = native_walk(potential(3), Coordinates(np.zeros(3), DiagonalRoot(np.ones(3))), 3)
    assert walk is not None
    assert called(walk, np.array([101.0, 0, 0]))[0] == 1
    assert called(walk, np.array([np.nan, 0, 0]))[0] == 1
    assert called(walk, np.zeros(3))[0] == 0


def test_without_compiled_code_there_is_none() -> None:
    eager = value_and_gradient(lambda z: z.square().sum(), torch.zeros(2, dtype=torch.float64), evaluations=1)
    assert native_walk(eager, Coordinates(np.zeros(2), DiagonalRoot(np.ones(2))), 2) is None


def test_chains_are_those_of_the_density_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.linspace(-1, 2, 12, dtype=torch.float64)

    def program(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=torch.float64), 2.0))
        sd = pyro.sample("sd", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
        pyro.sample("y", dist.Normal(mean, sd).expand([12]).to_event(1), obs=y)

    walks: list[Any] = []
    original = nutpie_engine.sample_chain

    def spy(*arguments: Any, walk: NativeWalk | None = None, **options: Any) -> Any:
        walks.append(walk)
        return original(*arguments, walk=walk if len(walks) == 1 else None, **options)

    monkeypatch.setitem(pmx.backends.nuts.ENGINES, "nutpie", spy)
    backend = pmx.NUTS(draws=30, tune=30, chains=1, cores=1)  # rounding grows with every step
    draws = [pmx.fit(program, data, backend, seed=3, progress=False).draws() for _ in range(2)]
    assert walks[0] is not None
    for name, first in draws[0].items():
        assert_allclose(first, draws[1][name], rtol=1e-6)
