"""The extension point for response families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pyro.distributions import Distribution

from pyromix.families.links import Link, link_named
from pyromix.parameters import Parameter


class Derivatives(NamedTuple):
    r"""Row-wise log density and its derivatives in the predictor, each (n,).

    ``score`` is :math:`\partial\ell/\partial\eta`, ``weight`` is :math:`-\partial^2\ell/\partial\eta^2` (observed, not
    expected), ``slope`` is :math:`\partial\,weight/\partial\eta`.
    """

    log_prob: torch.Tensor
    score: torch.Tensor
    weight: torch.Tensor
    slope: torch.Tensor


class AbstractFamily(ABC):
    """Distribution of a response given its predictor and dispersion.

    A family is `distribution`; everything else has a generic default. Overrides exist for speed and must agree with
    the default: `pyromix.testing.FamilySuite` checks that at ordinary and extreme predictors.
    """

    links: ClassVar[tuple[str, ...]]
    has_residual: ClassVar[bool] = False

    def __init__(self, link: str) -> None:
        self.link: Link = link_named(link, self.links, type(self).__name__)

    # -- must define -------------------------------------------------------------------------------------------------
    @abstractmethod
    def distribution(
        self, eta: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> Distribution:
        """The response distribution of each row: eta (n,), with the offset in it."""

    # -- might override ----------------------------------------------------------------------------------------------
    def parameters(self) -> tuple[Parameter, ...]:
        """Dispersion parameters; none by default."""
        return ()

    def check_response(self, y: np.ndarray, trials: np.ndarray | None, describe: Callable[[int], str]) -> None:
        """Raise `DataError` for a value the family cannot have; ``describe(i)`` names row i."""

    def mean(self, eta: torch.Tensor, **dispersion: torch.Tensor) -> torch.Tensor:
        """Expected response (a probability for binomial responses, whatever the trials): ``h(eta)``."""
        return self.link.inverse(eta)

    def gaussian_sd(self, **dispersion: torch.Tensor) -> torch.Tensor | None:
        """SD of the response about eta if it is Gaussian with identity link, else ``None``."""
        return None

    # -- probably should override for speed --------------------------------------------------------------------------
    def log_prob(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> torch.Tensor:
        """Row-wise log density with every constant, (n,)."""
        return self.distribution(eta, trials, **dispersion).log_prob(y)

    def derivatives(
        self, eta: torch.Tensor, y: torch.Tensor, trials: torch.Tensor | None = None, **dispersion: torch.Tensor
    ) -> Derivatives:
        """`Derivatives` at eta. This default differentiates `log_prob` three times; no graph is kept."""
        with torch.enable_grad():
            point = eta.detach().requires_grad_(True)
            fixed = {name: value.detach() for name, value in dispersion.items()}
            log_prob = self.log_prob(point, y, trials, **fixed)
            orders = [log_prob]
            for _ in range(3):
                last = orders[-1]
                grad = None
                if last.requires_grad:
                    (grad,) = torch.autograd.grad(last.sum(), point, create_graph=True, allow_unused=True)
                orders.append(torch.zeros_like(point) if grad is None else grad)
        value, score, curvature, third = (order.detach() for order in orders)
        return Derivatives(value, score, -curvature, -third)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(link={self.link.name!r})"
