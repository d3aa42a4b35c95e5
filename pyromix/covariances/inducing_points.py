r"""Processes by their values at a few places.

.. [1] Quinonero-Candela & Rasmussen (2005), A unifying view of sparse approximate Gaussian process regression.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyromix.covariances.between import cholesky
from pyromix.covariances.low_rank import Approximation, Process
from pyromix.covariances.sites import Sites
from pyromix.errors import ConfigError

MAX_POINTS = 2000


class InducingPoints(Approximation):
    r"""The process projected on its values at m places z, for any kernel in any number of dimensions.

    .. math:: u(x) \approx k(x, z) K_{zz}^{-1} u(z), \quad u(z) \sim N(0, K_{zz}), \quad K_{zz} = k(z, z) + nugget\, I

    The coefficients are the process' values at the points. This is the subset of regressors, whose likelihood is that
    of the deterministic training conditional ([1]_, sections 4 and 5; Nystroem's approximation of the covariance). The
    variance that the projection leaves out, which FITC adds to every place, is *not* added: where places are far from
    all of z in units of the length, the process is close to zero there and a prediction too sure. An evaluation costs
    rows times the square of m.

    Parameters
    ----------
    points
        m, and m of the known places are chosen one by one, each the farthest from those before (in units of the range
        of every dimension); or the places themselves, (m, dimensions).

    Raises
    ------
    ConfigError
        Fewer than two points, or more than 2,000; places that are no numbers or of other dimensions.
    """

    def __init__(self, points: int | Sequence[Any] | torch.Tensor) -> None:
        self.points = _read(points)

    def check(self, kernel: Any, sites: Sites) -> None:
        if isinstance(self.points, torch.Tensor) and self.points.shape[1] != len(sites.dims):
            raise ConfigError(f"{self!r}: they have {self.points.shape[1]} coordinates, places have {len(sites.dims)}.")

    def size(self, sites: Sites) -> int:
        return len(self._points(sites))

    def at(self, process: Process, sites: Sites, x: torch.Tensor) -> torch.Tensor:
        across = process.between(self._points(sites), x)
        return torch.cholesky_solve(across, self.root(process, sites)).mT

    def root(self, process: Process, sites: Sites) -> torch.Tensor:
        z = self._points(sites)
        return cholesky(process.between(z, z) + process.nugget * torch.eye(len(z), dtype=z.dtype), repr(self))

    def _points(self, sites: Sites) -> torch.Tensor:
        if isinstance(self.points, torch.Tensor):
            return self.points
        kept = sites.kept.get(self.points)
        if kept is None:
            places, _ = sites.merged
            kept = sites.kept[self.points] = places[_spread_out(places, min(self.points, len(places)))]
        return kept


def _read(points: Any) -> Any:
    if isinstance(points, int) and not isinstance(points, bool):
        if not 2 <= points <= MAX_POINTS:
            raise ConfigError(f"InducingPoints({points}): pass a number of points from 2 to {MAX_POINTS}.")
        return points
    values = points.to_numpy() if hasattr(points, "columns") else points
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"InducingPoints(points=...): pass a number, or places as an array ({error}).") from error
    found = found[:, None] if found.dim() == 1 else found
    if found.dim() != 2 or not 2 <= len(found) <= MAX_POINTS or not bool(torch.isfinite(found).all()):
        raise ConfigError(
            f"InducingPoints(points=...): shape {tuple(found.shape)}; pass 2 to {MAX_POINTS} places (m, dimensions) of "
            "finite numbers."
        )
    return found.clone()


def _spread_out(places: torch.Tensor, count: int) -> torch.Tensor:
    """Rows of places, each the farthest from those before; first the one nearest to their mean."""
    width = (places.amax(0) - places.amin(0)).clamp(min=1e-300)
    x = places / width
    chosen = [int((x - x.mean(0)).square().sum(1).argmin())]
    distance = (x - x[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (x - x[chosen[-1]]).square().sum(1))
    return torch.tensor(chosen)
