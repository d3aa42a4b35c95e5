"""The printed summary of a posterior: findings, then every quantity with its spread and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.distributions import constraints

from pyromix.results import declared
from pyromix.results.diagnostics import entry_name
from pyromix.results.draws import Values, over_draws
from pyromix.results.mixing import measure
from pyromix.results.summary import Summary, aligned, findings, header, sizes

if TYPE_CHECKING:
    from pyromix.results.fit import Fit
    from pyromix.running import Site

QUANTILES = (0.05, 0.5, 0.95)
COLUMNS = ("Mean", "SD", "5 %", "50 %", "95 %")
MAX_ROWS = 24  # of one site
DERIVED_ENTRIES = 20_000_000  # (draws, rows) up to which the program is run again for its deterministic values
DIGITS = 3


def summarize(fit: Fit) -> Summary:
    """The summary of a fit with ``kind="draws"``."""
    quiet = fit.status.ok and all(record.severity == "info" for record in fit.health)
    said = [findings(fit)] if fit.health or not fit.status.ok else []
    parts = [header(fit), _how(fit), *_tables(fit)]
    return Summary("\n\n".join(parts + said if quiet else said + parts))


def _how(fit: Fit) -> str:
    """Draws, time, evidence, size of the data."""
    estimate, settings = fit.estimate, fit.estimate.settings
    per_chain = fit.n_draws // estimate.chains
    lines = [f"{estimate.chains} chains of {per_chain} draws" if estimate.markov else f"{fit.n_draws} draws"]
    if isinstance(settings.get("sampling_time"), int | float):
        lines[0] += f" in {settings['sampling_time']:.3g} s"
    if estimate.markov:
        lines[0] += "" if estimate.exact else " (of an approximate posterior)"
    else:
        known = {"k-hat": settings.get("khat"), "effective size": settings.get("effective_size")}
        shown = [f"{name} {_short(value)}" for name, value in known.items() if isinstance(value, int | float)]
        lines[0] += ", ".join(["", *shown]) + " (an approximation: no R-hat)"
    if math.isfinite(estimate.log_evidence):
        lines.append(f"Log evidence: {estimate.log_evidence:.2f}{_evidence_kind(fit)}")
    return "\n".join([*lines, sizes(fit)])


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _evidence_kind(fit: Fit) -> str:
    if "elbo" in fit.estimate.settings:
        return " (ELBO, a lower bound)"
    error = fit.estimate.settings.get("evidence_error")
    return f" +- {error:.2f} (importance sampling)" if isinstance(error, int | float) else ""


# -- tables -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Rows:
    """Quantities of one table: their labels, cells at the left of each row, and their draws (quantities, draws)."""

    labels: list[list[str]]
    values: np.ndarray
    left_out: int = 0


def _tables(fit: Fit) -> Iterator[str]:
    draws = fit.draws()
    alone = not fit.record.latents and not declared.coefficients(fit.record)
    sections = {
        "Group-level effects": _group_level(fit, draws),
        "Population-level effects": _coefficients(fit, draws),
        "Parameters" if alone else "Other parameters": _others(fit, draws),
    }
    for title, rows in sections.items():
        if len(rows.labels):
            yield f"{title}:\n{_table(fit, rows)}"


def _table(fit: Fit, rows: _Rows) -> str:
    sample = rows.values
    quantiles = np.quantile(sample, QUANTILES, axis=1)
    numbers = np.column_stack([sample.mean(1), sample.std(1, ddof=1), *quantiles])
    hidden = np.array([False, *[not fit.trusted] * (len(COLUMNS) - 1)])
    head = [*[""] * len(rows.labels[0]), *COLUMNS]
    cells = [[*label, *_cells(row, hidden)] for label, row in zip(rows.labels, numbers, strict=True)]
    chains = fit.estimate.chains
    if fit.estimate.markov and sample.shape[1] >= 8 * chains and sample.shape[1] % chains == 0:
        found = measure(sample.reshape(len(sample), chains, -1))
        head += ["ESS", "R-hat"]
        for row, size, rhat in zip(cells, found.bulk, found.rhat, strict=True):
            row += ["-" if math.isnan(size) else f"{size:.0f}", "-" if math.isnan(rhat) else f"{rhat:.3f}"]
    width = len(rows.labels[0])
    table = aligned(_points([head, *cells], width), left=range(width), indent=" ", gap="  ")
    more = f"\n ... and {rows.left_out} more entries: az.summary(fit.idata) has all" if rows.left_out else ""
    return table + more


def _cells(numbers: np.ndarray, hidden: np.ndarray) -> list[str]:
    """Numbers of one quantity with the decimals that its SD calls for."""
    return ["NaN" if hide else cell for cell, hide in zip(_decimal(numbers), hidden, strict=True)]


def _decimal(numbers: np.ndarray) -> list[str]:
    finite = np.abs(numbers[np.isfinite(numbers)])
    scale = numbers[1] if numbers[1] > 0 else finite.max(initial=0.0)
    if not scale > 0:
        return [f"{value:.2f}" for value in numbers]
    places = DIGITS - 1 - math.floor(math.log10(scale))
    if places > 8 or finite.max(initial=0.0) >= 1e9:
        return [f"{value:.{DIGITS}g}" for value in numbers]
    rounded = numbers.round(max(places, 0)) + 0.0  # no minus at a zero
    return [f"{value:.{max(places, 0)}f}" for value in rounded]


def _points(rows: list[list[str]], start: int) -> list[list[str]]:
    """Pad the cells of each column of numbers, so that their decimal points stand below each other."""
    for k in range(start, start + len(COLUMNS)):
        column = [row[k] for row in rows[1:]]
        tails = [len(cell) - cell.index(".") if "." in cell else 0 for cell in column]
        for row, cell, tail in zip(rows[1:], column, tails, strict=True):
            row[k] = cell + " " * (max(tails) - tail)
    return rows


# -- quantities -------------------------------------------------------------------------------------------------------
def _group_level(fit: Fit, draws: Values) -> _Rows:
    """The covariance parameters of every random effect: ``sd(term)``, ``corr(term, term)``, ..."""
    labels: list[list[str]] = []
    values: list[np.ndarray] = []
    for effect, site in fit.record.latents.items():
        first = effect
        for name, hyper in fit.record.hypers.items():
            if declared.owner(fit.record, name) != effect:
                continue
            for label, array in _parameter(name.removeprefix(f"{effect}."), hyper, site.role.shown.terms, draws[name]):
                labels.append([first, label])
                values.append(array)
                first = ""
    return _rows(labels, values)


def _parameter(name: str, site: Site, terms: tuple[str, ...], draws: torch.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    """Entries of one covariance parameter; of the factor of a correlation matrix, the correlations."""
    if site.role.support is constraints.corr_cholesky:
        matrix = draws @ draws.mT
        for i in range(1, matrix.shape[1]):
            for j in range(i):
                yield f"{name.removesuffix('_cholesky')}({terms[j]}, {terms[i]})", declared.numpy_of(matrix[:, i, j])
        return
    flat = declared.numpy_of(draws.reshape(len(draws), -1))
    for k in range(flat.shape[1]):
        inside = terms[k] if flat.shape[1] == len(terms) else str(k) if flat.shape[1] > 1 else ""
        yield (f"{name}({inside})" if inside else name), flat[:, k]


def _coefficients(fit: Fit, draws: Values) -> _Rows:
    entries = declared.coefficients(fit.record)
    values = [declared.numpy_of(draws[c.site].reshape(fit.n_draws, -1)[:, c.position]) for c in entries]
    return _rows([[entry.label] for entry in entries], values)


def _others(fit: Fit, draws: Values) -> _Rows:
    """Dispersion parameters, sites of the program's own, and its deterministic values; weights of networks are not."""
    record = fit.record
    names = [name for name, site in record.hypers.items() if site.role.design is None]
    names = [name for name in [*names, *record.plain] if declared.owner(record, name) is None]
    names = [name for name in names if not any(name.startswith(f"{net}.") for net in record.functions)]
    found = {name: draws[name] for name in names} | _derived(fit, draws)
    known = declared.dimension_labels(record)
    labels: list[list[str]] = []
    values: list[np.ndarray] = []
    left_out = 0
    for name, sample in found.items():
        flat = declared.numpy_of(sample.reshape(len(sample), -1))
        varies = np.flatnonzero(np.ptp(flat, axis=0) > 0)
        for k in varies[:MAX_ROWS]:
            labels.append([entry_name(name, int(k), sample.shape[1:], known.get(name))])
            values.append(flat[:, k])
        left_out += len(varies[MAX_ROWS:])
    return _rows(labels, values, left_out)


def _derived(fit: Fit, draws: Values) -> Values:
    """Deterministic values of the program's own at every draw, where running it again is cheap."""
    record = fit.record
    names = [name for name in record.deterministic if declared.owner(record, name) is None]
    rows = max([len(s.role.eta) for s in record.data.values()] + [s.value.numel() for s in fit.observed.values()])
    if not names or rows * fit.n_draws > DERIVED_ENTRIES:
        return {}
    return over_draws(lambda values: {name: fit.run(values).deterministic[name] for name in names}, draws, rows)


def _rows(labels: list[list[str]], values: list[np.ndarray], left_out: int = 0) -> _Rows:
    return _Rows(labels, np.stack(values) if values else np.zeros((0, 1)), left_out)
