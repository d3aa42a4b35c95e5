"""Several fits of one set of data side by side: where they agree, in units of posterior SDs, and what each rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pyromix.errors import ConfigError, DataError
from pyromix.results import agreement_plot, quantities
from pyromix.results.quantities import Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyromix.results.fit import Fit

NAN = float("nan")
SHOWN = 6  # names of a list
_EVIDENCE = "Log evidence: estimates of log p(y), priors integrated out, compare with each other"
_BOUND = "an ELBO lies below it"
_LIKELIHOOD = "maximised likelihoods are no evidence and do not compare with it"


@dataclass(frozen=True, repr=False)
class Agreement:
    """What `agreement` found.

    Attributes
    ----------
    reference
        The fit that the others are measured against.
    table
        Data frame, a row for each parameter that the reference shares with another fit; columns (quantity, fit):
        ``estimate`` and ``sd`` of every fit, ``difference`` from the reference in the reference's SDs and
        ``sd_ratio`` over the reference's SD.
    fits
        Data frame, a row a fit: ``inference``, ``draws``, ``log_value`` and ``log_kind`` (what it is: evidence, bound,
        likelihood), ``khat``, ``ess`` (the smallest of a sampler's parameters; of importance weights), ``rhat`` (the
        largest), ``divergences``, ``seconds``, ``status``. NaN for what a fit does not have.
    effects
        Data frame, a row for each random effect, a column a fit: the largest difference of an effect's conditional
        mean from the reference's, in the reference's SDs.
    unshared
        Fit -> its parameters that are not compared.
    """

    reference: str
    table: pd.DataFrame
    fits: pd.DataFrame
    effects: pd.DataFrame
    unshared: dict[str, list[str]]
    _quantities: dict[str, dict[str, Quantity]]

    def plot(self) -> Figure:
        """Estimates with 90 % intervals, in the reference's SDs from its estimate, one colour a fit."""
        shown = list(self.table.index)
        return agreement_plot.forest(self.reference, shown, self._quantities)

    def __repr__(self) -> str:
        parts = [
            f"Agreement of {len(self.fits)} fits; differences and SD ratios against {self.reference!r}, in its "
            "posterior SDs",
            _text(self._parameter_rows()),
            _text(self._fit_rows()),
            "\n".join(self._notes()),
        ]
        return "\n\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self._notes())
        return _html(self._parameter_rows()) + _html(self._fit_rows()) + notes

    # -- rows of text ------------------------------------------------------------------------------------------------
    @property
    def _others(self) -> list[str]:
        return [name for name in self.fits.index if name != self.reference]

    def _parameter_rows(self) -> list[list[str]]:
        rows = [["", f"{self.reference}", "SD", *(cell for name in self._others for cell in (name, "SD ratio"))]]
        for parameter, row in self.table.iterrows():
            cells = [str(parameter), *_with_sd(row["estimate", self.reference], row["sd", self.reference])]
            for name in self._others:
                cells += [_cell(row["difference", name], "+.2f"), _cell(row["sd_ratio", name], ".2f")]
            rows.append(cells)
        return rows

    def _fit_rows(self) -> list[list[str]]:
        rows = [["", "inference", "log p(y)", "which is", "k-hat", "ESS", "R-hat", "divergent", "seconds", "status"]]
        for name, row in self.fits.iterrows():
            numbers = [_cell(row["khat"], ".2f"), _cell(row["ess"], ".0f"), _cell(row["rhat"], ".3f")]
            numbers += [_cell(row["divergences"], ".0f"), _cell(row["seconds"], ".3g")]
            value = _cell(row["log_value"], ".2f")
            rows.append([str(name), row["inference"], value, row["log_kind"], *numbers, row["status"]])
        keep = [k for k in range(len(rows[0])) if k < 2 or any(row[k] != "-" for row in rows[1:])]
        return [[row[k] for k in keep] for row in rows]

    def _notes(self) -> list[str]:
        notes = []
        if self._others and self.table.size:
            differences = self.table["difference"][self._others].abs()
            if differences.notna().any(axis=None):
                name = differences.max().idxmax()
                parameter = differences[name].idxmax()
                notes.append(f"Largest difference: {differences.max(axis=None):.2f} SD, {parameter} of {name!r}.")
        noise = 1 / self.fits["ess"].dropna()
        if len(noise):
            notes.append(f"Monte Carlo error of a difference: up to {math.sqrt(noise.nlargest(2).sum()):.2f} SD.")
        for effect, row in self.effects.iterrows():
            listed = ", ".join(f"{_cell(row[name], '.2f')} SD in {name!r}" for name in self._others)
            notes.append(f"Largest difference of an effect of {effect}: {listed}.")
        notes += [f"Only in {name!r} or not in the reference: {_some(names)}." for name, names in self.unshared.items()]
        kinds = " ".join(self.fits["log_kind"])
        said = [_EVIDENCE] if "evidence" in kinds else []
        said += [_BOUND] * ("bound" in kinds) + [_LIKELIHOOD] * ("likelihood" in kinds)
        return [*notes, "; ".join(said) + "."] if said else notes


