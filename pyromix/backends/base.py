"""The extension point for backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any

import torch

from pyromix.errors import ConfigError, DataError
from pyromix.results import Fit
from pyromix.results.estimate import Estimate
from pyromix.running import Program, Record, run
from pyromix.threads import one_thread


class AbstractBackend(ABC):
    """Fits a program to data.

    A backend is `estimate`. It sees the program through its sites alone: roles, distributions, values. `fit` wraps the
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

    @one_thread()
    def fit(self, program: Program, data: Any, seed: int = 0, progress: bool = True) -> Fit:
        """Fit ``program(data)``, and wrap the estimate; the response is checked by its family first."""
        check_seed(seed)
        args = (data,)
        check_responses(run(program, args, hypers="moderate", seed=seed))
        return Fit(self.estimate(program, args, seed=seed, progress=progress), program, args)


def check_seed(seed: Any) -> None:
    """`ConfigError` for a seed that is no integer in range."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise ConfigError(f"fit(seed={seed!r}): must be an integer from 0 to 2**63 - 1.")


def check_responses(record: Record) -> None:
    """Let every family refuse a response it cannot have; rows that do not count are not looked at.

    Raises
    ------
    DataError
        No row counts at all.
    """
    masks = [site.role.mask for site in record.data.values() if site.role.obs is not None]
    if masks and not record.observed and not any(mask is None or bool(mask.any()) for mask in masks):
        names = ", ".join(map(repr, record.data))
        raise DataError(
            f"observe({names}): every row is masked, so there is nothing to fit; draw from the priors with "
            "pyromix.prior_predictive instead."
        )
    for name, site in record.data.items():
        role = site.role
        if role.obs is None:
            continue
        keep = torch.ones(len(role.obs), dtype=torch.bool) if role.mask is None else role.mask
        trials = None if role.trials is None else role.trials[keep].numpy()
        rows = keep.nonzero()[:, 0]
        obs = role.obs[keep].numpy()
        role.family.check_response(obs, trials, lambda k, rows=rows: f"row {int(rows[k])}", name)
        role.family.check_varies(obs, trials, name)
