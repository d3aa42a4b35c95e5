"""Programs at many draws: vectorised, or one by one with the same result."""

from __future__ import annotations

import pytest
import torch

import pyromix as pmx
from pyromix.results import Fit, draws
from pyromix.results.draws import over_draws
from tests.results.models import glmm_fit, sleepstudy_fit, tensor


def test_vectorised_and_one_by_one_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for fit in (sleepstudy_fit(n_draws=60), glmm_fit(pmx.Binomial("cloglog"), trials=True, n_draws=60)):
        fast = fit.idata

        def refuse(function):
            def call(inputs):
                raise RuntimeError("not vectorised")

            return call

        with monkeypatch.context() as patch:
            patch.setattr(draws.torch, "vmap", refuse)
            slow = Fit(fit.estimate, fit.program, fit.args).idata
        for group in ("posterior", "log_likelihood", "posterior_predictive"):
            for name, value in slow[group].data_vars.items():
                torch.testing.assert_close(
                    torch.tensor(fast[group][name].to_numpy()), torch.tensor(value.to_numpy()), rtol=1e-10, atol=1e-9
                )


def test_vectorising_happens_and_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def function(values):
        calls.append(1)
        return {"y": values["x"] * 2}

    inputs = {"x": torch.arange(10.0)}
    assert over_draws(function, inputs, rows=5)["y"].tolist() == (2 * inputs["x"]).tolist()
    assert len(calls) == 1
    monkeypatch.setattr(draws, "BATCH", 20)
    assert over_draws(function, inputs, rows=5)["y"].tolist() == (2 * inputs["x"]).tolist()
    assert len(calls) == 1 + 3, "four draws of five rows at once"


def test_a_program_that_looks_at_its_values_runs_draw_by_draw() -> None:
    def program(d: dict) -> None:
        effect = pmx.RandomEffect("g", pmx.IID(), levels=3)(d["g"])
        scale = 2.0 if effect.sum() > 0 else 1.0
        pmx.observe("y", pmx.Gaussian(), scale * effect, d.get("y"))

    data = {"g": torch.tensor([0, 1, 2]), "y": tensor([0.0, 1.0, 2.0])}
    point, latents = {"g.sd": tensor(1.0), "y.sigma": tensor(1.0)}, {"g": tensor([[1.0], [2.0], [3.0]])}
    stacked = torch.stack([latents["g"], -latents["g"]])
    values = {**{k: v.expand(2) for k, v in point.items()}, "g": stacked}
    estimate = glmm_fit(pmx.Gaussian(), point=point, latents=latents, n_draws=2, draw=lambda n, s: values).estimate
    array = Fit(estimate, program, (data,)).predict(kind="draws")
    assert array.to_numpy()[0].tolist() == [[2.0, 4.0, 6.0], [-1.0, -2.0, -3.0]]


def test_an_error_of_the_programs_own_is_shown_as_it_is() -> None:
    def function(values):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        over_draws(function, {"x": torch.zeros(3)}, rows=1)