def agreement(fits: Mapping[str, Fit], reference: str | None = None) -> Agreement:
    r"""Compare fits of the same data: :math:`(\hat\theta_f - \hat\theta_r) / sd_r` and :math:`sd_f / sd_r`.

    Parameters
    ----------
    fits
        Name -> fit, of any backends: posterior means and SDs stand beside estimates and standard errors.
    reference
        Whose SDs are the unit; by default the first.

    Raises
    ------
    ConfigError
        Fewer than two fits, something that is no fit, or a reference that is not among them.
    DataError
        Fits of different responses.
    """
    from pyromix.results.fit import Fit

    if not isinstance(fits, Mapping) or len(fits) < 2:
        raise ConfigError("agreement(fits): pass at least two fits by name, agreement({'ml': fit, 'nuts': other}).")
    for name, fit in fits.items():
        if not isinstance(name, str) or not isinstance(fit, Fit):
            raise ConfigError(f"agreement(fits): {name!r} is a {type(fit).__name__}; pass fits by their names.")
    reference = next(iter(fits)) if reference is None else reference
    if reference not in fits:
        raise ConfigError(f"agreement(reference={reference!r}): the fits are {', '.join(map(repr, fits))}.")
    _check_data(fits, reference)
    found = {name: quantities.parameters(fit) for name, fit in fits.items()}
    shared = [p for p in found[reference] if any(p in own for name, own in found.items() if name != reference)]
    unshared = {name: [p for p in own if p not in shared] for name, own in found.items()}
    return Agreement(
        reference=reference,
        table=_table(found, reference, shared),
        fits=pd.DataFrame({name: _describe(fit, found[name]) for name, fit in fits.items()}).T.infer_objects(),
        effects=_effects(fits, reference),
        unshared={name: names for name, names in unshared.items() if names},
        _quantities=found,
    )


# -- data -------------------------------------------------------------------------------------------------------------
def _responses(fit: Fit) -> dict[str, tuple[torch.Tensor | None, ...]]:
    """Response -> what was observed: values, trials, frequency weights, rows that count."""
    found: dict[str, tuple[torch.Tensor | None, ...]] = {}
    for name, site in fit.record.data.items():
        found[name] = (site.role.obs, site.role.trials, site.role.weights, site.role.mask)
    return found | {name: (site.value,) for name, site in fit.observed.items()}


def _check_data(fits: Mapping[str, Fit], reference: str) -> None:
    expected = _responses(fits[reference])
    for name, fit in fits.items():
        found = _responses(fit)
        if set(found) != set(expected):
            mine, its = ", ".join(sorted(found)), ", ".join(sorted(expected))
            raise DataError(f"agreement: {name!r} observes {mine}, {reference!r} {its}; compare fits of the same data.")
        for response, parts in found.items():
            if not _equal(parts[0], expected[response][0]):
                what = "other values" if _size(parts) == _size(expected[response]) else f"{_size(parts)} rows"
                raise DataError(
                    f"agreement: {name!r} was fitted to {what} of {response!r} than {reference!r} "
                    f"({_size(expected[response])} rows); compare fits of the same rows in the same order."
                )
            if not all(_equal(a, b) for a, b in zip(parts[1:], expected[response][1:], strict=False)):
                raise DataError(
                    f"agreement: {name!r} and {reference!r} differ in the trials, weights or mask of {response!r}."
                )


def _size(parts: tuple[torch.Tensor | None, ...]) -> int:
    return len(parts[0]) if parts[0] is not None and parts[0].dim() else 1


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a.to(torch.float64).nan_to_num(), b.to(torch.float64).nan_to_num())


