"""The distribution that a random-effect site carries."""

from __future__ import annotations

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions import constraints

from pyromix.linalg.operators import AbstractOperator


class StructuredNormal(TorchDistribution):
    r"""Zero-mean Gaussian over an array of shape (levels, terms) with a structured covariance.

    .. math:: \mathrm{vec}(u) \sim N(0, \Lambda\Lambda^T)

    Parameters
    ----------
    operator
        The covariance, through its factor (`pyromix.linalg.operators.AbstractOperator`).
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, operator: AbstractOperator, validate_args: bool | None = None) -> None:
        self.operator = operator
        super().__init__(torch.Size(), torch.Size(operator.shape), validate_args=False)

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> torch.Tensor:
        noise = torch.randn(torch.Size(sample_shape) + self.event_shape, dtype=self.operator.dtype)
        return self.operator.factor(noise)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return self.operator.log_prob(value)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> StructuredNormal:
        if torch.Size(batch_shape):
            raise ValueError(
                f"StructuredNormal: cannot be expanded to batch shape {tuple(batch_shape)}; "
                "a random effect is one array per program, so call it outside pyro.plate."
            )
        return self

    @property
    def mean(self) -> torch.Tensor:
        return torch.zeros((), dtype=self.operator.dtype).expand(self.event_shape)
