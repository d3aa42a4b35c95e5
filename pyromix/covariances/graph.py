"""Areas and their neighbours, and the intrinsic field on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pyromix.covariances.known_matrix import check_known, plain_labels, remember
from pyromix.errors import ConfigError, DataError, StructureError

MAX_AREAS = 4000  # the field's covariance is written out: 128 MB, and some seconds for its root


class Neighbours:
    """A graph of areas.

    Parameters
    ----------
    labels
        Of the areas.
    pairs
        Positions of neighbours, each pair once, (m, 2).
    weights
        Of the pairs, > 0, (m,).
    where
        What the graph belongs to, for messages.
    """

    def __init__(self, labels: Sequence[Any], pairs: np.ndarray, weights: np.ndarray, where: str) -> None:
        self.labels, self.pairs, self.weights, self.where = tuple(labels), pairs, weights, where
        if not len(self.labels):
            raise StructureError(f"{where}: no areas.")
        if len(self.labels) > MAX_AREAS:
            raise ConfigError(
                f"{where}: {len(self.labels)} areas, and a dense factor is made of at most {MAX_AREAS}; take larger "
                "areas, or a pyromix.SPDE field over their centres."
            )
        self.at = {label: i for i, label in enumerate(self.labels)}
        self._spectra: dict[tuple[Any, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def __repr__(self) -> str:
        return f"<{len(self.labels)} areas, {len(self.pairs)} pairs of neighbours>"

    def config(self, where: str) -> list[Any]:
        """Plain values, from which `read_graph` makes it again."""
        weights = None if (self.weights == 1).all() else self.weights.tolist()
        return ["graph", plain_labels(self.labels, where), self.pairs.tolist(), weights]

    def spectrum(self, levels: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues and eigenvectors of the scaled intrinsic covariance of some areas; zeros are exact."""
        if levels not in self._spectra:
            check_known(levels, self.at, self.where)
            at = [self.at[level] for level in levels]
            values, vectors = torch.linalg.eigh(torch.from_numpy(self.covariance[np.ix_(at, at)]))
            rounding = 10 * len(values) * torch.finfo(values.dtype).eps * float(values[-1])
            remember(self._spectra, levels, (torch.where(values > rounding, values, 0.0), vectors))
        return self._spectra[levels]

    @cached_property
    def components(self) -> np.ndarray:
        """A number for every area, the same for areas that a path of neighbours joins."""
        label = np.arange(len(self.labels))
        while True:
            low = np.minimum(label[self.pairs[:, 0]], label[self.pairs[:, 1]])
            new = label.copy()
            np.minimum.at(new, self.pairs.ravel(), np.repeat(low, 2))
            new = new[new]  # a label is itself an area, which may know of a lower one
            if np.array_equal(new, label):
                return np.unique(label, return_inverse=True)[1]
            label = new

    @cached_property
    def covariance(self) -> np.ndarray:
        """Of the intrinsic field given that it sums to zero in every component, scaled; islands are independent.

        ``(R + 11^T / n)^-1 - 11^T / n`` is the generalised inverse of the Laplacian R of a connected graph.
        """
        n = len(self.labels)
        laplacian = np.zeros((n, n))
        i, j = self.pairs.T
        laplacian[i, j] = laplacian[j, i] = -self.weights
        laplacian[np.diag_indices(n)] = -laplacian.sum(1)
        out = np.zeros((n, n))
        for component in range(self.components.max() + 1):
            at = np.flatnonzero(self.components == component)
            if len(at) == 1:
                out[at, at] = 1.0
                continue
            mean = np.full((len(at), len(at)), 1.0 / len(at))
            scale = np.trace(laplacian[np.ix_(at, at)]) / len(at)  # of the size of R, so that neither part is lost
            inverse = np.linalg.inv(laplacian[np.ix_(at, at)] + scale * mean) - mean / scale
            inverse = 0.5 * (inverse + inverse.T)
            out[np.ix_(at, at)] = inverse / np.exp(np.log(inverse.diagonal()).mean())
        return out


