"""The Gaussian approximation around a point estimate: covariances of its parameters, and draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.distributions import constraints

from pyromix.backends.chart import natural_chart
from pyromix.backends.quasi_newton import DIFFERENCE, Objective, Optimum
from pyromix.errors import ApproximationWarning
from pyromix.marginal.base import BoundMarginal
from pyromix.results.estimate import Draws
from pyromix.running import Program, Site, run

FLAT_SD, FLAT_CURVATURE = 1e-2, 1e-3  # an SD in units of its scale; information in units of that of a sharp one
VAGUE = 4.0  # standard error of a logarithm or logit from which on it says nothing: a factor of 3,000 up and down
FAR_OUT = 6.9  # logarithm of a thousand
ROUNDING, SHARE = 1e-9, 0.1  # smallest information against the largest; part of a direction that a coordinate has
DEGENERATE = 1e-4  # distance from the boundary, on the chart, within which a coordinate has no standard error


def flat_ends(objective: Objective, optimum: Optimum) -> dict[int, str]:
    """Coordinates of SDs that ran towards zero until the likelihood was flat, and their sites.

    A residual SD beside effects that can take all of it up has no zero to stop at, only a logarithm to follow.
    """
    hessian = optimum.hessian
    if hessian is None:
        return {}
    at, out = objective.flat(optimum.t), {}
    for entry in objective.chart.entries:
        if entry.kind == "positive":
            for k in range(objective.chart.slices[entry.name].start, objective.chart.slices[entry.name].stop):
                if float(at[k]) < np.log(FLAT_SD) and hessian[k, k] < FLAT_CURVATURE:
                    out[k] = entry.name
    return out


def loose_coordinates(objective: Objective) -> dict[int, str]:
    """Coordinates that are logarithms or logits, where a standard error is a factor, and what they are called."""
    out = {}
    for entry in objective.chart.entries:
        if entry.kind in ("positive", "other"):
            part = objective.chart.slices[entry.name]
            for i, k in enumerate(range(part.start, part.stop)):
                out[k] = entry.name if entry.size == 1 else f"{entry.name}[{i}]"
    return out


def ran_off(objective: Objective, optimum: Optimum) -> dict[str, float]:
    """Coordinates far out where the likelihood is flat, and their standard errors; two evaluations for each far out."""
    at, out = objective.flat(optimum.t), {}
    for k, name in loose_coordinates(objective).items():
        if abs(float(at[k])) < FAR_OUT:
            continue
        if optimum.hessian is not None:
            information = float(optimum.hessian[k, k])
        else:
            step = np.zeros(len(optimum.t))
            step[k] = DIFFERENCE
            information = float((objective(optimum.t + step)[1] - objective(optimum.t - step)[1])[k]) / (2 * DIFFERENCE)
        se = float(objective.unit[k]) / np.sqrt(information) if information > 0 else np.inf
        if se > VAGUE:
            out[name] = se
    return out


class PointCovariance(Mapping[str, torch.Tensor]):
    """Site -> covariance of its flattened value; computed when first asked for.

    Coordinates on the boundary (a zero SD, a perfect correlation) are held there: their own entries are NaN, and the
    others are conditional on them.
    """

    def __init__(
        self, objective: Objective, optimum: Optimum, sites: Mapping[str, Site], given: Mapping[str, torch.Tensor]
    ) -> None:
        self._objective, self._optimum, self._sites, self._given = objective, optimum, sites, given

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._given:
            return self._given[name]
        jacobian = self._jacobian[name]
        covariance = jacobian @ self.flat @ jacobian.T
        dead = self._dead(name, jacobian)
        covariance[dead, :] = torch.nan
        covariance[:, dead] = torch.nan
        return covariance

    def _dead(self, name: str, jacobian: torch.Tensor) -> torch.Tensor:
        """Entries of a site that have no standard error because of a boundary."""
        dead = (jacobian[:, ~self.free].abs() > 0).any(1)
        chart, support = self._objective.chart, self._sites[name].role.support
        value = chart.values(self._point)[name].reshape(-1)
        if support is constraints.nonnegative:
            dead |= value <= DEGENERATE * value.max().clamp(min=DEGENERATE)
        elif support is constraints.corr_cholesky:
            part = chart.slices[chart.entry_of(name).name]
            dead |= ~self.free[part].all()
        return dead

    def __iter__(self) -> Iterator[str]:
        return iter([*self._given, *self._sites])

    def __len__(self) -> int:
        return len(self._given) + len(self._sites)

    @cached_property
    def _point(self) -> torch.Tensor:
        return self._objective.flat(self._optimum.t)

    @cached_property
    def _jacobian(self) -> dict[str, torch.Tensor]:
        return self._objective.chart.jacobian(self._point)

    @cached_property
    def free(self) -> torch.Tensor:
        """Coordinates off the boundary, (size,)."""
        free = torch.ones(len(self._point), dtype=torch.bool)
        chart = self._objective.chart
        values = chart.values(self._point)
        zero = chart.vanishing()
        free[zero] = self._point[zero].abs() > DEGENERATE
        for entry in chart.entries:
            if entry.kind == "correlation":
                part = chart.slices[entry.name]
                free[part] = bool((values[entry.name].diagonal() ** 2 > 2 * DEGENERATE).all())
        for k in flat_ends(self._objective, self._optimum):
            free[k] = False
        vague: list[int] = []
        whole = bool(free.all())  # else what an effect of no size has besides is flat, and its size is a finding
        while (k := self._vague(free)) is not None:
            free[k] = False
            vague.append(k)
        vague = [k for k in vague if abs(float(self._point[k])) < FAR_OUT]  # the others are findings of the fit
        if vague and whole:
            names = loose_coordinates(self._objective)
            warnings.warn(
                f"the likelihood is flat along {', '.join(names[k] for k in vague)}: no standard error is given, and "
                "draws and intervals hold it at its estimate. Fix it, give it a prior (criterion='map'), or leave its "
                "part of the model out.",
                ApproximationWarning,
                stacklevel=2,
            )
        return free

    def _vague(self, free: torch.Tensor) -> int | None:
        """The coordinate that is worst known, if it is hardly known at all: the likelihood is flat along it.

        A length that ran to infinity, a share at one of its ends, the decay of an effect that is zero.
        """
        keep = np.flatnonzero(free.numpy())
        names = loose_coordinates(self._objective)
        loose = [i for i, k in enumerate(keep) if k in names]
        if not loose:
            return None
        unit = self._objective.unit[keep]
        block = self._hessian[np.ix_(keep, keep)]
        if not np.isfinite(block).all():
            return None
        values, vectors = np.linalg.eigh(block)
        if values[0] <= ROUNDING * values[-1]:  # a ridge, or no maximum along this direction
            worst = max(loose, key=lambda i: abs(vectors[i, 0]))
            return int(keep[worst]) if abs(vectors[worst, 0]) > SHARE else None
        sds = np.sqrt(np.diag(np.linalg.inv(block))) * unit
        worst = max(loose, key=lambda i: sds[i])
        return int(keep[worst]) if sds[worst] > VAGUE else None

    @property
    def _hessian(self) -> np.ndarray:
        if self._optimum.hessian is None:
            with torch.enable_grad():  # draws are asked for where gradients are off
                self._optimum.hessian = self._objective.hessian(self._optimum.t, self._optimum.gradient)
        return self._optimum.hessian

    @cached_property
    def flat(self) -> torch.Tensor:
        """Covariance on the optimiser's chart, zero in coordinates on the boundary; NaN where it is not a maximum."""
        size = len(self._point)
        out = np.zeros((size, size))
        keep = np.flatnonzero(self.free.numpy())
        if len(keep):
            block = self._hessian[np.ix_(keep, keep)]
            try:
                np.linalg.cholesky(block)
                inverse = np.linalg.inv(block)
            except np.linalg.LinAlgError:
                inverse = np.full_like(block, np.nan)
            unit = self._objective.unit[keep]
            out[np.ix_(keep, keep)] = inverse * unit[:, None] * unit[None, :]
        return torch.from_numpy(out)

    @cached_property
    def natural(self) -> torch.Tensor:
        """Covariance on the natural chart of the sites, zero in coordinates that do not move."""
        chart = natural_chart(self._sites)
        if not chart.size:
            return torch.zeros(0, 0, dtype=torch.float64)

        def convert(flat: torch.Tensor) -> torch.Tensor:
            return chart.flat(self._objective.chart.values(flat))

        jacobian = torch.nan_to_num(torch.autograd.functional.jacobian(convert, self._point), posinf=0.0, neginf=0.0)
        jacobian[:, ~self.free] = 0.0
        return jacobian @ self.flat @ jacobian.T


