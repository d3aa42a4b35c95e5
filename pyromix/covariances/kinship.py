"""Levels that are related: by a known matrix, by genotypes, by descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels
from pyromix.covariances.relationship import known, vanraden
from pyromix.errors import ConfigError
from pyromix.linalg.operators import AbstractOperator, RootOperator
from pyromix.parameters import Argument, Parameter, encode


class Kinship(BetweenLevels):
    r"""Effects correlated by a known relationship matrix K over their levels; breeding values, phylogenies.

    .. math:: vec(u) \sim N(0, K \otimes T), \qquad T = diag(sd^2)

    .. math::
        \log p(u) = -\tfrac12 tr(K^{-1} u T^{-1} u^T) - \tfrac q2\log|K| - \tfrac n2\log|T| - \tfrac{nq}2\log 2\pi

    for n levels and q terms. K is used as it is, not rescaled: ``sd^2`` is the variance of a level with
    ``K_ii = 1``, sommer's ``vsm(ism(id), Gu=K)``, lme4qtl's ``relmatlmer(relmat=list(id=K))`` and brms'
    ``gr(id, cov=K)``. Rows are matched to levels by label. Ids of K that are no level stay available to predictions.
    A singular K (twins, a centred genomic matrix) is an ordinary value of the effects' square root; it has no density.

    Parameters
    ----------
    K
        pandas DataFrame with the ids as index and columns, or ``(array, ids)``.
    markers
        In place of K: a table of genotypes, ids x markers; see `pyromix.covariances.vanraden`.
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    terms
        Structure of the terms of a level where they are correlated: ``Unstructured()``.
    repair
        ``"nearest"`` sets negative eigenvalues of K to zero, with a `JitterWarning` that says how much that changed.

    Raises
    ------
    StructureError
        A K that is not square, symmetric or positive semidefinite; where the effect is used, a level that K lacks.
    DataError
        Missing or infinite entries, genotypes that are no allele counts.
    ConfigError
        None or more than one of the ways to give K; as for `Diagonal`.
    """

    def __init__(
        self,
        K: Any = None,
        *,
        markers: Any = None,
        sd: Argument = None,
        terms: Covariance | None = None,
        repair: str | None = None,
    ) -> None:
        given = [name for name, value in (("K", K), ("markers", markers)) if value is not None]
        if len(given) != 1:
            raise ConfigError(f"Kinship: got {' and '.join(given) or 'nothing'}; pass one of K=, markers=.")
        self.K = known(K if markers is None else vanraden(markers), repair)
        self._set_terms(sd, terms)

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return self._term_parameters(coords.terms)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        tril = self._tril(theta, coords)
        return RootOperator(self.K.root(tuple(coords.levels)).to(tril.dtype), tril)

    def config(self) -> dict[str, Any]:
        """As for every structure; K is written out.

        Raises
        ------
        ConfigError
            A K of more than 2,000 ids, ids that are neither text nor numbers, or a prior that cannot be saved.
        """
        terms = None if self.terms is None else self.terms.config()
        return {
            "class": "Kinship",
            "K": self.K.config("Kinship(K=...)"),
            "sd": encode(self.sd, "Kinship(sd=...)"),
            "terms": terms,
        }
