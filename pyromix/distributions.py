"""The distribution that a random-effect site carries."""

from __future__ import annotations

from collections.abc import Callable

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
        The covariance, through its factor (`pyromix.linalg.operators.AbstractOperator`), or a function that makes it
        when it is first asked for: a run whose effects are given has no use for it.
    shape
        (levels, terms); needed with a function.
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        operator: AbstractOperator | Callable[[], AbstractOperator],
        shape: tuple[int, int] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._made = operator
        shape = self.operator.shape if shape is None else shape
        super().__init__(torch.Size(), torch.Size(shape), validate_args=False)

    @property
    def operator(self) -> AbstractOperator:
        """The covariance."""
        if not isinstance(self._made, AbstractOperator):
            self._made = self._made()
        return self._made

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
        dtype = self._made.dtype if isinstance(self._made, AbstractOperator) else torch.float64
        return torch.zeros((), dtype=dtype).expand(self.event_shape)
