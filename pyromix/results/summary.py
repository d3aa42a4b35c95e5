"""The printed summary, in lme4's layout."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from pyromix.results import declared
from pyromix.results.tables import coefficient_covariance, split_covariance
from pyromix.running import Site

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

DIGITS = 4


class Summary(str):
    """Text that shows itself as it is, in a terminal and in a notebook."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def summarize(fit: Fit) -> Summary:
    """The summary of a fit."""
    parts = [header(fit), _criteria(fit), _residuals(fit), _random(fit), _fixed(fit), _correlation(fit)]
    if fit.health or not fit.status.ok:
        quiet = fit.status.ok and all(record.severity == "info" for record in fit.health)
        parts.insert(len(parts) if quiet else 0, findings(fit))
    return Summary("\n\n".join(part for part in parts if part))


# -- numbers as R prints them -----------------------------------------------------------------------------------------
def decimals(values: Sequence[float] | np.ndarray, digits: int = DIGITS) -> int:
    """Decimal places that R's ``format`` takes: enough for the number that needs most, at `digits` significant ones."""
    needed = 0
    for value in np.asarray(values, dtype=float).reshape(-1):
        if math.isfinite(value) and value != 0:
            mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
            significant = len(mantissa.replace(".", "").rstrip("0"))
            needed = max(needed, significant - 1 - int(exponent))
    return max(needed, 0)


def formatted(values: Sequence[float] | np.ndarray, digits: int = DIGITS) -> list[str]:
    """Numbers of one column with common decimal places; exponents where the plain form would be much longer."""
    array = np.asarray(values, dtype=float).reshape(-1)
    places = decimals(array, digits)
    finite = np.abs(array[np.isfinite(array)])
    if places > digits + 6 or (finite.size and finite.max() >= 1e9):
        return ["NaN" if math.isnan(value) else f"{value:.{digits - 1}e}" for value in array]
    return ["NaN" if math.isnan(value) else f"{value:.{places}f}" for value in array]


def _p_value(p: float) -> str:
    if math.isnan(p):
        return "NaN"
    if p < 2e-16:
        return "<2e-16"
    return f"{p:.2e}" if p < 1e-4 else f"{p:.3g}"


# -- parts ------------------------------------------------------------------------------------------------------------
def findings(fit: Fit) -> str:
    """Status, if it is not what was hoped for, and the findings."""
    lines = [f"Status: {fit.status.value}"]
    if not fit.status.ok:
        hidden = "shown because they were forced" if fit.trusted else "are NaN; fit.force() shows them"
        lines.append(f"Standard errors, log-likelihood and criteria {hidden}.")
    if fit.health:
        lines.append(repr(fit.health))
    return "\n".join(lines)


def header(fit: Fit) -> str:
    """Kind of model, how it was fitted, family, formula, networks."""
    record = fit.record
    families = [(site.role.family, site.role.dispersion) for site in record.data.values()]
    linear = all(family.gaussian_sd(**dispersion) is not None for family, dispersion in families)
    title = "Linear mixed model" if linear else "Generalized linear mixed model"
    if record.functions:
        title, linear = "Mixed model with a network mean", False
    if not record.data:
        title = f"Program {getattr(fit.program, '__name__', type(fit.program).__name__)}:"
    verb = "draws from" if fit.estimate.kind == "draws" else "fit by"
    lines = [f"{title} {verb} {fit.estimate.inference}"]
    if not linear:
        for name, data in record.data.items():
            prefix = f"{name}: " if len(record.data) > 1 else ""
            family = data.role.family
            lines.append(f" Family: {prefix}{type(family).__name__} ({family.link.name})")
    if fit.formula:
        lines.append(f"Formula: {fit.formula}")
    for name, function in record.functions.items():
        count = sum(weight.numel() for weight in function.role.module.parameters())
        lines.append(f"Network: {name}, {type(function.role.module).__name__} with {count} weights")
    return "\n".join(lines)


def _criteria(fit: Fit) -> str:
    value = fit.log_likelihood
    if fit.estimate.restricted:
        return f"REML criterion at convergence: {-2 * value:.1f}"
    names = ["AIC", "BIC", "logLik", "deviance", "df.resid"]
    numbers = [f"{x:.1f}" for x in (fit.aic, fit.bic, value, -2 * value)] + [f"{fit.n_obs - fit.n_parameters:g}"]
    return aligned([names, numbers], even=True)


def _residuals(fit: Fit) -> str:
    values = fit.residuals("pearson")
    values = values[np.isfinite(values)]
    if not values.size:
        return ""
    quantiles = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    top = np.abs(quantiles).max()
    quantiles = quantiles.round(max(0, DIGITS + 1 - math.ceil(math.log10(top)))) if top > 0 else quantiles
    return "Scaled residuals:\n" + aligned([["Min", "1Q", "Median", "3Q", "Max"], formatted(quantiles)], even=True)


def _random(fit: Fit) -> str:
    table = fit.variance_components()
    found = declared.groups(fit.record)
    rows = [["Groups", "Name", "Variance", "Std.Dev.", "Corr"]]
    variances, sds = formatted(table["variance"]), formatted(table["sd"])
    corr = {}
    for group in found:
        matrix = fit.correlations(group)
        for i, term in enumerate(matrix.index):
            corr[group, term] = "  ".join(_correlation_cells(fit, group, matrix.to_numpy()[i, :i], i))
    last = None
    for i, (group, term) in enumerate(zip(table["group"], table["name"], strict=True)):
        rows.append([group if group != last else "", term, variances[i], sds[i], corr.get((group, term), "")])
        last = group
    if len(rows) == 1:
        return sizes(fit)
    if not any(corr.values()):
        rows = [row[:4] for row in rows]
    table_ = aligned(rows, left=(0, 1, 4), indent=" ", gap=" ")
    return "\n".join(["Random effects:", table_, *_structures(fit), sizes(fit)])


