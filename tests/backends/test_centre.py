"""Networks start on the response's level where nothing else can hold a constant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pyromix as pmx
from pyromix.backends.centre import centre_outputs
from pyromix.marginal.plan import data_of, make_plan
from pyromix.running import run


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()


def data(y: torch.Tensor) -> dict[str, torch.Tensor]:
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    return {"x": x, "g": torch.arange(40) % 5, "y": y}


def program_of(module: nn.Module, family: Any, constant: bool = False):
    def program(d: dict[str, torch.Tensor]) -> None:
        eta = pmx.NeuralEffect("f", module)(d["x"]) + pmx.RandomEffect("g", pmx.IID(), levels=5)(d["g"])
        if constant:
            eta = eta + pmx.LinearEffect("beta")(torch.ones_like(d["x"]))
        pmx.observe("y", family, eta, d["y"])

    return program


def level(program: Any, d: Any) -> float:
    return float(data_of(run(program, (d,), hypers="moderate", seed=0)).eta.detach().mean())


@pytest.mark.parametrize(
    ("family", "response", "expected", "width"),
    [
        (pmx.Gaussian(), torch.full((40,), 300.0).double() + torch.arange(40), 319.5, 1e-9),
        (pmx.Poisson(), torch.full((40,), 50.0).double(), 3.912, 0.3),  # log 50, to the grid's step
    ],
    ids=["gaussian", "poisson"],
)
def test_an_output_bias_takes_the_level(family: Any, response: torch.Tensor, expected: float, width: float) -> None:
    module, d = network(), data(response)
    program = program_of(module, family)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    centre_outputs(program, (d,), make_plan(program, (d,)))
    assert level(program, d) == pytest.approx(expected, abs=width)
    changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["2.bias"]


def test_nothing_moves_where_a_coefficient_holds_the_constant() -> None:
    module, d = network(), data(torch.full((40,), 300.0).double() + torch.arange(40))
    program = program_of(module, pmx.Gaussian(), constant=True)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    centre_outputs(program, (d,), make_plan(program, (d,)))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_nothing_moves_without_an_output_bias() -> None:
    module, d = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0)).double(), data(torch.arange(40.0).double())
    program = program_of(module, pmx.Gaussian())
    before = module[0].weight.detach().clone()
    centre_outputs(program, (d,), make_plan(program, (d,)))
    assert torch.equal(module[0].weight, before)
