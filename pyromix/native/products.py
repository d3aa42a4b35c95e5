"""Products of matrices, and triangular systems.

Regression models have tall matrices of few columns. A product over few columns is written out as a formula, which joins
the loop over the rows; a product over many rows with few results is a handful of sums, which join it too.
"""

from __future__ import annotations

from typing import Any

import torch

from pyromix.native.kernels import Builder
from pyromix.native.pointwise import Pointwise
from pyromix.native.values import FLOAT, Literal, Strided, Unsupported, Value, viewed

PRODUCTS = (
    *("mm", "mv", "dot", "vdot", "bmm", "addmm", "addmv", "baddbmm"),
    *("linalg_cholesky_ex", "cholesky", "linalg_solve_triangular", "triangular_solve"),
)
FEW = 16


class Products:
    """Writes products into a builder."""

    def __init__(self, builder: Builder, pointwise: Pointwise) -> None:
        self.builder, self.pointwise = builder, pointwise

    def op_mm(self, out: torch.Tensor, a: Value, b: Value) -> Value:
        n, k, m = a.shape[0], a.shape[1], b.shape[1]
        if a.ctype != FLOAT or b.ctype != FLOAT:
            raise Unsupported("products of integers")
        if k == 0 or out.numel() == 0:
            return Literal(tuple(out.shape), FLOAT, 0.0)
        if k <= FEW:
            return self._formula(a, b, k)
        a, b = self._kept(a), self._kept(b)
        if n * m <= FEW:
            found = self.builder.memory((n, m), initial="0")
            for i in range(n):
                for j in range(m):
                    pair = [self._line(a, -2, i), self._line(b, -1, j)]
                    self.builder.put_sum(self.pointwise.f("{0} * {1}", *pair), found.buffer, i * m + j)
            return found
        return self._called(a, b)

    def _formula(self, a: Value, b: Value, k: int) -> Value:
        """The sum over p of a[..., :, p, None] b[..., None, p, :], written out."""
        if k > 1:
            a, b = self._kept(a), self._kept(b)
        total: Value | None = None
        for p in range(k):
            column = self.builder.view(self._line(a, -1, p), lambda t: t.unsqueeze(-1))
            row = self.builder.view(self._line(b, -2, p), lambda t: t.unsqueeze(-2))
            if total is None:
                total = self.pointwise.f("{0} * {1}", column, row)
            else:
                total = self.pointwise.f("{2} + {0} * {1}", column, row, total)
        assert total is not None
        return total

    def _kept(self, value: Value) -> Value:
        return value if isinstance(value, Literal) else self.builder.realised(value)

    def _line(self, value: Value, dim: int, k: int) -> Value:
        """One row or column; of a constant a copy without gaps, which vectorises (or the number, if it is one)."""
        if value.known is not None:
            return self.builder.line(value.known, dim, k)
        return self.builder.view(value, lambda t: t.select(dim, k))

    def _called(self, a: Value, b: Value) -> Value:
        a, b = self.builder.realised(a), self.builder.realised(b)
        n, k, m = a.shape[0], a.shape[1], b.shape[1]
        if m == 1 or n == 1:  # a matrix and a vector
            if m != 1:
                turned = self._called(self._turned(b), self._turned(a))
                return self.builder.view(turned, lambda t: t.t())
            b = self.builder.contiguous(b)
            found = self.builder.memory((n, 1), initial="0")
            call, sizes = "px_mv", f"{n}, {k}"
            text = f"{call}({sizes}, {{0}} + {a.offset}, {a.strides[0]}, {a.strides[1]}, {{1}}, {{2}});"
        else:
            b = b if b.strides[1] == 1 else self.builder.copied(b)
            found = self.builder.memory((n, m), initial="0")
            left = f"{{0}} + {a.offset}, {a.strides[0]}, {a.strides[1]}"
            text = f"px_mm({n}, {k}, {m}, {left}, {{1}} + {b.offset}, {b.strides[0]}, {{2}});"
        self.builder.raw(text, [a.buffer, b.buffer], found.buffer)
        return found

    def _turned(self, value: Value) -> Value:
        return self.builder.view(value, lambda t: t.transpose(-2, -1))

    def op_mv(self, out: torch.Tensor, a: Value, b: Value) -> Value:
        product = self.op_mm(out, a, self._column(b))
        return self.builder.view(product, lambda t: t.reshape(out.shape))

    def _column(self, value: Value) -> Value:
        known = value.known
        made = self.builder.view(value, lambda t: t.unsqueeze(-1))
        made.known = None if known is None else known.unsqueeze(-1)
        return made

    def op_dot(self, out: torch.Tensor, a: Value, b: Value) -> Value:
        total = self.builder.reduced(self.pointwise.f("{0} * {1}", a, b), [0])
        return self.builder.view(total, lambda t: t.reshape(()))

    op_vdot = op_dot

    def op_bmm(self, out: torch.Tensor, a: Value, b: Value) -> Value:
        k = a.shape[2]
        if k == 0 or out.numel() == 0:
            return Literal(tuple(out.shape), FLOAT, 0.0)
        if k <= FEW:
            return self._formula(a, b, k)
        a, b = self.builder.realised(a), self.builder.realised(b)
        found = self.builder.memory(tuple(out.shape), initial="0")
        b = b if b.strides[2] == 1 else self.builder.copied(b)
        for batch in range(a.shape[0]):
            left = f"{{0}} + {a.offset + batch * a.strides[0]}, {a.strides[1]}, {a.strides[2]}"
            right = f"{{1}} + {b.offset + batch * b.strides[0]}, {b.strides[1]}"
            sizes = f"{a.shape[1]}, {k}, {b.shape[2]}"
            target = f"{{2}} + {batch * found.strides[0]}"
            self.builder.raw(f"px_mm({sizes}, {left}, {right}, {target});", [a.buffer, b.buffer], found.buffer)
        return found

    def _plus(self, base: Value, product: Value, beta: Any, alpha: Any) -> Value:
        if alpha != 1:
            product = self.pointwise.f("{0} * {1}", product, alpha)
        if beta == 0:
            return product
        return self.pointwise.f("{0} + {1}" if beta == 1 else "{2} * {0} + {1}", base, product, beta)

    def op_addmm(self, out: torch.Tensor, base: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
        return self._plus(base, self.op_mm(out, a, b), beta, alpha)

    def op_addmv(self, out: torch.Tensor, base: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
        return self._plus(base, self.op_mv(out, a, b), beta, alpha)

    def op_baddbmm(self, out: torch.Tensor, base: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
        return self._plus(base, self.op_bmm(out, a, b), beta, alpha)

    # -- triangular systems --------------------------------------------------------------------------------------------
    def op_cholesky(self, out: torch.Tensor, a: Value, upper: bool = False) -> Value:
        lower = self._copy(a)
        n = out.shape[-1]
        for start in range(0, out.numel(), n * n):
            self.builder.raw(f"px_cholesky({{0}} + {start}, {n});", [], lower.buffer)
        return self._turned(lower) if upper else lower

    def op_linalg_cholesky_ex(self, out: Any, a: Value, upper: bool = False, check_errors: bool = False) -> list[Any]:
        return [self.op_cholesky(out[0], a, upper), Literal(tuple(out[1].shape), "long long", 0)]

    def op_linalg_solve_triangular(
        self, out: torch.Tensor, a: Value, b: Value, upper: bool, left: bool = True, unitriangular: bool = False
    ) -> Value:
        batch = tuple(out.shape[:-2])
        a = self.builder.realised(self.builder.expanded(a, (*batch, *a.shape[-2:])))
        found = self._copy(self.builder.expanded(b, tuple(out.shape)))
        n, steps = a.shape[-1], (a.strides[-2], a.strides[-1])
        rows, columns = (found.strides[-2], found.strides[-1]), out.shape[-1]
        if not left:  # the same system turned over
            steps, rows, columns, upper = steps[::-1], rows[::-1], out.shape[-2], not upper
        if out.numel() == 0:
            return found
        first = viewed(a, lambda t: t[..., 0, 0])
        assert isinstance(first, Strided)
        origins = first.positions().reshape(-1).tolist()
        for k, origin in enumerate(origins):
            target = f"{{1}} + {k * out.shape[-1] * out.shape[-2]}, {rows[0]}, {rows[1]}"
            flags = f"{int(upper)}, {int(unitriangular)}"
            text = f"px_solve({n}, {columns}, {{0}} + {origin}, {steps[0]}, {steps[1]}, {flags}, {target});"
            self.builder.raw(text, [a.buffer], found.buffer)
        return found

    def op_triangular_solve(
        self, out: Any, b: Value, a: Value, upper: bool = True, transpose: bool = False, unitriangular: bool = False
    ) -> list[Any]:
        a = self._turned(a) if transpose else a
        return [self.op_linalg_solve_triangular(out[0], a, b, upper != transpose, True, unitriangular), None]

    def _copy(self, value: Value) -> Strided:
        return self.builder.copied(value)
