"""Freely correlated effects within a level."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.base import Coords, Covariance
from pyromix.errors import ConfigError
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, parameter


class Unstructured(Covariance):
    r"""Correlated effects within a level, independent between levels; lme4's ``(x | g)``, glmmTMB's ``us()``.

    .. math:: u_g \sim N(0, D R D), \quad D = diag(sd), \quad R = L L^T

    The sampled site is ``<effect>.corr_cholesky``, the Cholesky factor L of the correlation matrix, so a perfect
    correlation or a zero SD is an ordinary value; ``<effect>.corr`` records R.

    Parameters
    ----------
    sd
        Standard deviations, (terms,) or one number for all: numbers fix them, a distribution is their prior; by default
        HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    corr
        Correlations: ``LKJCholesky(dim, concentration)`` (or ``LKJ``) is their prior, by default LKJ with
        concentration 1 (uniform over correlation matrices); a correlation matrix, or one number, fixes them.
    """

    def __init__(self, sd: Argument = None, corr: Argument = None) -> None:
        self.sd = sd
        self.corr = corr

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        q = len(coords.terms)
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        sd = parameter("sd", self.sd, constraints.nonnegative, default, (q,), "Unstructured")
        if q == 1:
            return (sd,)
        return sd, self._corr_parameter(q)

    def _corr_parameter(self, q: int) -> Parameter:
        name, support = "corr_cholesky", constraints.corr_cholesky
        if self.corr is None:
            return Parameter(name, support, prior=dist.LKJCholesky(q, torch.tensor(1.0, dtype=torch.float64)))
        if isinstance(self.corr, dist.LKJ):
            concentration = self.corr.base_dist.concentration.to(torch.float64)
            return Parameter(name, support, prior=dist.LKJCholesky(q, concentration))
        if isinstance(self.corr, dist.Distribution):
            if self.corr.event_shape != (q, q):
                raise ConfigError(
                    f"Unstructured(corr=...): its prior has event shape {tuple(self.corr.event_shape)}, expected "
                    f"{(q, q)} for {q} terms; use LKJCholesky({q}, concentration)."
                )
            return Parameter(name, support, prior=self.corr)
        return Parameter(name, support, fixed=_fixed_factor(self.corr, q))

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        sd = theta["sd"]
        tril = torch.diag_embed(sd) if len(coords.terms) == 1 else sd[..., None] * theta["corr_cholesky"]
        return BlockOperator(tril, len(coords.levels))

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "corr_cholesky" not in theta:
            return {}
        factor = theta["corr_cholesky"]
        return {"corr": factor @ factor.mT}


def _fixed_factor(corr: object, q: int) -> torch.Tensor:
    matrix = torch.as_tensor(corr, dtype=torch.float64)
    if matrix.dim() == 0:
        matrix = torch.full((q, q), matrix.item(), dtype=torch.float64).fill_diagonal_(1.0)
    if matrix.shape != (q, q) or not torch.allclose(matrix.diagonal(), torch.ones(q, dtype=torch.float64)):
        raise ConfigError(
            f"Unstructured(corr=...): got shape {tuple(matrix.shape)}; pass a {q} x {q} correlation matrix (unit diagonal)."
        )
    factor, failure = torch.linalg.cholesky_ex(matrix)
    if int(failure) or not torch.allclose(matrix, matrix.T):
        raise ConfigError(f"Unstructured(corr={corr!r}): not a positive definite correlation matrix.")
    return factor
