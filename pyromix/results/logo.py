r"""Leave-one-group-out scores without fitting again.

Given the hyper-parameters the groups are independent, so a posterior of the hyper-parameters alone gives

.. math:: p(y_g \mid y_{-g}) = \Big( E_{\theta \mid y} \frac{1}{p(y_g \mid \theta)} \Big)^{-1},
    \qquad p(y_g \mid \theta) = \int p(y_g \mid u_g, \theta)\, p(u_g \mid \theta)\, du_g,

with the group's random effects integrated out: importance weights :math:`1 / p(y_g \mid \theta_s)`, Pareto-smoothed
[1]_, over the fit's draws. This scores the prediction of a new group's rows as a whole.

References
----------
.. [1] Merkle, Furr & Rabe-Hesketh (2019), Bayesian comparison of latent variable models: conditional versus marginal
   likelihoods, Psychometrika 84, 802-829; Vehtari, Gelman & Gabry (2017), Statistics and Computing 27, 1413-1432.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ApproximationWarning, ConfigError, UnsupportedError
from pyromix.marginal import AbstractMarginal, GaussHermite, from_config
from pyromix.marginal.plan import make_plan
from pyromix.marginal.quadrature import MAX_EFFECTS
from pyromix.marginal.units import Units
from pyromix.results import declared
from pyromix.results.condition import batch
from pyromix.results.draws import Values
from pyromix.results.rows import refuse_chained, response_site, tidy_labels
from pyromix.running import Record
from pyromix.sites import RowMap

if TYPE_CHECKING:
    import arviz
    import xarray

    from pyromix.results.fit import Fit

NODES = {1: 15, 2: 7}  # of quadrature by default, by the number of effects of a group
ENTRIES = 20_000_000  # of an array (draws, rows)
_PLUG_IN = "plug-in at the estimate, which has seen every group: optimistic, no posterior was averaged over"


@dataclass(frozen=True)
class GroupScores:
    """Leave-one-group-out scores of a fit.

    Attributes
    ----------
    group
        The grouping factor.
    elpd, se
        Summed expected log predictive density of the groups, and its standard error over groups.
    p_logo
        Effective number of parameters; NaN for a point fit.
    table
        Data frame by level: elpd, khat (of the importance weights; above 0.7 the level's score is not to be trusted;
        NaN for a point fit), rows.
    marginal
        How the random effects were integrated out.
    note
        What to know about the number, empty if nothing.
    arviz
        The same as ``arviz.ELPDData``, for ``arviz.compare``; ``None`` for a point fit.
    log_likelihood
        ``log p(y_g | theta_s)``, xarray (chain, draw, level).
    """

    group: str
    elpd: float
    se: float
    p_logo: float
    table: pd.DataFrame
    marginal: str
    note: str
    arviz: arviz.ELPDData | None = field(repr=False)
    log_likelihood: xarray.DataArray = field(repr=False)

    def __repr__(self) -> str:
        lines = [
            f"Leave-one-group-out by {self.group}: {len(self.table)} groups, {int(self.table['rows'].sum())} rows",
            f"elpd_logo {self.elpd:10.2f}  se {self.se:.2f}",
        ]
        if self.arviz is not None:
            khat = self.table["khat"]
            lines.append(f"p_logo    {self.p_logo:10.2f}")
            lines.append(f"Pareto k-hat: largest {khat.max():.2f}, above 0.7 for {int((khat > 0.7).sum())} groups")
        lines.append(f"Random effects integrated out: {self.marginal}")
        return "\n".join([*lines, self.note] if self.note else lines)


def leave_one_group_out(fit: Fit, group: str | None, marginal: AbstractMarginal | None) -> GroupScores:
    """`Fit.logo`."""
    units, factor, levels = _units(fit, group)
    nodes, label = _nodes(fit, units, marginal)
    values, count, chains = _values(fit)
    log_likelihood = _log_likelihoods(fit, units, nodes, values, count)
    order = torch.from_numpy(_unit_of_level(units, fit, factor))
    array = _array(declared.numpy_of(log_likelihood[:, order]), chains, factor, levels)
    rows = np.bincount(units.label, minlength=units.count)[order.numpy()]
    if fit.estimate.kind != "draws":
        scores = array.to_numpy()[0, 0]
        table = pd.DataFrame({"elpd": scores, "khat": np.nan, "rows": rows}, index=pd.Index(levels, name=factor))
        se = float(np.sqrt(len(scores) * scores.var()))
        return GroupScores(factor, float(scores.sum()), se, float("nan"), table, label, _PLUG_IN, None, array)
    found = _smoothed(array, values)
    khat = found["pareto_k"].to_numpy()
    columns = {"elpd": found["loo_i"].to_numpy(), "khat": khat, "rows": rows}
    table = pd.DataFrame(columns, index=pd.Index(levels, name=factor))
    _warn(table, factor)
    elpd, se, p_logo = (float(found[key]) for key in ("elpd_loo", "se", "p_loo"))
    return GroupScores(factor, elpd, se, p_logo, table, label, "", found, array)


# -- the groups -------------------------------------------------------------------------------------------------------
def _units(fit: Fit, group: str | None) -> tuple[Units, str, list[Any]]:
    """The independent units, the factor whose levels they are, and those levels' labels."""
    record = fit.record
    factors = declared.groups(record)
    if not factors:
        raise UnsupportedError("logo(): the program has no random effects, so it has no groups; use fit.loo().")
    if group is not None:
        declared.effects_of(record, group)  # refuses an unknown factor
    if record.plain:
        names = ", ".join(map(repr, record.plain))
        raise UnsupportedError(
            f"logo(): {names} are sites of Pyro's own, which cannot be integrated out; use fit.loo()."
        )
    refuse_chained(record, "logo()")
    site = response_site(record)
    for name, latent in record.latents.items():
        if latent.fn.operator.block is None:
            raise UnsupportedError(f"logo(): the levels of {name!r} depend on each other; fit again without a level.")
    if not make_plan(fit.program, fit.args).affine:
        raise UnsupportedError("logo(): the predictor is not affine in the random effects; fit again without a group.")
    units = Units({name: _present(latent.role.rows) for name, latent in record.latents.items()}, site.role)
    for factor in [group] if group is not None else factors:
        levels = units.level_unit[factors[factor][0].name]
        if len(np.unique(levels)) == len(levels) == units.count:
            role = factors[factor][0].role
            return units, factor, [role.levels[k] for k in torch.unique(role.rows.index).tolist()]
    raise UnsupportedError(_dependent(units, group, list(factors)))


