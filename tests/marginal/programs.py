"""Small programs with known structure, shared by the marginalisers' tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import pyromix as pmx

N = 72


@dataclass(frozen=True)
class Case:
    """A program, its data, and a hyper-parameter point to evaluate it at."""

    program: Callable[..., Any]
    args: tuple[Any, ...]
    values: dict[str, torch.Tensor]


def tensor(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def responses(rng: np.random.Generator, eta: np.ndarray, family: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(family, pmx.Gaussian):
        mean = np.exp(eta) if family.link.name == "log" else eta
        return tensor(mean + 0.3 * rng.normal(size=len(eta))), None
    if isinstance(family, pmx.Poisson):
        return tensor(rng.poisson(np.exp(eta))), None
    trials = rng.integers(1, 6, len(eta))
    return tensor(rng.binomial(trials, 1 / (1 + np.exp(-eta)))), tensor(trials)


def grouped(family: Any, kind: str, seed: int = 0, weights: bool = False) -> Case:
    """Programs on random data: kind is one of the keys of ``KINDS``."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(N), rng.normal(size=N)])
    z = np.column_stack([np.ones(N), rng.normal(size=N), rng.normal(size=N)])
    a, b, c = rng.integers(0, 8, N), rng.integers(0, 5, N), rng.integers(0, 3, N)
    y, trials = responses(rng, x @ [0.4, 0.3] + 0.5 * rng.normal(size=8)[a], family)
    weight = tensor(rng.integers(1, 4, N)) if weights else None
    index = {name: torch.from_numpy(values) for name, values in (("a", a), ("b", b), ("c", c))}
    values = {"beta": tensor([0.3, 0.2]), **KINDS[kind][1]}
    if isinstance(family, pmx.Gaussian):
        values["y.sigma"] = tensor(0.45)

    def program(data: dict[str, Any]) -> None:
        eta = pmx.LinearEffect("beta")(data["x"])
        for name, factor, covariance, q in KINDS[kind][0]:
            design = data["z"][:, :q] if q else None
            eta = eta + pmx.RandomEffect(name, covariance, group=factor, levels=8)(data[factor], design)
        pmx.observe("y", family, eta, data["y"], trials=data["trials"], weights=data["weight"])

    data = {"x": tensor(x), "z": tensor(z), "y": y, "trials": trials, "weight": weight, **index}
    return Case(program, (data,), values)


def corr(q: int, rho: float = 0.4) -> torch.Tensor:
    matrix = torch.full((q, q), rho, dtype=torch.float64).fill_diagonal_(1.0)
    return torch.linalg.cholesky(matrix).contiguous()


KINDS: dict[str, tuple[list[tuple[str, str, Any, int]], dict[str, torch.Tensor]]] = {
    "intercept": ([("a", "a", pmx.IID(), 0)], {"a.sd": tensor(0.7)}),
    "slope": ([("a", "a", pmx.Unstructured(), 2)], {"a.sd": tensor([0.7, 0.4]), "a.corr_cholesky": corr(2)}),
    "three": ([("a", "a", pmx.Unstructured(), 3)], {"a.sd": tensor([0.7, 0.4, 0.5]), "a.corr_cholesky": corr(3)}),
    "split": (
        [("a", "a", pmx.IID(), 0), ("a.1", "a", pmx.Diagonal(), 2)],
        {"a.sd": tensor(0.7), "a.1.sd": tensor([0.4, 0.3])},
    ),
    "crossed": (
        [("a", "a", pmx.Unstructured(), 2), ("b", "b", pmx.IID(), 0), ("c", "c", pmx.IID(), 0)],
        {"a.sd": tensor([0.7, 0.4]), "a.corr_cholesky": corr(2), "b.sd": tensor(0.5), "c.sd": tensor(0.3)},
    ),
}
