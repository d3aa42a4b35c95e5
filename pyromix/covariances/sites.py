"""Places of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from pyromix.covariances.base import Coords
from pyromix.covariances.known_matrix import check_known, plain_labels
from pyromix.errors import ConfigError, DataError
from pyromix.remembered import remembered

MAX_SITES = 4000  # a dense factor of them takes 128 MB and some seconds
TAIL = 2.3263478740408408  # normal quantile of 99 %


class Places:
    """Places by level label, as the user handed them over."""

    def __init__(self, values: np.ndarray, labels: Sequence[Any], names: Sequence[Any] | None = None) -> None:
        self.values, self.labels = values, tuple(labels)
        self.names = None if names is None else tuple(map(str, names))
        self._at = {label: i for i, label in enumerate(self.labels)}

    def __repr__(self) -> str:
        return f"<{len(self.labels)} sites>"

    def of(self, levels: tuple[Any, ...]) -> np.ndarray:
        check_known(levels, self._at, "GP(sites=...)")
        return self.values[[self._at[level] for level in levels]]

    def config(self, where: str) -> list[Any]:
        found = [self.values.tolist(), plain_labels(self.labels, where)]
        return found if self.names is None else [*found, list(self.names)]


class Sites:
    """Places of an effect's levels, (levels, dimensions), the names of the dimensions, and how far apart they are."""

    def __init__(self, x: torch.Tensor, names: Sequence[Any] | None = None) -> None:
        self.x = x
        self.names = tuple(f"x{k + 1}" for k in self.dims) if names is None else tuple(map(str, names))

    @classmethod
    def of(cls, coords: Coords, places: Places | None) -> Sites:
        """From the effect's coordinates, the structure's places, or the labels."""
        given, names = coords.values, None
        if given is None:
            given = coords.levels if places is None else places.of(tuple(coords.levels))
            names = None if places is None else places.names
        elif hasattr(given, "columns"):
            given, names = given.to_numpy(), tuple(map(str, given.columns))
        what = "the labels of its levels" if coords.values is None and places is None else "its coordinates"
        try:
            given = _array(given) if isinstance(given, torch.Tensor) else given
            x = torch.from_numpy(np.array(given, dtype=np.float64))
        except (TypeError, ValueError) as error:
            dated = hasattr(_first(_first(given)), "isoformat") or hasattr(_first(given), "isoformat")
            raise DataError(
                f"GP: {what} are dates; make numbers of them, such as (date - date.min()).dt.days."
                if dated
                else f"GP: {what} are not places ({_first(given)!r}, ...); pass numbers, or tuples of numbers of one "
                "length: RandomEffect(coords=...) or GP(sites=...)."
            ) from error
        x = x[:, None] if x.dim() == 1 else x
        if x.dim() != 2 or len(x) != len(coords.levels):
            raise DataError(f"GP: {what} have shape {tuple(x.shape)} for {len(coords.levels)} levels.")
        return cls(x, names)

    @property
    def dims(self) -> list[int]:
        return list(range(self.x.shape[1]))

    def check(self, levels: tuple[Any, ...], exact: bool = True) -> None:
        """Refuse places that are missing, and too many of them for a dense factor."""
        if exact and len(levels) > MAX_SITES:
            raise ConfigError(
                f"GP: {len(levels)} sites, and a dense factor is made of at most {MAX_SITES}; choose an approximation, "
                "GP(approximation=HilbertSpace(...)) or GP(approximation=InducingPoints(...)), or make the cells of a "
                "coarser grid the levels."
            )
        bad = (~torch.isfinite(self.x)).any(1).nonzero()
        if len(bad):
            i = int(bad[0])
            raise DataError(f"GP: level {levels[i]!r} is at {self.x[i].tolist()}; give it a finite place.")

    @cached_property
    def merged(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Places without repetitions, and the place of each level; ``None`` where there are no repetitions."""
        places, at = torch.unique(self.x, dim=0, return_inverse=True)
        return (self.x, None) if len(places) == len(self.x) else (places, at)

    @cached_property
    def kept(self) -> dict[Any, torch.Tensor]:
        """What an approximation has made of these places."""
        return {}

    def log_distances(self, dims: list[int], functions: int | None = None) -> tuple[float, float]:
        """Mean and SD of a normal of the log length with 1 % below the smallest and above the largest distance.

        The SD is 0.5 at least: few sites say little of lengths. With a number of functions that stand for the process,
        the smallest distance is that of as many evenly spread places: they resolve no shorter length.
        """
        key = (*dims, functions)
        if key not in self._found:
            self._found[key] = self._log_distances(dims, functions)
        return self._found[key]

    @cached_property
    def _found(self) -> dict[tuple[int | None, ...], tuple[float, float]]:
        return {}

    def _log_distances(self, dims: list[int], functions: int | None) -> tuple[float, float]:
        x = torch.unique(self.x[:, dims], dim=0)
        longest = float((x.amax(0) - x.amin(0)).norm()) if len(x) else 0.0
        if longest == 0:
            return 0.0, 1.0
        if functions is not None or len(x) > MAX_SITES:  # of so many, all distances would not fit into memory
            each = (functions or len(x)) ** (1 / len(self.dims if functions else dims))
            return _between(longest / each, longest)
        apart = torch.pdist(x)
        return _between(float(apart.min()), float(apart.max()))


def _between(short: float, long: float) -> tuple[float, float]:
    low, high = math.log(short), math.log(long)
    return 0.5 * (low + high), max((high - low) / (2 * TAIL), 0.5)


def read_sites(sites: Any) -> Places:
    """What the user passed as ``sites``: a DataFrame, or a pair (array, labels)."""
    names = None
    if isinstance(sites, Places):
        return sites
    if hasattr(sites, "columns"):
        values, labels, names = sites.to_numpy(), list(sites.index), list(sites.columns)
    elif isinstance(sites, (tuple, list)) and len(sites) in (2, 3) and hasattr(sites[1], "__len__"):
        values, labels, names = sites[0], list(sites[1]), sites[2] if len(sites) == 3 else None
    else:
        raise ConfigError(
            f"GP(sites=...): got a {type(sites).__name__}; pass a pandas DataFrame with the labels as index, or "
            "(array, labels)."
        )
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"GP(sites=...): its coordinates are not all numbers ({error}).") from error
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != len(labels) or len(set(labels)) < len(labels):
        raise DataError(
            f"GP(sites=...): shape {array.shape} for {len(labels)} labels, {len(set(labels))} of them different; "
            "give every label one row."
        )
    return Places(array, labels, names)


@remembered
def _array(given: torch.Tensor) -> np.ndarray:
    """The values of a tensor; a program that is being traced has asked for them before."""
    return given.detach().numpy()


def _first(given: Any) -> Any:
    return next(iter(given), None) if hasattr(given, "__iter__") else given
