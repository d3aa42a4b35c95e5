"""Programs as pure tensor functions, evaluated eagerly, as a traced graph, or as compiled code.

Running a Pyro program costs some hundred Python calls however few its rows. A function that is evaluated often is
therefore traced once to a graph of tensor operations, which can also be compiled: in a fraction of a second from C
(`pyromix.native`) where no gradients have to flow through it, or else in seconds by torch's Inductor. What pays depends
on the number of evaluations alone: `cheapest` is the one rule, from the measured `COSTS`.

Tracing records the operations of one run. Everything that does not depend on the inputs (checks of the data, priors) is
evaluated then and there and enters the graph as a constant; a branch that depends on the inputs cannot be traced. A
graph is compared with the function before it is used; where tracing or compiling fails, the next simpler mode takes
over, and says why in the log and in `Compiled.reason`.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyromix import native
from pyromix.errors import ConfigError, DataError
from pyromix.running import Program, Record, run, unvalidated

Function = Callable[..., Any]
log = logging.getLogger(__name__)

MODES = ("eager", "traced", "compiled")
TOLERANCE = 1e-9  # of the largest entry: how far a graph's result may be from the function's
NUDGE = 1e-14  # of every input: moves a well-conditioned function less than that tolerance, and rounds all anew
ROUNDING = 10.0  # times what such a nudge does to the function's results: as far as another library's may go
LOOSEST = 1e-6  # of the largest entry: however ill-conditioned a function is
CXX_NAMES = ("g++", "clang++", "c++")
# tensors that programs make in order to write to them
BLANKS = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.empty_like, torch.zeros_like, torch.ones_like),
    *(torch.full_like, torch.Tensor.new_empty, torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full),
}
WRITES = {f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "ixor")}


@dataclass(frozen=True)
class Cost:
    """Seconds to set a mode up, and for one evaluation."""

    setup: float
    evaluation: float

    def total(self, evaluations: int) -> float:
        """Expected seconds of that many evaluations."""
        return self.setup + evaluations * self.evaluation


# Value and gradient of the log joint density of a logistic model with 7,584 rows and 348 unknowns, one thread.
COSTS = {
    "eager": Cost(0.0, 1.6e-3),
    "traced": Cost(0.2, 0.84e-3),
    "compiled": Cost(0.5, 0.06e-3),
}
# Compiling took 2.5 to 4 s where Inductor had seen the graph before and 11 s where not; the constant lies between.
INDUCTOR_COSTS = {**COSTS, "compiled": Cost(6.0, 0.12e-3)}


def cheapest(evaluations: int, modes: Sequence[str] = MODES, costs: Mapping[str, Cost] = COSTS) -> str:
    """The mode with the least expected total cost; the simpler one where equal."""
    return min(modes, key=lambda mode: costs[mode].total(evaluations))


def compiler_problem(by: str = "inductor") -> str | None:
    """Why nothing can be compiled here, or ``None``: ``"inductor"`` needs a C++ compiler, ``"c"`` one for C."""
    if by == "c":
        return native.compiler_problem()
    named = os.environ.get("CXX")
    if named:
        return None if shutil.which(named.split()[0]) else f"CXX={named} is not there"
    found = any(shutil.which(name) for name in CXX_NAMES)
    return None if found else "no C++ compiler was found (set CXX, or install g++)"


class Compiled:
    """A function of tensors of fixed shapes in one of the modes.

    Attributes
    ----------
    mode
        ``"eager"``, ``"traced"`` or ``"compiled"``: the one in use.
    reason
        Why it is not the one that was wanted; empty if it is.
    by
        What compiled it: ``"c"`` or ``"inductor"``; empty where nothing is compiled.
    """

    def __init__(
        self, call: Function, inputs: Sequence[torch.Tensor], mode: str, reason: str = "", by: str = ""
    ) -> None:
        self._call, self.mode, self.reason, self.by = call, mode, reason, by
        self._shapes = [(tensor.shape, tensor.dtype) for tensor in inputs]

    @property
    def address(self) -> int:
        """Of the function in C that is behind it, if `by` says so: inputs and outputs by their addresses."""
        return int(self._call.address)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        got = [(tensor.shape, tensor.dtype) for tensor in inputs]
        if got != self._shapes:
            shown = [f"{list(shape)} {dtype}" for shape, dtype in got]
            expected = [f"{list(shape)} {dtype}" for shape, dtype in self._shapes]
            raise DataError(f"this function was prepared for inputs {expected}, got {shown}; prepare it again.")
        return self._call(*inputs)


def compile_function(
    function: Function,
    example_inputs: Sequence[torch.Tensor],
    *,
    mode: str = "auto",
    evaluations: int,
    differentiable: bool = True,
) -> Compiled:
    """Prepare a function for a number of evaluations.

    Parameters
    ----------
    function
        Of tensors, to a tensor or a tuple of them; pure (no random numbers, no state).
    example_inputs
        Tensors of the shapes and types of all later calls, at an ordinary point.
    mode
        ``"auto"`` for the `cheapest`, or one of ``"eager"``, ``"traced"``, ``"compiled"``.
    evaluations
        How often it will be called, about.
    differentiable
        Whether gradients must flow through its results.

    Raises
    ------
    ConfigError
        An unknown mode, or a number of evaluations below 1. That a mode cannot be had is no error.
    """
    if mode != "auto" and mode not in MODES:
        raise ConfigError(f"compile_function(mode={mode!r}): choose one of 'auto', {', '.join(map(repr, MODES))}.")
    if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
        raise ConfigError(f"compile_function(evaluations={evaluations!r}): must be a positive integer.")
    inputs = [tensor.detach().clone() for tensor in example_inputs]
    problems = {by: compiler_problem(by) for by in (("inductor",) if differentiable else ("c", "inductor"))}
    usable = [by for by, problem in problems.items() if problem is None]
    wanted = _wanted(mode, evaluations, usable)
    if wanted == "eager":
        return Compiled(function, inputs, "eager")
    graph, reason = _attempt("traced", function, inputs, lambda: trace(function, inputs))
    if graph is None:
        return Compiled(function, inputs, "eager", reason)
    if wanted == "traced":
        return Compiled(graph, inputs, "traced")
    reason = "; ".join(problem for problem in problems.values() if problem)
    if not usable:
        log.info("not compiled: %s", reason)
    compilers = {
        "c": lambda: native.compile_graph(graph, inputs),
        "inductor": lambda: _compile(graph, inputs, differentiable),
    }
    for by in usable:
        # what C cannot do is worth Inductor's seconds only for many evaluations
        if _wanted(mode, evaluations, [by]) == "compiled":
            code, reason = _attempt("compiled", function, inputs, compilers[by])
            if code is not None:
                return Compiled(code, inputs, "compiled", by=by)
    return Compiled(graph, inputs, "traced", reason)


def _wanted(mode: str, evaluations: int, usable: Sequence[str]) -> str:
    """The mode to try, with the compilers that there are."""
    if mode != "auto":
        return mode
    if not usable:
        return cheapest(evaluations, MODES[:2])
    return cheapest(evaluations, costs=COSTS if "c" in usable else INDUCTOR_COSTS)


def _attempt(
    mode: str, function: Function, inputs: list[torch.Tensor], build: Callable[[], Function]
) -> tuple[Function | None, str]:
    """What `build` makes if it works and agrees with the function; else why not."""
    try:
        built = build()
        problem = _disagreement(function, built, inputs)
    except Exception as error:  # tracers and compilers fail in any class; the simpler mode always works
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not problem:
        return built, ""
    log.info("not %s: %s", mode, problem)
    return None, problem


def _disagreement(function: Function, built: Function, inputs: list[torch.Tensor]) -> str:
    """Compare at the example and near it, where a constant that should not be one shows."""
    near = [tensor * 1.01 + 0.003 if tensor.is_floating_point() else tensor for tensor in inputs]
    for where, point in (("at the example", inputs), ("near the example", near)):
        try:
            expected = tree_leaves(function(*point))
        except (ValueError, ArithmeticError):  # the neighbour may lie outside the function's domain
            continue
        found = tree_leaves(built(*point))
        if not _close(found, expected) and not _close(found, expected, _noise(function, point, expected)):
            return f"its result differs from the function's {where}"
    return ""


def _close(found: list[torch.Tensor], expected: list[torch.Tensor], noise: Sequence[float] = ()) -> bool:
    for k, (got, want) in enumerate(zip(found, expected, strict=True)):
        got, want = got.detach(), want.detach()
        size = float(want.abs().max()) if want.numel() else 0.0
        room = (1 + size) * TOLERANCE
        room = min(max(room, noise[k]), (1 + size) * LOOSEST) if noise else room
        if got.shape != want.shape or not torch.allclose(got, want, rtol=0.0, atol=room, equal_nan=True):
            return False
    return True


def _noise(function: Function, point: Sequence[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """What rounding does to each result, with room: a nearly singular matrix makes much of little."""
    nudged = [tensor * (1 + NUDGE * _signs(tensor)) if tensor.is_floating_point() else tensor for tensor in point]
    try:
        again = tree_leaves(function(*nudged))
    except (ValueError, ArithmeticError):
        return [0.0] * len(expected)
    pairs = [(a.detach(), b.detach()) for a, b in zip(again, expected, strict=True)]
    moved = [float((a - b).abs().max()) if b.numel() else 0.0 for a, b in pairs]
    return [ROUNDING * size if math.isfinite(size) else 0.0 for size in moved]


def _signs(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(tensor.numel(), dtype=tensor.dtype)).view(tensor.shape)


class _WrittenConstant(Exception):
    """What depends on the inputs is written to a tensor that was kept out of the trace."""


class _FoldConstants(TorchFunctionMode):
    """Evaluate outside the trace whatever does not depend on the traced inputs; blank tensors too, if `blanks`."""

    def __init__(self, inputs: Sequence[torch.Tensor], blanks: bool) -> None:
        super().__init__()
        self._blanks = blanks
        self._traced = {id(tensor): tensor for tensor in inputs}  # references, so that no id is used twice
        self._outer = not any(map(_is_wrapped, inputs))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends = any(self._depends(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        blank = not depends and func in BLANKS and not self._blanks
        if not depends and not blank:
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if depends and _writes(func) and isinstance(args[0], torch.Tensor) and not self._depends(args[0]):
            raise _WrittenConstant
        # past the modes around this one, which would keep a blank out
        with torch._C.DisableTorchFunction() if blank else nullcontext():
            out = func(*args, **kwargs)
        self._traced.update({id(leaf): leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)})
        return out

    def _depends(self, tensor: torch.Tensor) -> bool:
        # what a functional gradient wraps is for the mode inside it to judge
        return id(tensor) in self._traced or (self._outer and _is_wrapped(tensor))


def _writes(func: Any) -> bool:
    """Whether a function changes its first argument."""
    name = getattr(func, "__name__", "")
    return name in WRITES or (name.endswith("_") and not name.endswith("__"))


def _is_wrapped(tensor: torch.Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def folding(function: Function) -> Function:
    """The function, with what does not depend on its inputs kept out of a trace."""

    def folded(*inputs: torch.Tensor) -> Any:
        try:
            with _FoldConstants(inputs, blanks=True):
                return function(*inputs)
        except _WrittenConstant:
            with _FoldConstants(inputs, blanks=False):
                return function(*inputs)

    return folded


def trace(function: Function, inputs: Sequence[torch.Tensor]) -> torch.fx.GraphModule:
    """The graph of a function at inputs; an exception of any class where it cannot be traced."""
    with torch.random.fork_rng(devices=[]):
        return _number_masks(make_fx(folding(function))(*inputs))


def _number_masks(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Positions in place of constant masks: what a mask selects has a size that the compiler cannot know."""
    for node in list(graph.graph.nodes):
        if node.target not in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default):
            continue
        places: list[Any] = []
        for index in node.args[1]:
            mask = getattr(graph, index.target, None) if getattr(index, "op", "") == "get_attr" else None
            if mask is None or mask.dtype != torch.bool:
                places.append(index)
                continue
            for k, position in enumerate(mask.nonzero(as_tuple=True)):
                name = f"{index.target}_at_{k}"
                graph.register_buffer(name, position)
                with graph.graph.inserting_before(node):
                    places.append(graph.graph.get_attr(name))
        node.args = (node.args[0], places, *node.args[2:])
    graph.recompile()
    return graph


