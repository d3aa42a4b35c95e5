"""Levels that are related: by a known matrix, by genotypes, by descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels
from pyromix.covariances.known_matrix import known, vanraden
from pyromix.covariances.pedigree import Pedigree
from pyromix.errors import ConfigError
from pyromix.linalg.operators import AbstractOperator
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
    pedigree
        In place of K: pandas DataFrame with the columns ``id``, ``sire`` (or ``father``) and ``dam`` (or ``mother``),
        rows in any order. K is then the numerator relationship matrix A, inbreeding included, ``1 + F_i`` on its
        diagonal. Unknown parents are None, NaN, "" or 0; parents without a row are founders. Where all ancestors of
        the levels are levels too (pass them all as ``levels=``), A^-1 is used, which is sparse.
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
        A K that is not square, symmetric or positive semidefinite; an animal with two rows, or its own ancestor; where
        the effect is used, a level that K lacks.
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
        pedigree: Any = None,
        sd: Argument = None,
        terms: Covariance | None = None,
        repair: str | None = None,
    ) -> None:
        ways = {"K": K, "markers": markers, "pedigree": pedigree}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ConfigError(f"Kinship: got {' and '.join(given) or 'nothing'}; pass one of K=, markers=, pedigree=.")
        if pedigree is not None and repair is not None:
            raise ConfigError(f"Kinship(repair={repair!r}): a pedigree has nothing to repair.")
        if pedigree is not None:
            self.K = Pedigree(pedigree)
        else:
            self.K = K if isinstance(K, Pedigree) else known(K if markers is None else vanraden(markers), repair)
        self._set_terms(sd, terms)

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return self._term_parameters(coords.terms)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> AbstractOperator:
        return self.K.operator(tuple(coords.levels), self._tril(theta, coords))

    @property
    def pedigree(self) -> Pedigree | None:
        """The pedigree, where that is what was given."""
        return self.K if isinstance(self.K, Pedigree) else None

    def config(self) -> dict[str, Any]:
        """As for every structure; K is written out.

        Raises
        ------
        ConfigError
            A K of more than 2,000 ids, ids that are neither text nor numbers, or a prior that cannot be saved.
        """
        terms = None if self.terms is None else self.terms.config()
        way = "pedigree" if isinstance(self.K, Pedigree) else "K"
        return {
            "class": "Kinship",
            way: self.K.config(f"Kinship({way}=...)"),
            "sd": encode(self.sd, "Kinship(sd=...)"),
            "terms": terms,
        }
