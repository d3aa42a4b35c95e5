"""What a variational fit has to say about itself."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from pyromix.backends.variational.loop import EPOCHS, Progress
from pyromix.backends.variational.schedule import Settings
from pyromix.errors import ApproximationWarning, ConvergenceWarning, Status
from pyromix.results.estimate import HealthRecord
from pyromix.results.psis import FEWEST, THRESHOLD, Smoothed, psis

TAIL = 0.1  # the last part of the steps, over which the ELBO should no longer rise
ERRORS = 2.0  # standard errors of the slope that count as a rise


@dataclass(frozen=True)
class Slope:
    """Rise of the ELBO over the last steps, nats, and its Monte Carlo error."""

    rise: float
    error: float

    @classmethod
    def of(cls, elbo: list[float]) -> Slope:
        """A straight line through the last tenth of the steps, at least 50."""
        tail = np.array(elbo[-max(50, round(TAIL * len(elbo))) :])
        tail = tail[np.isfinite(tail)]
        if len(tail) < 3:
            return cls(math.nan, math.nan)
        x = np.linspace(-0.5, 0.5, len(tail))
        slope = float(x @ tail / (x @ x))
        rest = tail - tail.mean() - slope * x
        error = math.sqrt(float(rest @ rest) / (len(tail) - 2) / float(x @ x))
        return cls(slope, error)

    def rising(self, tolerance: float) -> bool:
        """Whether it exceeds chance by more than the nats that are of no consequence."""
        return self.rise > ERRORS * self.error + tolerance


@dataclass(frozen=True)
class Evidence:
    """What draws from the finished guide say of it.

    Attributes
    ----------
    elbo, error
        Mean of the log ratios and its Monte Carlo error.
    bound
        Log of the mean ratio: a lower bound in expectation, and tighter.
    smoothed
        The ratios after Pareto smoothing.
    draws
        How many.
    """

    elbo: float
    error: float
    bound: float
    smoothed: Smoothed
    draws: int

    @classmethod
    def of(cls, log_weights: np.ndarray) -> Evidence:
        finite = np.where(np.isfinite(log_weights), log_weights, -np.inf)
        top = finite.max()
        bound = float(np.log(np.mean(np.exp(finite - top))) + top)
        n = len(finite)
        error = float(np.std(finite, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        return cls(float(finite.mean()), error, bound, psis(finite), n)


def findings(
    now: Progress, slope: Slope, evidence: Evidence, settings: Settings, beta: float, per_epoch: int
) -> list[HealthRecord]:
    """Every finding; `per_epoch` is the number of batches that make up the data."""
    out = []
    if now.failed:
        what = "ELBO or gradient not finite"
        remedy = "Those steps were left out; lower lr, or give tighter priors."
        out.append(HealthRecord("svi_nan", "warn", now.failed, 0, what, remedy))
    if slope.rising(settings.tolerance) and now.status == Status.CONVERGED.name:
        steps = 2 * settings.steps
        remedy = (
            f"The ELBO still rose by {slope.rise:.3g} nats over the last tenth of the steps (Monte Carlo error "
            f"{slope.error:.2g}); use SVI(steps={steps})."
        )
        limit = round(ERRORS * slope.error + settings.tolerance, 6)
        out.append(HealthRecord("svi_not_converged", "warn", round(slope.rise, 6), limit, "ELBO", remedy))
    elif per_epoch > 1 and now.step < EPOCHS * per_epoch and now.status == Status.CONVERGED.name:
        epochs = round(now.step / per_epoch, 2)
        remedy = (
            f"Every group was seen {epochs:g} times, too seldom for the noise of batches to average out: use "
            f"SVI(steps={2 * EPOCHS * per_epoch}), or larger batch_groups."
        )
        out.append(HealthRecord("svi_not_converged", "warn", epochs, EPOCHS, "passes over the data", remedy))
    if now.status == Status.TIME_LIMIT.name:
        remedy = f"{now.step} of {settings.steps} steps were done; raise max_time, or resume from a checkpoint."
        out.append(HealthRecord("time_limit", "warn", now.step, settings.steps, "steps", remedy))
    khat = evidence.smoothed.khat
    if khat > THRESHOLD:
        remedy = (
            "The guide misses part of the posterior, so its SDs and log_evidence are doubtful: use a richer guide "
            "('group', 'full'), NestedLaplace or NUTS."
        )
        out.append(HealthRecord("khat", "warn", round(khat, 4), THRESHOLD, "guide", remedy))
    elif evidence.draws < FEWEST:
        remedy = f"The data are large, so only {evidence.draws} importance ratios were computed: too few for k-hat."
        out.append(HealthRecord("khat", "info", float("nan"), THRESHOLD, "guide", remedy))
    if beta != 1.0:
        remedy = "The divergence from the prior was weighed by beta, so this is no posterior; beta=1 gives one."
        out.append(HealthRecord("tempered", "info", beta, 1.0, "beta", remedy))
    return out


_WARNINGS = {"svi_not_converged": ConvergenceWarning, "svi_nan": ConvergenceWarning, "khat": ApproximationWarning}


def warn(found: list[HealthRecord]) -> None:
    """Give a Python warning for what a user must see."""
    for record in found:
        if record.severity == "warn" and record.code in _WARNINGS:
            message = f"{record.code}: {record.parameter} = {record.value} (limit {record.threshold}). {record.remedy}"
            warnings.warn(message, _WARNINGS[record.code], stacklevel=5)