def _compile(graph: Any, inputs: list[torch.Tensor], differentiable: bool) -> Function:
    from torch._inductor import config  # a second and more that only this needs

    # the compiler's own deprecations are not the caller's; its trial of the vector unit costs seconds, and what it
    # would find out the comparison with the function finds out too
    with warnings.catch_warnings(), config.patch({"cpp.vec_isa_ok": True}):
        warnings.simplefilter("ignore")
        return _compiled(graph, inputs, differentiable)


def _compiled(graph: Any, inputs: list[torch.Tensor], differentiable: bool) -> Function:
    if not differentiable:
        return torch._inductor.compile(graph, inputs)  # type: ignore[attr-defined]
    code = torch.compile(graph, fullgraph=True, dynamic=False)
    points = [tensor.clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    outputs = [leaf for leaf in tree_leaves(code(*points)) if leaf.requires_grad]
    torch.autograd.backward(outputs, [torch.ones_like(leaf) for leaf in outputs])  # compiles the backward pass too
    return code


# -- what programs become ---------------------------------------------------------------------------------------------
class TensorProgram:
    """Everything a marginaliser needs of a run, as a pure function of one flat vector of hyper-parameter values.

    Calling it with the values of `names` side by side (natural scale, ``(size,)``) gives a tuple named by `outputs`:
    the predictor ``eta`` (n,) with every effect at zero, the factor ``L`` of each effect and what else hyper-parameters
    move in its covariance, the family's dispersion parameters, and ``log_prior``, the log prior density of all
    hyper-parameters.

    Attributes
    ----------
    parts
        Of each effect's covariance at some values: how many outputs it has, and how it is made of them.
    """

    def __init__(self, program: Program, args: tuple[Any, ...], names: Sequence[str] | None = None) -> None:
        self.program, self.args = program, args
        base = run(program, args, hypers="moderate", seed=0)
        unknown = sorted(set(names or ()) - set(base.hypers))
        if unknown or (names is not None and set(names) != set(base.hypers)):
            differing = unknown or sorted(set(base.hypers) - set(names or ()))
            raise ConfigError(
                f"tensor_program(names=...): {', '.join(differing)} does not match the program's hyper-parameters "
                f"({', '.join(base.hypers)}); name each of them once."
            )
        self.names = tuple(base.hypers) if names is None else tuple(names)
        self.shapes = tuple(base.hypers[name].value.shape for name in self.names)
        self.size = sum(shape.numel() for shape in self.shapes)
        self.parts = {name: site.fn.operator.parts() for name, site in base.latents.items()}
        (data,) = base.data.values()
        factors = [
            f"{name}.L" if k == 0 else f"{name}.L{k}"
            for name, part in self.parts.items()
            for k in range(len(part.tensors))
        ]
        self.outputs = ("eta", *factors, *(f"{data.name}.{key}" for key in data.role.dispersion), "log_prior")
        self.example = self.flat({name: base.hypers[name].value for name in self.names})

    def flat(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """The vector of site values."""
        parts = [values[name].reshape(-1) for name in self.names]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def values(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Site values at a vector; gradients flow."""
        parts = flat.split([shape.numel() for shape in self.shapes])
        return {name: part.reshape(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def __call__(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        record = run(self.program, self.args, self.values(flat))
        (data,) = record.data.values()
        factors = [part for site in record.latents.values() for part in site.fn.operator.parts().tensors]
        return data.role.eta, *factors, *data.role.dispersion.values(), _log_prior(record)


def tensor_program(program: Program, args: tuple[Any, ...], names: Sequence[str] | None = None) -> TensorProgram:
    """A program with one response as a `TensorProgram`; `names` orders its hyper-parameters."""
    return TensorProgram(program, args, names)


def _log_prior(record: Record) -> torch.Tensor:
    terms = [unvalidated(site.fn).log_prob(site.value).sum() for site in record.hypers.values()]
    return sum(terms, torch.zeros((), dtype=torch.float64))
