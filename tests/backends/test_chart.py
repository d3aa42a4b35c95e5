"""The joint chart of an unstructured block's SDs and correlations."""

from __future__ import annotations

import pytest
import torch

from pyromix.backends.chart import FactorEntry

BASIS = torch.tensor([[0.8, 0.0, 0.0], [-0.5, 1.3, 0.0], [0.2, 0.1, 0.6]], dtype=torch.float64)
ENTRY = FactorEntry("g", "g.sd", "g.corr_cholesky", BASIS, 0.7)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_any_signs_give_a_cholesky_factor_of_the_same_covariance(signs: tuple[int, ...]) -> None:
    inner = torch.tensor([[1.0, 0, 0], [0.4, 0.9, 0], [-0.3, 0.2, 1.1]], dtype=torch.float64)
    inner = inner * torch.tensor(signs, dtype=torch.float64)
    row, col = ENTRY.rows
    values = ENTRY.forward(inner[row, col])
    sd, corr = values["g.sd"], values["g.corr_cholesky"]
    assert bool((corr.diagonal() > 0).all()) and bool((sd > 0).all())
    torch.testing.assert_close(corr.norm(dim=1), torch.ones(3, dtype=torch.float64))
    factor = 0.7 * BASIS @ inner
    torch.testing.assert_close((sd[:, None] * corr) @ (sd[:, None] * corr).T, factor @ factor.T)
    torch.testing.assert_close(ENTRY.forward(ENTRY.inverse(values)), values)


def test_a_zero_sd_is_a_value_with_finite_gradients() -> None:
    t = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    values = ENTRY.forward(t)
    assert not values["g.sd"].any() and torch.equal(values["g.corr_cholesky"], torch.eye(3, dtype=torch.float64))
    (values["g.sd"].sum() + values["g.corr_cholesky"].sum()).backward()
    assert bool(torch.isfinite(t.grad).all())
