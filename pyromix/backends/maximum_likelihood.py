"""Maximum (marginal, restricted or penalised) likelihood."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch.distributions import constraints

from pyromix.backends import diagnose
from pyromix.backends.base import AbstractBackend
from pyromix.backends.centre import centre_outputs
from pyromix.backends.chart import FactorEntry, natural_chart
from pyromix.backends.checkpoint import Checkpoint, identity
from pyromix.backends.journal import Journal
from pyromix.backends.point import LazySpread, LazyState, PointCovariance, point_sampler
from pyromix.backends.quasi_newton import Objective, Optimum, make_chart, maximise, polish
from pyromix.backends.scales import factor_entries, hyper_scales
from pyromix.backends.training import Trained, Training, evaluating, modules_of, train
from pyromix.errors import ConfigError, NumericalError, UnsupportedError
from pyromix.marginal import AbstractMarginal, Exact, Laplace
from pyromix.marginal.correlated import BoundCorrelated
from pyromix.marginal.exact import BoundExact
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.plan import Plan, data_of, make_plan
from pyromix.marginal.quadrature import BoundQuadrature
from pyromix.marginal.rotated import BoundRotated
from pyromix.marginal.start import coefficient_start, without_effects
from pyromix.results.estimate import Estimate
from pyromix.running import Program, Record, Site, run

CRITERIA = ("ml", "reml", "map")
SNAP = 1e-2  # of a typical SD: below this, an SD of exactly zero is tried
SNAP_LOSS = 1e-8  # log-likelihood that may be lost by it
CONVERGED = 1e-8  # decrement: twice the log-likelihood still to be gained


class MaximumLikelihood(AbstractBackend):
    r"""Point estimates of hyper-parameters and network weights from the marginal likelihood.

    Without networks: BFGS with exact gradients on a chart where every coordinate is about one standard error long,
    started from the joint mode of coefficients and effects. With networks: Adam, then BFGS on the hyper-parameters
    (`pyromix.Training`).

    Parameters
    ----------
    marginal
        How random effects are integrated out: `pyromix.Exact`, `pyromix.Laplace` or `pyromix.GaussHermite`; by default
        exact for Gaussian responses with identity link, Laplace for everything else.
    criterion
        ``"ml"``; ``"reml"``, which integrates the linear coefficients over a flat prior (Gaussian responses, linear
        mean); ``"map"``, which adds the log priors (densities of the hyper-parameters as they are declared: no
        Jacobian).
    max_evaluations
        Limit on quasi-Newton iterations.
    tolerance
        Gradient, per approximate standard error, at which the search stops.
    training
        How networks are trained; defaults apply if omitted.
    checkpoint
        A file to which training, or the search, saves its state, and from which it resumes if the file exists: the
        result is that of an uninterrupted fit.

    Notes
    -----
    Standard errors: for Gaussian responses :math:`(X^T V^{-1} X)^{-1}` at the estimated variances (as lme4), otherwise
    the observed information of all hyper-parameters (as glmmTMB, and glmer).
    """

    def __init__(
        self,
        marginal: AbstractMarginal | None = None,
        criterion: str = "ml",
        *,
        max_evaluations: int = 500,
        tolerance: float = 3e-5,
        training: Training | None = None,
        checkpoint: str | PathLike[str] | None = None,
    ) -> None:
        if marginal is not None and not isinstance(marginal, AbstractMarginal):
            raise ConfigError(
                f"MaximumLikelihood(marginal={marginal!r}): pass an instance of Exact, Laplace or GaussHermite, or "
                "None."
            )
        if criterion not in CRITERIA:
            allowed = ", ".join(map(repr, CRITERIA))
            raise ConfigError(
                f"MaximumLikelihood(criterion={criterion!r}): unknown criterion; choose one of {allowed}."
            )
        if not isinstance(max_evaluations, int) or max_evaluations < 1:
            raise ConfigError(f"MaximumLikelihood(max_evaluations={max_evaluations!r}): must be a positive integer.")
        if not 0 < tolerance < 1:
            raise ConfigError(f"MaximumLikelihood(tolerance={tolerance!r}): must lie between 0 and 1.")
        self.marginal, self.criterion = marginal, criterion
        self.max_evaluations, self.tolerance = max_evaluations, tolerance
        self.training, self.checkpoint = training, checkpoint

    def estimate(self, program: Program, args: tuple[Any, ...], *, seed: int = 0, progress: bool = True) -> Estimate:
        with evaluating(modules_of(program, args)):
            plan = make_plan(program, args, seed)
            _check_weights(program, args)
            marginal = self._choose(program, args, plan)
            trained = self.train(program, args, plan, seed, progress) if plan.modules else None
            search = Search(self, marginal, program, args, plan, trained)
            if self.checkpoint is not None and trained is None:
                every = (self.training or Training()).checkpoint_every
                belongs = identity(self.settings(marginal), {}, plan, args)
                search.objective.journal = Journal(Checkpoint(self.checkpoint, belongs, every), search.bound)
            return search.estimate(progress)

    def train(self, program: Program, args: tuple[Any, ...], plan: Plan, seed: int, progress: bool) -> Trained:
        """Train networks where they stand, coefficients among the hyper-parameters."""
        centre_outputs(program, args, plan)
        marginal = self._choose(program, args, plan)
        kept = Exact() if isinstance(marginal, Exact) else marginal
        start = Search(self, kept, program, args, plan, None)
        return train(start, self.training or Training(), self.checkpoint, seed=seed, progress=progress)

    def _choose(self, program: Program, args: tuple[Any, ...], plan: Plan) -> AbstractMarginal:
        """The marginaliser, told what to do with linear coefficients."""
        role = data_of(run(program, args, hypers="moderate", seed=0))
        gaussian = role.family.gaussian_sd(**role.dispersion) is not None
        marginal = self.marginal
        if marginal is None:
            marginal = Exact() if gaussian and plan.affine else Laplace()
        if self.criterion == "reml":
            if gaussian and not isinstance(marginal, Exact):
                raise UnsupportedError(
                    f"MaximumLikelihood({marginal!r}, criterion='reml'): restricted likelihood is computed by Exact(); "
                    "leave marginal= out, or use criterion='ml'."
                )
            if not isinstance(marginal, Exact) or not plan.linear or plan.modules:
                raise UnsupportedError(
                    "MaximumLikelihood(criterion='reml'): restricted likelihood integrates linear coefficients of a "
                    f"Gaussian response with identity link; this program observes {role.family!r}"
                    f"{' through a network' if plan.modules else ''}. Use criterion='ml'."
                )
            return Exact("integrate")
        profiled = self.criterion == "ml" and isinstance(marginal, Exact) and plan.linear and not plan.moving
        return Exact("profile") if profiled else marginal

    def settings(self, marginal: AbstractMarginal) -> dict[str, Any]:
        """This configuration as plain values."""
        return {
            "backend": "MaximumLikelihood",
            "criterion": self.criterion,
            "marginal": marginal.config(),
            "tolerance": self.tolerance,
            "max_evaluations": self.max_evaluations,
        }


def _check_weights(program: Program, args: tuple[Any, ...]) -> None:
    """Weights with priors are no business of a point estimate."""
    for name, site in run(program, args, hypers="moderate", seed=0).functions.items():
        if site.role.random:
            raise UnsupportedError(
                f"NeuralEffect({name!r}): with prior= its weights are hyper-parameters, to be sampled (NUTS, SVI). "
                "Here use prior=None and Training(weight_decay=...)."
            )


class Search:
    """One maximisation: chart, objective, optimum and what is reported of it."""

    def __init__(
        self,
        backend: MaximumLikelihood,
        marginal: AbstractMarginal,
        program: Program,
        args: tuple[Any, ...],
        plan: Plan,
        trained: Trained | None,
    ) -> None:
        self.backend, self.marginal, self.program, self.args, self.plan = backend, marginal, program, args, plan
        self.trained = trained
        self.bound = marginal.bind(program, args, plan)
        self.scales, self.base, self.glm = hyper_scales(program, args, plan, self.bound)
        self.out = self.bound.out
        self.sites = {name: site for name, site in self.base.hypers.items() if name not in self.out}
        self.zeros = {name: torch.zeros_like(self.base.hypers[name].value.detach()) for name in self.out}
        starts, rotations = self._starts()
        supports = {name: self._support(site) for name, site in self.sites.items()}
        free = {name for name, support in supports.items() if support is self.sites[name].role.support}
        factors = self._factors(free)
        self.chart, unit = make_chart(self.sites, self.scales, rotations, supports, factors)
        if self.trained is None:
            for entry in factors:
                if entry.tied:
                    starts.update(entry.forward(entry.start))
        origin = self.chart.flat(starts).detach().numpy()
        self.objective = Objective(program, args, self.bound, self.chart, origin, unit, self.zeros, self._penalty())

    # -- where to start ----------------------------------------------------------------------------------------------
    def _starts(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Starting values, and a root of the approximate covariance of every coefficient vector."""
        starts = {name: self.scales[name].start for name in self.sites}
        if self.trained is not None:
            starts.update({name: self.trained.values[name] for name in self.sites})
        linear = {name: design for name, design in self.plan.linear.items() if name in self.sites}
        if not linear or not self._identified(linear):
            return starts, {}
        origin = {**starts, **{name: torch.zeros_like(starts[name]) for name in linear}}
        record = run(self.program, self.args, origin)
        estimate, covariance = self._coefficients(record)
        rotations, at = {}, 0
        for name, design in linear.items():
            part = slice(at, at + design.shape[1])
            at += design.shape[1]
            if self.trained is None:
                starts[name] = torch.from_numpy(estimate[part].copy())
            rotations[name] = _root(torch.from_numpy(covariance[part, part].copy()))
        return starts, rotations

    def _identified(self, linear: dict[str, torch.Tensor]) -> bool:
        """Whether the data alone determine the coefficients; with priors they need not."""
        if self.backend.criterion != "map":
            return True
        joint = torch.cat(list(linear.values()), dim=1)
        return int(torch.linalg.matrix_rank(joint)) == joint.shape[1]

    def _coefficients(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Approximate estimate and covariance of all linear coefficients at the starting variances."""
        if isinstance(self.bound, BoundExact):
            profile = BoundExact(self.plan, "profile")
            found = profile.joint_coefficients(record)
            return found
        affine = self.bound.laplace if isinstance(self.bound, BoundQuadrature) else self.bound
        if isinstance(affine, BoundLaplace):
            problem, _, _ = affine.problem(record)
            estimate, covariance, effects = coefficient_start(self.plan, problem, self.glm)
            affine.warm = effects
            return estimate, covariance
        if isinstance(self.bound, BoundCorrelated) and self.bound.rows is not None:
            return self.bound.rows.coefficients(record)
        if isinstance(self.bound, (BoundCorrelated, BoundRotated)):
            return without_effects(self.plan, record, self.glm)
        size = sum(design.shape[1] for design in self.plan.linear.values())
        return np.zeros(size), np.eye(size)

    def _support(self, site: Site) -> constraints.Constraint:
        """Where the optimum may lie: under MAP, not where the prior density is zero."""
        support = site.role.support
        if self.backend.criterion == "map" and support is constraints.nonnegative:
            at_zero = site.fn.log_prob(torch.zeros_like(site.value)).sum()
            return support if bool(torch.isfinite(at_zero)) else constraints.positive
        return support

    def _factors(self, free: set[str]) -> list[FactorEntry]:
        """SDs and correlations of unstructured blocks that are searched together."""
        return [e for e in factor_entries(self.base, self.sites, self.scales) if {e.sd, e.corr} <= free]

    def _penalty(self) -> Callable[[Record], torch.Tensor] | None:
        """What the log likelihood is penalised by: the log prior, under MAP."""
        return Record.log_prior if self.backend.criterion == "map" else None

    # -- the search --------------------------------------------------------------------------------------------------
    def estimate(self, progress: bool) -> Estimate:
        """Maximise and report."""
        backend, objective = self.backend, self.objective
        optimum = self._climb(backend.tolerance, progress, None)
        if not np.isfinite(optimum.loss) or optimum.loss >= 1e9:
            raise NumericalError(
                f"the likelihood could not be computed at the start ({objective.failure}); check the data's scale, or "
                "give priors."
            )
        if optimum.decrement > CONVERGED and "iterations" not in optimum.message:
            # flat or curved the wrong way on the path: go on, with a fresh model of the curvature
            optimum = self._climb(backend.tolerance / 10, progress, optimum.t)
        optimum = self._snap(optimum)
        if objective.journal is not None:
            objective.journal.close()
            objective.journal = None
        return self._report(optimum)

    @property
    def newton(self) -> bool:
        """Whether the search ends with Newton steps: the information is wanted anyway where nothing is profiled."""
        return not isinstance(self.bound, BoundExact)

    def _climb(self, tolerance: float, progress: bool, start: np.ndarray | None) -> Optimum:
        """BFGS, then Newton steps where they pay or are needed."""
        limit = self.backend.max_evaluations
        optimum = maximise(self.objective, max_evaluations=limit, tolerance=tolerance, progress=progress, start=start)
        return polish(self.objective, optimum) if self.newton or optimum.decrement > CONVERGED else optimum

    def _snap(self, optimum: Optimum) -> Optimum:
        """Put SDs that are all but zero at zero, where that costs nothing."""
        flat = self.objective.flat(optimum.t).numpy()
        for k in self.chart.vanishing():
            if abs(flat[k]) >= SNAP:
                continue
            t = optimum.t.copy()
            t[k] = -self.objective.origin[k] / self.objective.unit[k]
            loss, gradient = self.objective(t)
            if loss <= optimum.loss + SNAP_LOSS:
                optimum.t, optimum.loss, optimum.gradient = t, min(loss, optimum.loss + SNAP_LOSS), gradient
        return optimum

    def _generalised(self, record: Record) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """``(X^T V^-1 X)^-1`` of coefficients of a Gaussian response that stayed in the search."""
        plan = self.plan
        exact = isinstance(self.marginal, Exact) and isinstance(self.bound, BoundCorrelated)
        if self.backend.criterion != "ml" or not exact or not plan.linear or plan.moving:
            return {}
        with torch.no_grad():
            return Exact("integrate").bind(self.program, self.args, plan).coefficients_at(record)

    def _report(self, optimum: Optimum) -> Estimate:
        flat = self.objective.flat(optimum.t)
        with torch.no_grad():
            record = self.objective.record(flat)
            conditional = self.bound.conditional(record)
            log_likelihood = float(self.bound.log_marginal(record))
        point = {name: site.value.detach() for name, site in record.hypers.items()}
        coefficients = self.bound.coefficients_at(record)
        point.update({name: estimate for name, (estimate, _) in coefficients.items()})
        given = {name: cov for name, (_, cov) in (coefficients or self._generalised(record)).items()}
        covariance = PointCovariance(self.objective, optimum, self.sites, given)
        findings = diagnose.findings(self, optimum, point, record, log_likelihood)
        findings += self.trained.health if self.trained is not None else ()
        status = diagnose.status(findings, optimum, self.trained)
        diagnose.warn(findings)
        weights = sum(
            p.numel() for module in self.plan.modules.values() for p in module.parameters() if p.requires_grad
        )
        kept = sum(entry.size for entry in natural_chart(self.base.hypers).entries)
        return Estimate(
            kind="point",
            inference=f"{self.backend.criterion.upper()}, {self.marginal.label}",
            point={name: point[name] for name in self.base.hypers},
            latents=conditional.mode,
            latent_sd=LazySpread(conditional.mode, lambda: conditional.shown_sd(record)),
            covariance=covariance,
            draw=point_sampler(self.program, self.args, self.bound, point, covariance, tuple(self.out)),
            log_likelihood=log_likelihood,
            n_parameters=kept + weights,
            status=status,
            health=tuple(findings),
            settings={
                **self.backend.settings(self.marginal),
                "out": list(self.out),
                "evaluations": self.objective.evaluations,
            },
            state=LazyState(covariance),
        )


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """An invertible root of a covariance that rounding may have made singular; it only sets the search's units."""
    scale = covariance.diagonal().clamp(min=1e-300).sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale[:, None] / scale)
    return scale[:, None] * vectors * values.clamp(min=1e-12).sqrt()