def _present(rows: RowMap) -> RowMap:
    """The same row map with the levels that have rows numbered from zero."""
    _, index = torch.unique(rows.index, return_inverse=True)
    return RowMap(index, rows.design, rows.weight)


def _dependent(units: Units, group: str | None, factors: list[str]) -> str:
    others = ", ".join(name for name in factors if name != group)
    if group is None:
        return (
            f"logo(): the factors {', '.join(factors)} are crossed (the rows fall into {units.count} independent "
            f"part{'s' * (units.count != 1)}), so what is known of one level depends on all the rows. Use fit.loo() "
            "for scores of rows, or fit again without a level."
        )
    return (
        f"logo(group={group!r}): rows of different levels share random effects"
        f"{f' (the other factors are {others})' if others else ''}, so a level's rows are not independent of the rest "
        "given the hyper-parameters. Name the outermost of nested factors, or fit again without a level."
    )


def _unit_of_level(units: Units, fit: Fit, factor: str) -> np.ndarray:
    return units.level_unit[declared.groups(fit.record)[factor][0].name]


# -- how they are integrated -------------------------------------------------------------------------------------------
def _nodes(fit: Fit, units: Units, marginal: AbstractMarginal | None) -> tuple[int, str]:
    """Nodes of quadrature, and what the method is called."""
    role, size = units.role, int(units.effects.max())
    if marginal is not None and not isinstance(marginal, AbstractMarginal):
        raise ConfigError(f"logo(marginal={marginal!r}): pass an instance such as pyromix.GaussHermite(15).")
    if role.family.gaussian_sd(**role.dispersion) is not None:
        return 1, "exactly"
    if marginal is None and isinstance(fit.estimate.settings.get("marginal"), dict):
        marginal = from_config(fit.estimate.settings["marginal"])
    if isinstance(marginal, GaussHermite):
        if size > MAX_EFFECTS:
            raise UnsupportedError(
                f"logo(): a group has {size} effects, {marginal.nodes}^{size} nodes; at most {MAX_EFFECTS} are "
                "supported. Pass marginal=pyromix.Laplace()."
            )
        nodes = marginal.nodes
    else:
        nodes = NODES.get(size, 1) if marginal is None else 1
    return nodes, f"adaptive Gauss-Hermite, {nodes} nodes" if nodes > 1 else "Laplace"


