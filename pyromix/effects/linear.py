"""Linear effects."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.effects.parameter_site import float64, record
from pyromix.errors import ConfigError, DataError
from pyromix.parameters import Argument, parameter
from pyromix.sites import Hyper, annotate


class LinearEffect:
    r"""A linear term :math:`X\beta`. Site: ``name``, the coefficients (p,).

    Parameters
    ----------
    name
        Name of the coefficient site, e.g. ``"beta"``.
    prior
        Prior of the coefficients: a scalar distribution serves every column, one of shape (p,) gives each its own; a
        number or numbers (p,) fix them. By default a Normal with SD 1000, which is all but flat.
    labels
        Names of the columns.

    Raises
    ------
    ConfigError
        The name is not a string; a prior or labels that do not fit the columns (when called).
    """

    def __init__(self, name: str, prior: Argument = None, *, labels: Sequence[str] | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"LinearEffect(name={name!r}): the name of its site must be a string, e.g. 'beta'.")
        self.name = name
        self.prior = prior
        self.labels = None if labels is None else tuple(labels)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Emit the coefficient site and return ``x @ beta``: x (n, p) -> (n,).

        Raises
        ------
        DataTypeError
            ``x`` is not a tensor of real numbers.
        DataError
            ``x`` is not a matrix.
        """
        where = f"LinearEffect({self.name!r})"
        x = float64(x, f"{where}: x")
        if x.dim() != 2:
            raise DataError(f"{where}: x has shape {tuple(x.shape)}, expected (n, p).")
        if self.labels is not None and len(self.labels) != x.shape[1]:
            raise ConfigError(f"{where}: {len(self.labels)} labels for {x.shape[1]} columns; name every column.")
        vague = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1e3, dtype=torch.float64))
        given = parameter("prior", self.prior, constraints.real, vague, (x.shape[1],), where)
        if given.fixed is not None:
            return x @ record(self.name, given.fixed)
        role = Hyper(constraints.real, design=x, labels=self.labels)
        return x @ pyro.sample(self.name, given.prior, infer=annotate(role))
