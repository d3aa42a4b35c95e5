"""What a variational objective offers to the loop that fits it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch

from pyromix.results.estimate import Draws


class AbstractObjective(ABC):
    """A program, a guide, and the evidence lower bound (ELBO) between them.

    Attributes
    ----------
    joint
        Whether `log_weights` are ratios of the joint density of everything; else the groups' effects are integrated
        out by their lower bounds.
    """

    joint: ClassVar[bool]

    @abstractmethod
    def groups(self) -> list[tuple[list[torch.Tensor], float]]:
        """Leaf tensors to optimise, and the factor of the learning rate for each list."""

    def gauges(self) -> list[torch.Tensor]:
        """Leaves in units of posterior SDs that say by standing still that the fit has converged; none if unknown."""
        return []

    @abstractmethod
    def step(self, rows: np.ndarray | None, share: float, seed: int) -> float:
        """Gradients of minus the ELBO at fresh noise, into the leaves' ``grad``; the ELBO estimate, of all the data.

        Parameters
        ----------
        rows
            Rows of the batch, whole groups; ``None`` for all.
        share
            Share of the groups in it: their part of the ELBO is divided by it.
        """

    @abstractmethod
    def log_weights(self, batches: list[np.ndarray] | None, draws: int, seed: int) -> np.ndarray:
        """``log p(y, z) - log q(z)`` at draws of the guide, (draws,): their mean is the ELBO.

        Parameters
        ----------
        batches
            Rows of parts that make up the data, so that memory stays in bounds; ``None`` for all at once.
        """

    @abstractmethod
    def draws(self, count: int, seed: int) -> Draws:
        """Draws of every site from the guide."""

    def held_out(self, rows: np.ndarray) -> float:
        """Lower bound of the log likelihood of groups that are not trained on, at the guide's centre."""
        raise NotImplementedError

    def finish(self, batches: list[np.ndarray] | None, seed: int) -> None:  # noqa: B027 - most have nothing to finish
        """What is left to do once the optimiser has stopped."""

    @abstractmethod
    def tables(self) -> dict[str, torch.Tensor]:
        """Tensors that steps change without the optimiser; written to checkpoints, and read back in place."""

    def entries(self) -> int:
        """Numbers that one draw holds."""
        return 0

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors worth keeping with the estimate."""
        return {}

    def condition(self) -> Any:
        """How new groups get their effects from their rows, where the guide knows; else ``None``."""
        return None