def _structures(fit: Fit) -> list[str]:
    """What structures of effects and residuals have besides SDs and correlations of terms: a decay, a range, ..."""
    record = fit.record
    residual = tuple(f"{name}." for name, site in record.data.items() if _structured(site))
    shown = [
        [f" {name}{_entry(site, k)}", value]
        for name, site in record.hypers.items()
        if (declared.owner(record, name) or name.startswith(residual))
        and name.rpartition(".")[2] not in ("sd", "corr_cholesky", "sigma")
        for k, value in enumerate(formatted(declared.numpy_of(site.value).reshape(-1)))
    ]
    return ["Structures:", aligned(shown, left=(0,))] if shown else []


def _structured(site: Site) -> bool:
    family = site.role.family
    return family.residual is not None or family.variance is not None


def _entry(site: Site, k: int) -> str:
    labels = site.role.labels
    if site.value.numel() == 1:
        return ""
    return f"[{labels[k] if labels is not None and site.value.shape == (len(labels),) else k}]"


def sizes(fit: Fit) -> str:
    """Numbers of observations and of levels, and what was left out."""
    counts = {group: len(effects[0].role.shown.levels) for group, effects in declared.groups(fit.record).items()}
    groups = "; ".join(f"{name}, {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"Number of obs: {fit.n_obs:g}" + (f", groups: {groups}" if groups else "") + _left_out(fit)


def _left_out(fit: Fit) -> str:
    """Rows and categories that the data had and the fit does not."""
    dropped = getattr(fit.design, "n_dropped", 0)
    unused = getattr(fit.design, "unused_levels", None) or {}
    lines = [f"{dropped} row{'s' if dropped > 1 else ''} dropped for missing values"] if dropped else []
    lines += [f"Unused levels of {name}: {', '.join(map(str, levels))}" for name, levels in unused.items()]
    return "".join(f"\n{line}" for line in lines)


def _correlation_cells(fit: Fit, group: str, values: np.ndarray, row: int) -> list[str]:
    """Correlations within the term's own effect; those with other effects are zero by construction and not printed."""
    start = 0
    for site in declared.effects_of(fit.record, group):
        stop = start + len(site.role.shown.terms)
        if start <= row < stop:
            return [f"{value:5.2f}" if math.isfinite(value) else "  NaN" for value in values[start:row]]
        start = stop
    return []


def _fixed(fit: Fit) -> str:
    table = fit.fixed_effects()
    if not len(table):
        return ""
    estimate, se = table["estimate"].to_numpy(), table["se"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(se > 0, estimate / se, np.nan)
    site = next(iter(fit.record.data.values()))
    gaussian = site.role.family.has_residual
    rows = [["", "Estimate", "Std. Error", "t value" if gaussian else "z value"]]
    ratios = formatted(ratio.round(3))
    for i, (label, row) in enumerate(zip(table.index, _columns(np.column_stack([estimate, se])), strict=True)):
        rows.append([str(label), *row, ratios[i]])
    if not gaussian:
        rows[0].append("Pr(>|z|)")
        for row, z in zip(rows[1:], ratio, strict=True):
            row.append(_p_value(2 * float(ndtr(-abs(z)))))
    return "Fixed effects:\n" + aligned(rows, left=(0,), gap=" ")


def _columns(matrix: np.ndarray) -> list[list[str]]:
    """Cells of columns that share their decimal places, as R's printCoefmat gives estimates and errors."""
    size = np.abs(matrix[np.isfinite(matrix) & (matrix != 0)])
    if size.size:
        powers = 1 + np.floor(np.log10([size.min(), size.max()])).astype(int)
        matrix = matrix.round(int(max(1, DIGITS - powers[0], DIGITS - powers[1])))
    flat = formatted(matrix)
    return [flat[start : start + matrix.shape[1]] for start in range(0, len(flat), matrix.shape[1])]


def _correlation(fit: Fit) -> str:
    covariance = coefficient_covariance(fit)
    if not 1 < len(covariance) <= 12 or not np.isfinite(covariance.to_numpy()).all():
        return ""
    matrix = split_covariance(covariance.to_numpy())[1]
    names = [str(name) for name in covariance.index]
    short = ["(Intr)" if name == "Intercept" else name[:6] for name in names[:-1]]
    rows = [["", *short]]
    for i in range(1, len(names)):
        rows.append([names[i], *(f"{matrix[i, j]:.3f}" if j < i else "" for j in range(len(names) - 1))])
    return "Correlation of Fixed Effects:\n" + aligned(rows, left=(0,), gap=" ")


def aligned(
    rows: list[list[str]], left: Sequence[int] = (), indent: str = "", gap: str = " ", even: bool = False
) -> str:
    """Rows of cells as columns, flush right but for those in `left`; all of one width if `even`."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    widths = [max(widths)] * len(widths) if even else widths
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if k in left else cell.rjust(width) for k, (cell, width) in _numbered(row, widths)]
        lines.append((indent + gap.join(cells)).rstrip())
    return "\n".join(lines)


def _numbered(row: list[str], widths: list[int]) -> list[tuple[int, tuple[str, int]]]:
    return list(enumerate(zip(row, widths, strict=True)))
