"""Loops in the order they run. A result joins an earlier loop over the same entries wherever it could stand there.

What a loop has computed stays at hand for everything that joins it later, and what no other loop reads is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pyromix.native.values import (
    BYTES,
    CTYPES,
    FLOAT,
    Buffer,
    Formula,
    Gathered,
    Literal,
    Padded,
    Row,
    Strided,
    Unsupported,
    Value,
    contiguous_strides,
    number_text,
    place,
    viewed,
)

MAX_LINES = 160  # of one loop: more would not fit the registers, and takes the compiler long
MAX_LOOPS = 50  # how many of the latest are asked whether they take a result
MAX_SIZE = 2**31 - 1
IDENTITIES = {"+": "0", "*": "1", "|": "0", "&": "1", "max": "(-__builtin_inf())", "min": "__builtin_inf()"}


@dataclass
class Line:
    """One name within a loop: an expression, or a load from a buffer at a row or at a position computed before."""

    name: str
    ctype: str
    text: str = ""
    buffer: Buffer | None = None
    row: Row | None = None
    position: str = ""


@dataclass
class Write:
    """A name that goes to a buffer; `operation` combines it with what is there (a sum, say)."""

    buffer: Buffer
    row: Row
    name: str
    operation: str = ""


class Loop:
    """A nest of loops over `domain`, straight code where that is empty."""

    def __init__(self, domain: tuple[int, ...]) -> None:
        self.domain, self.width = domain, 1 + len(domain)
        self.serial = False
        self.position = -1
        self.lines: list[Line] = []
        self.writes: list[Write] = []
        self.held: dict[tuple[Buffer, Row | None, str], str] = {}  # what is in memory, by the name that has it
        self._named: dict[tuple[str, str], str] = {}

    def let(self, ctype: str, text: str) -> str:
        """The name of an expression; the same text is computed once."""
        name = self._named.get((ctype, text))
        if name is None:
            name = self._named[ctype, text] = f"v{len(self.lines)}"
            self.lines.append(Line(name, ctype, text))
        return name

    def load(self, buffer: Buffer, row: Row | None, position: str = "") -> str:
        """The name of an entry of a buffer, at a row or at a position that has a name."""
        name = self.held.get((buffer, row, position))
        if name is None:
            name = self.held[buffer, row, position] = f"v{len(self.lines)}"
            self.lines.append(Line(name, buffer.ctype, buffer=buffer, row=row, position=position))
        return name

    def write(self, buffer: Buffer, row: Row, name: str, operation: str = "") -> None:
        self.writes.append(Write(buffer, row, name, operation))
        if not operation:
            self.held[buffer, row, ""] = name

    def provides(self, line: Line) -> bool:
        """Whether a load could stand here: written before this loop, or by it at the same place."""
        assert line.buffer is not None
        if line.buffer.last_write != self.position:
            return line.buffer.last_write < self.position
        written = any(line.buffer is write.buffer and not write.operation for write in self.writes)
        return written and (line.buffer, line.row, line.position) in self.held

    def takes(self, buffer: Buffer, operation: str) -> bool:
        """Whether a write could stand here: the first one, or one of sums in any order."""
        if buffer.last_write != self.position:
            return buffer.last_write < self.position
        return operation == "+" and all(write.operation == "+" for write in self.writes if write.buffer is buffer)

    @property
    def reads(self) -> set[Buffer]:
        return {line.buffer for line in self.lines if line.buffer is not None}

    @property
    def touched(self) -> set[Buffer]:
        return self.reads | {write.buffer for write in self.writes}


@dataclass
class Raw:
    """A call of a C function of ours; ``{0}``, ``{1}`` ... stand for the buffers."""

    template: str
    buffers: tuple[Buffer, ...]
    position: int

    @property
    def text(self) -> str:
        return self.template.format(*[f"&{b.name}" if b.kind == "scalar" else b.name for b in self.buffers])

    @property
    def reads(self) -> set[Buffer]:
        return set(self.buffers)

    @property
    def touched(self) -> set[Buffer]:
        return set(self.buffers)


class Builder:
    """Collects kernels and the buffers they use.

    Parameters
    ----------
    prefix
        Of the buffers' names, where several functions share a source.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.kernels: list[Loop | Raw] = []
        self.buffers: list[Buffer] = []
        self.constants: dict[tuple[int, str], tuple[Buffer, torch.Tensor]] = {}
        self.outputs: list[Buffer] = []
        self._lines: dict[tuple[Any, ...], tuple[torch.Tensor, Value]] = {}
        self._loops: dict[tuple[int, ...], list[Loop]] = {}

    # -- memory --------------------------------------------------------------------------------------------------------
    def buffer(self, ctype: str, size: int, initial: str | None = None, kind: str = "") -> Buffer:
        if size * BYTES[ctype] > MAX_SIZE:
            raise Unsupported(f"{size} entries in one tensor")
        kind = kind or ("scalar" if size == 1 else "arena")
        self.buffers.append(Buffer(f"{self.prefix}{kind}{len(self.buffers)}", ctype, size, kind, initial))
        return self.buffers[-1]

    def constant(self, tensor: torch.Tensor) -> Value:
        """A tensor that never changes; one number where all its entries are the same."""
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.double()
        if tensor.dtype not in CTYPES or tensor.device.type != "cpu":
            raise Unsupported(f"a constant of type {tensor.dtype} on {tensor.device}")
        tensor, ctype = tensor.detach(), CTYPES[tensor.dtype]
        value: Value
        if tensor.numel() and bool((tensor == tensor[(0,) * tensor.ndim]).all()):
            value = Literal(tuple(tensor.shape), ctype, tensor[(0,) * tensor.ndim].item())
        else:
            storage = tensor.untyped_storage()
            key = (storage.data_ptr(), ctype)
            if key not in self.constants:
                size = storage.nbytes() // BYTES[ctype]
                self.constants[key] = (self.buffer(ctype, max(size, 2), kind="constant"), tensor)
            value = Strided(
                tuple(tensor.shape), ctype, self.constants[key][0], tensor.stride(), int(tensor.storage_offset())
            )
        value.known = tensor
        return value

    def line(self, tensor: torch.Tensor, dim: int, k: int) -> Value:
        """One row or column of a constant, copied where it has gaps."""
        part = tensor.select(dim, k)
        key = (part.data_ptr(), part.shape, part.stride())
        if key not in self._lines:
            self._lines[key] = (part, self.constant(part.contiguous()))  # alive, so that no address is used twice
        return self._lines[key][1]

    def positions(self, tensor: torch.Tensor) -> Strided:
        """Constant places in a buffer."""
        found = self.constant(tensor.to(torch.int32).contiguous())
        if isinstance(found, Literal):
            storage = tensor.to(torch.int32).reshape(-1)[:1].clone()
            buffer = self.buffer("int", 2, kind="constant")
            self.constants[storage.data_ptr(), "int"] = (buffer, storage)
            return Strided(found.shape, "int", buffer, (0,) * len(found.shape))
        assert isinstance(found, Strided)
        return found

    # -- loops ---------------------------------------------------------------------------------------------------------
    def _place(self, value: Value, target: Buffer, strides: Sequence[int], offset: int, operation: str = "") -> None:
        """Write a value to strided places of a buffer, in the latest loop that can take it."""
        domain = tuple(extent for extent in value.shape if extent != 1)
        draft = Loop(domain)
        self._write(draft, value, target, strides, offset, operation)
        loads = [line for line in draft.lines if line.buffer is not None]
        best, score = None, -1
        for loop in self._loops.get(domain, [])[: -MAX_LOOPS - 1 : -1]:
            if (
                loop.serial != draft.serial
                or not loop.takes(target, operation)
                or len(loop.lines) + len(draft.lines) > MAX_LINES
            ):
                continue
            if all(loop.provides(line) for line in loads):
                own = {write.buffer for write in loop.writes}
                shared = sum(line.buffer in own for line in loads)
                if shared > score:
                    best, score = loop, shared
        if best is None:
            best = draft
            best.position = len(self.kernels)
            self.kernels.append(best)
            self._loops.setdefault(domain, []).append(best)
        else:
            self._write(best, value, target, strides, offset, operation)
        target.last_write = best.position

    @staticmethod
    def _write(loop: Loop, value: Value, target: Buffer, strides: Sequence[int], offset: int, operation: str) -> None:
        index, unit = [], 0
        for extent in value.shape:
            row = [0] * loop.width
            if extent != 1:
                unit += 1
                row[unit] = 1
            index.append(tuple(row))
        loop.serial |= operation in ("max", "min")
        name = value.at(loop, index)
        loop.write(target, place(tuple(strides), offset, index, loop.width), name, operation)

    def raw(self, template: str, reads: Sequence[Buffer], written: Buffer) -> None:
        """A call that reads buffers and writes one (which it may read too)."""
        kernel = Raw(template, (*reads, written), len(self.kernels))
        written.last_write = kernel.position
        self.kernels.append(kernel)

    # -- what operations are made of -----------------------------------------------------------------------------------
    def realised(self, value: Value) -> Strided:
        """The value in memory."""
        if isinstance(value, Strided):
            return value
        if isinstance(value, Padded):
            found = self.assembled(value.shape, value.ctype, Literal(value.shape, value.ctype, 0))
            self._place(self.settled(value.piece), found.buffer, value.strides, value.offset)
            return found
        return self.copied(value)

    def copied(self, value: Value) -> Strided:
        """The value in memory of its own, contiguous."""
        found = self.memory(value.shape, value.ctype)
        if value.size:
            self._place(self.settled(value), found.buffer, found.strides, 0)
        return found

    def settled(self, value: Value) -> Value:
        """The value as something that has an entry at every index."""
        return self.realised(value) if isinstance(value, Padded) else value

    def contiguous(self, value: Value) -> Strided:
        """The value in memory from a buffer's start on, as C functions take it."""
        found = self.realised(value)
        return found if found.contiguous and found.offset == 0 else self.copied(found)

    def memory(self, shape: tuple[int, ...], ctype: str = FLOAT, initial: str | None = None) -> Strided:
        """Memory of its own; without `initial` every entry has to be written before it is read."""
        return Strided(shape, ctype, self.buffer(ctype, Value(shape, ctype).size, initial), contiguous_strides(shape))

    def assembled(self, shape: tuple[int, ...], ctype: str, base: Value | None) -> Strided:
        """Memory that starts as a copy of `base`, or as anything, and is then written to piece by piece."""
        if base is None or isinstance(base, Literal):
            return self.memory(shape, ctype, None if base is None else number_text(base.number, ctype))
        return self.copied(base)

    def put(self, value: Value, target: Strided, operation: str = "") -> None:
        """Write a value to a look at memory, or combine it with what is there."""
        if value.size:
            self._place(self.settled(value), target.buffer, target.strides, target.offset, operation)

    def put_sum(self, value: Value, target: Buffer, place: int) -> None:
        """Add the sum of a value's entries to one entry of a buffer."""
        if value.size:
            self._place(self.settled(value), target, (0,) * len(value.shape), place, "+")

    def reduced(self, value: Value, dims: Sequence[int], operation: str = "+") -> Value:
        """Combine the entries along dimensions, which keep extent 1."""
        shape = tuple(1 if k in dims else extent for k, extent in enumerate(value.shape))
        if value.size and shape == value.shape:
            return value
        if operation in ("max", "min") and value.ctype != FLOAT:
            raise Unsupported(f"{operation} of integers")
        found = self.memory(shape, value.ctype, IDENTITIES[operation])
        if value.size:
            strides = [0 if k in dims else stride for k, stride in enumerate(found.strides)]
            self._place(self.settled(value), found.buffer, strides, 0, operation)
        return found

    def view(self, value: Value, view: object) -> Value:
        """A view of torch, on a copy where no strides describe it."""
        value = self.settled(value)
        try:
            return viewed(value, view)  # type: ignore[arg-type]
        except RuntimeError:
            return viewed(self.copied(value), view)  # type: ignore[arg-type]

    def expanded(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Broadcast; what would be computed more than once is computed before."""
        if value.shape == shape:
            return self.settled(value)
        if isinstance(value, Literal):
            return Literal(shape, value.ctype, value.number)
        if value.size < Value(shape, value.ctype).size and value.cost:
            value = self.realised(value)
        return self.view(value, lambda tensor: tensor.expand(shape))

    def formula(self, ctype: str, template: str, args: Sequence[Value], cost: int = 1, serial: bool = False) -> Value:
        """An expression of values that broadcast against each other."""
        shape = tuple(torch.broadcast_shapes(*[arg.shape for arg in args]))
        args = [self.expanded(arg, shape) for arg in args]
        once = all(isinstance(arg, Literal) or (isinstance(arg, Strided) and arg.uniform) for arg in args)
        if once and Value(shape, ctype).size > 1:  # one number for all entries
            first = [viewed(arg, lambda tensor: tensor[(0,) * len(shape)]) for arg in args]
            return self.expanded(self.realised(Formula(ctype, template, first, cost, serial)), shape)
        made = Formula(ctype, template, list(args), cost, serial)
        return made if made.depth < 40 else self.realised(made)

    def gathered(self, source: Strided, positions: torch.Tensor) -> Value:
        """Entries at places in the source's buffer; a plain look where these are regular."""
        strides = regular(positions)
        if strides is not None:
            offset = int(positions.reshape(-1)[0]) if positions.numel() else 0
            return Strided(tuple(positions.shape), source.ctype, source.buffer, strides, offset)
        return Gathered(source.ctype, source.buffer, self.positions(positions))

    def output(self, value: Value) -> Buffer:
        """Memory of the caller that takes a value."""
        value = self.realised(value)
        whole = isinstance(value, Strided) and value.contiguous and value.offset == 0
        if whole and value.buffer.kind == "arena" and value.buffer.size == value.size:
            buffer = value.buffer
            buffer.kind, buffer.name = "output", f"output_{buffer.name}"
        else:
            buffer = self.buffer(value.ctype, value.size, kind="output")
            if value.size:
                self._place(value, buffer, contiguous_strides(value.shape), 0)
        self.outputs.append(buffer)
        return buffer


def regular(positions: torch.Tensor) -> tuple[int, ...] | None:
    """The strides of places that are those of a strided tensor, none of them negative."""
    if positions.numel() == 0:
        return (0,) * positions.ndim
    origin = (0,) * positions.ndim
    first = positions[origin]
    strides = []
    for k, extent in enumerate(positions.shape):
        step = 0
        if extent > 1:
            step = int(positions[tuple(int(j == k) for j in range(positions.ndim))] - first)
        if step < 0:
            return None
        strides.append(step)
    expected = torch.full(positions.shape, int(first), dtype=positions.dtype)
    for k, (extent, step) in enumerate(zip(positions.shape, strides, strict=True)):
        expected += (torch.arange(extent) * step).view(-1, *[1] * (positions.ndim - k - 1))
    return tuple(strides) if torch.equal(expected, positions) else None
