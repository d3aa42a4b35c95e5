"""Besag's intrinsic autoregression over areas that are neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels
from pyromix.covariances.graph import read_graph
from pyromix.linalg.spectral import SpectralOperator
from pyromix.parameters import Argument, Parameter, encode


class Besag(BetweenLevels):
    r"""An area is like the mean of its neighbours: the intrinsic conditional autoregression (Besag, 1974), scaled.

    .. math:: p(u) \propto \exp\Big(-\frac{1}{2 s^2} \sum_{i \sim j} w_{ij}(u_i - u_j)^2\Big), \qquad
        \sum_{i \in c} u_i = 0 \text{ in every connected component } c

    With R the Laplacian of the graph (:math:`R_{ii} = \sum_j w_{ij}`, :math:`R_{ij} = -w_{ij}`), the field given its
    sums of zero is normal with

    .. math:: \Sigma = S \otimes T, \quad S_c = R_c^- / g_c, \quad g_c = \exp\Big(\frac{1}{n_c} \sum_{i \in c} \log
        (R_c^-)_{ii}\Big), \quad T = diag(sd^2),

    where :math:`R^-` is the generalised inverse and the scale g makes the geometric mean of the areas' variances
    :math:`sd^2`, whatever the graph (Sorbye and Rue, 2014). The sums are exactly zero, by a square root of rank n - 1
    for a component of n areas: nothing is added to R, and no constraint is softened. The field has no density over all
    of its areas; it enters fits and samplers through that root.

    An area without neighbours (an island) has an independent effect with variance ``sd^2``, and every other component
    its own scale and its own sum of zero (Freni-Sterrantino, Ventrucci and Rue, 2018).

    Levels are labels of areas, all of them or some; areas without rows are part of the field, and of its scale. S is
    written out, so costs are those of a dense matrix, for at most 4,000 areas.

    Parameters
    ----------
    graph
        The neighbours of every area, both ways: ``{"a": ["b"], "b": ["a", "c"], ...}`` (libpysal's ``W.neighbors``);
        or pairs, each once or both ways, as a list, an array (m, 2) or a DataFrame of two columns; or an adjacency
        matrix, as a DataFrame with the labels on both axes or a (sparse) array. Entries of a matrix are weights.
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10).
    nodes
        Labels of all areas, where pairs do not name the islands, or an array has no labels (then 0, 1, ...).
    terms
        Structure of the terms of a level where they are correlated: ``Unstructured()``.

    Raises
    ------
    StructureError
        An area that is its own neighbour, a neighbour that is no area, neighbours one way only; where the effect is
        used, a level that is no area.
    DataError
        Weights that are negative or no numbers.
    ConfigError
        More than 4,000 areas, a negative SD.
    """

    def __init__(
        self,
        graph: Any,
        sd: Argument = None,
        *,
        nodes: Sequence[Any] | None = None,
        terms: Covariance | None = None,
    ) -> None:
        self.graph = read_graph(graph, nodes, "Besag")
        self._set_terms(sd, terms)

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        return self._term_parameters(coords.terms)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> SpectralOperator:
        values, vectors = self.graph.spectrum(coords.levels)
        tril = self._tril(theta, coords)
        return SpectralOperator(vectors.to(tril.dtype), values.sqrt().to(tril.dtype), tril)

    def config(self) -> dict[str, Any]:
        return {
            "class": "Besag",
            "graph": self.graph.config("Besag(graph=...)"),
            "sd": encode(self.sd, "Besag(sd=...)"),
            "terms": None if self.terms is None else self.terms.config(),
        }

    def __repr__(self) -> str:
        return f"Besag(graph={self.graph!r}, sd={self.sd!r})"
