r"""Parts of a data set that have a marginal likelihood of their own.

Rows that share a level of a random effect, directly or through other rows, form a *unit*: units are independent given
the hyper-parameters, so :math:`\log p(y) = \sum_u \log p(y_u)` and a batch of whole units gives an unbiased gradient.
With one grouping factor the units are its groups, with nested factors those of the coarsest; crossed factors leave one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components

from pyromix.errors import UnsupportedError
from pyromix.marginal.base import AbstractMarginal, BoundMarginal
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, run

SAME_ROW = 1e-6  # relative: a row's predictor must not depend on which other rows are there (float32 networks too)
FULL_BATCH_ROWS = 2000  # up to here all rows at once
BATCH_GROUPS = 32
FEWEST_HELD = 4  # a score of fewer groups says more of them than of the fit, so none is held out
REMEDY = "Training(batch_groups=None, validation=0) trains on all rows at once"


class Units:
    """Row -> unit, (n,), and their number."""

    def __init__(self, of_row: np.ndarray, count: int) -> None:
        self.of_row, self.count = of_row, count
        self._by_unit = np.argsort(of_row, kind="stable")
        self._sizes = np.bincount(of_row, minlength=count)
        self._ends = np.cumsum(self._sizes)

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """Positions of the rows in the chosen units, in row order; the cost is that of these rows."""
        sizes = self._sizes[chosen]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(self._by_unit[np.repeat(self._ends[chosen] - sizes, sizes) + within])


def independent_units(plan: Plan) -> Units:
    """Connected components of rows and levels; without random effects every row is a unit."""
    n, offset, edges = len(plan.obs), 0, []
    for term in plan.layout.terms:
        edges += [(np.arange(n), offset + slot.index) for slot in term.slots]
        offset += term.levels
    if not edges:
        return Units(np.arange(n), n)
    row, level = (np.concatenate(part) for part in zip(*edges, strict=True))
    graph = sp.coo_matrix((np.ones(len(row), dtype=np.int8), (row, n + level)), shape=(n + offset, n + offset))
    _, labels = connected_components(graph, directed=False)
    present, of_row = np.unique(labels[:n], return_inverse=True)
    return Units(of_row, len(present))


def largest_factor(plan: Plan) -> Units:
    """The groups of the random effect with the most levels in use."""
    columns = [term.slots[0].index for term in plan.layout.terms]
    coded = [np.unique(column, return_inverse=True) for column in columns]
    present, of_row = max(coded, key=lambda pair: len(pair[0]))
    return Units(of_row, len(present))


class Subsets:
    """A program, its data and its plan, restricted to some of the rows.

    Raises
    ------
    UnsupportedError
        The arguments cannot be indexed by row, or the predictor of a row depends on other rows.
    """

    def __init__(self, program: Program, args: tuple[Any, ...], plan: Plan, marginal: AbstractMarginal) -> None:
        self.program, self.args, self.plan, self.marginal = program, args, plan, marginal

    def bound(self, rows: np.ndarray | None) -> tuple[tuple[Any, ...], BoundMarginal]:
        """Arguments and marginaliser of these rows; of all for ``None``."""
        if rows is None:
            return self.args, self.marginal.bind(self.program, self.args, self.plan)
        args = subset(self.args, torch.from_numpy(rows), len(self.plan.obs))
        return args, self.marginal.bind(self.program, args, self.plan.on_rows(rows))

    def check(self, rows: np.ndarray) -> None:
        """Compare these rows' predictor, evaluated alone, with what it is among all rows."""
        args = subset(self.args, torch.from_numpy(rows), len(self.plan.obs))
        with torch.no_grad():
            whole = run(self.program, self.args, hypers="moderate", seed=0)
            values = {name: site.value for name, site in whole.hypers.items()}
            expected = data_of(whole).eta[torch.from_numpy(rows)]
            try:
                found = data_of(run(self.program, args, values)).eta
            except (IndexError, RuntimeError, ValueError, TypeError, KeyError) as error:
                raise UnsupportedError(
                    f"the program does not run on a part of its rows ({type(error).__name__}: {error}); {REMEDY}."
                ) from error
        size = float(expected.abs().max()) + 1.0
        if found.shape != expected.shape or not bool(((found - expected).abs() <= SAME_ROW * size).all()):
            raise UnsupportedError(
                f"the predictor of a row of {self.plan.response!r} depends on which other rows are there, so it cannot "
                f"be trained in batches or scored on held-out groups; {REMEDY}."
            )


def subset(value: Any, rows: torch.Tensor, n: int) -> Any:
    """A program's argument restricted to some of its n rows.

    Tensors and arrays whose first dimension is n are indexed; those of another length (tables by level) and plain
    values stay; tuples, lists, dicts and dataclasses are taken apart; an object with a method ``subset(rows)`` does it
    itself.

    Raises
    ------
    UnsupportedError
        Anything else: what its rows are is unknown.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() and len(value) == n else value
    if isinstance(value, np.ndarray):
        return value[rows.numpy()] if value.ndim and len(value) == n else value
    if callable(getattr(value, "subset", None)) and not isinstance(value, type):
        return value.subset(rows)
    if isinstance(value, Mapping):
        return {key: subset(entry, rows, n) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(subset(entry, rows, n) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(subset(entry, rows, n) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: subset(getattr(value, f.name), rows, n) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    raise UnsupportedError(
        f"the program's argument holds a {type(value).__name__}, and which of its parts are rows is unknown; "
        f"give it a method subset(rows), pass tensors, tuples or dicts of them, or: {REMEDY}."
    )


class Split:
    """Which groups train, which are held out, and how many make a batch.

    Attributes
    ----------
    units
        The groups.
    held, train
        Numbers of the groups held out and trained on; `train_rows` are the latter's rows.
    batches
        Batches in an epoch.
    notes
        What was asked for and could not be had: (what, value, threshold, remedy).
    """

    def __init__(self, plan: Plan, batch_groups: int | None, validation: float, seed: int) -> None:
        self.notes: list[tuple[str, float, float, str]] = []
        self.seed = seed
        units = independent_units(plan)
        crossed = units.count == 1 and bool(plan.latents)
        if crossed:
            units = largest_factor(plan)
        order = np.random.default_rng([seed, 0]).permutation(units.count)
        held = round(validation * units.count)
        if validation and held < FEWEST_HELD:
            remedy = "Too few groups to hold that share out, so none was: training ran to the end of its schedule."
            self.notes.append(("validation", held, FEWEST_HELD, remedy))
            held = 0
        self.units = units
        self.held, self.train = np.sort(order[:held]), np.sort(order[held:])
        self.train_rows = units.rows(self.train)
        batch = len(self.train)
        if crossed and batch_groups is not None:
            remedy = "Crossed factors tie all groups together: every step takes all rows. Leave batch_groups out."
            self.notes.append(("batch_groups", batch_groups, 1, remedy))
        elif not crossed and (batch_groups is not None or len(self.train_rows) > FULL_BATCH_ROWS):
            batch = min(batch_groups or BATCH_GROUPS, batch)
        self.batches = math.ceil(len(self.train) / batch)
        self._order: tuple[int, np.ndarray] = (-1, self.train)

    def batch(self, epoch: int, position: int) -> np.ndarray:
        """The groups of one batch of an epoch."""
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self.seed, 1, epoch]).permutation(self.train))
        bounds = [len(self.train) * k // self.batches for k in (position, position + 1)]
        return self._order[1][slice(*bounds)]
