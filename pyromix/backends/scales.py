"""Typical sizes of hyper-parameters, read from what they do and not from what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import constraints

from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, Record, Site, run


@dataclass(frozen=True)
class Scale:
    """A hyper-parameter's typical size (of its shape), a start, and how many units inform it."""

    size: torch.Tensor
    start: torch.Tensor
    units: float


def response_size(plan: Plan, record: Record) -> float:
    """SD of a Gaussian response about its linear part, in the response's units; 1 on any other link scale."""
    role = data_of(record)
    if role.family.gaussian_sd(**role.dispersion) is None:
        return 1.0
    residual = plan.obs - role.eta.detach()
    for name, design in plan.linear.items():
        residual = residual + design @ record.hypers[name].value.detach()
    if plan.linear:
        q, _ = torch.linalg.qr(torch.cat(list(plan.linear.values()), dim=1))
        residual = residual - q @ (q.T @ residual)
    size = float(residual.std())
    return size if size > 0 else 1e-8 * max(1.0, float(plan.obs.abs().max()))


def hyper_scales(program: Program, args: tuple[Any, ...], plan: Plan) -> tuple[dict[str, Scale], Record]:
    """A `Scale` for every hyper-parameter site, by what its value moves: an effect's SD, the noise, or the predictor.

    Returns
    -------
    The scales, and the run of the program they were read from.
    """
    record = run(program, args, hypers="moderate", seed=0)
    values = {name: site.value.clone().requires_grad_(True) for name, site in record.hypers.items()}
    record = run(program, args, values)
    size = response_size(plan, record)
    scales = {
        name: Scale(torch.ones_like(value), _neutral(value, record.hypers[name]), plan.n_obs)
        for name, value in values.items()
    }
    for site in record.latents.values():
        _effect_scales(site, values, record.hypers, scales, size)
    role = data_of(record)
    noise = _noise_size(plan, role.family, size)
    for value in role.dispersion.values():
        for name, gradient in _gradients(value.sum(), values).items():
            if gradient.abs().max() > 0 and _is_scale(record.hypers[name]):
                full = torch.full_like(values[name], noise).detach()
                scales[name] = Scale(full, 0.8 * full, plan.n_obs)
    return scales, record


def _effect_scales(
    latent: Site, values: Mapping[str, torch.Tensor], hypers: Mapping[str, Site], scales: dict[str, Scale], size: float
) -> None:
    """An SD's size: what moves the predictor by the response's size at the root mean square of its design."""
    block = latent.fn.operator.block
    levels = latent.fn.event_shape[0]
    if block is None:
        return
    design = latent.role.rows.design
    rms = torch.ones(block.shape[-1]) if design is None else design.detach().square().mean(0).sqrt()
    for i in range(block.shape[-1]):
        typical = size / max(float(rms[i]), 1e-12)
        for name, gradient in _gradients(block[i].sum(), values).items():
            hit = gradient.abs() > 0
            if not bool(hit.any()):
                continue
            old = scales[name]
            if _is_scale(hypers[name]):
                full = torch.where(hit, torch.as_tensor(typical, dtype=torch.float64), old.size)
                scales[name] = Scale(full, 0.6 * full, float(levels))
            else:
                scales[name] = Scale(old.size, old.start, float(levels))


def _gradients(scalar: torch.Tensor, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not scalar.requires_grad or not values:
        return {}
    found = torch.autograd.grad(scalar, list(values.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(values, found, strict=True) if gradient is not None}


def _is_scale(site: Site) -> bool:
    return site.role.support in (constraints.nonnegative, constraints.positive)


def _noise_size(plan: Plan, family: Any, size: float) -> float:
    return size if family.link.name == "identity" else max(float(plan.obs.std()), 1e-12)


def _neutral(value: torch.Tensor, site: Site) -> torch.Tensor:
    """A start that asserts nothing: zero, one, no correlation."""
    support = site.role.support
    if support is constraints.real:
        return torch.zeros_like(value).detach()
    if support is constraints.corr_cholesky:
        return torch.eye(value.shape[-1], dtype=torch.float64)
    if _is_scale(site):
        return torch.ones_like(value).detach()
    return value.detach()
