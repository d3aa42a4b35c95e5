"""Random effects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import pyro
import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.distributions import StructuredNormal
from pyromix.effects.parameter_site import float64, parameter_site, record
from pyromix.errors import ConfigError, DataError, DataTypeError
from pyromix.linalg.operators import AbstractOperator
from pyromix.parameters import Parameter
from pyromix.sites import Latent, RowMap, Spread, annotate


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

    Raises
    ------
    ConfigError
        Something that is not a covariance, no levels, levels or terms named twice.
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
        if not isinstance(name, str) or not name:
            raise ConfigError(f"RandomEffect(name={name!r}): the name of its site must be a string, e.g. 'Subject'.")
        if not isinstance(covariance, Covariance):
            raise ConfigError(
                f"RandomEffect({name!r}): covariance={covariance!r} is not a covariance; pass an instance such as "
                "pyromix.IID()."
            )
        self.name = name
        self.covariance = covariance
        self.levels = None if levels is None else tuple(range(levels) if isinstance(levels, Integral) else levels)
        self.coords = coords
        self.terms = None if terms is None else tuple(terms)
        for what, given, labels in (("levels", levels, self.levels), ("terms", terms, self.terms)):
            if labels is None:
                continue
            if len(labels) == 0 or isinstance(given, str):
                raise ConfigError(f"RandomEffect({name!r}): {what}={given!r}; pass a list of at least one label.")
            if len(set(labels)) < len(labels):
                (label, count), *_ = Counter(labels).most_common(1)
                raise ConfigError(f"RandomEffect({name!r}): {what} must differ, {label!r} is there {count} times.")
        self.group = group or name
        self._declared: tuple[Parameter, ...] | None = None
        self._checked: tuple[Any, ...] | None = None
        self._kept_rows: tuple[torch.Tensor, tuple[Any, ...], RowMap] | None = None

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
        DataTypeError
            An index that is not made of integers, a design or weight that is not a tensor of real numbers.
        DataError
            Shapes that do not fit, an empty index without levels, or an index outside the levels.
        """
        where = f"RandomEffect({self.name!r})"
        design = None if design is None else float64(design, f"{where}: design")
        weight = None if weight is None else float64(weight, f"{where}: weight")
        self._check_shapes(index, design, weight)
        levels = self.levels if self.levels is not None else tuple(range(int(index.max()) + 1))
        coords = Coords(levels, self._terms(design), self.coords)
        theta = {}
        for parameter in self._parameters(coords):
            labels = coords.terms if parameter.shape[-1:] == (len(coords.terms),) else None
            labels = parameter.labels or labels
            theta[parameter.name] = parameter_site(f"{self.name}.{parameter.name}", parameter, labels)
        for key, value in self.covariance.describe(theta).items():
            record(f"{self.name}.{key}", value)
        rows = RowMap(index, design, weight)
        extend = partial(self._extended, theta, coords) if self.coords is None else None
        role = Latent(rows, levels, coords.terms, self.group, extend, structure=self.covariance)
        functions = self.covariance.functions(theta, coords)
        shape = (len(levels), len(coords.terms))
        if functions is not None:
            shape = (1, functions.shape[-1] * len(coords.terms))
        prior = StructuredNormal(partial(self.covariance.operator, theta, coords), shape)
        if functions is not None:
            return self._of_functions(prior, role, functions, theta, coords)
        u = pyro.sample(self.name, prior, infer=annotate(role))
        self._check_index(index, len(levels), u.shape[-2] - len(levels))
        return rows.apply(u)

    def _of_functions(
        self,
        prior: StructuredNormal,
        role: Latent,
        functions: torch.Tensor,
        theta: dict[str, torch.Tensor],
        coords: Coords,
    ) -> torch.Tensor:
        """An effect whose site holds coefficients of functions; prediction puts the levels' effects there."""
        rows, levels = role.rows, len(coords.levels)
        further = None if self.coords is not None else partial(self.covariance.functions, theta, coords)
        terms = tuple(f"{j}" for j in range(functions.shape[-1]))
        if len(coords.terms) > 1:
            terms = tuple(f"{j}:{term}" for j in terms for term in coords.terms)
        inner = Latent(self._function_rows(rows, functions), ("all",), terms, self.group)
        u = pyro.sample(self.name, prior, infer=annotate(replace(inner, spread=Spread(role, functions, further))))
        if u.shape[-1] == len(terms):
            self._check_index(rows.index, levels, 0)
            return inner.rows.apply(u)
        self._check_index(rows.index, levels, u.shape[-2] - levels)
        return rows.apply(u)

    def _function_rows(self, rows: RowMap, functions: torch.Tensor) -> RowMap:
        """The row map of the coefficients, made once where neither rows nor functions change."""
        kept = self._kept_rows
        if (
            kept is not None
            and kept[0] is functions
            and all(a is b for a, b in zip(kept[1], _parts(rows), strict=True))
        ):
            return kept[2]
        made = RowMap(torch.zeros(len(rows.index), dtype=torch.long), _function_design(rows, functions))
        self._kept_rows = (functions, _parts(rows), made)
        return made

    def _extended(self, theta: dict[str, torch.Tensor], coords: Coords, labels: tuple[Any, ...]) -> AbstractOperator:
        """The covariance of the levels and of further ones, which their labels place."""
        return self.covariance.operator(theta, Coords(coords.levels + labels, coords.terms, known=len(coords.levels)))

    def _parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        """The covariance's parameters, asked for once where the levels are given."""
        if self.levels is None or self.terms is None:
            return self.covariance.parameters(coords)
        if self._declared is None:
            self._declared = self.covariance.parameters(coords)
        return self._declared

    def _terms(self, design: torch.Tensor | None) -> tuple[str, ...]:
        q = 1 if design is None else design.shape[1]
        if self.terms is None:
            return ("Intercept",) if design is None else tuple(str(k) for k in range(q))
        if len(self.terms) != q:
            raise DataError(f"RandomEffect({self.name!r}): {len(self.terms)} terms named, the design has {q} columns.")
        return self.terms

    def _check_shapes(self, index: torch.Tensor, design: torch.Tensor | None, weight: torch.Tensor | None) -> None:
        where = f"RandomEffect({self.name!r})"
        if not isinstance(index, torch.Tensor) or index.dtype.is_floating_point or index.dtype == torch.bool:
            got = index.dtype if isinstance(index, torch.Tensor) else type(index).__name__
            raise DataTypeError(f"{where}: index must be an integer tensor, got {got}; e.g. torch.as_tensor(codes).")
        if index.dim() not in (1, 2):
            raise DataError(f"{where}: index has shape {tuple(index.shape)}, expected (n,) or (n, memberships).")
        if index.numel() == 0 and self.levels is None:
            raise DataError(f"{where}: index is empty, so the number of levels is unknown; pass levels=.")
        if design is not None and (design.dim() != 2 or len(design) != len(index)):
            raise DataError(f"{where}: design has shape {tuple(design.shape)}, expected ({len(index)}, q).")
        if weight is not None and weight.shape != index.shape:
            raise DataError(f"{where}: weight has shape {tuple(weight.shape)}, expected {tuple(index.shape)}.")

    def _check_index(self, index: torch.Tensor, levels: int, extra: int) -> None:
        """Negative indices are levels appended by prediction; anywhere else they would silently read the last level."""
        if index.numel() == 0:
            return
        seen = self._checked
        if seen is not None and seen[0] is index and seen[1:] == (index._version, levels, extra):
            return
        low, high = int(index.min()), int(index.max())
        if low < -extra or high >= levels:
            bad = low if low < -extra else high
            position = int((index.reshape(len(index), -1) == bad).any(1).nonzero()[0])
            raise DataError(
                f"RandomEffect({self.name!r}): index {bad} at row {position} is outside its {levels} levels "
                f"(0 ... {levels - 1}); pass levels= to declare more."
            )
        self._checked = (index, index._version, levels, extra)


def _parts(rows: RowMap) -> tuple[Any, ...]:
    return rows.index, rows.design, rows.weight


def _function_design(rows: RowMap, functions: torch.Tensor) -> torch.Tensor:
    """Columns that multiply the coefficients, (n, m * q): functions of a row's levels times its design."""
    if rows.index.dim() == 1:
        at = functions[rows.index]
        at = at if rows.weight is None else at * rows.weight.reshape(-1, 1)
    else:
        weight = torch.ones_like(rows.index, dtype=functions.dtype) if rows.weight is None else rows.weight
        at = sum(weight[:, k, None] * functions[rows.index[:, k]] for k in range(rows.index.shape[1]))
    if rows.design is None:
        return at
    return (at[:, :, None] * rows.design[:, None, :]).reshape(len(at), -1)
