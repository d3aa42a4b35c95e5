"""Put a network's output on the level of the response before it is trained.

Small optimiser steps take thousands of turns to move an output bias from 0 to a response of 300, and the random effects
take up the level meanwhile. Where nothing else in the program can hold a constant, an output bias is given it at once.
"""

from __future__ import annotations

from typing import Any

import torch

from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, run

ROWS = 2000
GRID = torch.linspace(-12.0, 12.0, 97, dtype=torch.float64)


def centre_outputs(program: Program, args: tuple[Any, ...], plan: Plan) -> None:
    """Shift one output bias so that the mean predictor fits the response best; nothing without such a bias."""
    if any(_has_constant(design) for design in plan.linear.values()):
        return
    record = run(program, args, hypers="moderate", seed=0)
    values = {name: torch.zeros_like(site.value) for name, site in record.hypers.items() if name in plan.linear}
    values = {name: site.value for name, site in record.hypers.items()} | values
    with torch.enable_grad():
        eta = data_of(run(program, args, values)).eta
        for bias in _candidates(plan):
            (slope,) = torch.autograd.grad(eta.sum(), bias, retain_graph=True, allow_unused=True)
            if slope is None or abs(float(slope.sum()) - len(eta)) > 1e-5 * len(eta):
                continue
            shift = _shift(program, args, values, plan, eta.detach())
            with torch.no_grad():
                bias += shift
                moved = data_of(run(program, args, values)).eta - eta
                if bool((moved - shift).abs().max() > 1e-4 * (1 + abs(shift))):
                    bias -= shift  # on average one, but not the same for every row
                    continue
            return


def _candidates(plan: Plan) -> list[torch.nn.Parameter]:
    """Weights of one entry, the last first."""
    found = [p for module in plan.modules.values() for p in module.parameters() if p.requires_grad and p.numel() == 1]
    return found[::-1]


def _has_constant(design: torch.Tensor) -> bool:
    spread = design.amax(0) - design.amin(0)
    return bool(((spread == 0) & (design[0] != 0)).any())


def _shift(program: Program, args: tuple[Any, ...], values: Any, plan: Plan, eta: torch.Tensor) -> float:
    """The constant that raises the likelihood most: exactly the mean residual for a Gaussian with identity link."""
    role = data_of(run(program, args, values))
    if role.family.gaussian_sd(**role.dispersion) is not None:
        return float((plan.obs - eta).mean())
    rows = slice(None, None, max(1, len(eta) // ROWS))
    trials = None if plan.trials is None else plan.trials[rows]
    dispersion = {name: value.detach() for name, value in role.dispersion.items() if value.dim() == 0}
    with torch.no_grad():
        scores = role.family.log_prob(GRID[:, None] + eta[rows], plan.obs[rows], trials, **dispersion).sum(-1)
    return float(GRID[torch.argmax(torch.nan_to_num(scores, nan=-torch.inf))])
