"""Operations that move, combine or multiply entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pyromix.native.kernels import Builder, regular
from pyromix.native.pointwise import HEAVY, Pointwise, ctype_of
from pyromix.native.products import PRODUCTS, Products
from pyromix.native.values import BOOL, FLOAT, Buffer, Literal, Padded, Strided, Unsupported, Value

aten = torch.ops.aten

# results are entries of the first argument at places that the other arguments say
MOVES = {"flip", "roll", "index", "index_select", "gather", "take", "embedding", "repeat", "rot90", "unfold_copy"}
SCATTERS = {"index_put", "scatter_add", "index_add", "scatter"}
# name -> the view that its piece lies at
PADS = {
    "slice_backward": aten.slice.Tensor,
    "select_backward": aten.select.int,
    "diagonal_backward": aten.diagonal.default,
    "slice_scatter": aten.slice.Tensor,
    "select_scatter": aten.select.int,
    "diagonal_scatter": aten.diagonal.default,
}
REDUCTIONS = {"sum": "+", "prod": "*", "amax": "max", "amin": "min", "max": "max", "min": "min", "any": "|", "all": "&"}
OTHERS = {
    *(
        "mean",
        "var",
        "std",
        "logsumexp",
        "_softmax",
        "_log_softmax",
        "_softmax_backward_data",
        "_log_softmax_backward_data",
    ),
    *("cumsum", "cumprod", "cat", "stack", "constant_pad_nd", "tril", "triu", "_unsafe_view", "copy", "fill", "zero"),
    *("log_sigmoid_forward", "diag_embed", "as_strided", "as_strided_scatter"),
}
HANDLERS = MOVES | SCATTERS | set(PADS) | set(REDUCTIONS) | OTHERS | set(PRODUCTS)


class Ops:
    """Writes operations into a builder. `args` come in the order of the schema, `reals` with tensors where constant."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.pointwise = Pointwise(builder)
        self.products = Products(builder, self.pointwise)

    def __call__(self, name: str, target: Any, args: list[Any], reals: list[Any], out: Any) -> Any:
        if name in MOVES:
            return self._moved(target, args, reals)
        if name in SCATTERS:
            return self._scattered(name, target, args, reals, out)
        if name in PADS:
            return self._padded(name, args, out)
        if name in REDUCTIONS:
            return self._reduced(name, target, args, out)
        if name in PRODUCTS:
            return getattr(self.products, f"op_{name}")(out, *args)
        own = getattr(self, f"op_{name.strip('_')}", None)
        return self.pointwise(name, args, out) if own is None else own(out, *args)

    # -- moving entries ------------------------------------------------------------------------------------------------
    def _moved(self, target: Any, args: list[Any], reals: list[Any]) -> Value:
        """The operation itself, on the places of its argument's entries, says where the result's are."""
        source = self.builder.realised(args[0])
        _check_known(target, args[1:], reals[1:])
        arguments = target._schema.arguments[1:]
        plain = [real for real, argument in zip(reals[1:], arguments, strict=True) if not argument.kwarg_only]
        return self.builder.gathered(source, target(source.positions(), *plain))

    def _padded(self, name: str, args: list[Any], out: torch.Tensor) -> Value:
        region = PADS[name](torch.empty(out.shape, device="meta"), *args[2:])
        if name.endswith("_scatter"):
            found = self.builder.copied(args[0])
            self._put(self.pointwise.cast(args[1], found.ctype), found, region)
            return found
        piece = args[0]
        if piece.size == out.numel():
            return self.builder.view(piece, lambda tensor: tensor.reshape(out.shape))
        return Padded(tuple(out.shape), piece, region.stride(), int(region.storage_offset()))

    def _put(self, piece: Value, target: Strided, region: torch.Tensor) -> None:
        offset = target.offset + int(region.storage_offset())
        piece = self.builder.expanded(piece, tuple(region.shape))
        self.builder.put(piece, Strided(piece.shape, target.ctype, target.buffer, region.stride(), offset))

    def _scattered(self, name: str, target: Any, args: list[Any], reals: list[Any], out: torch.Tensor) -> Value:
        base, accumulate, alpha = args[0], True, 1
        places = torch.arange(out.numel()).view(out.shape)
        if name == "index_put":
            if self._is_mask(args, reals):
                return self.pointwise.choose(args[1][0], args[2], base, base.ctype)
            _check_known(target, [args[1]], [reals[1]])
            piece, accumulate = args[2], bool(args[3])
            places = aten.index.Tensor(places, reals[1])
        else:
            _check_known(target, [args[2]], [reals[2]])
            dim, index, piece = args[1], reals[2], args[3]
            accumulate = name != "scatter"
            if name == "index_add":
                places, alpha = places.index_select(dim, index), args[4]
            else:
                places = places.gather(dim, index)
                if isinstance(piece, Value):
                    shape = index.shape
                    piece = self.builder.view(piece, lambda t: t[tuple(slice(extent) for extent in shape)])
        piece = self.builder.expanded(self.pointwise.cast(piece, base.ctype), tuple(places.shape))
        if alpha != 1:
            piece = self.pointwise.f("{0} * {1}", piece, alpha)
        found = self.builder.assembled(base.shape, base.ctype, base)
        if places.numel():
            self._scatter(piece, found, places, accumulate)
        return found

    @staticmethod
    def _is_mask(args: list[Any], reals: list[Any]) -> bool:
        """Whether one number goes to all places of a condition that is computed."""
        base, indices, piece, accumulate = args
        return (
            len(indices) == 1
            and isinstance(indices[0], Value)
            and reals[1][0] is None
            and (indices[0].ctype, indices[0].shape) == (BOOL, base.shape)
            and piece.size == 1
            and not accumulate
        )

    def _scatter(self, piece: Value, found: Strided, places: torch.Tensor, accumulate: bool) -> None:
        strides = regular(places)
        if strides is not None and places.unique().numel() == places.numel():
            look = Strided(piece.shape, found.ctype, found.buffer, strides, int(places.reshape(-1)[0]))
            self.builder.put(piece, look, "+" if accumulate else "")
            return
        if found.ctype != FLOAT:
            raise Unsupported("scattering integers")
        piece = self.builder.contiguous(piece)
        flat, groups = places.reshape(-1), found.size
        if not accumulate or groups * 4 > flat.numel():
            where = self._constant(flat)
            self.builder.raw(
                f"px_scatter_{'add' if accumulate else 'put'}({{0}}, {{1}}, {{2}}, {flat.numel()});",
                [where, piece.buffer],
                found.buffer,
            )
            return
        order = torch.argsort(flat, stable=True)
        start = self._constant(torch.searchsorted(flat[order].contiguous(), torch.arange(groups + 1)))
        if torch.equal(order, torch.arange(len(order))):
            reads, name = [start, piece.buffer], "runs"
        else:
            reads, name = [self._constant(order), start, piece.buffer], "sorted"
        marks = ", ".join(f"{{{k}}}" for k in range(len(reads) + 1))
        self.builder.raw(f"px_scatter_{name}({marks}, {groups});", reads, found.buffer)

    def _constant(self, places: torch.Tensor) -> Buffer:
        """Whole numbers in memory, from the buffer's start on."""
        fresh = places.to(torch.int32).contiguous().clone()
        buffer = self.builder.buffer("int", max(fresh.numel(), 2), kind="constant")
        self.builder.constants[fresh.untyped_storage().data_ptr(), "int"] = (buffer, fresh)
        return buffer

    def op_cat(self, out: torch.Tensor, tensors: Sequence[Value], dim: int = 0) -> Value:
        ctype = ctype_of(out)
        found = self.builder.assembled(tuple(out.shape), ctype, None)
        start, empty = 0, torch.empty(out.shape, device="meta")
        for tensor in tensors:
            if len(tensor.shape) == 1 and tensor.size == 0 and out.ndim != 1:
                continue  # torch skips these
            extent = tensor.shape[dim]
            self._put(self.pointwise.cast(tensor, ctype), found, empty.narrow(dim, start, extent))
            start += extent
        return found

    def op_stack(self, out: torch.Tensor, tensors: Sequence[Value], dim: int = 0) -> Value:
        parts = [self.builder.view(tensor, lambda t: t.unsqueeze(dim)) for tensor in tensors]
        return self.op_cat(out, parts, dim % out.ndim)

    def op_constant_pad_nd(self, out: torch.Tensor, value: Value, pad: Sequence[int], number: Any = 0) -> Value:
        ndim = len(value.shape)
        region = torch.empty(out.shape, device="meta")
        for k in range(len(pad) // 2):
            dim, before, after = ndim - 1 - k, pad[2 * k], pad[2 * k + 1]
            low, high = max(-before, 0), value.shape[dim] - max(-after, 0)
            value = self.builder.view(value, lambda t, d=dim, a=low, b=high: t.narrow(d, a, b - a))
            region = region.narrow(dim, max(before, 0), high - low)
        if tuple(region.shape) == tuple(out.shape):
            return value
        found = self.builder.assembled(tuple(out.shape), value.ctype, Literal(tuple(out.shape), value.ctype, number))
        self._put(value, found, region)
        return found

    def _masked(self, value: Value, mask: torch.Tensor) -> Value:
        return self.pointwise.choose(self.builder.constant(mask), value, 0, value.ctype)

    def op_tril(self, out: torch.Tensor, value: Value, diagonal: int = 0) -> Value:
        return self._masked(value, torch.ones(out.shape[-2:], dtype=torch.bool).tril(diagonal))

    def op_triu(self, out: torch.Tensor, value: Value, diagonal: int = 0) -> Value:
        return self._masked(value, torch.ones(out.shape[-2:], dtype=torch.bool).triu(diagonal))

    def op_diag_embed(self, out: torch.Tensor, value: Value, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Value:
        region = torch.empty(out.shape, device="meta").diagonal(offset, dim1, dim2)
        return Padded(tuple(out.shape), value, region.stride(), int(region.storage_offset()))

    def op_unsafe_view(self, out: torch.Tensor, value: Value, shape: Sequence[int]) -> Value:
        return self.builder.view(value, lambda t: t.view(out.shape))

    def op_as_strided(
        self, out: torch.Tensor, value: Value, size: Sequence[int], stride: Sequence[int], offset: int | None = None
    ) -> Value:
        """Of an argument that torch has in one piece, and so have we."""
        found = self.builder.contiguous(value)
        return Strided(tuple(size), found.ctype, found.buffer, tuple(stride), offset or 0)

    def op_as_strided_scatter(self, out: torch.Tensor, value: Value, piece: Value, *region: Any) -> Value:
        found = self.builder.copied(value)
        target = self.op_as_strided(out, found, *region)
        assert isinstance(target, Strided)
        self.builder.put(self.builder.expanded(piece, target.shape), target)
        return found

    def op_copy(self, out: torch.Tensor, base: Value, value: Value, *_: Any) -> Value:
        return self.builder.expanded(self.pointwise.cast(value, ctype_of(out)), tuple(out.shape))

    def op_fill(self, out: torch.Tensor, base: Value, value: Any) -> Value:
        return self.op_copy(out, base, self.pointwise.cast(value, ctype_of(out)))

    def op_zero(self, out: torch.Tensor, base: Value) -> Value:
        return Literal(tuple(out.shape), ctype_of(out), 0)

    # -- reductions ----------------------------------------------------------------------------------------------------
    def _reduced(self, name: str, target: Any, args: list[Any], out: Any) -> Any:
        value = args[0]
        if not isinstance(out, torch.Tensor):  # max along a dimension, with its places
            found = self._combined(value, [args[1]], REDUCTIONS[name], out[0])
            return [found, None]
        names = [argument.name for argument in target._schema.arguments]
        dims = args[names.index("dim")] if "dim" in names else None
        if name in ("max", "min") and len(args) > 1 and isinstance(args[1], Value):
            return self.pointwise(f"{name}imum", args, out)
        return self._combined(value, dims, REDUCTIONS[name], out)

    def _combined(self, value: Value, dims: Any, operation: str, out: torch.Tensor) -> Value:
        ndim = len(value.shape)
        dims = [dims] if isinstance(dims, int) else dims
        axes = range(ndim) if dims is None or len(dims) == 0 else [dim % ndim for dim in dims if ndim]
        found = self.builder.reduced(self.pointwise.cast(value, ctype_of(out)), list(axes), operation)
        return self.builder.view(found, lambda t: t.reshape(out.shape))

    def op_mean(self, out: torch.Tensor, value: Value, dims: Any = None, *_: Any) -> Value:
        total = self._combined(value, dims if isinstance(dims, list | tuple | int) else None, "+", out)
        return self.pointwise.f("{0} / {1}", total, value.size // max(out.numel(), 1), cost=2)

    def op_var(
        self, out: torch.Tensor, value: Value, dims: Any = None, correction: Any = None, keepdim: bool = False
    ) -> Value:
        value = self.pointwise.shared(value)
        dims = list(dims) if dims else list(range(len(value.shape)))
        count = value.size // max(out.numel(), 1)
        mean = self.pointwise.f("{0} / {1}", self._along(value, dims, "+"), count)
        centred = self.builder.realised(self.pointwise.f("{0} - {1}", value, self.builder.realised(mean)))
        total = self._combined(self.pointwise.f("{0} * {0}", centred), dims, "+", out)
        return self.pointwise.f("{0} / {1}", total, max(count - (1 if correction is None else correction), 0), cost=2)

    def op_std(self, out: torch.Tensor, *args: Any) -> Value:
        return self.pointwise.f("sqrt({0})", self.op_var(out, *args), cost=2)

    def _along(self, value: Value, dims: Sequence[int], operation: str) -> Value:
        """Combined along dimensions that stay, with extent 1."""
        ndim = len(value.shape)
        return self.builder.realised(self.builder.reduced(value, [dim % ndim for dim in dims if ndim], operation))

    def op_logsumexp(self, out: torch.Tensor, value: Value, dims: Any, keepdim: bool = False) -> Value:
        dims = [dims] if isinstance(dims, int) else dims
        value = self.pointwise.shared(value)
        top = self._along(value, dims, "max")
        shift = self.pointwise.shared(self.pointwise.f("fabs({0}) == __builtin_inf() ? 0 : {0}", top))
        total = self._along(self.pointwise.f("exp({0} - {1})", value, shift, cost=HEAVY), dims, "+")
        found = self.pointwise.f("log({0}) + {1}", total, shift, cost=HEAVY)
        return self.builder.view(found, lambda t: t.reshape(out.shape))

    def op_softmax(self, out: torch.Tensor, value: Value, dim: int, *_: Any) -> Value:
        value = self.pointwise.shared(value)
        raised = self.pointwise.f("exp({0} - {1})", value, self._along(value, [dim], "max"), cost=HEAVY)
        raised = self.builder.realised(raised)
        return self.pointwise.f("{0} / {1}", raised, self._along(raised, [dim], "+"), cost=2)

    def op_log_softmax(self, out: torch.Tensor, value: Value, dim: int, *_: Any) -> Value:
        value = self.pointwise.shared(value)
        centred = self.builder.realised(self.pointwise.f("{0} - {1}", value, self._along(value, [dim], "max")))
        total = self._along(self.pointwise.f("exp({0})", centred, cost=HEAVY), [dim], "+")
        return self.pointwise.f("{0} - {1}", centred, self.builder.realised(self.pointwise.f("log({0})", total)))

    def op_softmax_backward_data(self, out: torch.Tensor, grad: Value, output: Value, dim: int, *_: Any) -> Value:
        product = self.builder.realised(self.pointwise.f("{0} * {1}", grad, output))
        return self.pointwise.f("{0} - {1} * {2}", product, output, self._along(product, [dim], "+"))

    def op_log_softmax_backward_data(self, out: torch.Tensor, grad: Value, output: Value, dim: int, *_: Any) -> Value:
        grad = self.pointwise.shared(grad)
        total = self._along(grad, [dim], "+")
        return self.pointwise.f("{0} - exp({1}) * {2}", grad, output, total, cost=HEAVY)

    def op_log_sigmoid_forward(self, out: Any, value: Value) -> list[Any]:
        return [self.pointwise.op_log_sigmoid(FLOAT, self.pointwise.shared(value)), None]

    def _cumulated(self, name: str, out: torch.Tensor, value: Value, dim: int) -> Value:
        if ctype_of(out) != FLOAT:
            raise Unsupported(f"{name} of integers")
        if value.size == 0 or not value.shape:
            return value
        value = self.pointwise.cast(value, FLOAT)
        source = self.builder.contiguous(value)
        dim %= len(value.shape)
        outer, inner = Value(value.shape[:dim], FLOAT).size, Value(value.shape[dim + 1 :], FLOAT).size
        found = self.builder.memory(value.shape)
        sizes = f"{outer}, {value.shape[dim]}, {inner}"
        self.builder.raw(f"px_{name}({{0}}, {{1}}, {sizes});", [source.buffer], found.buffer)
        return found

    def op_cumsum(self, out: torch.Tensor, value: Value, dim: int, *_: Any) -> Value:
        return self._cumulated("cumsum", out, value, dim)

    def op_cumprod(self, out: torch.Tensor, value: Value, dim: int, *_: Any) -> Value:
        return self._cumulated("cumprod", out, value, dim)


def _check_known(target: Any, args: Sequence[Any], reals: Sequence[Any]) -> None:
    """Places must be the same in every call."""
    for arg, real in zip(args, reals, strict=True):
        if isinstance(arg, Value) and real is None:
            raise Unsupported(f"{target} at places that are computed")
        if isinstance(arg, list | tuple):
            _check_known(target, arg, real)
