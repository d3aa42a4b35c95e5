"""The extension point for response families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pyro.distributions import Distribution

from pyromix.errors import ConfigError
from pyromix.families.links import Link, link_named
from pyromix.families.responses import refuse_constant, refuse_not_finite
from pyromix.parameters import Parameter

Prepared = tuple[torch.Tensor, ...]


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

    A family is `distribution`; everything else has a generic default. Overrides exist for speed and accuracy and must
    agree with the default: `pyromix.testing.FamilySuite` checks that at ordinary and extreme predictors.

    All tensors are float64; `eta` may carry batch dimensions on the left of the rows, the response then broadcasts.
    """

    links: ClassVar[tuple[str, ...]]
    has_residual: ClassVar[bool] = False
    residual: Any = None  # correlations of the residuals, and how their SD changes: only Gaussian responses have any
    variance: Any = None

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

    def check_response(
        self, y: np.ndarray, trials: np.ndarray | None, describe: Callable[[int], str], name: str = "y"
    ) -> None:
        """Refuse a response that the family cannot have.

        Parameters
        ----------
        y, trials
            The response and its binomial trials, (n,).
        describe
            ``describe(i)`` names row i for a message: ``"row 'a17' (position 16)"``.
        name
            The column, for a message.

        Raises
        ------
        DataError
            With the column, the first offending value, its row, how many there are and what to do.
        """
        refuse_not_finite(y, f"column {name!r} (response, {type(self).__name__})", describe)

    def check_varies(self, y: np.ndarray, trials: np.ndarray | None, name: str = "y") -> None:
        """Refuse a response that is the same in every row; for trials, their share of successes.

        Raises
        ------
        DataError
            With the column and the value.
        """
        where = f"column {name!r} (response, {type(self).__name__})"
        if trials is None:
            refuse_constant(y, where, name)
        elif np.all(y == 0) or np.all(y == trials) or np.all(trials == trials.flat[0]):
            refuse_constant(y / trials, where, name)

    def mean(self, eta: torch.Tensor, **dispersion: torch.Tensor) -> torch.Tensor:
        """Expected response (a probability for binomial responses, whatever the trials): ``h(eta)``."""
        return self.link.inverse(eta)

    def gaussian_sd(self, **dispersion: torch.Tensor) -> torch.Tensor | None:
        """SD of the response about eta if it is Gaussian with identity link, else ``None``."""
        return None

    def weigh(self, dispersion: dict[str, torch.Tensor], precision: torch.Tensor) -> dict[str, torch.Tensor]:
        """Dispersion by row under precision weights (n,); only families with a residual variance have one."""
        raise ConfigError(
            f"precision_weights: {type(self).__name__} has no residual variance for them to divide; use "
            "frequency_weights to count a row several times, or cbind(successes, failures) for trials."
        )

    def config(self) -> dict[str, Any]:
        """Class and constructor arguments as plain JSON values; `pyromix.families.from_config` reads them back."""
        return {"class": type(self).__name__, "link": self.link.name}

    # -- probably should override for speed --------------------------------------------------------------------------
    def prepare(self, y: torch.Tensor, trials: torch.Tensor | None = None) -> Prepared:
        """What `log_prob` and `derivatives` need of the response alone (logarithms, factorials), elementwise.

        Compute it once for data that stay and hand it to every call; take rows of each entry to take rows of it.
        """
        return ()

    def log_prob(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> torch.Tensor:
        """Row-wise log density with every constant, (n,); `prepared` as `prepare` returned it."""
        return self.distribution(eta, trials, **dispersion).log_prob(y)

    def derivatives(
        self,
        eta: torch.Tensor,
        y: torch.Tensor,
        trials: torch.Tensor | None = None,
        *,
        prepared: Prepared | None = None,
        **dispersion: torch.Tensor,
    ) -> Derivatives:
        """`Derivatives` at eta, themselves differentiable in eta and the dispersion where those require gradients.

        This default differentiates `log_prob` three times.
        """
        graph = torch.is_grad_enabled() and any(x.requires_grad for x in (eta, *dispersion.values()))
        with torch.enable_grad():
            point = eta.clone() if graph and eta.requires_grad else eta.detach().requires_grad_(True)
            last = self.log_prob(point, y, trials, prepared=prepared, **dispersion)
            orders = [last]
            for _ in range(3):
                grad = None
                if last.requires_grad:
                    (grad,) = torch.autograd.grad(last.sum(), point, create_graph=True, allow_unused=True)
                last = torch.zeros_like(point) if grad is None else grad
                orders.append(last)
        value, score, curvature, third = orders if graph else (order.detach() for order in orders)
        return Derivatives(value, score, -curvature, -third)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(link={self.link.name!r})"
