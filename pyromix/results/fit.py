"""A fitted model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ConfigError, Status
from pyromix.results import (
    declared,
    field_plot,
    heritability,
    inference_data,
    logo,
    loo,
    plots,
    posterior_summary,
    predict,
    residuals,
    storage,
    summary,
    tables,
)
from pyromix.results.estimate import Draws, Estimate
from pyromix.results.health import Health
from pyromix.results.observed import Observed, run_observed
from pyromix.running import Program, Record, run
from pyromix.threads import one_thread

if TYPE_CHECKING:
    import arviz
    from matplotlib.figure import Figure

    from pyromix.marginal import AbstractMarginal

NAN = float("nan")
Description = tuple[dict[str, Any], dict[str, np.ndarray]]


def _nothing() -> Description:
    """What a fit that no facade has described adds to its file."""
    return {}, {}


class Fit:
    """A fitted model: its estimate, and everything that follows from it by running its program again.

    Parameters
    ----------
    estimate
        What the backend found.
    program, args
        The program and the arguments it was fitted to.
    design
        The design of a formula fit; then ``args == (design,)``.
    family
        The response family of a formula fit.
    formula_text
        Its formula.
    new_design
        Turns a data frame into the design to predict at; without it, new data go to the program as they are.
    forced
        Show standard errors and criteria although the fit did not converge.
    """

    def __init__(
        self,
        estimate: Estimate,
        program: Program,
        args: tuple[Any, ...],
        *,
        design: Any = None,
        family: Any = None,
        formula_text: str | None = None,
        new_design: Callable[..., Any] | None = None,
        forced: bool = False,
    ) -> None:
        self.estimate = estimate
        self.program = program
        self.args = tuple(args)
        self.design = design
        self.family = family
        self.formula = formula_text
        self.new_design = new_design
        self.describe: Callable[[], Description] = _nothing
        self._forced = forced

    # -- how it went -------------------------------------------------------------------------------------------------
    @property
    def status(self) -> Status:
        """How the fit ended."""
        return self.estimate.status

    @property
    def health(self) -> Health:
        """Findings about the fit, worst first; ``health.ok`` is False if one of them is an error."""
        return Health(self.estimate.health)

    @property
    def trusted(self) -> bool:
        """Whether standard errors and criteria are shown: the fit converged, or `force` was called."""
        return self.status.ok or self._forced

    def force(self) -> Fit:
        """The same fit with its standard errors and criteria shown although it did not converge."""
        fit = Fit(
            self.estimate,
            self.program,
            self.args,
            design=self.design,
            family=self.family,
            formula_text=self.formula,
            new_design=self.new_design,
            forced=True,
        )
        fit.describe = self.describe
        return fit

    # -- criteria ----------------------------------------------------------------------------------------------------
    @property
    def log_likelihood(self) -> float:
        """Maximised log-likelihood with all constants; under REML the restricted one.

        NaN without convergence, and for a posterior, which maximises nothing: compare posteriors by `loo`, or by
        `log_evidence`. The same holds for `aic` and `bic`.
        """
        return float(self.estimate.log_likelihood) if self.trusted else NAN

    @property
    def log_evidence(self) -> float:
        """Log marginal likelihood ``log p(y)`` under the priors, or a lower bound of it (SVI); NaN where not known."""
        return float(self.estimate.log_evidence)

    @property
    def n_parameters(self) -> int:
        """Degrees of freedom used."""
        return self.estimate.n_parameters

    @property
    def n_obs(self) -> float:
        """Observations; a row of frequency weight w counts w times."""
        return declared.tidy_count(
            sum(declared.count_rows(site) for site in self.record.data.values())
            + sum(float(site.count) for site in self.observed.values())
        )

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 k - 2 log L``."""
        return 2 * self.n_parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``k log n - 2 log L``."""
        return self.n_parameters * math.log(self.n_obs) - 2 * self.log_likelihood

    @one_thread()
    def loo(self, **how: Any) -> arviz.ELPDData:
        """Expected log predictive density of new rows, by Pareto-smoothed leave-one-out (``arviz.loo``), row by row.

        Rows that the approximation cannot leave out are named in an `ApproximationWarning`.

        Parameters
        ----------
        **how
            Options of ``arviz.loo``; ``var_name`` chooses among several responses.
        """
        return loo.leave_one_out(self, **how)

    @one_thread()
    def logo(self, group: str | None = None, marginal: AbstractMarginal | None = None) -> logo.GroupScores:
        r"""Leave-one-group-out scores :math:`\log p(y_g \mid y_{-g})`, the group's effects integrated out; no refit.

        For draws, Pareto-smoothed importance sampling over the hyper-parameters; for a point fit the plug-in
        :math:`\log p(y_g \mid \hat\theta)`, which has seen the group.

        Parameters
        ----------
        group
            Grouping factor whose levels are independent of each other given the hyper-parameters: the only factor, or
            the outermost of nested ones. By default the one there is.
        marginal
            How the effects are integrated out. By default exactly for Gaussian responses, else as the fit did, else by
            adaptive quadrature for up to two effects a group and Laplace's approximation for more.

        Raises
        ------
        UnsupportedError
            Crossed factors, an inner factor, levels that depend on each other, or effects inside a function.
        """
        return logo.leave_one_group_out(self, group, marginal)

    # -- tables ------------------------------------------------------------------------------------------------------
    def fixed_effects(self, level: float = 0.95) -> pd.DataFrame:
        """Coefficients by name: estimate, se, lower, upper.

        Parameters
        ----------
        level
            Coverage of the interval: normal (Wald) for a point fit, quantiles for draws.
        """
        return tables.fixed_effects(self, level)

    def variance_components(self) -> pd.DataFrame:
        """Variance and SD of every random term and of the residual, if there is one: group, name, variance, sd.

        For a posterior these are means, and the SD's posterior SD and 95 % interval follow: se, lower, upper.
        """
        return tables.variance_components(self)

    def correlations(self, group: str) -> pd.DataFrame:
        """Correlations of the random terms of one grouping factor, terms x terms."""
        return tables.correlations(self, group)

    @one_thread()
    def random_effects(self, group: str, what: str = "mode") -> pd.DataFrame:
        """Random effects of one grouping factor, levels x terms.

        Parameters
        ----------
        what
            ``"mode"`` for conditional modes (posterior means for draws), ``"sd"`` for their conditional SDs.

        Raises
        ------
        DataError
            No such grouping factor; the message lists them.
        """
        return tables.random_effects(self, group, what)

    @one_thread()
    def heritability(self, group: str | None = None, level: float = 0.95, *, scaled: bool = True) -> pd.DataFrame:
        r"""Share of the variance of each random effect, or of one group's: group, name, estimate, se, lower, upper.

        :math:`h^2 = v / (\sum_j v_j + \sigma^2)`, v an effect's variance at an average row, over all effects and the
        residual: heritability of relatives' effects, intraclass correlation of independent ones.

        Parameters
        ----------
        level
            Coverage of the interval: profile likelihood where there is one effect with a known matrix, else the
            delta method on the logit scale; quantiles for draws. ``attrs["interval"]`` of the table says which.
        scaled
            Whether a relationship matrix counts by the mean of its diagonal; if not, as if that were one.

        Raises
        ------
        UnsupportedError
            A response without a residual variance.
        """
        return heritability.heritability(self, group, level, scaled)

    def summary(self) -> summary.Summary:
        """Text, for a point fit in lme4's layout; findings come first unless every check passed."""
        if self.estimate.kind == "draws":
            return posterior_summary.summarize(self)
        return summary.summarize(self)

    # -- predictions -------------------------------------------------------------------------------------------------
    @one_thread()
    def predict(
        self,
        data: Any = None,
        kind: str = "mean",
        new_groups: str = "error",
        level: float = 0.9,
        seed: int = 0,
        *,
        condition_on: Any = None,
        offset: Any = None,
        missing: str = "propagate",
    ) -> Any:
        """Predict at the training rows or at new ones by running the same program.

        Parameters
        ----------
        data
            ``None`` for the training rows; a data frame for a formula fit, else what the program takes. Its response,
            if it has one, is never read.
        kind
            ``"mean"``: expected response, float64 (n,); a probability for binomial responses whatever the trials.
            ``"linear"``: predictor on the link scale with its offset.
            ``"interval"``: data frame (mean, lower, upper), the central `level` interval of a new observation;
            binomial counts as proportions of their trials.
            ``"draws"``: draws of the expected response, xarray (chain, draw, obs_id).
        new_groups
            What a level that the fit has not seen gets. ``"error"``: refuse. ``"zero"``: no effect. ``"marginal"``: its
            prior, integrated over in a mean, drawn in intervals and draws. ``"conditional"``: its distribution given
            the known levels, which equals the prior where levels are independent.
            Levels that `condition_on` has rows of are not among them.
        level
            Coverage of the interval.
        seed
            Seed of draws; means and linear predictors of point fits use none.
        condition_on
            Rows of new groups with their response, from which the groups' effects are learnt without fitting again: a
            data frame for a formula fit, else what the program takes, new levels numbered -1, -2, ... as in `data`.
            At every draw they are drawn from their conditional distribution (at the conditional mode for the mean of
            a point fit, as known groups are); hyper-parameters and known groups keep the fit's draws and learn
            nothing. Exact for Gaussian responses, else by importance resampling about the mode. Rows count once and
            with precision weight one.
        offset
            Offset of the new rows, where the model was given ``offset=`` as an array or Series.
        missing
            Rows of a data frame with missing values: ``"propagate"`` predicts NaN for them, ``"error"`` refuses.

        Raises
        ------
        UnseenLevelError
            A level not seen in the fit, under ``"error"``.
        DataError
            A row of `condition_on` whose groups are all known to the fit.
        UnsupportedError
            `condition_on` for a structure whose levels depend on each other, or where effects do not enter the
            predictor linearly; ``"marginal"`` or ``"conditional"`` for such a structure where new levels have no labels
            to place them by.
        StructureError
            A new level that its structure has no place for: a time before the start of a random walk, half a step.
        """
        how = {} if missing == "propagate" else {"missing": missing}
        return predict.predict(self, data, kind, new_groups, level, seed, condition_on, offset=offset, **how)

    def fitted(self) -> np.ndarray:
        """Expected response at the training rows, (n,)."""
        return predict.predict(self, None, "mean", "error", 0.9, 0)

    def residuals(self, kind: str = "response") -> np.ndarray:
        """Residuals at the training rows, (n,).

        Parameters
        ----------
        kind
            ``"response"``: y - mean. ``"pearson"``: over the response's SD. ``"normalized"``: those of independent
            rows, where residuals are correlated: given the rows before, over what their SD leaves.
        """
        return residuals.residuals(self, kind)

    # -- draws and runs of the program -------------------------------------------------------------------------------
    @cached_property
    @one_thread()
    def idata(self) -> arviz.InferenceData:
        """The fit as ArviZ groups; a point fit's posterior holds draws from its stated Gaussian approximation."""
        return inference_data.inference_data(self)

    @cached_property
    def record(self) -> Record:
        """One run of the program at the estimate: what it declared."""
        return self.run(declared.values_of(self.estimate))

    @cached_property
    def observed(self) -> dict[str, Observed]:
        """Observed sites of the program that are Pyro's own, at the estimate."""
        return run_observed(self, declared.values_of(self.estimate))[1]

    @property
    def n_draws(self) -> int:
        """Draws that a draw-based result uses by default."""
        return self.estimate.n_draws or predict.POINT_DRAWS

    def draws(self, count: int | None = None, seed: int = 0) -> Draws:
        """Draws of every site, by name, (count, ...): the posterior's, or those of a point fit's approximation."""
        count = count or self.n_draws
        if count < 1:
            raise ConfigError(f"draws({count}): at least one draw is needed.")
        return self.estimate.draw(count, seed)

    def run(self, values: Mapping[str, torch.Tensor]) -> Record:
        """Run the program at the training rows under these site values."""
        with torch.no_grad():
            return run(self.program, self.args, values)

    def records(self, count: int, seed: int = 0) -> Iterator[Record]:
        """Runs of the program at the training rows, one for each draw."""
        draws = self.draws(count, seed)
        for s in range(count):
            yield self.run({name: value[s] for name, value in draws.items()})

    def covariances(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """SDs (q,) and correlations (q, q) of the terms of each random effect."""
        return self._covariances

    @cached_property
    def _covariances(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return tables.covariances(self)

    @cached_property
    def covariance_draws(self) -> dict[str, np.ndarray]:
        """Covariance of the terms of each random effect at draws of a posterior, (draws, q, q)."""
        return tables.covariance_draws(self)

    # -- plots -------------------------------------------------------------------------------------------------------
    def plot_fitted(self, x: str | None = None, group: str | None = None, groups: Sequence[Any] | int = 12) -> Figure:
        """Data, population line and fitted line with its interval, one panel a group.

        Parameters
        ----------
        x
            Column of the fixed effects on the horizontal axis; by default the first that is not constant.
        group
            Grouping factor; by default the one with most levels.
        groups
            Levels to show, or how many, evenly spaced by their random effect.
        """
        return plots.plot_fitted(self, x, group, groups)

    def plot_caterpillar(self, group: str | None = None, term: str | None = None) -> Figure:
        """Sorted conditional modes of one grouping factor with 95 % intervals, one panel a term."""
        return plots.plot_caterpillar(self, group, term)

    def plot_field(
        self, group: str | None = None, term: str | None = None, at: Sequence[Any] | None = None, draws: int = 200
    ) -> Figure:
        """Effects over times or places with their uncertainty: curves with 90 % bands, or maps of mean and SD.

        Parameters
        ----------
        group, term
            The grouping factor, by default the one with most levels, and the effect of a level, by default the first.
        at
            Further times or places, predicted given the known ones; for a map by default a grid around the places.
        draws
            Draws of the fit that mean and limits are taken over.

        Raises
        ------
        UnsupportedError
            Levels that are neither times nor places in a line or a plane.
        """
        return field_plot.plot_field(self, group, term, at, draws)

    def plot_residuals(self) -> Figure:
        """Pearson residuals against fitted values, and their normal quantile plot."""
        return plots.plot_residuals(self)

    # -- files -------------------------------------------------------------------------------------------------------
    def to_payload(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What `save` writes: a specification (JSON) and arrays by name."""
        return storage.fit_to_payload(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fit to exactly this path, whole or not at all; read it with `pyromix.load`."""
        storage.write_container(path, *self.to_payload())

    def __repr__(self) -> str:
        what = self.formula or getattr(self.program, "__name__", type(self.program).__name__)
        estimate = self.estimate
        found = f"logLik {self.log_likelihood:.2f}"
        if estimate.kind == "draws":
            found = f"{estimate.chains} x {self.n_draws // estimate.chains} draws"
        return f"<Fit {what!r}: {estimate.inference}, {found}, {self.status.name.lower()}>"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()
