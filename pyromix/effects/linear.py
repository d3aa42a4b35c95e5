"""Linear effects."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.effects.parameter_site import record
from pyromix.errors import DataError
from pyromix.parameters import Argument, parameter
from pyromix.sites import Hyper, annotate


class LinearEffect:
    r"""A linear term :math:`X\beta`. Site: ``name``, the coefficients (p,).

    Parameters
    ----------
    name
        Name of the coefficient site, e.g. ``"beta"``.
    prior
        Prior of the coefficients: a scalar distribution serves every column; a number fixes them. By default a Normal
        with SD 1000, which is all but flat.
    labels
        Names of the columns.
    """

    def __init__(self, name: str, prior: Argument = None, *, labels: Sequence[str] | None = None) -> None:
        self.name = name
        self.prior = prior
        self.labels = None if labels is None else tuple(labels)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Emit the coefficient site and return ``x @ beta``: x (n, p) -> (n,).

        Raises
        ------
        DataError
            ``x`` is not a matrix.
        """
        if x.dim() != 2:
            raise DataError(f"LinearEffect({self.name!r}): x has shape {tuple(x.shape)}, expected (n, p).")
        vague = dist.Normal(torch.tensor(0.0, dtype=x.dtype), torch.tensor(1e3, dtype=x.dtype))
        given = parameter(self.name, self.prior, constraints.real, vague, (x.shape[1],), "LinearEffect")
        if given.fixed is not None:
            return x @ record(self.name, given.fixed)
        role = Hyper(constraints.real, design=x, labels=self.labels)
        return x @ pyro.sample(self.name, given.prior, infer=annotate(role))