def read_graph(graph: Any, nodes: Sequence[Any] | None, where: str) -> Neighbours:
    """What the user passed as ``graph``.

    Parameters
    ----------
    graph
        A mapping of areas to their neighbours; pairs of neighbours, as a list, an array (m, 2) or a DataFrame of two
        columns; an adjacency matrix, as a DataFrame or a (sparse) array.
    nodes
        Labels of all areas, where pairs leave some out or a matrix has none.
    """
    if isinstance(graph, Neighbours):
        return graph
    if isinstance(graph, (list, tuple)) and len(graph) == 4 and isinstance(graph[0], str) and graph[0] == "graph":
        pairs = np.array(graph[2], dtype=np.int64).reshape(-1, 2)
        weights = np.ones(len(pairs)) if graph[3] is None else np.array(graph[3], dtype=float)
        return Neighbours(graph[1], pairs, weights, where)
    labels = None if nodes is None else _plain(nodes, where)
    if isinstance(graph, Mapping):
        return _from_mapping(graph, labels, where)
    if hasattr(graph, "columns") and set(graph.columns) == set(graph.index):
        given = list(graph.index)
        return _from_matrix(graph.loc[given, given].to_numpy(), labels or _plain(given, where), where)
    if hasattr(graph, "toarray"):
        return _from_matrix(graph.toarray(), labels, where)
    array = graph if isinstance(graph, np.ndarray) else None
    if array is not None and array.ndim == 2 and array.shape[0] == array.shape[1] != 2:
        return _from_matrix(array, labels, where)
    if hasattr(graph, "to_numpy"):
        graph = graph.to_numpy()
    return _from_pairs(graph, labels, where)


def _plain(labels: Any, where: str) -> list[Any]:
    out = [x.item() if isinstance(x, np.generic) else x for x in labels]
    if len(set(out)) < len(out):
        twice = next(x for i, x in enumerate(out) if x in out[:i])
        raise StructureError(f"{where}: area {twice!r} is there more than once.")
    return out


def _from_mapping(graph: Mapping[Any, Any], labels: list[Any] | None, where: str) -> Neighbours:
    keys = _plain(graph, where)
    labels = keys if labels is None else labels
    at = {label: i for i, label in enumerate(labels)}
    found: dict[tuple[int, int], None] = {}
    for label, neighbours in zip(keys, graph.values(), strict=True):
        if isinstance(neighbours, str) or not hasattr(neighbours, "__iter__"):
            raise StructureError(f"{where}: the neighbours of {label!r} are {neighbours!r}; pass a list of labels.")
        for other in (x.item() if isinstance(x, np.generic) else x for x in neighbours):
            found[_position(at, label, where), _position(at, other, where)] = None
    for i, j in found:
        if (j, i) not in found and i != j:
            raise StructureError(
                f"{where}: {labels[j]!r} is a neighbour of {labels[i]!r}, but not the other way; list both ways."
            )
    return _checked(labels, list(found), None, where)


def _from_pairs(graph: Any, labels: list[Any] | None, where: str) -> Neighbours:
    try:
        pairs = [(a, b) for a, b in (graph.tolist() if isinstance(graph, np.ndarray) else graph)]
    except (TypeError, ValueError) as error:
        raise StructureError(
            f"{where}: got a {type(graph).__name__}; pass a dict of neighbours, pairs of neighbours, or an adjacency "
            "matrix."
        ) from error
    pairs = [tuple(x.item() if isinstance(x, np.generic) else x for x in pair) for pair in pairs]
    if labels is None:
        labels = list(dict.fromkeys(x for pair in pairs for x in pair))
    at = {label: i for i, label in enumerate(labels)}
    return _checked(labels, [(_position(at, a, where), _position(at, b, where)) for a, b in pairs], None, where)


def _from_matrix(matrix: np.ndarray, labels: list[Any] | None, where: str) -> Neighbours:
    try:
        w = np.array(matrix, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: its adjacency matrix has entries that are no numbers.") from error
    labels = list(range(len(w))) if labels is None else labels
    if w.shape != (len(labels),) * 2:
        raise StructureError(f"{where}: an adjacency matrix of shape {w.shape} for {len(labels)} areas.")
    bad = np.argwhere(~(np.isfinite(w) & (w >= 0)))
    if len(bad):
        i, j = bad[0]
        raise DataError(
            f"{where}: weight {w[i, j]:g} of {labels[i]!r} and {labels[j]!r}; weights are zero or positive."
        )
    apart = np.argwhere(w != w.T)
    if len(apart):
        i, j = apart[0]
        raise StructureError(
            f"{where}: not symmetric, {labels[i]!r} and {labels[j]!r} have weights {w[i, j]:g} and {w[j, i]:g}."
        )
    i, j = np.nonzero(w)
    return _checked(labels, list(zip(i.tolist(), j.tolist(), strict=True)), w, where)


def _position(at: Mapping[Any, int], label: Any, where: str) -> int:
    if label not in at:
        raise StructureError(
            f"{where}: neighbour {label!r} is no area of the graph; give it an entry, or leave it out."
        )
    return at[label]


def _checked(labels: list[Any], found: list[tuple[int, int]], w: np.ndarray | None, where: str) -> Neighbours:
    for i, j in found:
        if i == j:
            raise StructureError(f"{where}: area {labels[i]!r} is its own neighbour; leave that out.")
    pairs = np.unique(np.sort(np.array(found, dtype=np.int64).reshape(-1, 2), axis=1), axis=0)
    weights = np.ones(len(pairs)) if w is None else w[pairs[:, 0], pairs[:, 1]]
    return Neighbours(labels, pairs, weights, where)
