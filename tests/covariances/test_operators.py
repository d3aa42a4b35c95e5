"""Operators and the distribution that carries them, where the conformance suite does not look."""

from __future__ import annotations

import math

import pytest
import torch

from pyromix.covariances import IID, Coords, Diagonal, Unstructured
from pyromix.distributions import StructuredNormal
from pyromix.linalg.operators import BlockOperator

COORDS = Coords(("a", "b", "c"), ("Intercept", "x"))


def _theta(draws: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sd = torch.rand(draws, 2, dtype=torch.float64, generator=generator) + 0.1
    r = torch.rand(draws, dtype=torch.float64, generator=generator) - 0.5
    one, zero = torch.ones_like(r), torch.zeros_like(r)
    factor = torch.stack([one, zero, r, (1 - r * r).sqrt()], -1).reshape(draws, 2, 2)
    return {"sd": sd, "corr_cholesky": factor}


@pytest.mark.parametrize("covariance", [IID(), Diagonal(), Unstructured()], ids=repr)
def test_batches_of_hyper_parameters(covariance) -> None:
    """Many draws of theta at once give what each gives alone."""
    theta = _theta(4)
    if isinstance(covariance, IID):
        theta["sd"] = theta["sd"][:, 0]
    u = torch.randn(4, 3, 2, dtype=torch.float64)
    together = covariance.operator(theta, COORDS)
    each = [covariance.operator({k: v[i] for k, v in theta.items()}, COORDS) for i in range(4)]
    assert torch.allclose(together.log_prob(u), torch.stack([o.log_prob(u[i]) for i, o in enumerate(each)]))
    assert torch.allclose(together.factor(u), torch.stack([o.factor(u[i]) for i, o in enumerate(each)]))


@pytest.mark.parametrize("covariance", [IID(), Diagonal(), Unstructured()], ids=repr)
def test_the_dtype_is_that_of_the_hyper_parameters(covariance) -> None:
    theta = {name: value[0].float() for name, value in _theta(1).items()}
    if isinstance(covariance, IID):
        theta["sd"] = theta["sd"][0]
    operator = covariance.operator(theta, COORDS)
    assert operator.dtype == torch.float32
    assert operator.log_prob(torch.ones(3, 2)).dtype == torch.float32


def test_one_zero_sd_is_an_ordinary_value() -> None:
    operator = BlockOperator(torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64)), 3)
    draw = operator.factor(torch.ones(3, 2, dtype=torch.float64))
    assert torch.equal(draw, torch.tensor([[2.0, 0.0]] * 3, dtype=torch.float64))
    assert operator.log_prob(draw) == -math.inf


def test_a_perfect_correlation_is_an_ordinary_value() -> None:
    theta = {"sd": torch.tensor([2.0, 3.0]).double(), "corr_cholesky": torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()}
    operator = Unstructured().operator(theta, COORDS)
    draw = operator.factor(torch.ones(3, 2, dtype=torch.float64))
    assert torch.equal(draw[:, 1], 1.5 * draw[:, 0])
    assert torch.equal(Unstructured().describe(theta)["corr"], torch.ones(2, 2, dtype=torch.float64))


def test_a_structured_normal_is_one_array() -> None:
    normal = StructuredNormal(BlockOperator(torch.eye(2, dtype=torch.float64), 3))
    assert normal.batch_shape == () and normal.event_shape == (3, 2)
    assert normal.expand(torch.Size()) is normal
    assert normal.sample((5,)).shape == (5, 3, 2)
    with pytest.raises(ValueError, match=r"cannot be expanded to batch shape \(4,\).*call it outside pyro.plate"):
        normal.expand(torch.Size((4,)))