# -- tables -----------------------------------------------------------------------------------------------------------
def _table(found: Mapping[str, Mapping[str, Quantity]], reference: str, shared: list[str]) -> pd.DataFrame:
    none = Quantity(NAN, NAN, NAN, NAN)
    columns: dict[tuple[str, str], list[float]] = {}
    base = [found[reference][p] for p in shared]
    for name, own in found.items():
        columns["estimate", name] = [own.get(p, none).estimate for p in shared]
        columns["sd", name] = [own.get(p, none).sd for p in shared]
    for name in [name for name in found if name != reference]:
        mine = [found[name].get(p, none) for p in shared]
        columns["difference", name] = [_ratio(m.estimate - b.estimate, b.sd) for m, b in zip(mine, base, strict=True)]
        columns["sd_ratio", name] = [_ratio(m.sd, b.sd) for m, b in zip(mine, base, strict=True)]
    index = pd.Index(shared, name="parameter")
    order = sorted(columns, key=lambda pair: ("estimate", "sd", "difference", "sd_ratio").index(pair[0]))
    return pd.DataFrame({pair: columns[pair] for pair in order}, index=index, dtype=float)


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit > 0 else NAN


def _effects(fits: Mapping[str, Fit], reference: str) -> pd.DataFrame:
    base = quantities.effects(fits[reference])
    others = [name for name in fits if name != reference]
    rows: dict[str, dict[str, float]] = {}
    for name in others:
        own = quantities.effects(fits[name])
        for effect in base.keys() & own.keys():
            (centre, sd), (mine, _) = base[effect], own[effect]
            if centre.shape != mine.shape or not (sd > 0).any():
                continue
            rows.setdefault(effect, {})[name] = float(np.max(np.abs(mine - centre)[sd > 0] / sd[sd > 0]))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=others) if rows else pd.DataFrame(columns=others)
    return table.reindex([effect for effect in base if effect in rows])


def _describe(fit: Fit, found: Mapping[str, Quantity]) -> dict[str, Any]:
    """What a fit rests on."""
    estimate, settings = fit.estimate, fit.estimate.settings
    value, kind = _log_value(fit)
    ess = [q.ess for q in found.values() if math.isfinite(q.ess)]
    rhat = [q.rhat for q in found.values() if not math.isnan(q.rhat)]
    diverging = (estimate.sample_stats or {}).get("diverging")
    return {
        "inference": estimate.inference.partition(";")[0],
        "draws": estimate.n_draws or 0,
        "log_value": value,
        "log_kind": kind,
        "khat": _setting(settings, "khat"),
        "ess": min(ess) if ess else _setting(settings, "effective_size"),
        "rhat": max(rhat) if rhat else NAN,
        "divergences": float(np.asarray(diverging).sum()) if diverging is not None else NAN,
        "seconds": _setting(settings, "sampling_time") + (_setting(settings, "setup_time", 0.0)),
        "status": fit.status.name.lower().replace("_", " "),
    }


def _log_value(fit: Fit) -> tuple[float, str]:
    """The number that a fit has for ``log p(y)``, and what it is."""
    estimate = fit.estimate
    if estimate.kind == "draws":
        if not math.isfinite(estimate.log_evidence):
            return NAN, "-"
        if "elbo" in estimate.settings:
            return estimate.log_evidence, "ELBO, a lower bound"
        error = _setting(estimate.settings, "evidence_error")
        return estimate.log_evidence, "evidence" + (f", +- {error:.2f}" if math.isfinite(error) else "")
    if estimate.settings.get("criterion") == "map":
        return fit.log_likelihood, "likelihood at the mode"
    return fit.log_likelihood, "restricted likelihood" if estimate.restricted else "maximised likelihood"


def _setting(settings: Mapping[str, Any], name: str, default: float = NAN) -> float:
    value = settings.get(name)
    return float(value) if isinstance(value, int | float) else default


# -- text -------------------------------------------------------------------------------------------------------------
def _cell(value: float, form: str) -> str:
    return "-" if pd.isna(value) else format(value, form)


def _with_sd(estimate: float, sd: float) -> list[str]:
    """An estimate and its SD, with two digits of the SD."""
    if not (math.isfinite(sd) and sd > 0):
        return [_cell(estimate, ".4g"), "-"]
    places = max(0, 1 - math.floor(math.log10(sd)))
    return [f"{estimate:.{places}f}", f"{sd:.{places}f}"] if places < 8 else [f"{estimate:.4g}", f"{sd:.2g}"]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _text(rows: list[list[str]]) -> str:
    from pyromix.results.summary import aligned

    words = {"", "inference", "which is", "status"}
    return aligned(rows, left=[k for k, head in enumerate(rows[0]) if head in words], gap="  ")


def _html(rows: list[list[str]]) -> str:
    head, *body = rows
    return pd.DataFrame(body, columns=head).to_html(index=False)
