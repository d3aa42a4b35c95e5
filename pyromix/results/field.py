"""An effect over times or places: draws at its levels, and at places between and beyond them."""

from __future__ import annotations

from collections.abc import Sequence
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
    data
        Places that the data hold, for a map.
    """

    kind: str
    labels: tuple[Any, ...]
    draws: np.ndarray
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
    labels = tuple(at or ()) if kind == "map" or mesh is not None else (*role.levels, *_new(at, role.levels))
    draws = _draws(fit, site.name, labels, mesh, term, count)
    return Field(kind, labels, draws, data)


def _new(at: Sequence[Any] | None, known: Sequence[Any]) -> list[Any]:
    seen = set(known)
    return [label for label in at or () if label not in seen]


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
def _draws(fit: Fit, name: str, labels: tuple[Any, ...], mesh: Any, term: int, count: int) -> np.ndarray:
    values = fit.draws(count, 0)
    if mesh is not None:
        index, weight = mesh.projector(np.array(labels, dtype=np.float64))
        return (values[name][:, index, term] * weight).sum(-1).numpy()
    generator = torch.Generator().manual_seed(stream(0, "a field between its levels"))
    out = []
    for s in range(len(values[name])):
        draw = {key: value[s] for key, value in values.items()}
        out.append(_one(fit, name, draw, labels, generator)[:, term])
    return torch.stack(out).numpy()


def _one(
    fit: Fit, name: str, draw: dict[str, torch.Tensor], labels: tuple[Any, ...], generator: torch.Generator
) -> torch.Tensor:
    """Effects (labels, q) at one draw: the known levels' own, and a draw of the others given them."""
    known = fit.record.latents[name].role
    u = draw[name] if known.spread is None else known.spread.apply(draw[name])
    levels = {label: k for k, label in enumerate(known.shown.levels)}
    fresh = [label for label in labels if label not in levels]
    out = torch.empty(len(labels), u.shape[-1], dtype=u.dtype)
    if fresh:
        site = fit.run(draw).latents[name]
        if site.role.spread is not None:
            mean, root = law_of_functions(
                name, site.role.spread, draw[name], "conditional", fresh, torch.eye(0, dtype=u.dtype)
            )
        else:
            mean, root = law(name, site.role, "conditional", fresh, u)
        noise = torch.randn(root.shape[1], dtype=u.dtype, generator=generator)
        out[[label not in levels for label in labels]] = mean + (root @ noise).reshape(mean.shape)
    for k, label in enumerate(labels):
        if label in levels:
            out[k] = u[levels[label]]
    return out
