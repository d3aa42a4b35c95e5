"""Posterior draws as an estimate: what every sampler hands over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributions import constraints

from pyromix.errors import Status
from pyromix.results.estimate import Draws, Estimate, HealthRecord
from pyromix.results.storage import StoredDraws
from pyromix.running import Program, Site, run


def posterior_estimate(
    program: Program,
    args: tuple[Any, ...],
    draws: Draws,
    *,
    chains: int,
    inference: str,
    settings: Mapping[str, Any],
    status: Status,
    health: tuple[HealthRecord, ...] = (),
    sample_stats: Mapping[str, Any] | None = None,
    log_evidence: float = float("nan"),
    state: Mapping[str, torch.Tensor] | None = None,
) -> Estimate:
    """The estimate that draws make: posterior means, SDs and covariances of every site.

    Parameters
    ----------
    draws
        Site -> (n, *shape), chain after chain; hyper-parameters, random effects and the program's own sites.

    Notes
    -----
    The centre of Cholesky factors of correlation matrices is the factor of the mean correlation matrix: their mean is
    no such factor.
    """
    first = {name: value[0] for name, value in draws.items()}
    with torch.no_grad():
        record = run(program, args, first)
    sites: dict[str, Site] = {**record.hypers, **record.plain}
    learned = {id(w): w.numel() for site in record.functions.values() for w in site.role.learned().values()}
    return Estimate(
        kind="draws",
        inference=inference,
        point={name: centre(draws[name], sites[name]) for name in sites},
        latents={name: draws[name].mean(0) for name in record.latents},
        latent_sd={name: draws[name].std(0) for name in record.latents},
        covariance={name: _covariance(draws[name]) for name in sites},
        draw=StoredDraws(draws, chains),
        log_likelihood=float("nan"),
        n_parameters=sum(value.numel() for name, value in first.items() if name in sites) + sum(learned.values()),
        status=status,
        health=health,
        settings=settings,
        sample_stats=sample_stats,
        state=state or {},
        n_draws=len(next(iter(draws.values()))),
        chains=chains,
        log_evidence=log_evidence,
    )


def centre(draws: torch.Tensor, site: Site) -> torch.Tensor:
    """The posterior mean of a site, on its support."""
    support = getattr(site.role, "support", None) or site.fn.support
    if support is constraints.corr_cholesky:
        return torch.linalg.cholesky((draws @ draws.mT).mean(0))
    return draws.mean(0)


def _covariance(draws: torch.Tensor) -> torch.Tensor:
    flat = draws.reshape(len(draws), -1)
    centred = flat - flat.mean(0)
    return centred.T @ centred / max(len(draws) - 1, 1)
