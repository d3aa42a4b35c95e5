"""Reference posteriors: data, published means and SDs, the programs that are held against them, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parent / "data"

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]
GATE = 0.1  # of a reference SD for means, of one for log ratios of SDs


def tensor(values: Any) -> torch.Tensor:
    """Numbers in float64."""
    return torch.as_tensor(values, dtype=torch.float64)


def same(arrays: Arrays) -> Arrays:
    """For forms whose sites are the reference's parameters."""
    return arrays


def nothing(parameters: Arrays) -> float:
    """For forms on the reference's own scale."""
    return 0.0


@dataclass(frozen=True)
class Form:
    """A posterior as a program.

    Attributes
    ----------
    program
        ``program(data)``.
    prepare
        The data of the reference -> what the program takes.
    sites
        Parameters, as the density in `oracles` names them -> values of the program's sites.
    log_jacobian
        Log of what the density of the sites has to be multiplied by to be one of those parameters.
    derive
        Draws of the sites, (draws, ...) -> draws of the reference's quantities.
    marginals
        Names of the marginalisers that apply, where the program has random effects.
    """

    program: Callable[[Any], Any]
    prepare: Callable[[dict[str, Any]], Tensors]
    sites: Callable[[Arrays], Arrays] = same
    log_jacobian: Callable[[Arrays], float] = nothing
    derive: Callable[[Arrays], Arrays] = same
    marginals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Posterior:
    """One reference posterior and the ways in which it is written here.

    Attributes
    ----------
    log_density
        ``(data, parameters) -> log density`` up to a constant, in NumPy.
    forms
        By name: ``"pyro"`` is written without any primitive of pyromix.
    point
        ``(means by quantity, generator) -> parameters`` where they are not all among the reference's quantities.
    """

    id: str
    log_density: Callable[[dict[str, Any], Arrays], float]
    forms: Mapping[str, Form] = field(default_factory=dict)
    point: Callable[[Arrays, np.random.Generator], Arrays] | None = None

    @cached_property
    def file(self) -> dict[str, Any]:
        """The reference's file."""
        return json.loads((DATA / f"{self.id}.json").read_text())

    @property
    def data(self) -> dict[str, Any]:
        """Its data, as lists."""
        return self.file["data"]

    @property
    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and SD by quantity, ``"beta[2]"``."""
        return {name: (mean, sd) for name, (mean, sd) in self.file["summary"].items()}

    def arguments(self, form: str) -> tuple[Tensors]:
        """What that form's program is run with."""
        return (self.forms[form].prepare(self.data),)

    def parameters(self, seed: int) -> Arrays:
        """Parameters near the posterior mean: up to half an SD away, so that bounded ones stay inside."""
        rng = np.random.default_rng(seed)
        near = {name: mean + sd * rng.uniform(-0.5, 0.5) for name, (mean, sd) in self.summary.items()}
        gathered = gather(near)
        return gathered if self.point is None else self.point(gathered, rng)


def gather(values: Mapping[str, float]) -> Arrays:
    """``beta[1], beta[2], sigma`` -> ``beta`` (2,), ``sigma`` ()."""
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        found.setdefault(name.split("[")[0], []).append(value)
    scalars = {name for name in values if "[" not in name}
    return {name: np.array(v[0] if name in scalars else v) for name, v in found.items()}


def spread(arrays: Arrays) -> Arrays:
    """``beta`` (chains, draws, 2) -> ``beta[1]``, ``beta[2]`` (chains, draws)."""
    found = {}
    for name, array in arrays.items():
        if array.ndim == 2:
            found[name] = array
        else:
            flat = array.reshape(*array.shape[:2], -1)
            found |= {f"{name}[{k + 1}]": flat[..., k] for k in range(flat.shape[-1])}
    return found


@dataclass(frozen=True)
class Comparison:
    """Draws against a reference.

    Attributes
    ----------
    mean_error
        Quantity -> (mean - reference mean) / reference SD.
    log_sd_ratio
        Quantity -> log(SD / reference SD).
    ess, r_hat
        The smallest bulk effective size and the largest R-hat over the quantities; NaN for a single chain's R-hat.
    """

    mean_error: dict[str, float]
    log_sd_ratio: dict[str, float]
    ess: float
    r_hat: float

    @property
    def worst_mean(self) -> tuple[str, float]:
        return _worst(self.mean_error)

    @property
    def worst_sd(self) -> tuple[str, float]:
        return _worst(self.log_sd_ratio)

    def within(self, gate: float = GATE) -> bool:
        """Whether every mean and every SD is."""
        return abs(self.worst_mean[1]) < gate and abs(self.worst_sd[1]) < gate


def _worst(errors: dict[str, float]) -> tuple[str, float]:
    name = max(errors, key=lambda key: abs(errors[key]) if np.isfinite(errors[key]) else np.inf)
    return name, errors[name]


def compare(posterior: Posterior, form: str, draws: Mapping[str, np.ndarray]) -> Comparison:
    """Hold draws of the sites, (chains, draws, ...), against the reference's means and SDs.

    Raises
    ------
    KeyError
        A quantity of the reference is not among what the form derives from its sites.
    """
    import arviz

    chains, length = next(iter(draws.values())).shape[:2]
    flat = {name: np.asarray(v, dtype=float).reshape(chains * length, *v.shape[2:]) for name, v in draws.items()}
    derived = posterior.forms[form].derive(flat)
    got = spread({name: v.reshape(chains, length, *v.shape[1:]) for name, v in derived.items()})
    mean_error, log_ratio, ess, r_hat = {}, {}, [], []
    for name, (mean, sd) in posterior.summary.items():
        values = got[name]
        mean_error[name] = float((values.mean() - mean) / sd)
        log_ratio[name] = float(np.log(values.std(ddof=1) / sd))
        ess.append(float(arviz.ess(values, method="bulk")))
        r_hat.append(float(arviz.rhat(values)) if chains > 1 else np.nan)
    return Comparison(mean_error, log_ratio, min(ess), max(r_hat))