def point_sampler(
    program: Program,
    args: tuple[Any, ...],
    bound: BoundMarginal,
    point: Mapping[str, torch.Tensor],
    covariance: Any,
    out: tuple[str, ...],
) -> Callable[[int, int], Draws]:
    """Draws from the stated approximation: hyper-parameters normal on their natural chart, effects given the estimates.

    Random effects are drawn from their conditional distribution at the estimated variances, and follow the drawn
    coefficients. Coefficients that were profiled or integrated out are drawn from ``N(beta, (X^T V^-1 X)^-1)``.

    Parameters
    ----------
    covariance
        Has `natural` (covariance on the natural chart of the sites not in `out`) and, by item, that of the sites in
        `out`.
    """

    def draw(n: int, seed: int) -> Draws:
        generator = torch.Generator().manual_seed(seed)
        zeros = {name: torch.zeros_like(point[name]) for name in out}
        with torch.no_grad():
            record = run(program, args, {**point, **zeros})
            bound.forget()  # draws are the same whatever was evaluated before, also in another process
            conditional = bound.conditional(record)
            draws = _hyper_draws(record.hypers, point, covariance, out, n, generator)
            shifts = {name: draws[name] - point[name] for name in bound.plan.linear}
            draws.update(conditional.draw(n, generator, shifts))
        return draws

    return draw