# -- the scores --------------------------------------------------------------------------------------------------------
def _values(fit: Fit) -> tuple[Values, int, int]:
    """Draws of the hyper-parameters (one for a point fit, the estimate), how many, and of how many chains."""
    if fit.estimate.kind != "draws":
        return {name: fit.estimate.point[name][None] for name in fit.record.hypers}, 1, 1
    draws = fit.draws()
    return {name: draws[name] for name in fit.record.hypers}, fit.n_draws, fit.estimate.chains


def _log_likelihoods(fit: Fit, units: Units, nodes: int, values: Values, count: int) -> torch.Tensor:
    """``log p(y_g | theta_s)``, (S, units); blocks of draws keep memory in bounds."""
    step = max(1, ENTRIES // max(len(units.label), 1))
    numbers = torch.arange(count)  # so that there is something to map over where every parameter is fixed

    def at(draw: Values) -> Record:
        return fit.run({name: value for name, value in draw.items() if name in values})

    parts = []
    for start in range(0, count, step):
        some = {name: value[start : start + step] for name, value in values.items()}
        some["draw\0"] = numbers[start : start + step]
        parts.append(units.log_marginal(batch(at, some, units.designs), nodes))
    return torch.cat(parts)


def _array(values: np.ndarray, chains: int, factor: str, levels: list[Any]) -> xarray.DataArray:
    import xarray

    chains = chains if len(values) % chains == 0 else 1
    shaped = values.reshape(chains, -1, values.shape[1])
    dim = f"{factor}_level"
    coords = {"chain": np.arange(chains), "draw": np.arange(shaped.shape[1]), dim: tidy_labels(levels)}
    return xarray.DataArray(shaped, dims=("chain", "draw", dim), coords=coords, name="log_likelihood")


def _smoothed(array: xarray.DataArray, values: Values) -> arviz.ELPDData:
    import arviz

    chains = array.sizes["chain"]
    posterior = {name: declared.numpy_of(v).reshape(chains, -1, *v.shape[1:]) for name, v in values.items()}
    idata = arviz.from_dict(posterior=posterior or {"none": np.zeros(array.shape[:2])})
    idata.add_groups({"log_likelihood": array.to_dataset()})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto distribution", UserWarning)
        return arviz.loo(idata, pointwise=True)


def _warn(table: pd.DataFrame, factor: str) -> None:
    bad = table.index[table["khat"] > 0.7]
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        warnings.warn(
            f"logo(): Pareto k-hat is above 0.7 for {len(bad)} of {len(table)} levels of {factor} ({shown}): their "
            "scores cannot be had from draws that have seen them. Fit again without each of them.",
            ApproximationWarning,
            stacklevel=4,
        )
