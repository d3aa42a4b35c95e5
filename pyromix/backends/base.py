"""The extension point for backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from pyromix.results.estimate import Estimate
from pyromix.running import Program


class AbstractBackend(ABC):
    """Fits a program to data.

    A backend is `estimate`. It sees the program through its sites alone: roles, distributions, values. The facade wraps the
    estimate into a `pyromix.Fit`, which does everything that comes after inference.
    """

    @abstractmethod
    def estimate(self, program: Program, args: tuple[Any, ...], *, seed: int = 0, progress: bool = True) -> Estimate:
        """Fit ``program(*args)``.

        Parameters
        ----------
        seed
            Of every random number used; no global state is touched.
        progress
            Show a progress bar on long work.
        """
