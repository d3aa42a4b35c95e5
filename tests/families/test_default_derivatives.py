"""A family that defines nothing but its distribution."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyromix.families import AbstractFamily, Gaussian, Poisson


class _Rates(AbstractFamily):
    links = ("log",)

    def __init__(self) -> None:
        super().__init__("log")

    def distribution(self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor):
        return dist.Exponential(torch.exp(-eta))


class _Level(_Rates):
    """Its density does not depend on the predictor."""

    def distribution(self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor):
        return dist.Exponential(torch.ones_like(eta))


def test_derivatives_of_an_exponential() -> None:
    eta, y = torch.linspace(-2, 2, 9, dtype=torch.float64), torch.linspace(0.1, 4, 9, dtype=torch.float64)
    family = _Rates()
    given = family.derivatives(eta, y, prepared=family.prepare(y))
    ratio = y / eta.exp()
    for got, expected in zip(given, (-eta - ratio, ratio - 1, ratio, -ratio), strict=True):
        assert torch.allclose(got, expected, rtol=1e-13, atol=1e-13) and not got.requires_grad


def test_a_density_without_the_predictor_has_zero_derivatives() -> None:
    eta = torch.zeros(3, dtype=torch.float64)
    given = _Level().derivatives(eta, torch.ones(3, dtype=torch.float64))
    assert all(torch.equal(x, torch.zeros(3, dtype=torch.float64)) for x in given[1:])


def test_the_graph_reaches_the_dispersion() -> None:
    eta, y = torch.linspace(-1, 1, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    gradients = []
    for derivatives in (Gaussian.derivatives, AbstractFamily.derivatives):
        sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        given = derivatives(Gaussian("log"), eta, y, sigma=sigma)
        gradients.append([torch.autograd.grad(x.sum(), sigma, retain_graph=True)[0] for x in given])
    for got, expected in zip(*gradients, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12)


def test_the_graph_reaches_what_lies_behind_the_predictor() -> None:
    beta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    for derivatives in (Poisson.derivatives, AbstractFamily.derivatives):
        given = derivatives(Poisson(), beta * torch.ones(3, dtype=torch.float64), y)
        (gradient,) = torch.autograd.grad(given.weight.sum(), beta)
        assert torch.allclose(gradient, 3 * beta.detach().exp())
