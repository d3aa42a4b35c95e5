"""One chain by nutpie: the only module that imports it.

nutpie's interface for Python functions is not documented; what is used of it here is held by tests, and its version is
bounded in ``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyromix.backends.native_walk import NativeWalk
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
    walk: NativeWalk | None = None,
) -> Chain:
    """One chain.

    Parameters
    ----------
    density
        ``z -> (log density, gradient)``, on all of R^d.
    report
        Called now and then with the draws made and the divergences met.
    walk
        The same density in C, if it is to be had.
    """
    from nutpie import _lib

    size = len(start)
    settings = _lib.PyNutsSettings.Diag(seed)
    settings.num_tune, settings.num_draws, settings.num_chains = tune, draws, 1
    settings.target_accept, settings.maxdepth = target_accept, max_depth
    progress = _lib.ProgressType.template_callback(REPORT, TEMPLATE, 1, lambda text: _report(text, report))
    storage = _lib.PyStorage.arrow()
    if walk is None:
        model = _python_model(density, start)
        sampler = model._make_sampler(settings, np.zeros(size), 1, progress, storage)
    else:
        sampler = _lib.PySampler.from_pymc(settings, 1, _native_model(walk, start), progress, storage)
    try:
        sampler.wait(None)
    except RuntimeError as error:
        raise NumericalError(f"nutpie stopped: {' '.join(str(error).split())[:400]}") from error
    values, stats = sampler.take_results().get_arrow_trace()
    return _chain(values[0], stats[0], tune, size)


def _python_model(density: Density, start: np.ndarray) -> Any:
    from nutpie.compiled_pyfunc import from_pyfunc

    return from_pyfunc(
        len(start),
        lambda: _guarded(density),
        lambda seed1, seed2, chain: lambda z: {"z": np.array(z)},
        [np.dtype("float64")],
        [(len(start),)],
        ["z"],
        make_initial_point_fn=lambda seed: start.copy(),
    )


def _native_model(walk: NativeWalk, start: np.ndarray) -> Any:
    """What nutpie makes of a program of PyMC: a density and a copy of each draw by their addresses."""
    from nutpie import _lib

    size = len(start)

    def no_adapter(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError  # asked for by flows alone

    density = _lib.LogpFunc(walk.density, walk.data, walk)
    copy = _lib.ExpandFunc(size, size, walk.copy, walk.data, walk)
    sizes: dict[str, int] = {}  # filled in by the next call
    variables = _lib.PyVariable.new_variables(["z"], ["float64"], [[size]], sizes, {})
    return _lib.PyMcModel(density, copy, variables, size, sizes, {}, lambda seed: start.copy(), no_adapter)


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
