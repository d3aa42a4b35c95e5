"""What a backend hands over: an estimate, its uncertainty and how it was obtained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyromix.errors import Status

Draws = dict[str, torch.Tensor]


@dataclass(frozen=True)
class HealthRecord:
    """One finding about a fit.

    Attributes
    ----------
    code
        Stable short name: ``"singular"``, ``"gradient"``, ``"separation"``.
    severity
        ``"error"``, ``"warn"`` or ``"info"``.
    value, threshold
        What was measured and the limit it was held against.
    parameter
        What it concerns: a parameter, term, column or group.
    remedy
        What to do about it, one sentence.
    """

    code: str
    severity: str
    value: float | str
    threshold: float | str
    parameter: str
    remedy: str


@dataclass(frozen=True)
class Estimate:
    """A point with its curvature, or posterior draws.

    Attributes
    ----------
    kind
        ``"point"`` (maximum likelihood, MAP) or ``"draws"``.
    inference
        How it was obtained, for people and for ArviZ attributes: ``"REML, Exact"``.
    point
        Hyper-parameter site -> estimate (posterior mean for draws). Under REML and profiling the coefficients too.
    latents, latent_sd
        Random-effect site -> conditional mode and conditional SD, (levels, terms).
    covariance
        Hyper-parameter site -> covariance matrix of its flattened entries; NaN where it is not available.
    draw
        ``draw(n, seed)`` -> site -> (n, *shape): draws from the posterior, or for a point estimate from its stated
        Gaussian approximation. Deterministic in the seed.
    log_likelihood
        Maximised log-likelihood with all constants; the restricted one under REML. NaN for draws.
    log_evidence
        For draws: an estimate of ``log p(y)``, priors integrated out: by importance sampling, or a lower bound (ELBO).
    condition
        Where the backend itself knows the random effects of groups it has not seen given rows of theirs (an amortised
        guide): ``condition(args, values, seed)`` with the program's arguments for those rows, in which new levels are
        numbered -1, -2, ..., and draws of every site (S, *shape) -> effect -> (S, new levels, terms), new level -1
        last. ``None`` where the general way is taken. Not kept in files.
    n_parameters
        Degrees of freedom: estimated coefficients, variances, correlations, dispersions and network weights.
    settings
        The backend's configuration as plain values (JSON).
    sample_stats
        ArviZ's canonical names -> (chain, draw) arrays, for samplers.
    state
        Tensors that the backend needs to make `draw` again when the estimate is loaded from a file.
    n_draws
        Draws at hand for ``kind="draws"``; ``None`` where any number can be made.
    chains
        Chains that `draw` returns one after the other: the first ``n / chains`` draws are the first chain's.
    """

    kind: str
    inference: str
    point: Mapping[str, torch.Tensor]
    latents: Mapping[str, torch.Tensor]
    latent_sd: Mapping[str, torch.Tensor]
    covariance: Mapping[str, torch.Tensor]
    draw: Callable[[int, int], Draws]
    log_likelihood: float
    n_parameters: int
    status: Status
    health: tuple[HealthRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    sample_stats: Mapping[str, Any] | None = None
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    n_draws: int | None = None
    chains: int = 1
    log_evidence: float = float("nan")
    condition: Callable[[tuple[Any, ...], Draws, int], Draws] | None = None

    @property
    def exact(self) -> bool:
        """Whether draws tend to the posterior itself as there are more of them; not so for approximations."""
        return self.kind == "draws" and bool(self.settings.get("exact", True))

    @property
    def markov(self) -> bool:
        """Whether draws are chains of a sampler, for which R-hat means something; of an approximate posterior too."""
        return self.exact or (self.kind == "draws" and self.chains > 1)

    @property
    def restricted(self) -> bool:
        """Whether `log_likelihood` is the restricted one."""
        return self.settings.get("criterion") == "reml" or self.inference.upper().startswith("REML")
