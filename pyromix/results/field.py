"""An effect over times or places: draws at its levels, and at places between and beyond them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix.errors import UnsupportedError
from pyromix.results.new_levels import law, law_of_functions
from pyromix.results.rows import stream
from pyromix.running import Site

if TYPE_CHECKING:
    from pyromix.results.fit import Fit


FILL = 20  # points in a gap between two times
MAP = 50  # draws of a map: each comes with its exact mean and variance given the draw's parameters


@dataclass(frozen=True)
class Field:
    """One term of an effect over its domain.

    Attributes
    ----------
    kind
        ``"curve"`` over numbers, ``"series"`` (curves by series), or ``"map"``.
    labels
        Where it was drawn: numbers, pairs (series, time), or pairs of coordinates.
    draws
        (draws, labels).
    mean
        (labels,): for a point fit at its estimates, where draws would say it less exactly.
    sd
        (labels,).
    data
        Places that the data hold, for a map.
    """

    kind: str
    labels: tuple[Any, ...]
    draws: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    data: np.ndarray


def field_of(fit: Fit, site: Site, term: int, at: Sequence[Any] | None, count: int, grid: int = 30) -> Field:
    """Draw an effect at its levels and at further places."""
    role = site.role.shown
    mesh = getattr(role.structure, "mesh", None)
    places = _vertices(site, mesh) if mesh is not None else np.array([])
    kind = _kind(site.name, role, mesh)
    data = places if mesh is not None else np.array(role.levels) if kind == "map" else np.empty((0, 2))
    if at is None and kind == "map":
        at = _grid(data, grid)
    elif at is None and mesh is not None:
        at = [float(x) for x in np.linspace(places.min(), places.max(), 10 * grid)]
    if kind in ("curve", "series") and mesh is None and _can_extend(site):
        at = [*(at or ()), *_between(role.levels, kind)]
    labels = tuple(at or ()) if kind == "map" or mesh is not None else (*role.levels, *_new(at, role.levels))
    means, draws, variance = _draws(fit, site.name, labels, mesh, term, min(count, MAP) if kind == "map" else count)
    mean = means.mean(0)
    if fit.estimate.kind == "point":
        mean = _at_the_estimates(fit, site.name, labels, mesh, term)
    return Field(kind, labels, draws, mean, np.sqrt(variance.mean(0) + means.var(0)), data)


def _can_extend(site: Site) -> bool:
    spread = site.role.spread
    return site.role.shown.extend is not None if spread is None else spread.further is not None


def _between(levels: Sequence[Any], kind: str) -> list[Any]:
    """Times in the gaps of the levels, series by series: steps as elsewhere, or some of these where they are many."""
    pairs = kind == "series"
    out: list[Any] = []
    for one in dict.fromkeys(level[0] for level in levels) if pairs else [None]:
        times = np.unique([float(level[1] if pairs else level) for level in levels if not pairs or level[0] == one])
        steps = np.diff(times)
        if not len(steps):
            continue
        step = steps.min()
        for k in np.flatnonzero(steps > 1.5 * np.median(steps)):
            count = steps[k] / step
            whole = abs(count - round(count)) < 1e-6
            stride = step * np.ceil(round(count) / FILL) if whole else steps[k] / min(FILL, np.ceil(count))
            fresh = np.arange(times[k] + stride, times[k + 1] - 0.5 * step, stride)
            kept = [int(t) if float(t).is_integer() else float(t) for t in np.round(fresh, 9)]
            out += [(one, t) for t in kept] if pairs else kept
    return out


def _new(at: Sequence[Any] | None, known: Sequence[Any]) -> list[Any]:
    seen = set(known)
    return list(dict.fromkeys(label for label in at or () if label not in seen))


def _kind(name: str, role: Any, mesh: Any) -> str:
    if mesh is not None and mesh.dimension <= 2:
        return "curve" if mesh.dimension == 1 else "map"
    levels = role.levels
    if mesh is None and all(_is_number(level) for level in levels):
        return "curve"
    if mesh is None and all(isinstance(level, tuple) and len(level) == 2 and _is_number(level[1]) for level in levels):
        flat = hasattr(role.structure, "kernel") and all(_is_number(level[0]) for level in levels)
        return "map" if flat else "series"
    raise UnsupportedError(
        f"plot_field({name!r}): its levels are no times, no times in series, and no places in a plane; use "
        "plot_caterpillar."
    )


def _is_number(label: Any) -> bool:
    return isinstance(label, (int, float, np.number)) and not isinstance(label, bool)


def _vertices(site: Site, mesh: Any) -> np.ndarray:
    """Places of the rows: weighted vertices."""
    rows = site.role.rows
    weight = torch.ones(rows.index.shape) if rows.weight is None else rows.weight
    vertices = torch.as_tensor(np.asarray(mesh.vertices, dtype=np.float64))
    index = rows.index.reshape(len(rows.index), -1)
    return (vertices[index] * weight.reshape(*index.shape, 1)).sum(1).numpy()


def _grid(data: np.ndarray, count: int) -> list[tuple[float, float]]:
    low, high = data.min(0), data.max(0)
    axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
    return [(float(x), float(y)) for y in axes[1] for x in axes[0]]


@torch.no_grad()
def _draws(
    fit: Fit, name: str, labels: tuple[Any, ...], mesh: Any, term: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means given each draw of the fit, draws about them, and variances about them, each (draws, labels)."""
    values = fit.draws(count, 0)
    if mesh is not None:
        found = _on_mesh(values[name], labels, mesh, term)
        return found, found, np.zeros_like(found)
    generator = torch.Generator().manual_seed(stream(0, "a field between its levels"))
    out = []
    for s in range(len(values[name])):
        mean, root = _one(fit, name, {key: value[s] for key, value in values.items()}, labels)
        noise = torch.randn(root.shape[-1], dtype=root.dtype, generator=generator)
        out.append(torch.stack([mean, mean + root @ noise, root.square().sum(-1).reshape_as(mean)])[..., term])
    means, draws, variance = torch.stack(out, 1).numpy()
    return means, draws, variance


