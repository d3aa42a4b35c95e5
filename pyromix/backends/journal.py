"""A search's evaluations on disk, so that a killed search goes on where it was.

The search is deterministic: given the same values and gradients it asks for the same points. Resuming is therefore to
run it again with the known answers read from the file, and the modes that the last one left as warm starts put back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyromix.backends.checkpoint import Checkpoint
from pyromix.errors import CheckpointError
from pyromix.marginal.base import BoundMarginal

Answer = tuple[float, np.ndarray]


class Journal:
    """The evaluations made so far, and those that a file remembers.

    Parameters
    ----------
    checkpoint
        The file.
    bound
        The marginaliser, whose warm start is part of the state.
    """

    def __init__(self, checkpoint: Checkpoint, bound: BoundMarginal) -> None:
        self._checkpoint, self._bound = checkpoint, searcher(bound)
        self._points: list[np.ndarray] = []
        self._answers: list[Answer] = []
        saved = checkpoint.load()
        self._saved = (
            [] if saved is None else list(zip(saved["points"], saved["losses"], saved["gradients"], strict=True))
        )
        self._warm = None if saved is None else saved["warm"]

    def known(self, t: np.ndarray) -> Answer | None:
        """The remembered answer at the next point, ``None`` once the file has no more."""
        k = len(self._points)
        if k >= len(self._saved):
            return None
        point, loss, gradient = self._saved[k]
        if not np.array_equal(point, t):
            raise CheckpointError(
                f"checkpoint {str(self._checkpoint.path)!r}: evaluation {k} was made elsewhere; it was written by "
                "another version or machine. Delete it to start over."
            )
        self._points.append(point)
        self._answers.append((float(loss), gradient))
        if k + 1 == len(self._saved) and self._warm is not None:
            self._bound.warm = self._warm
        return self._answers[-1]

    def add(self, t: np.ndarray, loss: float, gradient: np.ndarray) -> None:
        """Remember an evaluation, and write the file if that is due."""
        self._points.append(t.copy())
        self._answers.append((loss, gradient.copy()))
        self._checkpoint.save(self._state, force=False)

    def close(self) -> None:
        """Write the file."""
        if len(self._points) > len(self._saved):
            self._checkpoint.save(self._state, force=True)

    def _state(self) -> dict[str, Any]:
        return {
            "points": np.array(self._points),
            "losses": np.array([loss for loss, _ in self._answers]),
            "gradients": np.array([gradient for _, gradient in self._answers]),
            "warm": getattr(self._bound, "warm", None),
        }


def searcher(bound: BoundMarginal) -> Any:
    """The part of a marginaliser that remembers the last mode."""
    return getattr(bound, "laplace", bound)
