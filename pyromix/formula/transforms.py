"""Functions a formula may call, and the evaluator of row-by-row expressions.

Stateful transforms learn from the training data once and replay on new data: the mean that ``center`` subtracts, the
knots of ``bs``, the recurrence of ``poly``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import patsy

from pyromix.errors import DataError

Array = np.ndarray


class _Scale:
    r"""``scale(x)``: :math:`(x - \bar x)/s` with the sample SD :math:`s` (denominator n - 1), as R's ``scale``."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._mean = 0.0
        self._sd = 1.0

    def memorize_chunk(self, x: Any) -> None:
        self._parts.append(_numbers(x, "scale"))

    def memorize_finish(self) -> None:
        x = np.concatenate(self._parts)
        self._parts = []
        self._mean = float(x.mean())
        self._sd = float(x.std(ddof=1)) if len(x) > 1 else 0.0
        if not self._sd > 0:
            raise DataError(f"scale(...): all {len(x)} values are equal ({x[0]}), their SD is 0. Drop the term.")

    def transform(self, x: Any) -> Array:
        return (_numbers(x, "scale") - self._mean) / self._sd


class _Poly:
    r"""``poly(x, k)``: orthonormal polynomials of degrees 1 to k over the training data, as R's ``poly``.

    Columns satisfy :math:`P^\top P = I` and :math:`P^\top 1 = 0` on the training data. They are stored as the
    recurrence :math:`p_{j+1} = (x - \alpha_j) p_j - (\nu_{j}/\nu_{j-1}) p_{j-1}`, which new data replay. With
    ``raw=True`` the columns are :math:`x, x^2, ..., x^k`.
    """

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._alpha: list[float] = []
        self._norm: list[float] = []
        self._centre = 0.0
        self._degree = 0  # 0 for raw powers, which have nothing to learn

    def memorize_chunk(self, x: Any, degree: int = 1, raw: bool = False) -> None:
        if type(degree) is not int or degree < 1:
            raise DataError(f"poly(x, degree): degree = {degree!r}, expected a whole number of at least 1.")
        self._parts.append(_numbers(x, "poly"))
        self._degree = 0 if raw else degree

    def memorize_finish(self) -> None:
        x = np.concatenate(self._parts)
        self._parts = []
        degree = self._degree
        if not degree:
            return
        distinct = len(np.unique(x))
        if degree >= distinct:
            raise DataError(f"poly(x, {degree}): x has {distinct} distinct values, the degree must be below that.")
        # recurrence about the mean: powers of a far-off x (a year, say) would lose all digits
        self._centre = float(x.mean())
        x = x - self._centre
        previous, current = np.zeros_like(x), np.ones_like(x)
        norms = [1.0, float(len(x))]
        for _ in range(degree):
            self._alpha.append(float(np.dot(x * current, current)) / norms[-1])
            following = (x - self._alpha[-1]) * current - norms[-1] / norms[-2] * previous
            previous, current = current, following
            norms.append(float(np.dot(current, current)))
        self._norm = norms

    def transform(self, x: Any, degree: int = 1, raw: bool = False) -> Array:
        x = _numbers(x, "poly")
        if raw:
            return x[:, None] ** np.arange(1, degree + 1)
        x = x - self._centre
        previous, current = np.zeros_like(x), np.ones_like(x)
        columns = []
        for j in range(degree):
            following = (x - self._alpha[j]) * current - self._norm[j + 1] / self._norm[j] * previous
            previous, current = current, following
            columns.append(current / np.sqrt(self._norm[j + 2]))
        return np.stack(columns, axis=1)


def _numbers(x: Any, name: str) -> Array:
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(f"{name}(...): shape {array.shape}, expected one value a row.")
    return array


def _row_function(name: str, function: Callable[[Array], Any]) -> Callable[..., Array]:
    def wrapped(x: Any) -> Array:
        return function(np.asarray(x, dtype=np.float64))

    wrapped.__name__ = name
    return wrapped


# patsy's own names for these are looked up too; the ones here win
ELEMENTWISE: dict[str, Callable[..., Array]] = {
    name: _row_function(name, function)
    for name, function in {"abs": np.abs, "exp": np.exp, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt}.items()
}
NAMESPACE: dict[str, Any] = {
    **ELEMENTWISE,
    "poly": patsy.stateful_transform(_Poly),
    "scale": patsy.stateful_transform(_Scale),
}

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


def evaluate(text: str, columns: Mapping[str, Array], functions: Mapping[str, Callable], what: str) -> Array:
    """Value of a row-by-row expression that passed the whitelist.

    Parameters
    ----------
    text
        The expression, such as ``"log(e)"``.
    columns
        float64 arrays (n,) by name.
    functions
        The user's functions.
    what
        Name for messages.

    Returns
    -------
    numpy.ndarray
        (n,) float64; not finite where the expression is not.
    """
    table: dict[str, Callable[..., Any]] = {**ELEMENTWISE, "I": np.asarray, **functions}

    def visit(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](visit(node.left), visit(node.right))
        if isinstance(node, ast.UnaryOp):
            return -visit(node.operand) if isinstance(node.op, ast.USub) else visit(node.operand)
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Name):
            return columns[node.id]
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        keywords = {str(item.arg): ast.literal_eval(item.value) for item in node.keywords}
        return table[node.func.id](*(visit(argument) for argument in node.args), **keywords)

    n = len(next(iter(columns.values())))
    with np.errstate(all="ignore"):
        try:
            value = np.asarray(visit(ast.parse(text, mode="eval").body), dtype=np.float64)
        except DataError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise DataError(f"{what} {text!r}: {type(error).__name__}: {error}") from error
    if value.shape != (n,):
        raise DataError(f"{what} {text!r}: shape {value.shape}, expected ({n},), one value a row.")
    return value
