"""Areas that share with their neighbours, and differ on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyromix.covariances.arguments import correlation
from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels
from pyromix.covariances.graph import read_graph
from pyromix.linalg.spectral import SpectralOperator
from pyromix.parameters import Argument, Parameter, encode


class BYM2(BetweenLevels):
    r"""A scaled intrinsic field over areas and independent effects, mixed (Riebler, Sorbye, Simpson and Rue, 2016).

    .. math:: u = sd\,(\sqrt{1 - phi}\;v + \sqrt{phi}\;s), \quad v \sim N(0, I), \; s \sim N(0, S), \qquad
        \Sigma = ((1 - phi) I + phi\,S) \otimes diag(sd^2)

    with S the scaled covariance of `pyromix.Besag`: ``sd`` is the SD of an average area whatever the graph, and ``phi``
    the share of its variance that is shared with neighbours. The model of Besag, York and Mollie (1991) is the same
    with SDs :math:`sd\sqrt{1 - phi}` and :math:`sd\sqrt{phi}`. Islands have variance :math:`sd^2` and no neighbours.

    S is decomposed once, :math:`S = V diag(\lambda) V^T`, so that
    :math:`\log|\Sigma| = \sum_i \log sd^2(1 - phi + phi\,\lambda_i)`; for at most 4,000 areas.

    Parameters
    ----------
    graph, nodes, terms
        As for `pyromix.Besag`.
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10). The prior of Riebler et al. (2016), P(sd > s) = p, is
        ``Exponential(-log(p) / s)``.
    phi
        Share, between 0 and 1, ends excluded: a number or a prior; by default uniform. ``Beta(0.5, 0.5)`` is another
        choice in use.

    Raises
    ------
    StructureError, DataError, ConfigError
        As for `pyromix.Besag`; a `phi` that is not between 0 and 1.
    """

    def __init__(
        self,
        graph: Any,
        sd: Argument = None,
        phi: Argument = None,
        *,
        nodes: Sequence[Any] | None = None,
        terms: Covariance | None = None,
    ) -> None:
        self.graph = read_graph(graph, nodes, "BYM2")
        self.phi = phi
        self._set_terms(sd, terms)
        self._phi()

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return (*self._term_parameters(coords.terms), self._phi())

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> SpectralOperator:
        values, vectors = self.graph.spectrum(coords.levels)
        phi = theta["phi"]
        scales = (1 - phi + phi * values.to(phi.dtype)).sqrt()
        return SpectralOperator(vectors.to(phi.dtype), scales, self._tril(theta, coords))

    def config(self) -> dict[str, Any]:
        return {
            "class": "BYM2",
            "graph": self.graph.config("BYM2(graph=...)"),
            "sd": encode(self.sd, "BYM2(sd=...)"),
            "phi": encode(self.phi, "BYM2(phi=...)"),
            "terms": None if self.terms is None else self.terms.config(),
        }

    def __repr__(self) -> str:
        return f"BYM2(graph={self.graph!r}, sd={self.sd!r}, phi={self.phi!r})"

    def _phi(self) -> Parameter:
        return correlation("phi", self.phi, "BYM2", 0.0, 1.0)
