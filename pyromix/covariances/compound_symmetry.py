"""One correlation between all effects of a level."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pyromix.covariances.arguments import check_columns, correlation, sd_parameter
from pyromix.covariances.base import Coords, Covariance, terms_of
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Argument, Parameter


class CompoundSymmetry(Covariance):
    r"""Equally correlated effects within a level, independent between levels; glmmTMB's ``homcs`` and ``cs``.

    .. math:: u_g \sim N(0, D R D), \quad D = diag(sd), \quad R = (1 - \rho) I + \rho 1 1^T, \qquad
        |R| = (1 - \rho)^{q-1} (1 + (q - 1) \rho)

    With q terms R is positive definite for :math:`-1/(q-1) < \rho < 1`. A positive :math:`\rho` is that of an intercept
    shared by the terms, with variance :math:`\rho\,sd^2`, plus independent effects with :math:`(1-\rho)\,sd^2`; a
    negative one is no such sum. With one term there is no correlation and only ``<effect>.sd``.

    Against others: ``hom=True`` is glmmTMB's ``homcs``, lme4's ``cs(..., hom = TRUE)``, nlme's ``pdCompSymm``;
    ``hom=False`` is glmmTMB's ``cs``.

    Parameters
    ----------
    hom
        One SD for all terms; otherwise one per term.
    sd
        Standard deviation, >= 0 (``hom=False``: (terms,), or one number for all): a number fixes it, a distribution is
        its prior; by default HalfNormal(scale 10).
    corr
        :math:`\rho`: a number or a prior; by default Uniform(-1/(q - 1), 1).
    time, within
        Where it correlates residuals, ``Gaussian(residual=CompoundSymmetry(within="Subject"))``: names of the columns
        that say which occasion a row is (by default its place in its series) and which series it belongs to (by
        default all are one). Occasions then are the terms.

    Raises
    ------
    ConfigError
        A negative SD, or (where the effect is used) a count of SDs that is not the count of terms, or a correlation
        outside (-1/(q - 1), 1), or a prior that reaches outside.
    """

    def __init__(
        self,
        hom: bool = True,
        sd: Argument = None,
        corr: Argument = None,
        *,
        time: str | None = None,
        within: str | None = None,
    ) -> None:
        check_columns("CompoundSymmetry", time=time, within=within)
        self.hom = hom
        self.sd = sd
        self.corr = corr
        self.time = time
        self.within = within
        self.parameters(Coords((), terms_of(None if hom else sd, "CompoundSymmetry(sd=...)")))
        correlation("corr", corr, "CompoundSymmetry")

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        q = len(coords.terms)
        sd = sd_parameter(self.sd, "CompoundSymmetry", () if self.hom else (q,))
        if q == 1:
            return (sd,)
        return sd, correlation("corr", self.corr, "CompoundSymmetry", low=-1 / (q - 1))

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        sd, q = theta["sd"], len(coords.terms)
        scale = sd[..., None, None] if self.hom else sd[..., None]
        factor = torch.eye(1, dtype=sd.dtype) if q == 1 else _factor(theta["corr"], q)
        return BlockOperator(scale * factor, len(coords.levels))


def _factor(rho: torch.Tensor, q: int) -> torch.Tensor:
    r"""Cholesky factor (*batch, q, q) of R in closed form, finite up to the ends.

    .. math:: L_{jj}^2 = \frac{(1-\rho)(1+j\rho)}{1+(j-1)\rho}, \qquad L_{ij} = L_{jj} \frac{\rho}{1+j\rho}, \quad i > j
    """
    columns = [torch.ones_like(rho)]
    columns += [((1 - rho) * (1 + j * rho) / (1 + (j - 1) * rho)).sqrt() for j in range(1, q)]
    diagonal = torch.stack(columns, -1)
    # the last column has nothing below its diagonal, where 1 + j rho may vanish
    below = torch.stack([c * rho / (1 + j * rho) for j, c in enumerate(columns[:-1])] + [torch.zeros_like(rho)], -1)
    strictly = torch.ones(q, q, dtype=rho.dtype).tril(-1)
    return torch.diag_embed(diagonal) + below[..., None, :] * strictly
