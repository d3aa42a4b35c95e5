"""What a maximum likelihood fit has to say about itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.distributions import constraints

from pyromix.backends.chart import FactorEntry
from pyromix.backends.point import VAGUE, flat_ends, ran_off
from pyromix.errors import (
    ApproximationWarning,
    ConvergenceWarning,
    NumericalError,
    PyromixWarning,
    SeparationWarning,
    SingularFitWarning,
    Status,
    UnsupportedError,
)
from pyromix.linalg.operators import DENSE
from pyromix.marginal import GaussHermite
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.plan import data_of
from pyromix.results.estimate import HealthRecord
from pyromix.running import Record

if TYPE_CHECKING:
    from pyromix.backends.maximum_likelihood import Search
    from pyromix.backends.quasi_newton import Optimum

CONVERGED = 1e-6
SINGULAR_SD = 1e-4
SINGULAR_CORRELATION = 1e-4
SEPARATED = 10.0
DOUBTFUL = 0.1
ALARMING = 0.5
CHECK_ROWS = 20_000
SMALL_RESIDUAL = 1e-2  # of the response's SD: above this rounding cannot matter
ROUNDING = 1e-4  # log-likelihood; the estimate may be a tenth of the error

_WARNINGS: dict[str, type[PyromixWarning]] = {
    "gradient": ConvergenceWarning,
    "hessian": ConvergenceWarning,
    "residual": ConvergenceWarning,
    "precision": ApproximationWarning,
    "singular": SingularFitWarning,
    "separation": SeparationWarning,
    "laplace": ApproximationWarning,
}


def findings(
    search: Search, optimum: Optimum, point: Mapping[str, torch.Tensor], record: Record, log_likelihood: float
) -> list[HealthRecord]:
    """Every finding about the optimum."""
    flat = flat_ends(search.objective, optimum)
    return [
        *_convergence(optimum, flat),
        *_flat(flat, point),
        *_ran_off(search, optimum, flat),
        *_boundary(search, point, record),
        *_residual(search, record),
        *_precision(search, record),
        *_separation(search, point, record),
        *_laplace(search, record, log_likelihood),
    ]


def status(found: Sequence[HealthRecord], optimum: Optimum, trained: Any) -> Status:
    """The fit's status in view of the findings."""
    codes = {record.code for record in found}
    if "hessian" in codes:
        return Status.NOT_A_MODE
    if "gradient" in codes:
        return Status.ITERATION_LIMIT if "iterations" in optimum.message.lower() else Status.NOT_CONVERGED
    if trained is not None and trained.status is not Status.CONVERGED:
        return trained.status
    return Status.SINGULAR if "singular" in codes else Status.CONVERGED


def warn(found: Sequence[HealthRecord]) -> None:
    """Give a Python warning for every finding that a user must see."""
    for record in found:
        if record.severity in ("error", "warn") and record.code in _WARNINGS:
            message = f"{record.code}: {record.parameter} = {record.value} (limit {record.threshold}). {record.remedy}"
            warnings.warn(message, _WARNINGS[record.code], stacklevel=5)


def _flat(flat: Mapping[int, str], point: Mapping[str, torch.Tensor]) -> list[HealthRecord]:
    remedy = (
        "It ran towards zero until the likelihood was flat: the effects take all of it up. Hold it at a small number, "
        "or describe the residuals by the structure itself, Gaussian(residual=...)."
    )
    return [
        HealthRecord("singular", "warn", float(point[name].min()), 0.0, name, remedy)
        for name in dict.fromkeys(flat.values())
    ]


def _ran_off(search: Search, optimum: Optimum, flat: Mapping[int, str]) -> list[HealthRecord]:
    remedy = (
        "It ran off to where the likelihood does not depend on it any more: the data do not say how large or small it"
        " is. Fix it, give it a prior (criterion='map'), or leave its part of the model out."
    )
    scale = "as logarithm or logit"
    return [
        HealthRecord("singular", "warn", round(se, 2), VAGUE, f"standard error of {name}, {scale}", remedy)
        for name, se in ran_off(search.objective, optimum).items()
        if name not in flat.values()
    ]


def _convergence(optimum: Optimum, flat: Mapping[int, str]) -> list[HealthRecord]:
    out = []
    if optimum.decrement > CONVERGED:
        worst = int(np.argmax(np.abs(optimum.gradient)))
        out.append(
            HealthRecord(
                "gradient",
                "error",
                round(float(np.sqrt(max(optimum.decrement, 0.0))), 8),
                float(np.sqrt(CONVERGED)),
                f"scaled gradient, largest in coordinate {worst}",
                "The optimum was not reached: rescale predictors, raise max_evaluations, or simplify the random "
                "effects.",
            )
        )
    if optimum.hessian is not None and len(optimum.t):
        keep = [k for k in range(len(optimum.t)) if k not in flat]
        smallest = float(np.linalg.eigvalsh(optimum.hessian[np.ix_(keep, keep)])[0]) if keep else 0.0
        if smallest < -1e-6:
            out.append(
                HealthRecord(
                    "hessian",
                    "error",
                    round(smallest, 8),
                    0.0,
                    "smallest eigenvalue of the information",
                    "The estimate is not a maximum: a parameter is not identified; drop a term or give it a prior.",
                )
            )
    return out


