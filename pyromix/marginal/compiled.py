"""Mode searches in C: Laplace's approximation, its gradient and draws of the effects at a tenth of the cost.

What `pyromix.marginal.laplace` does with one array operation after the other is one call here. It pays from some
hundred evaluations on. The code is made for one program and data set (`pyromix.native.modes`); where it cannot be, or
where a search meets something unusual (a curvature that is not that of a maximum, say), the other way takes over.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyromix import native
from pyromix.compile import trace
from pyromix.linalg import newton
from pyromix.linalg.block import Arrays
from pyromix.marginal.base import Conditional
from pyromix.marginal.laplace import dispersion_gradients
from pyromix.marginal.patterns import pattern_of
from pyromix.marginal.plan import Plan
from pyromix.native.modes import Writer
from pyromix.running import isolated

if TYPE_CHECKING:
    from pyromix.families.base import AbstractFamily

log = logging.getLogger(__name__)

LIMITS = {
    "MAX_STEPS": newton.MAX_STEPS,
    "MAX_HALVINGS": newton.MAX_HALVINGS,
    "FLOOR": newton.FLOOR,
    "ROUNDING": newton.ROUNDING,
}


@dataclass(frozen=True)
class Found:
    """A mode.

    Attributes
    ----------
    log_marginal
        Laplace's approximation there.
    b
        All terms' spherical effects, one after the other.
    slopes
        If asked for, the gradient in every input of the search.
    factor
        If asked for, what a draw of the effects needs.
    """

    log_marginal: float
    b: np.ndarray
    slopes: list[torch.Tensor]
    factor: np.ndarray | None


class CompiledModes:
    """The mode search of one program and data set, in C; the compiler works in a thread until the first search.

    Raises
    ------
    native.Unsupported
        On construction: an operation of the family that C is not known for, or a pattern for which other code is
        faster. At the first search: no compiler.
    """

    def __init__(self, plan: Plan, family: AbstractFamily, dispersion: Mapping[str, torch.Tensor]) -> None:
        self.plan = plan
        writer = Writer(pattern_of(plan.layout, len(plan.obs)), len(dispersion), LIMITS)
        texts, constants = _family_texts(plan, family, dispersion)
        self._held = constants, writer.held
        pool = ThreadPoolExecutor(1)
        self._compiling = pool.submit(native.compile_texts, [*texts, writer.text()])
        pool.shutdown(wait=False)
        self.total, self.factor_size = writer.total, writer.factor_size
        self._parts = [
            (slice(start, start + term.size), (term.levels, term.q))
            for start, term in zip(writer.offsets, plan.layout.terms, strict=True)
        ]

    @cached_property
    def _run(self) -> Any:
        """The C function `run`, when the compiler is done."""
        function = self._compiling.result().run
        function.restype = ctypes.c_int
        function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_double] + [ctypes.c_void_p] * 5
        return function

    @cached_property
    def _sample(self) -> Any:
        function = self._compiling.result().sample
        function.restype = None
        function.argtypes = [ctypes.c_void_p] * 4
        return function

    def search(
        self,
        inputs: Sequence[torch.Tensor],
        start: Arrays | None,
        decrement: float,
        gradient: bool = False,
        keep: bool = False,
    ) -> Found | None:
        """Climb from a start (zero for ``None``); ``None`` where that fails.

        Parameters
        ----------
        inputs
            Predictor without effects, factors L and the family's parameters.
        gradient, keep
            Whether `Found.slopes` and `Found.factor` are wanted.
        """
        terms = 1 + len(self.plan.layout.terms)
        b = np.zeros(self.total) if start is None else np.concatenate([x.reshape(-1) for x in start])
        eta, *given = [part.detach().contiguous() for part in (inputs[0], *inputs[terms:])]
        tril = torch.cat([block.detach().reshape(-1) for block in inputs[1:terms]])
        result = np.empty(3)
        factor = np.empty(self.factor_size) if keep else None
        slopes = [torch.empty_like(part) for part in (eta, tril, *given)] if gradient else []
        first, second = (slopes[0].data_ptr(), slopes[1].data_ptr()) if gradient else (None, None)
        problem = self._run(
            eta.data_ptr(),
            tril.data_ptr(),
            _addresses(given),
            b.ctypes.data,
            decrement,
            result.ctypes.data,
            first,
            second,
            _addresses(slopes[2:]),
            None if factor is None else factor.ctypes.data,
        )
        if problem:
            return None
        if gradient:
            parts = slopes[1].split([block.numel() for block in inputs[1:terms]])
            blocks = [part.reshape(block.shape) for part, block in zip(parts, inputs[1:terms], strict=True)]
            slopes = [slopes[0], *blocks, *slopes[2:]]
        return Found(float(result[0]) - 0.5 * float(result[1]), b, slopes, factor)

    def attached(self, found: Found, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The log marginal as a tensor through which gradients flow, if they were asked for."""
        return CompiledFunction.apply(found.log_marginal, found.slopes, *inputs)  # type: ignore[no-untyped-call]

    def split(self, b: np.ndarray) -> Arrays:
        """Effects by term, (levels, q)."""
        return [b[part].reshape(shape) for part, shape in self._parts]

    def conditional(self, found: Found, tril: Arrays, whole: Callable[[], Conditional]) -> Conditional:
        """The effects at a mode that was kept.

        Parameters
        ----------
        whole
            Makes the same without compiled code, for what is rarely asked for: SDs, several draws, moved coefficients.
        """
        names = self.plan.latents

        def draw(n: int, generator: torch.Generator, shifts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if n != 1 or shifts:
                return whole().draw(n, generator, shifts)
            sizes = [(term.levels, term.q, 1) for term in self.plan.layout.terms]
            noise = [torch.randn(size, generator=generator, dtype=torch.float64).reshape(-1) for size in sizes]
            drawn = self.split(self._drawn(found, torch.cat(noise)))
            return {
                name: torch.from_numpy(x @ block.T)[None] for name, x, block in zip(names, drawn, tril, strict=True)
            }

        mode = {n: torch.from_numpy(x @ block.T) for n, x, block in zip(names, self.split(found.b), tril, strict=True)}
        return Conditional(mode, lambda: whole().spread(), draw)

    def _drawn(self, found: Found, noise: torch.Tensor) -> np.ndarray:
        """Spherical effects from their Gaussian, (total,), from white noise (total,)."""
        assert found.factor is not None
        out = np.empty(self.total)
        self._sample(found.factor.ctypes.data, found.b.ctypes.data, noise.data_ptr(), out.ctypes.data)
        return out


class CompiledFunction(torch.autograd.Function):
    """A log marginal that came with its gradient: ``apply(value, slopes, inputs...)``."""

    @staticmethod
    def forward(ctx: Any, value: float, slopes: Sequence[torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        ctx.slopes = slopes
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *(grad * slope for slope in ctx.slopes)


def _addresses(tensors: Sequence[torch.Tensor]) -> Any:
    return (ctypes.c_void_p * max(len(tensors), 1))(*[tensor.data_ptr() for tensor in tensors])


# -- the family -------------------------------------------------------------------------------------------------------
def _family_texts(
    plan: Plan, family: AbstractFamily, dispersion: Mapping[str, torch.Tensor]
) -> tuple[list[str], list[torch.Tensor]]:
    """``rows(eta, dispersion..., log_prob, score, weight, slope)``, and the gradient in the dispersion."""
    n, names = len(plan.obs), list(dispersion)

    def rows(eta: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        found = family.derivatives(eta, plan.obs, plan.trials, prepared=plan.prepared, **given)
        weighted = found if plan.row_weight is None else [plan.row_weight * part for part in found]
        return tuple(part.expand(n).contiguous() for part in weighted)

    def surrogate(
        eta: torch.Tensor, leverage: torch.Tensor, moved: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        found = dispersion_gradients(plan, family, eta, leverage, moved, given, [True] * len(values))
        return tuple(slope for slope in found if slope is not None)

    example = [value.detach().clone() for value in dispersion.values()]
    vector = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    texts, held = [], []
    functions = [("rows", rows, [vector, *example])]
    if dispersion:
        functions.append(("dispersion", surrogate, [vector, vector.abs(), vector.clone(), *example]))
    for name, function, inputs in functions:
        with isolated():  # a distribution's checks of its arguments cannot be traced
            graph = trace(function, inputs)
        text, tensors = native.graph_text(graph, inputs, name)
        texts.append(text)
        held += tensors
    return texts, held
