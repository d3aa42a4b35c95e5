"""Settings of a variational fit, and which groups each of its steps takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pyromix.backends.batches import Split, independent_units
from pyromix.marginal.plan import Plan

FULL_BATCH_ROWS = 20_000  # up to here every step takes all rows
BATCH_ROWS = 10_000  # rows of a batch beyond that
SHORTEST = 150  # steps of cooling, at least
CHUNK_ROWS = 50_000  # rows that are looked at together where all are wanted


@dataclass(frozen=True)
class Settings:
    """How the loop runs; see `pyromix.SVI`."""

    steps: int
    lr: float
    optimizer: str
    patience: int | None
    max_time: float | None
    tolerance: float

    def cooling(self, begun: int) -> int:
        """Steps for which the learning rate falls once it has begun to."""
        return max(1, min(self.steps - begun, max(SHORTEST, begun)))

    def rate(self, step: int, begun: int) -> float:
        """Factor of the learning rate: one, then falling along a cosine to a fiftieth; `begun` is -1 before that."""
        if begun < 0:
            return 1.0
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - begun) / self.cooling(begun)))

    def averages(self, step: int, begun: int) -> bool:
        """Whether the iterate after a step counts in the result: those of the second half of the cooling."""
        return begun >= 0 and step > begun + self.cooling(begun) // 2

    def done(self, step: int, begun: int) -> bool:
        """Whether the schedule has come to its end."""
        return step >= self.steps or (begun >= 0 and step >= begun + self.cooling(begun))


@dataclass
class Batches:
    """Groups of every step; without a plan all rows always.

    Attributes
    ----------
    held
        Rows held out of training.
    """

    split: Split | None
    rows: int
    notes: list[tuple[str, float, float, str]] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan | None, rows: int, batch_groups: int | None, validation: float, seed: int) -> Batches:
        """Batches of about 10,000 rows where there are more than 20,000, unless told otherwise."""
        if plan is None:
            return cls(None, rows)
        if batch_groups is None:
            units = independent_units(plan)
            crossed = units.count == 1 and bool(plan.latents)
            if not crossed:
                whole = rows <= FULL_BATCH_ROWS
                batch_groups = units.count if whole else max(1, round(BATCH_ROWS * units.count / rows))
        split = Split(plan, batch_groups, validation, seed)
        return cls(split, rows, split.notes)

    @property
    def per_epoch(self) -> int:
        return 1 if self.split is None else self.split.batches

    @property
    def held(self) -> np.ndarray:
        if self.split is None or not len(self.split.held):
            return np.empty(0, dtype=np.int64)
        return self.split.units.rows(self.split.held)

    def at(self, step: int) -> tuple[np.ndarray | None, float]:
        """Rows of a step (``None`` for all) and their share of the groups trained on."""
        split = self.split
        if split is None:
            return None, 1.0
        if split.batches == 1:
            return (split.train_rows if len(split.held) else None), 1.0
        chosen = split.batch(step // split.batches, step % split.batches)
        return split.units.rows(chosen), len(chosen) / len(split.train)

    def chunks(self) -> list[np.ndarray] | None:
        """Parts of whole groups that make up all the data; ``None`` for all rows at once."""
        split = self.split
        if split is None or split.units.count == 1 or self.rows <= CHUNK_ROWS or self.per_epoch == 1:
            return None
        count = math.ceil(self.rows / CHUNK_ROWS)
        return [split.units.rows(part) for part in np.array_split(np.arange(split.units.count), count)]
