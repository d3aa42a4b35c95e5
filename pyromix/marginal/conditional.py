"""The Gaussian distribution of the random effects given data and hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from pyromix.linalg import selected
from pyromix.linalg.block import Arrays
from pyromix.linalg.factor import Factor
from pyromix.marginal.base import Conditional, as_numpy
from pyromix.marginal.plan import Plan


def gaussian_conditional(
    plan: Plan, factor: Factor, tril: Arrays, b: Arrays, shift: Callable[[], Mapping[str, Arrays]]
) -> Conditional:
    """Conditional of ``u = Lambda b``, with b ~ N(b, A^-1).

    Parameters
    ----------
    tril
        Factors L on the scale of the effects.
    b
        Spherical modes, (levels, q) per term.
    shift
        Computes, by coefficient site, ``A^-1 Lambda^T Z^T W X``, (levels, q, p) per term (`shift_map`).
    """
    mode = {n: torch.from_numpy(x @ block.T) for n, x, block in zip(plan.latents, b, tril, strict=True)}

    def spread() -> dict[str, torch.Tensor]:
        inverse = selected.diagonal_blocks(factor)
        return {
            name: torch.from_numpy(np.sqrt(np.einsum("ab,gbc,ac->ga", block, p, block, optimize=True)))
            for name, p, block in zip(plan.latents, inverse, tril, strict=True)
        }

    def blocks() -> dict[str, torch.Tensor]:
        inverse = selected.diagonal_blocks(factor)
        return {n: torch.from_numpy(L @ p @ L.T) for n, p, L in zip(plan.latents, inverse, tril, strict=True)}

    def draw(n: int, generator: torch.Generator, shifts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        noise = [torch.randn((*x.shape, n), generator=generator, dtype=torch.float64).numpy() for x in b]
        spherical = [x[..., None] + e for x, e in zip(b, factor.sample(noise), strict=True)]
        follow = shift() if shifts else {}
        for site, delta in shifts.items():
            steps = as_numpy(delta).T
            spherical = [x - s @ steps for x, s in zip(spherical, follow[site], strict=True)]
        return {
            name: torch.from_numpy(np.ascontiguousarray(np.einsum("ab,gbn->nga", block, x)))
            for name, block, x in zip(plan.latents, tril, spherical, strict=True)
        }

    return Conditional(mode, spread, draw, blocks)


def shift_map(plan: Plan, factor: Factor, tril: Arrays, weight: np.ndarray) -> dict[str, Arrays]:
    """``A^-1 Lambda^T Z^T W X`` for every coefficient site through which the predictor is affine."""
    out = {}
    for name, design in plan.linear.items():
        weighted = plan.layout.transpose(weight[:, None] * as_numpy(design))
        out[name] = factor.solve([block.T @ m for block, m in zip(tril, weighted, strict=True)])
    return out
