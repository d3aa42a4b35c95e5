"""Freely correlated effects within a level."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.covariances.arguments import check_columns
from pyromix.covariances.base import Coords, Covariance, terms_of
from pyromix.errors import ConfigError
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter, double, number, parameter

LABEL = "Unstructured(corr=...)"


class Unstructured(Covariance):
    r"""Correlated effects within a level, independent between levels; lme4's ``(x | g)``, glmmTMB's ``us()``.

    .. math:: u_g \sim N(0, D R D), \quad D = diag(sd), \quad R = L L^T, \qquad \Sigma = I_{levels} \otimes D R D

    The sampled site is ``<effect>.corr_cholesky``, the Cholesky factor L of the correlation matrix, so a perfect
    correlation or a zero SD is an ordinary value; ``<effect>.corr`` records R. With one term there is no correlation
    and only ``<effect>.sd``.

    Parameters
    ----------
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    corr
        Correlations: ``LKJCholesky(dim, concentration)`` (or ``LKJ``) is their prior, by default LKJ with
        concentration 1 (uniform over correlation matrices); a correlation matrix (terms, terms), or one number for
        every pair, fixes them.
    time, within
        Where it correlates residuals, ``Gaussian(residual=Unstructured(time="week", within="Subject"))`` (nlme's
        ``corSymm``): names of the columns that say which occasion a row is (by default its place in its series) and
        which series it belongs to (by default all are one). Occasions then are the terms.

    Raises
    ------
    ConfigError
        As for `Diagonal`; a `corr` that is no positive definite correlation matrix, or a prior of something else.
    """

    def __init__(
        self, sd: Argument = None, corr: Argument = None, *, time: str | None = None, within: str | None = None
    ) -> None:
        check_columns("Unstructured", time=time, within=within)
        self.sd = sd
        self.corr = corr
        self.time = time
        self.within = within
        self._sd_parameter(len(terms_of(sd, "Unstructured(sd=...)")))
        if corr is not None:
            _corr_parameter(corr, _order(corr))

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        q = len(coords.terms)
        sd = self._sd_parameter(q)
        return (sd,) if q == 1 else (sd, _corr_parameter(self.corr, q))

    def _sd_parameter(self, q: int) -> Parameter:
        default = dist.HalfNormal(torch.tensor(10.0, dtype=torch.float64))
        return parameter("sd", self.sd, constraints.nonnegative, default, (q,), "Unstructured")

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        sd = theta["sd"]
        tril = torch.diag_embed(sd) if len(coords.terms) == 1 else sd[..., None] * theta["corr_cholesky"]
        return BlockOperator(tril, len(coords.levels))

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "corr_cholesky" not in theta:
            return {}
        factor = theta["corr_cholesky"]
        return {"corr": factor @ factor.mT}


def _corr_parameter(corr: Argument, q: int) -> Parameter:
    name, support = "corr_cholesky", constraints.corr_cholesky
    if corr is None:
        return Parameter(name, support, prior=dist.LKJCholesky(q, torch.tensor(1.0, dtype=torch.float64)))
    if not isinstance(corr, dist.Distribution):
        return Parameter(name, support, fixed=_fixed_factor(corr, q))
    prior = double(corr, LABEL)
    if prior.batch_shape or prior.event_shape != (q, q):
        got = tuple(prior.batch_shape + prior.event_shape)
        raise ConfigError(f"{LABEL}: its prior has shape {got}, expected {(q, q)}; use LKJCholesky({q}, eta).")
    if isinstance(prior, dist.LKJ):  # a prior of R itself: the same prior, of its factor
        prior = dist.LKJCholesky(q, prior.concentration)
    elif prior.support is not constraints.corr_cholesky:
        raise ConfigError(
            f"{LABEL}: its prior {type(prior).__name__} is not one of correlation matrices; use LKJCholesky({q}, eta)."
        )
    return Parameter(name, support, prior=prior)


def _order(corr: Argument) -> int:
    """The number of terms that the correlations were written for; two for one number."""
    shape = corr.event_shape if isinstance(corr, dist.Distribution) else number(corr, LABEL).shape
    return shape[0] if len(shape) else 2


def _fixed_factor(corr: object, q: int) -> torch.Tensor:
    matrix = number(corr, LABEL)
    if matrix.dim() == 0:
        matrix = torch.full((q, q), matrix.item(), dtype=torch.float64).fill_diagonal_(1.0)
    if matrix.shape != (q, q) or not torch.allclose(matrix.diagonal(), torch.ones(q, dtype=torch.float64)):
        raise ConfigError(
            f"{LABEL}: got {corr!r}, shape {tuple(matrix.shape)}; pass one correlation, or a {q} x {q} correlation "
            "matrix (ones on its diagonal)."
        )
    factor, failure = torch.linalg.cholesky_ex(matrix)
    if int(failure) or not torch.allclose(matrix, matrix.T):
        smallest = float(torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))[0])
        raise ConfigError(
            f"{LABEL}: {corr!r} is not a positive definite correlation matrix of {q} terms (smallest eigenvalue "
            f"{smallest:.3g}, largest asymmetry {float((matrix - matrix.T).abs().max()):.3g})."
        )
    return factor
