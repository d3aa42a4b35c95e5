"""Typical sizes of hyper-parameters, read from what they do and not from what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from pyromix.backends.chart import FactorEntry
from pyromix.marginal.base import BoundMarginal
from pyromix.marginal.moments import variance_moments
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, Record, Site, run

BESIDE = 0.55  # of the way through an interval: in its middle a correlation is zero, where patterns lose their entries
FLOOR = 0.1  # of a typical SD: no search starts below it, since zero is stationary


@dataclass(frozen=True)
class Scale:
    """A hyper-parameter's typical size (of its shape), a start, and how many units inform it."""

    size: torch.Tensor
    start: torch.Tensor
    units: float


def factor_entries(record: Record, hypers: Mapping[str, Site], scales: Mapping[str, Scale]) -> list[FactorEntry]:
    """Pairs of sites that are the SDs and the correlation factor of one effect, by what they do to its covariance."""
    out = []
    for name, site in record.latents.items():
        block, design = site.fn.operator.block, site.role.rows.design
        if block is None or design is None or len(block) < 2:
            continue
        values = {key: hyper.value for key, hyper in record.hypers.items() if hyper.value.requires_grad}
        touched = list(_gradients(block.sum(), values))
        sds = [key for key in touched if hypers[key].role.support is constraints.nonnegative]
        corrs = [key for key in touched if hypers[key].role.support is constraints.corr_cholesky]
        if len(touched) != 2 or len(sds) != 1 or len(corrs) != 1:
            continue
        sd, corr = values[sds[0]].detach(), values[corrs[0]].detach()
        if sd.shape != (len(block),) or not torch.allclose(block.detach(), sd[:, None] * corr):
            continue
        gram = design.detach().T @ design.detach() / len(design)
        basis = _basis(gram)
        if basis is not None:
            start = scales[sds[0]].start
            scale = float(((start**2 * gram.diagonal()).sum() / len(sd)).sqrt())
            out.append(FactorEntry(name, sds[0], corrs[0], basis, scale))
    return out


def _basis(gram: torch.Tensor) -> torch.Tensor | None:
    """Lower triangular C with ``C^T gram C = I``; ``None`` if the design's columns are dependent."""
    scale = gram.diagonal().sqrt()
    if not bool((scale > 0).all()):
        return None
    flipped = (gram / scale[:, None] / scale).flip(0, 1)
    root, failure = torch.linalg.cholesky_ex(flipped)
    if int(failure) or float(root.diagonal().min()) < 1e-6:
        return None
    upper = root.flip(0, 1)  # gram = U U^T
    eye = torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve_triangular(upper, eye, upper=True).T / scale[:, None]


def hyper_scales(
    program: Program, args: tuple[Any, ...], plan: Plan, bound: BoundMarginal
) -> tuple[dict[str, Scale], Record, np.ndarray | None]:
    """A `Scale` for every hyper-parameter site, by what its value moves: an effect's SD, the noise, or the predictor.

    Returns
    -------
    The scales, the run of the program they were read from, and all linear coefficients side by side if they were
    estimated on the way.
    """
    record = run(program, args, hypers="moderate", seed=0)
    values = {name: site.value.clone().requires_grad_(True) for name, site in record.hypers.items()}
    record = run(program, args, values)
    moments = variance_moments(plan, record, bound)
    scales = {
        name: Scale(_unit(value, record.hypers[name]), _neutral(value, record.hypers[name]), plan.n_obs)
        for name, value in values.items()
    }
    for site, sds in zip(record.latents.values(), moments.effects, strict=True):
        _effect_scales(site, values, record.hypers, scales, moments.size, sds)
    for value in data_of(record).dispersion.values():
        for name, gradient in _gradients(value.sum(), values).items():
            if gradient.abs().max() > 0 and _is_scale(record.hypers[name]):
                full = torch.ones_like(values[name]).detach()
                scales[name] = Scale(moments.size_of_noise * full, moments.noise * full, plan.n_obs)
    return scales, record, moments.coefficients


def _effect_scales(
    latent: Site,
    values: Mapping[str, torch.Tensor],
    hypers: Mapping[str, Site],
    scales: dict[str, Scale],
    size: float,
    sds: np.ndarray,
) -> None:
    """An SD's size: what moves the predictor by the response's size at the root mean square of its design."""
    operator, spread = latent.fn.operator, latent.role.spread
    levels, terms = latent.fn.event_shape
    moved = operator.sds() if operator.block is None else operator.block.sum(-1)
    if spread is not None:  # of an average level; the moments of its functions say nothing of it
        moved = spread.mean_covariance(operator.block @ operator.block.mT).diagonal().sqrt()
        levels, terms, sds = terms, len(moved), np.full(len(moved), 0.5 * size)
    design = latent.role.shown.rows.design
    rms = torch.ones(terms) if design is None else design.detach().square().mean(0).sqrt()
    for i in range(terms):
        typical = size / max(float(rms[i]), 1e-12)
        start = max(float(sds[i]), FLOOR * typical)
        for name, gradient in _gradients(moved[i], values).items():
            hit = gradient.abs() > 0
            if not bool(hit.any()):
                continue
            old = scales[name]
            if _is_scale(hypers[name]):
                full = torch.where(hit, torch.as_tensor(typical, dtype=torch.float64), old.size)
                begin = torch.where(hit, torch.as_tensor(start, dtype=torch.float64), old.start)
                scales[name] = Scale(full, begin, float(levels))
            else:
                scales[name] = Scale(old.size, old.start, float(levels))


def _gradients(scalar: torch.Tensor, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not scalar.requires_grad or not values:
        return {}
    found = torch.autograd.grad(scalar, list(values.values()), retain_graph=True, allow_unused=True)
    return {name: gradient for name, gradient in zip(values, found, strict=True) if gradient is not None}


def _is_scale(site: Site) -> bool:
    return site.role.support in (constraints.nonnegative, constraints.positive)


def _unit(value: torch.Tensor, site: Site) -> torch.Tensor:
    median = _median(site)
    return torch.ones_like(value) if median is None else median


def _median(site: Site) -> torch.Tensor | None:
    """Of a prior that is normal in the logarithm, as that of a length is: it knows how far apart places are."""
    prior = site.fn
    while isinstance(prior, (dist.Independent, dist.ExpandedDistribution)):
        prior = prior.base_dist
    return prior.loc.exp().expand(site.value.shape).detach().clone() if isinstance(prior, dist.LogNormal) else None


def _neutral(value: torch.Tensor, site: Site) -> torch.Tensor:
    """A start that asserts nothing: zero, one, no correlation; for what has a unit the median of its prior."""
    support, median = site.role.support, _median(site)
    if median is not None:
        return median
    if support is constraints.real:
        return torch.zeros_like(value).detach()
    if support is constraints.corr_cholesky:
        return torch.eye(value.shape[-1], dtype=torch.float64)
    if _is_scale(site):
        return torch.ones_like(value).detach()
    if isinstance(site.role.support, constraints.interval):
        low, high = float(site.role.support.lower_bound), float(site.role.support.upper_bound)
        return torch.full_like(value, low + BESIDE * (high - low)).detach()
    return value.detach()