def _hyper_draws(
    hypers: Mapping[str, Site],
    point: Mapping[str, torch.Tensor],
    covariance: Any,
    out: tuple[str, ...],
    n: int,
    generator: torch.Generator,
) -> Draws:
    chart = natural_chart({name: site for name, site in hypers.items() if name not in out})
    centre = chart.flat({entry.name: point[entry.name] for entry in chart.entries})
    noise = torch.randn(n, chart.size, generator=generator, dtype=torch.float64) @ _root(covariance.natural).T
    draws: Draws = {}
    for entry in chart.entries:
        part = chart.slices[entry.name]
        if not bool(torch.isfinite(centre[part]).all()) and entry.kind == "correlation":
            draws[entry.name] = point[entry.name].expand(n, *point[entry.name].shape)
        else:
            rows = centre[part] + noise[:, part]
            draws[entry.name] = torch.stack([entry.forward(row) for row in rows])
    for name in out:
        size = point[name].numel()
        noise = torch.randn(n, size, generator=generator, dtype=torch.float64)
        draws[name] = point[name] + noise @ _root(covariance[name]).T
    return draws


def _root(matrix: torch.Tensor) -> torch.Tensor:
    """A square root of a positive semi-definite matrix."""
    if not matrix.numel():
        return matrix
    values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix))
    return vectors * values.clamp(min=0.0).sqrt()


class LazyState(Mapping[str, torch.Tensor]):
    """What `point_sampler` needs again after loading; computed when the estimate is saved."""

    def __init__(self, covariance: PointCovariance) -> None:
        self._covariance = covariance

    def __getitem__(self, name: str) -> torch.Tensor:
        if name != "natural":
            raise KeyError(name)
        return self._covariance.natural

    def __iter__(self) -> Iterator[str]:
        return iter(("natural",))

    def __len__(self) -> int:
        return 1


class LazySpread(Mapping[str, torch.Tensor]):
    """Conditional SDs of the random effects, computed when first asked for."""

    def __init__(self, names: Iterable[str], compute: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        self._names, self._compute = tuple(names), compute

    @cached_property
    def _found(self) -> Mapping[str, torch.Tensor]:
        return self._compute()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
