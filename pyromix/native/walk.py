"""A traced graph as a list of steps without writes in place: who reads what, and which of it never changes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from pyromix.native.values import Unsupported

# results of these depend on the shape of their argument alone
SHAPES_ONLY = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
    *("new_empty_strided", "empty_strided", "empty"),
}


class WritesThroughView(Exception):
    """A write in place that other names of the same memory see."""


@dataclass(eq=False)
class Step:
    """One operation: where its result is called `node`, on arguments that are nodes or plain.

    Attributes
    ----------
    readers
        Operations that compute with the result, seen through views.
    constant
        Whether the result is the same in every call.
    real
        The result at the example.
    """

    node: Node
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    readers: int = 0
    constant: bool = False
    real: Any = None

    @property
    def name(self) -> str:
        """The operation's name without ``aten.`` and the overload."""
        return str(self.target).split(".")[1] if isinstance(self.target, torch._ops.OpOverload) else str(self.target)

    @property
    def is_view(self) -> bool:
        return is_view(self.target)


def is_view(target: Any) -> bool:
    """Whether an operation gives another look at its first argument."""
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    returns = target._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write


def steps(graph: torch.fx.GraphModule, reals: Sequence[Any]) -> tuple[list[Step], dict[Node, Step], Any]:
    """The operations that count, every result by its node, and what the graph returns.

    Raises
    ------
    WritesThroughView
        Rewriting a write in place as an operation is not enough.
    """
    listed, current, result = _functional(graph)
    by_node = {step.node: step for step in listed}
    returned = map_arg(result, lambda node: current.get(node, node))
    _count_readers(listed, by_node, returned)
    kept = [step for step in listed if step.readers or step.node.op == "placeholder"]
    _evaluate(graph, kept, by_node, reals)
    return kept, by_node, returned


def _functional(graph: torch.fx.GraphModule) -> tuple[list[Step], dict[Node, Node], Any]:
    order = {node: k for k, node in enumerate(graph.graph.nodes)}
    current: dict[Node, Node] = {}  # the latest version of what was written to
    roots: dict[Node, Node] = {}
    listed: list[Step] = []
    for node in graph.graph.nodes:
        if node.op == "output":
            return listed, current, node.args[0]
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: current.get(n, n))  # noqa: B023 (called at once)
        target = node.target
        if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
            if torch.Tag.nondeterministic_seeded in target.tags:
                raise Unsupported(f"{target}, which is random")
            if target._schema.is_mutable:
                written = args[0]
                _check_alone(written, node, roots, current, order)
                target = _out_of_place(target)
                current = {key: node if value is written else value for key, value in current.items()}
                current[written] = node
            elif is_view(target) and args and isinstance(args[0], Node):
                roots[node] = roots.get(args[0], args[0])
        elif node.op == "call_function" and target is operator.getitem:
            roots[node] = roots.get(args[0], args[0])
        elif node.op not in ("placeholder", "get_attr"):
            raise Unsupported(f"{node.op} {target}")
        listed.append(Step(node, target, args, kwargs))
    raise Unsupported("a graph without an output")


def _check_alone(written: Any, writer: Node, roots: dict, current: dict, order: dict[Node, int]) -> None:
    root = roots.get(written, written)
    others = [node for node in (*roots, root) if roots.get(node, node) is root and node is not written]
    seen = any(order[user] > order[writer] for other in others if other not in current for user in other.users)
    if root.op != "call_function" or seen:
        raise WritesThroughView


def _out_of_place(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """``aten.add_.Tensor`` -> ``aten.add.Tensor``."""
    packet = target._schema.name.split("::")[1]
    found = getattr(getattr(torch.ops.aten, packet[:-1], None), target._overloadname, None)
    if not packet.endswith("_") or found is None:
        raise Unsupported(str(target))
    return found


def _count_readers(listed: list[Step], by_node: dict[Node, Step], returned: Any) -> None:
    for node in _nodes(returned):
        by_node[node].readers += 1
    for step in reversed(listed):
        if step.readers:
            for node in _nodes((step.args, step.kwargs)):
                by_node[node].readers += step.readers if step.is_view else 1


def _nodes(structure: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(structure, found.append)
    return found


def _evaluate(graph: torch.fx.GraphModule, kept: list[Step], by_node: dict[Node, Step], reals: Sequence[Any]) -> None:
    """Run the operations at the example, for the shapes and types, and for what never changes."""
    given = iter(reals)
    for step in kept:
        node = step.node
        if node.op == "placeholder":
            step.real = next(given)
        elif node.op == "get_attr":
            step.real, step.constant = operator.attrgetter(str(node.target))(graph), True
        else:
            step.constant = step.name in SHAPES_ONLY or all(
                by_node[n].constant for n in _nodes((step.args, step.kwargs))
            )
            args, kwargs = map_arg((step.args, step.kwargs), lambda n: by_node[n].real)
            step.real = step.target(*args, **kwargs)
            if "empty" in step.name:
                step.real = torch.zeros_like(step.real)  # whoever reads it has written to it before
