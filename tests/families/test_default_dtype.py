"""torch's default dtype belongs to the user and changes no number."""

from __future__ import annotations

import pytest
import torch

from pyromix import IID, Binomial, Gaussian, Poisson, RandomEffect, observe
from pyromix.covariances import Coords, Diagonal, Unstructured
from pyromix.running import run

ETA = torch.linspace(-3, 3, 7, dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
TRIALS = torch.full((7,), 5.0, dtype=torch.float64)


def _numbers() -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    sigma = torch.tensor(0.7, dtype=torch.float64)
    for family, trials in [(Poisson(), None), *((Binomial(x), t) for x in Binomial.links for t in (None, TRIALS))]:
        out += family.derivatives(ETA, Y, trials)
        out.append(family.distribution(ETA, trials).mean)
    out += Gaussian("log").derivatives(ETA, Y, sigma=sigma)
    coords = Coords((1, 2), ("a", "b"))
    for covariance in (IID(), IID(sd=2), Diagonal(), Unstructured(), Unstructured(sd=1.5, corr=0.3)):
        for parameter in covariance.parameters(coords):
            value = parameter.fixed
            if value is None:
                torch.manual_seed(0)
                value = parameter.prior.sample()
            out.append(value)

    def program() -> None:
        observe("y", Gaussian(), RandomEffect("g", IID())(torch.tensor([0, 1, 1])), Y[:3])

    record = run(program, (), seed=1, latents="prior")
    out += [site.value for site in (*record.hypers.values(), *record.latents.values())]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_double_and_the_same(dtype: torch.dtype) -> None:
    expected = _numbers()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        got = _numbers()
    finally:
        torch.set_default_dtype(before)
    assert {x.dtype for x in got} == {torch.float64}
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