@torch.no_grad()
def _at_the_estimates(fit: Fit, name: str, labels: tuple[Any, ...], mesh: Any, term: int) -> np.ndarray:
    values = {**fit.estimate.point, **fit.estimate.latents}
    if mesh is not None:
        return _on_mesh(values[name][None], labels, mesh, term)[0]
    return _one(fit, name, values, labels)[0][:, term].numpy()


def _on_mesh(values: torch.Tensor, labels: tuple[Any, ...], mesh: Any, term: int) -> np.ndarray:
    """Values (draws, vertices, terms) at places."""
    index, weight = mesh.projector(np.array(labels, dtype=np.float64))
    return (values[:, index, term] * weight).sum(-1).numpy()


def _one(
    fit: Fit, name: str, draw: Mapping[str, torch.Tensor], labels: tuple[Any, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Effects (labels, q) at one draw, new levels at their means, and a root (labels, q, m) of what is about them."""
    known = fit.record.latents[name].role
    u = draw[name] if known.spread is None else known.spread.apply(draw[name])
    levels = {label: k for k, label in enumerate(known.shown.levels)}
    is_new = torch.tensor([label not in levels for label in labels])
    fresh = [label for label in labels if label not in levels]
    out = torch.empty(len(labels), u.shape[-1], dtype=u.dtype)
    out[~is_new] = u[[levels[label] for label in labels if label in levels]]
    if not fresh:
        return out, torch.zeros(*out.shape, 0, dtype=u.dtype)
    site = fit.run(draw).latents[name]
    if site.role.spread is not None:
        none = torch.eye(0, dtype=u.dtype)
        mean, root = law_of_functions(name, site.role.spread, draw[name], "conditional", fresh, none)
    else:
        mean, root = law(name, site.role, "conditional", fresh, u)
    out[is_new] = mean
    about = torch.zeros(*out.shape, root.shape[-1], dtype=u.dtype)
    about[is_new] = root.reshape(*mean.shape, -1)
    return out, about
