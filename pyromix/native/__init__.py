"""Traced graphs as plain C: compiled in a fraction of a second, for functions that are evaluated many times.

Limits: float64, whole numbers and booleans on the CPU, shapes as traced; places (of an index, say) that are the same in
every call. A matrix that has no Cholesky factor gives NaN where torch raises. What is outside raises `Unsupported`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten

from pyromix.native.build import compiler, compiler_problem, load, vector_functions
from pyromix.native.emit import function, library, program
from pyromix.native.kernels import Builder
from pyromix.native.lower import Lowering
from pyromix.native.pointwise import ctype_of
from pyromix.native.values import Buffer, Strided, Unsupported, Value, contiguous_strides
from pyromix.native.walk import WritesThroughView

__all__ = ["Unsupported", "compile_graph", "compile_texts", "compiler", "compiler_problem", "graph_text"]


def compile_graph(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """The graph as a function of tensors of the shapes and types of `inputs`, compiled from C.

    Its results are fresh tensors. Calls from several threads take turns; a process forked off later calls its own copy.

    Raises
    ------
    Unsupported
        An operation, type or memory layout that is not known, or no working C compiler.
    """
    try:
        return _compiled(graph, inputs)
    except WritesThroughView:
        pass
    try:  # torch rewrites any such write, but takes as long as it took to trace
        return _compiled(make_fx(torch.func.functionalize(graph))(*inputs), inputs)
    except (RuntimeError, WritesThroughView) as error:
        raise Unsupported(f"a write through a view: {error}") from error


def _compiled(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., Any]:
    builder = Builder()
    values = [_input(builder, tensor) for tensor in inputs]
    result = Lowering(builder).run(graph, values, [tensor.detach() for tensor in inputs])
    returned, spec = tree_flatten(result)
    plain = isinstance(result, tuple) and all(isinstance(value, Value) for value in result)
    outputs = [(builder.output(value), value.shape) if isinstance(value, Value) else None for value in returned]
    vectorised = vector_functions()
    source = program(builder, [value.buffer for value in values], vectorised)
    library = load(source, bool(vectorised))
    constants = [tensor for _, tensor in builder.constants.values()]
    return Function(library, len(inputs), outputs, returned, spec, plain, constants)


def graph_text(
    graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], name: str
) -> tuple[str, list[torch.Tensor]]:
    """``void name(inputs..., outputs...)`` for a graph that returns a tuple of tensors, to be compiled with other text.

    The tensors that come with it have to live as long as the code: it has their addresses.

    Raises
    ------
    Unsupported
        As `compile_graph`; also where torch would have to rewrite the graph first.
    """
    builder = Builder(f"{name}_")
    values = [_input(builder, tensor) for tensor in inputs]
    try:
        result = Lowering(builder).run(graph, values, [tensor.detach() for tensor in inputs])
    except WritesThroughView as error:
        raise Unsupported(f"a write through a view: {error}") from error
    for value in result:
        if not isinstance(value, Value):
            raise Unsupported(f"a result of type {type(value).__name__}")
        builder.output(value)
    text = function(name, builder, [value.buffer for value in values])
    return text, [tensor for _, tensor in builder.constants.values()]


def compile_texts(texts: Sequence[str]) -> ctypes.PyDLL:
    """Compile pieces of C that may call the C library's functions of doubles, without headers.

    Raises
    ------
    Unsupported
        There is no compiler, or it fails.
    """
    vectorised = vector_functions()
    return load(library(texts, vectorised), bool(vectorised))


def _input(builder: Builder, tensor: torch.Tensor) -> Strided:
    if tensor.device.type != "cpu":
        raise Unsupported(f"an input on {tensor.device}")
    shape, ctype = tuple(tensor.shape), ctype_of(tensor)
    return Strided(shape, ctype, builder.buffer(ctype, tensor.numel(), kind="input"), contiguous_strides(shape))


class Function:
    """Calls a compiled graph; keeps what its code points to."""

    def __init__(
        self,
        library: Any,
        inputs: int,
        outputs: Sequence[tuple[Buffer, tuple[int, ...]] | None],
        returned: Sequence[Any],
        spec: Any,
        plain: bool,
        constants: Sequence[torch.Tensor],
    ) -> None:
        self._library, self._constants, self._spec, self._returned = library, constants, spec, returned
        self._run = library.run
        self._run.restype = None
        self._run.argtypes = [ctypes.c_void_p] * (inputs + sum(output is not None for output in outputs))
        self._shapes = [None if output is None else (output[1], DTYPES[output[0].ctype]) for output in outputs]
        self._made = [entry for entry in self._shapes if entry is not None]
        self._plain = plain

    @property
    def address(self) -> int:
        """Of the C function, which takes addresses of inputs and outputs."""
        return int(ctypes.cast(self._run, ctypes.c_void_p).value or 0)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        inputs = tuple([tensor.contiguous() for tensor in inputs])  # itself where it is so
        made = [torch.empty(shape, dtype=dtype) for shape, dtype in self._made]
        self._run(*[tensor.data_ptr() for tensor in (*inputs, *made)])
        if self._plain:
            return tuple(made)
        given = iter(made)
        leaves = [
            old if entry is None else next(given) for old, entry in zip(self._returned, self._shapes, strict=True)
        ]
        return self._spec.unflatten(leaves)


DTYPES = {"double": torch.float64, "long long": torch.int64, "_Bool": torch.bool}
