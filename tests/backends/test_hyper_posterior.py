"""The hyper-parameters' posterior, run as a program, as a graph and compiled: one density, one gradient."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix import native
from pyromix.backends.hyper_posterior import HyperPosterior
from pyromix.compile import Compiled
from pyromix.marginal.plan import make_plan


@pytest.fixture
def posterior() -> HyperPosterior:
    """Correlated slopes, so that a factor of four entries carries gradients."""
    df = pmx.datasets.load("Contraception")
    df = df.iloc[::4].assign(use=lambda d: (d["use"] == "Y").astype(float))
    model = pmx.model("use ~ urban + (urban | district)", df, pmx.Binomial())
    plan = make_plan(model.program, (model.design,), 0)
    return HyperPosterior(pmx.Laplace(), model.program, (model.design,), plan, None)


@pytest.mark.parametrize("compiler", [True, False])
def test_compiled_runs_have_the_programs_density_and_gradient(
    posterior: HyperPosterior, compiler: bool, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    if not compiler:
        monkeypatch.setattr(native, "compiler_problem", lambda: "no C compiler was found")
        monkeypatch.setenv("CXX", "not-there-either")
    points = 0.3 * rng.standard_normal((4, posterior.size))
    plain = [posterior(t) for t in points]
    posterior.trace(100_000, gradients=True)
    assert posterior._traced is not None
    assert isinstance(posterior._traced.graph, Compiled) is (native.compiler_problem() is not None)
    for t, (value, gradient) in zip(points, plain, strict=True):
        again, slope = posterior(t)
        assert again == pytest.approx(value, rel=1e-10)
        assert_allclose(slope, gradient, rtol=1e-6, atol=1e-7)
        assert posterior.log_density(t)[0] == pytest.approx(value, rel=1e-10)
