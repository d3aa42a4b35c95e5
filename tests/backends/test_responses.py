"""What every backend refuses of a response, before any fitting."""

from __future__ import annotations

import pytest
import torch

import pyromix as pmx
from pyromix.errors import DataError

BACKENDS = [pmx.MaximumLikelihood(), pmx.NestedLaplace(), pmx.NUTS(), pmx.NUTS(marginal=pmx.Exact()), pmx.SVI()]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: type(backend).__name__)
def test_nothing_to_fit(backend) -> None:  # type: ignore[no-untyped-def]
    group = torch.arange(20) % 4
    effect = pmx.RandomEffect("g", pmx.IID(), levels=4)

    def program(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Gaussian(), effect(group), y, mask=torch.zeros(20, dtype=torch.bool))

    with pytest.raises(DataError, match=r"'y'.*every row is masked.*prior_predictive"):
        pmx.fit(program, torch.randn(20, dtype=torch.float64), backend, progress=False)
