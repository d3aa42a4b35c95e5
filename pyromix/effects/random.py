"""Random effects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.distributions import StructuredNormal
from pyromix.effects.parameter_site import parameter_site, record
from pyromix.errors import ConfigError, DataError
from pyromix.sites import Latent, RowMap, annotate


class RandomEffect:
    r"""A random effect: an array ``u`` of shape (levels, terms) and its contribution ``Zu`` to every row.

    .. math:: (Zu)_n = \sum_k z_{nk} u_{g(n),k}, \qquad vec(u) \sim N(0, \Sigma(\theta))

    Sites: ``name`` (the array), ``name.sd`` and the covariance's other parameters.

    Parameters
    ----------
    name
        Name of the effect; by convention its grouping factor.
    covariance
        The structure of :math:`\Sigma`, e.g. `pyromix.IID` or `pyromix.Unstructured`.
    levels
        Labels of the levels, or their count. If omitted, one more than the largest index.
    coords
        What the structure must know of its levels (times, places, ids).
    terms
        Names of the effects within a level, i.e. of the design's columns.
    group
        The grouping factor, where the effect has another name.
    """

    def __init__(
        self,
        name: str,
        covariance: Covariance,
        levels: Sequence[Any] | int | None = None,
        coords: Any = None,
        *,
        terms: Sequence[str] | None = None,
        group: str | None = None,
    ) -> None:
        if not isinstance(covariance, Covariance):
            raise ConfigError(
                f"RandomEffect({name!r}): covariance={covariance!r} is not a covariance; pass an instance such as "
                "pyromix.IID()."
            )
        if isinstance(levels, int) and levels < 1:
            raise ConfigError(f"RandomEffect({name!r}): levels={levels}; there must be at least one level.")
        self.name = name
        self.covariance = covariance
        self.levels = None if levels is None else tuple(range(levels) if isinstance(levels, int) else levels)
        self.coords = coords
        self.terms = None if terms is None else tuple(terms)
        self.group = group or name

    def __call__(
        self, index: torch.Tensor, design: torch.Tensor | None = None, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Emit the effect's sites and return its contribution, ``(n,)``.

        Parameters
        ----------
        index
            Integer level of each row ``(n,)``, or levels ``(n, m)`` for multiple membership.
        design
            ``(n, q)`` columns that multiply the effects; ``None`` for an intercept.
        weight
            ``(n, m)`` weight of each membership.

        Raises
        ------
        DataError
            Shapes that do not fit, or an index outside the levels.
        """
        self._check_shapes(index, design, weight)
        levels = self.levels if self.levels is not None else tuple(range(int(index.max()) + 1))
        coords = Coords(levels, self._terms(design), self.coords)
        theta = {}
        for parameter in self.covariance.parameters(coords):
            shape = () if parameter.fixed is None else parameter.fixed.shape
            labels = coords.terms if len(shape) == 1 or parameter.prior is not None else None
            theta[parameter.name] = parameter_site(f"{self.name}.{parameter.name}", parameter, labels)
        for key, value in self.covariance.describe(theta).items():
            record(f"{self.name}.{key}", value)
        rows = RowMap(index, design, weight)
        prior = StructuredNormal(self.covariance.operator(theta, coords))
        u = pyro.sample(self.name, prior, infer=annotate(Latent(rows, levels, coords.terms, self.group)))
        self._check_index(index, len(levels), u.shape[-2] - len(levels))
        return rows.apply(u)

    def _terms(self, design: torch.Tensor | None) -> tuple[str, ...]:
        q = 1 if design is None else design.shape[1]
        if self.terms is None:
            return ("Intercept",) if design is None else tuple(str(k) for k in range(q))
        if len(self.terms) != q:
            raise DataError(f"RandomEffect({self.name!r}): {len(self.terms)} terms named, the design has {q} columns.")
        return self.terms

    def _check_shapes(
        self, index: torch.Tensor, design: torch.Tensor | None, weight: torch.Tensor | None
    ) -> None:
        where = f"RandomEffect({self.name!r})"
        if not isinstance(index, torch.Tensor) or index.dtype.is_floating_point or index.dtype == torch.bool:
            raise DataError(f"{where}: index must be an integer tensor, got {getattr(index, 'dtype', type(index))}.")
        if index.dim() not in (1, 2):
            raise DataError(f"{where}: index has shape {tuple(index.shape)}, expected (n,) or (n, memberships).")
        if design is not None and (design.dim() != 2 or len(design) != len(index)):
            raise DataError(f"{where}: design has shape {tuple(design.shape)}, expected ({len(index)}, q).")
        if weight is not None and weight.shape != index.shape:
            raise DataError(f"{where}: weight has shape {tuple(weight.shape)}, expected {tuple(index.shape)}.")

    def _check_index(self, index: torch.Tensor, levels: int, extra: int) -> None:
        """Negative indices are levels appended by prediction; anywhere else they would silently read the last level."""
        if index.numel() == 0:
            return
        low, high = int(index.min()), int(index.max())
        if low < -extra or high >= levels:
            bad = low if low < -extra else high
            position = int((index.reshape(len(index), -1) == bad).any(1).nonzero()[0])
            raise DataError(
                f"RandomEffect({self.name!r}): index {bad} at row {position} is outside its {levels} levels "
                f"(0 ... {levels - 1}); pass levels= to declare more."
            )
