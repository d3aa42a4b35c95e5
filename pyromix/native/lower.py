"""From the operations of a graph to loops: who computes what, and where it is kept."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_map_only

from pyromix.native.kernels import Builder
from pyromix.native.ops import HANDLERS, Ops
from pyromix.native.values import Literal, Padded, Strided, Unsupported, Value
from pyromix.native.walk import Step, steps

NOT_VIEWS = {"as_strided", "view_as_real", "view_as_complex", "real", "imag"}
KEEP = 2  # a result of more operations than this is kept rather than computed by each of its readers


class Lowering:
    """Turns graphs into the kernels of a builder."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.ops = Ops(builder)
        self.owned: set[Any] = set()  # buffers that one sum may still be added to

    def run(self, graph: torch.fx.GraphModule, inputs: Sequence[Value], reals: Sequence[Any]) -> Any:
        """What a graph returns, its tensors as values.

        Raises
        ------
        Unsupported
            Naming the operation that is not known.
        WritesThroughView
            It writes to memory that it reads by another name.
        """
        kept, by_node, returned = steps(graph, reals)
        values: dict[Node, Any] = {}
        given = iter(inputs)

        def value(node: Node) -> Any:
            if node not in values:  # a constant, made for the first that reads it
                values[node] = tree_map_only(torch.Tensor, self.builder.constant, by_node[node].real)
            return values[node]

        for step in kept:
            if step.node.op == "placeholder":
                values[step.node] = next(given)
            elif not step.constant:
                values[step.node] = self._kept(step, self._lowered(step, by_node, value))
        return map_arg(returned, value)

    def _kept(self, step: Step, found: Any) -> Any:
        if isinstance(found, Value):
            if tuple(step.real.shape) != found.shape:
                raise Unsupported(f"{step.target}: shape {found.shape} in place of {tuple(step.real.shape)}")
            if step.readers > 1 and (found.cost > KEEP or isinstance(found, Padded)):
                return self.builder.realised(found)
        return found

    def _lowered(self, step: Step, by_node: dict[Node, Step], value: Any) -> Any:
        if step.target is operator.getitem:
            return value(step.args[0])[step.args[1]]
        total = self._added(step, by_node, value)
        if total is not None:
            return total
        args = bound(step)
        if step.is_view and step.name not in NOT_VIEWS and not step.target._overloadname == "dtype":
            return self._viewed(step, value)
        if step.name in ("as_strided", "as_strided_scatter"):
            real = by_node[step.args[0]].real
            if not real.is_contiguous() or real.storage_offset():
                raise Unsupported(f"{step.target} of memory with gaps")
        if step.name in HANDLERS or self.ops.pointwise.known(step.name):
            reals = map_arg(args, lambda node: by_node[node].real if by_node[node].constant else None)
            return self.ops(step.name, step.target, map_arg(args, value), reals, step.real)
        return self._decomposed(step, by_node, value)

    def _viewed(self, step: Step, value: Any) -> Any:
        source, rest = value(step.args[0]), step.args[1:]
        if isinstance(source, Literal) and isinstance(step.real, torch.Tensor):
            return Literal(tuple(step.real.shape), source.ctype, source.number)
        if step.name == "expand":
            return self.builder.expanded(source, tuple(step.real.shape))

        def view(tensor: torch.Tensor) -> torch.Tensor:
            return step.target(tensor, *rest, **step.kwargs)

        if isinstance(step.real, torch.Tensor):
            return self.builder.view(source, view)
        source = self.builder.realised(source)
        return [self.builder.view(source, lambda tensor, k=k: view(tensor)[k]) for k in range(len(step.real))]

    def _added(self, step: Step, by_node: dict[Node, Step], value: Any) -> Value | None:
        """A sum of gradients, each in its own part of a vector, written to one vector in turn."""
        if step.name != "add" or len(step.args) != 2 or step.kwargs:
            return None
        pairs = [(a, b) for a, b in (step.args, step.args[::-1]) if isinstance(a, Node) and isinstance(b, Node)]
        for a, b in pairs:
            alone = all(not by_node[n].constant and by_node[n].readers == 1 for n in (a, b))
            if not alone or by_node[a].real.shape != by_node[b].real.shape:
                continue
            base, part = value(a), value(b)
            fresh = isinstance(base, Padded) or (isinstance(base, Strided) and base.buffer in self.owned)
            if fresh and isinstance(part, Padded):
                base = self.builder.realised(base)
                self.owned.add(base.buffer)
                region = Strided(part.piece.shape, part.ctype, base.buffer, part.strides, part.offset)
                self.builder.put(part.piece, region, "+")
                return base
        return None

    def _decomposed(self, step: Step, by_node: dict[Node, Step], value: Any) -> Any:
        """An operation that torch can write in terms of others."""
        rule = decomposition_table.get(step.target)
        if rule is None:
            raise Unsupported(str(step.target))
        leaves, spec = tree_flatten((step.args, step.kwargs))
        nodes = [leaf for leaf in leaves if isinstance(leaf, Node)]

        def function(*tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            args, kwargs = spec.unflatten([next(given) if isinstance(leaf, Node) else leaf for leaf in leaves])
            return rule(*args, **kwargs)

        reals = [by_node[node].real for node in nodes]
        try:
            graph = make_fx(function)(*reals)
        except Exception as error:
            raise Unsupported(f"{step.target}: {error}") from error
        if any(node.target is step.target for node in graph.graph.nodes):
            raise Unsupported(str(step.target))
        return self.run(graph, [value(node) for node in nodes], reals)


def bound(step: Step) -> list[Any]:
    """All arguments of an operation in the order of its schema."""
    if not isinstance(step.target, torch._ops.OpOverload):
        raise Unsupported(str(step.target))
    found = []
    for k, argument in enumerate(step.target._schema.arguments):
        if k < len(step.args):
            found.append(step.args[k])
        else:
            found.append(step.kwargs.get(argument.name, argument.default_value))
    return found
