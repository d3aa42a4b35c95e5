"""Values on their way into C: numbers, looks at memory, and formulas over both that no memory holds yet.

A value knows how to write its entry at an index into the body of a loop (`at`). An index has one *row* for each of the
value's dimensions: an affine function of the loop variables as a tuple, the constant first. All views of torch are
affine, so a view changes strides and copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pyromix.native.kernels import Loop

Row = tuple[int, ...]
View = Callable[[torch.Tensor], torch.Tensor]

FLOAT, INTEGER, BOOL, POSITION = "double", "long long", "_Bool", "int"
CTYPES = {torch.float64: FLOAT, torch.int64: INTEGER, torch.bool: BOOL, torch.int32: POSITION}
BYTES = {FLOAT: 8, INTEGER: 8, BOOL: 1, POSITION: 4}
GATHER_COST = 4


class Unsupported(Exception):
    """This graph cannot become C; another compiler may take it."""


class Buffer:
    """A piece of memory, or a C variable.

    Attributes
    ----------
    kind
        ``"arena"``, ``"scalar"`` (a variable), ``"constant"``, ``"input"`` or ``"output"``.
    initial
        What every entry is before the first kernel that touches it; C text.
    last_write
        Number of the last kernel that writes it.
    offset
        Where in the arena it is, in bytes.
    """

    def __init__(self, name: str, ctype: str, size: int, kind: str, initial: str | None = None) -> None:
        self.name, self.ctype, self.size, self.kind, self.initial = name, ctype, size, kind, initial
        self.last_write, self.offset = -1, 0


class Value:
    """Entries of a shape and C type.

    Attributes
    ----------
    known
        The tensor itself, where it is the same in every call.
    cost
        Operations that one more reader would repeat.
    """

    known: torch.Tensor | None = None
    cost = 0

    def __init__(self, shape: tuple[int, ...], ctype: str) -> None:
        self.shape, self.ctype = tuple(shape), ctype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def at(self, loop: Loop, index: list[Row]) -> str:
        """C text of the entry at an index, a name or a literal."""
        raise NotImplementedError


class Literal(Value):
    """The same number everywhere."""

    def __init__(self, shape: tuple[int, ...], ctype: str, number: float | int | bool) -> None:
        super().__init__(shape, ctype)
        self.number = number

    def at(self, loop: Loop, index: list[Row]) -> str:
        return number_text(self.number, self.ctype)


class Strided(Value):
    """A look at a buffer."""

    def __init__(
        self, shape: tuple[int, ...], ctype: str, buffer: Buffer, strides: tuple[int, ...], offset: int = 0
    ) -> None:
        super().__init__(shape, ctype)
        self.buffer, self.strides, self.offset = buffer, tuple(strides), offset

    def at(self, loop: Loop, index: list[Row]) -> str:
        return loop.load(self.buffer, place(self.strides, self.offset, index, loop.width))

    @property
    def uniform(self) -> bool:
        """Whether every entry is the same place in memory."""
        return all(stride == 0 or extent == 1 for stride, extent in zip(self.strides, self.shape, strict=True))

    @property
    def contiguous(self) -> bool:
        pairs = zip(self.strides, contiguous_strides(self.shape), self.shape, strict=True)
        return self.size == 0 or all(extent == 1 or stride == own for stride, own, extent in pairs)

    def positions(self) -> torch.Tensor:
        """Where in the buffer each entry is."""
        found = torch.full(self.shape, self.offset, dtype=torch.int64)
        for k, (extent, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
            found += (torch.arange(extent) * stride).view(-1, *[1] * (len(self.shape) - k - 1))
        return found


class Formula(Value):
    """A C expression of values of one shape, ``{0}``, ``{1}`` ... for their entries."""

    def __init__(self, ctype: str, template: str, args: list[Value], cost: int = 1, serial: bool = False) -> None:
        super().__init__(args[0].shape, ctype)
        self.template, self.args, self.serial = template, args, serial
        self.own_cost = cost
        self.cost = cost + sum(arg.cost for arg in args)
        self.depth: int = 1 + max(getattr(arg, "depth", 0) for arg in args)

    def at(self, loop: Loop, index: list[Row]) -> str:
        loop.serial |= self.serial
        return loop.let(self.ctype, self.template.format(*[arg.at(loop, index) for arg in self.args]))


class Gathered(Value):
    """Entries of a buffer at positions known beforehand."""

    cost = GATHER_COST

    def __init__(self, ctype: str, buffer: Buffer, positions: Strided) -> None:
        super().__init__(positions.shape, ctype)
        self.buffer, self.positions = buffer, positions

    def at(self, loop: Loop, index: list[Row]) -> str:
        return loop.load(self.buffer, None, self.positions.at(loop, index))


class Padded(Value):
    """A piece within zeros: what differentiating a view gives. `piece` lies at `strides` and `offset`."""

    def __init__(self, shape: tuple[int, ...], piece: Value, strides: tuple[int, ...], offset: int) -> None:
        super().__init__(shape, piece.ctype)
        self.piece, self.strides, self.offset = piece, strides, offset


def place(strides: tuple[int, ...], offset: int, index: list[Row], width: int) -> Row:
    """The row of an address."""
    total = [offset] + [0] * (width - 1)
    for stride, row in zip(strides, index, strict=True):
        if stride:
            for k, coefficient in enumerate(row):
                total[k] += stride * coefficient
    return tuple(total)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, total = [], 1
    for extent in reversed(shape):
        strides.append(total)
        total *= max(extent, 1)
    return tuple(reversed(strides))


def viewed(value: Value, view: View) -> Value:
    """What a view of torch makes of a value.

    Raises
    ------
    RuntimeError
        Torch's own: no strides describe it, so the value has to be copied first.
    """
    if isinstance(value, Literal):
        probe = view(torch.empty(value.shape, device="meta"))
        return Literal(tuple(probe.shape), value.ctype, value.number)
    if isinstance(value, Strided):
        probe = view(torch.empty_strided(value.shape, value.strides, device="meta"))
        offset = value.offset + int(probe.storage_offset())
        return Strided(tuple(probe.shape), value.ctype, value.buffer, probe.stride(), offset)
    if isinstance(value, Gathered):
        positions: Any = viewed(value.positions, view)
        return Gathered(value.ctype, value.buffer, positions)
    if isinstance(value, Formula):
        args = [viewed(arg, view) for arg in value.args]
        return Formula(value.ctype, value.template, args, value.own_cost, value.serial)
    raise RuntimeError("not in memory yet")


def number_text(number: float | int | bool, ctype: str) -> str:
    """A C literal, exact."""
    if ctype == BOOL:
        return "1" if number else "0"
    if ctype != FLOAT:
        return f"({int(number)}LL)"
    number = float(number)
    if math.isnan(number):
        return '__builtin_nan("")'
    if math.isinf(number):
        return "__builtin_inf()" if number > 0 else "(-__builtin_inf())"
    return f"({number.hex()})"
