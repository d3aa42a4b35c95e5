"""One chain by nutpie: the only module that imports it.

nutpie's interface for Python functions is not documented; what is used of it here is held by tests, and its version is
bounded in ``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyromix.errors import NumericalError

Density = Callable[[np.ndarray], tuple[float, np.ndarray]]
REPORT = 200  # milliseconds between two progress reports
TEMPLATE = "{% for chain in chains %}{{ chain.finished_draws }} {{ chain.divergences }}{% endfor %}"
STATS = {
    "logp": "lp",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "depth": "tree_depth",
    "n_steps": "n_steps",
    "diverging": "diverging",
    "energy": "energy",
    "energy_error": "energy_error",
    "maxdepth_reached": "reached_max_treedepth",
}


@dataclass(frozen=True)
class Chain:
    """Draws (n, d) after tuning, their statistics by ArviZ's names, and the gradient evaluations of the whole run."""

    draws: np.ndarray
    stats: Mapping[str, np.ndarray]
    evaluations: int


class OutsideSupport(ArithmeticError):
    """The density cannot be computed at a point of a trajectory: nutpie counts it as a divergence."""

    is_recoverable = True


def load() -> None:
    """Import nutpie, which takes a second: once here rather than in every process forked off."""
    import nutpie.compiled_pyfunc  # noqa: F401


def sample_chain(
    density: Density,
    start: np.ndarray,
    *,
    draws: int,
    tune: int,
    seed: int,
    target_accept: float,
    max_depth: int,
    report: Callable[[tuple[int, int]], None],
) -> Chain:
    """One chain.

    Parameters
    ----------
    density
        ``z -> (log density, gradient)``, on all of R^d.
    report
        Called now and then with the draws made and the divergences met.
    """
    from nutpie import _lib
    from nutpie.compiled_pyfunc import from_pyfunc

    size = len(start)
    model = from_pyfunc(
        size,
        lambda: _guarded(density),
        lambda seed1, seed2, chain: lambda z: {"z": np.array(z)},
        [np.dtype("float64")],
        [(size,)],
        ["z"],
        make_initial_point_fn=lambda seed: start.copy(),
    )
    settings = _lib.PyNutsSettings.Diag(seed)
    settings.num_tune, settings.num_draws, settings.num_chains = tune, draws, 1
    settings.target_accept, settings.maxdepth = target_accept, max_depth
    progress = _lib.ProgressType.template_callback(REPORT, TEMPLATE, 1, lambda text: _report(text, report))
    sampler = model._make_sampler(settings, np.zeros(size), 1, progress, _lib.PyStorage.arrow())
    try:
        sampler.wait(None)
    except RuntimeError as error:
        raise NumericalError(f"nutpie stopped: {' '.join(str(error).split())[:400]}") from error
    values, stats = sampler.take_results().get_arrow_trace()
    return _chain(values[0], stats[0], tune, size)


def _guarded(density: Density) -> Density:
    def call(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = density(z)
        if not np.isfinite(value) or not np.isfinite(gradient).all():
            raise OutsideSupport
        return value, gradient

    return call


def _report(text: str, report: Callable[[tuple[int, int]], None]) -> None:
    parts = text.split()
    if len(parts) == 2 and all(part.isdigit() for part in parts):
        report((int(parts[0]), int(parts[1])))


def _chain(values: Any, stats: Any, tune: int, size: int) -> Chain:
    import pyarrow

    table = pyarrow.record_batch(stats)
    z = pyarrow.record_batch(values).column("z").flatten().to_numpy().reshape(-1, size)
    columns = {ours: _signed(table.column(name).to_numpy(zero_copy_only=False)) for name, ours in STATS.items()}
    steps = int(columns["n_steps"].sum())
    kept = {name: np.ascontiguousarray(column[tune:]) for name, column in columns.items()}
    return Chain(np.ascontiguousarray(z[tune:]), kept, steps)


def _signed(column: np.ndarray) -> np.ndarray:
    return column.astype(np.int64) if column.dtype.kind == "u" else column
