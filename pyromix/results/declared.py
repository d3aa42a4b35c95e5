"""What a program declares about a fit: coefficients, effects, responses, read from one recorded run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyromix.errors import DataError
from pyromix.linalg.fields import FieldOperator
from pyromix.linalg.known import KnownOperator
from pyromix.running import Record, Site

# Above this many entries the dense covariance of an unstructured array is not formed just to read its diagonal.
MAX_DENSE = 2000  # as of `pyromix.linalg.operators.DENSE`


@dataclass(frozen=True)
class Coefficient:
    """One entry of a coefficient site: the site, its position there, its label."""

    site: str
    position: int
    label: str


def coefficients(record: Record) -> list[Coefficient]:
    """Every coefficient of the program, in program order; labels met twice are prefixed with their site."""
    found = []
    for name, site in record.hypers.items():
        if site.role.design is None:
            continue
        count = site.role.design.shape[1]
        labels = site.role.labels or tuple(f"{name}[{j}]" for j in range(count))
        found += [Coefficient(name, j, str(label)) for j, label in enumerate(labels)]
    labels = [entry.label for entry in found]
    return [Coefficient(c.site, c.position, f"{c.site}[{c.label}]") if labels.count(c.label) > 1 else c for c in found]


def groups(record: Record) -> dict[str, list[Site]]:
    """Random-effect sites by grouping factor, in program order."""
    found: dict[str, list[Site]] = {}
    for site in record.latents.values():
        found.setdefault(site.role.group, []).append(site)
    return found


def effects_of(record: Record, group: str) -> list[Site]:
    """Random-effect sites of one grouping factor, or one of them by its own name; `DataError` listing the factors."""
    found = groups(record)
    if group not in found and group in record.latents:
        return [record.latents[group]]
    if group not in found:
        known = ", ".join(repr(name) for name in found) or "none"
        raise DataError(f"group {group!r}: the fit has no such grouping factor (it has: {known}).")
    return found[group]


def term_labels(effects: Iterable[Site]) -> list[str]:
    """Labels of the terms of several effects side by side; labels met twice are prefixed with their effect."""
    pairs = [(site.name, str(term)) for site in effects for term in site.role.shown.terms]
    terms = [term for _, term in pairs]
    return [f"{name}[{term}]" if terms.count(term) > 1 else term for name, term in pairs]


def term_covariance(site: Site) -> torch.Tensor:
    """Covariance of one level's effects, (q, q); where levels differ or depend on each other, its mean over levels."""
    operator = site.fn.operator
    if site.role.spread is not None:
        return site.role.spread.mean_covariance(operator.block @ operator.block.mT)
    if operator.block is not None:
        return operator.block @ operator.block.mT
    if isinstance(operator, (FieldOperator, KnownOperator)):
        return operator.mean_block
    levels, q = operator.shape
    parts = operator.separable() if levels * q > MAX_DENSE else None
    if parts is not None:
        if parts.precision is None and len(parts.root) != levels:
            return torch.full((q, q), torch.nan, dtype=torch.float64)
        level = 1.0 if parts.precision is not None else float(parts.root.square().sum(-1).mean())
        return level * parts.tril @ parts.tril.mT
    return torch.einsum("lalb->ab", operator.dense().reshape(levels, q, levels, q)) / levels


def residual_sd(record: Record, data: Site) -> tuple[str, float] | None:
    """Site and value of the SD of the response about its mean; ``None`` for a family that has none.

    Weights of precision make the dispersion of the rows differ; the number reported is that of a row of weight one,
    the site ``<response>.sigma``.
    """
    role = data.role
    if not role.family.has_residual:
        return None
    for parameter in role.family.parameters():
        name = f"{data.name}.{parameter.name}"
        if name in record.hypers:
            return name, float(record.hypers[name].value)
        if name in record.deterministic:
            return name, float(record.deterministic[name])
        value = role.dispersion.get(parameter.name)
        if value is not None and value.numel() == 1:
            return name, float(value)
    return None


def dimension_labels(record: Record) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Site -> labels of each of its dimensions, where they have names."""
    labels: dict[str, tuple[tuple[str, ...], ...]]
    labels = {name: (_text(site.role.levels), _text(site.role.terms)) for name, site in record.latents.items()}
    for name, site in record.hypers.items():
        if site.role.labels is not None:
            labels[name] = (_text(site.role.labels),) * site.value.dim()
    return labels


def label_text(label: Any) -> str:
    """A label as text: ``a:b`` for a level that is a pair, or a place."""
    return ":".join(map(label_text, label)) if isinstance(label, tuple) else str(label)


def _text(labels: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(label_text, labels))


def owner(record: Record, name: str) -> str | None:
    """The random effect whose hyper-parameter a site is (``<effect>.<parameter>``)."""
    return max((effect for effect in record.latents if name.startswith(f"{effect}.")), key=len, default=None)


def count_rows(data: Site) -> float:
    """Rows that count: masked rows do not, a row of frequency weight w counts w times."""
    role = data.role
    weights = torch.ones(len(role.eta), dtype=torch.float64) if role.weights is None else role.weights
    return tidy_count(float((weights if role.mask is None else weights * role.mask).sum()))


def tidy_count(total: float) -> float:
    """A whole number as an integer."""
    return int(total) if total == int(total) else total


def values_of(estimate: Any) -> dict[str, torch.Tensor]:
    """Site values at the point: hyper-parameters and conditional modes."""
    return {**estimate.point, **estimate.latents}


def numpy_of(value: torch.Tensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return np.asarray(value.detach().cpu().numpy(), dtype=np.float64)