def _boundary(search: Search, point: Mapping[str, torch.Tensor], record: Record) -> list[HealthRecord]:
    out = []
    for name, site in search.sites.items():
        value, support = point[name].detach(), site.role.support
        if support is constraints.nonnegative:
            relative = (value / search.scales[name].size).reshape(-1)
            small = np.flatnonzero(relative.numpy() < SINGULAR_SD)
            if len(small) and _moves(record, name.rpartition(".")[0], float(search.scales[name].size.max())):
                continue
            for k in small:
                label = name if relative.numel() == 1 else f"{name}[{k}]"
                out.append(
                    HealthRecord(
                        "singular",
                        "warn",
                        float(value.reshape(-1)[k]),
                        SINGULAR_SD,
                        label,
                        "Boundary (singular) fit: this variance is estimated at zero; the term can be dropped.",
                    )
                )
        elif support is constraints.corr_cholesky:
            entry = search.chart.entry_of(name)
            judged = entry.correlation(point) if isinstance(entry, FactorEntry) else value
            rest = float((judged.diagonal()[1:] ** 2).min())
            if rest < 2 * SINGULAR_CORRELATION:
                corr = (value @ value.T).fill_diagonal_(0.0)
                worst = float(corr.reshape(-1)[corr.abs().argmax()])
                out.append(
                    HealthRecord(
                        "singular",
                        "warn",
                        worst,
                        1 - SINGULAR_CORRELATION,
                        name.removesuffix("_cholesky"),
                        "Boundary (singular) fit: the correlation matrix is singular (the value is its largest "
                        "correlation); simplify the term, e.g. with '||'.",
                    )
                )
    return out


def _moves(record: Record, effect: str, size: float) -> bool:
    """Whether an effect is no zero although its SD is: that of a change of slope, say, beside a slope."""
    site = record.latents.get(effect)
    if site is None or site.fn.operator.block is not None or len(site.role.levels) > DENSE:
        return False
    return bool((site.fn.operator.sds() > SINGULAR_SD * size).all())


def _residual(search: Search, record: Record) -> list[HealthRecord]:
    role = data_of(record)
    sd = role.family.gaussian_sd(**role.dispersion)
    size = float(search.plan.obs.std())
    if sd is None or float(sd.max()) > 1e-7 * size:
        return []
    name = f"{search.plan.response}.sigma"
    remedy = (
        "The residual is at its lower bound: the response is an exact function of the predictors; estimates are finite."
    )
    return [HealthRecord("residual", "warn", float(sd.max()), 1e-7 * size, name, remedy)]


def _precision(search: Search, record: Record) -> list[HealthRecord]:
    """Beside a tiny residual the system of correlated effects is so ill-conditioned that digits are lost."""
    role, bound = data_of(record), search.bound
    sd = role.family.gaussian_sd(**role.dispersion)
    if sd is None or not isinstance(bound, BoundCorrelated) or bound.rows is not None:
        return []
    if float(sd.min()) > SMALL_RESIDUAL * float(search.plan.obs.std()):
        return []
    rounding = 0.5 * bound.point(record).factor.rounding
    if rounding <= ROUNDING:
        return []
    remedy = (
        "The residual is so small beside the effects that rounding moves the log-likelihood by about this much; "
        "standard errors may be off. Fix sigma at a larger value, or leave the smallest effect to the residual."
    )
    return [
        HealthRecord("precision", "warn", float(f"{rounding:.2g}"), ROUNDING, f"{search.plan.response}.sigma", remedy)
    ]


def _separation(search: Search, point: Mapping[str, torch.Tensor], record: Record) -> list[HealthRecord]:
    role = data_of(record)
    if role.family.link.name not in ("logit", "probit", "cloglog"):
        return []
    out = []
    for name, design in search.plan.linear.items():
        labels = search.base.hypers[name].role.labels or tuple(str(k) for k in range(design.shape[1]))
        reach = point[name] * _reach(design)
        for k in np.flatnonzero(reach.abs().numpy() > SEPARATED):
            out.append(
                HealthRecord(
                    "separation",
                    "warn",
                    round(float(point[name][k]), 3),
                    SEPARATED,
                    labels[k],
                    "This predictor (nearly) separates the classes, so its coefficient and standard error mean "
                    "nothing; give it a prior and use criterion='map'.",
                )
            )
    return out


def _reach(design: torch.Tensor) -> torch.Tensor:
    """How far each column moves a row: its range where it has two values (a level), else its SD; 0 for constants."""
    low, high = design.amin(0), design.amax(0)
    two = ((design == low) | (design == high)).all(0)
    return torch.where(two, high - low, design.std(0))


def _laplace(search: Search, record: Record, log_likelihood: float) -> list[HealthRecord]:
    """Compare with quadrature where that is cheap: one grouping factor, one or two effects a group."""
    plan = search.plan
    cheap = sum(term.q for term in plan.layout.terms) <= 2 and len(plan.obs) <= CHECK_ROWS
    if not isinstance(search.bound, BoundLaplace) or not cheap or not plan.latents or plan.moving:
        return []
    if data_of(record).family.gaussian_sd(**data_of(record).dispersion) is not None:
        return []
    try:
        bound = GaussHermite(7).bind(search.program, search.args, plan)
        with torch.no_grad():
            gap = float(bound.log_marginal(record)) - log_likelihood
    except (UnsupportedError, NumericalError):
        return []
    if abs(gap) <= DOUBTFUL:
        return []
    severity = "warn" if abs(gap) > ALARMING else "info"
    remedy = (
        "Laplace's approximation is off by this much log-likelihood; use MaximumLikelihood(marginal=GaussHermite(25))."
    )
    return [HealthRecord("laplace", severity, round(gap, 4), DOUBTFUL, ", ".join(plan.latents), remedy)]
