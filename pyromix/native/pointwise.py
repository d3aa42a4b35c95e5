"""Operations that act on entries one by one, as C expressions that give what torch gives, infinities and NaN too."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyromix.native.kernels import Builder
from pyromix.native.values import BOOL, CTYPES, FLOAT, INTEGER, Literal, Unsupported, Value

HEAVY = 10  # additions' worth of a function of the C library

# name -> C; every function takes doubles to a double
FUNCTIONS = {
    **{name: f"{name}({{0}})" for name in ("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "erf", "erfc")},
    **{name: f"{name}({{0}})" for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")},
    **{name: f"{name}({{0}})" for name in ("asinh", "acosh", "atanh")},
    **{"special_log1p": "log1p({0})", "special_expm1": "expm1({0})", "special_erfc": "erfc({0})"},
    **{"atan2": "atan2({0}, {1})", "hypot": "hypot({0}, {1})", "fmod": "fmod({0}, {1})"},
    **{"lgamma": "px_lgamma({0})", "digamma": "px_digamma({0})"},
}
CHEAP = {
    "sqrt": "sqrt({0})",
    "rsqrt": "1 / sqrt({0})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "round": "rint({0})",
    "trunc": "trunc({0})",
    "reciprocal": "1 / {0}",
    "div": "{0} / {1}",
    "true_divide": "{0} / {1}",
    "sigmoid_backward": "{0} * (1 - {1}) * {1}",
    "tanh_backward": "{0} * (1 - {1} * {1})",
}
# the same on integers
EITHER = {
    "neg": "-{0}",
    "mul": "{0} * {1}",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    "sign": "({0} > 0) - ({0} < 0)",
    "sgn": "({0} > 0) - ({0} < 0)",
    "relu": "{0} < 0 ? 0 : {0}",
    "clamp_min": "{0} < {1} ? {1} : {0}",
    "clamp_max": "{0} > {1} ? {1} : {0}",
    "threshold_backward": "{1} <= {2} ? 0 : {0}",
}
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
LOGIC = {"logical_and": "{0} & {1}", "logical_or": "{0} | {1}", "logical_xor": "{0} ^ {1}", "logical_not": "!{0}"}
BITWISE = {"bitwise_and": "{0} & {1}", "bitwise_or": "{0} | {1}", "bitwise_xor": "{0} ^ {1}"}
TESTS = {"isnan": "{0} != {0}", "isinf": "fabs({0}) == __builtin_inf()", "isfinite": "fabs({0}) < __builtin_inf()"}
SAME = ("clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous", "view_of", "_to_copy", "copy_to")


PYTHON_TYPES = {float: FLOAT, int: INTEGER, bool: BOOL}


class Pointwise:
    """Writes operations on entries into a builder."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def known(self, name: str) -> bool:
        tables = (FUNCTIONS, CHEAP, EITHER, COMPARISONS, LOGIC, BITWISE, TESTS)
        return any(name in table for table in tables) or name in SAME or hasattr(self, f"op_{name}")

    def __call__(self, name: str, args: list[Any], out: torch.Tensor) -> Value:
        """The value of an operation named without its overload; `args` in the order of its schema."""
        ctype = ctype_of(out)
        own = getattr(self, f"op_{name}", None)
        if own is not None:
            found: Value = own(ctype, *args)
            return found
        if name in SAME:
            return self.cast(args[0], ctype)
        values = [arg for arg in args if isinstance(arg, Value | int | float)]
        if name in COMPARISONS:
            common = self.common(values)
            return self.make(BOOL, f"{{0}} {COMPARISONS[name]} {{1}}", values, common)
        if name in LOGIC:
            return self.make(BOOL, LOGIC[name], values, BOOL)
        if name in BITWISE:
            return self.make(ctype, BITWISE[name], values, ctype)
        if name in TESTS:
            return self.make(BOOL, TESTS[name], values, FLOAT)
        if name in EITHER:
            return self.make(ctype, EITHER[name], values, ctype)
        if ctype != FLOAT:
            raise Unsupported(f"{name} of integers")
        if name in CHEAP:
            return self.make(FLOAT, CHEAP[name], values, FLOAT, 2)
        return self.make(FLOAT, FUNCTIONS[name], values, FLOAT, HEAVY)

    # -- building blocks -----------------------------------------------------------------------------------------------
    def make(self, ctype: str, template: str, args: list[Any], of: str, cost: int = 1) -> Value:
        """A formula of type `ctype`, its arguments cast to `of`."""
        return self.builder.formula(ctype, template, [self.cast(arg, of) for arg in args], cost)

    def f(self, template: str, *args: Any, cost: int = 1) -> Value:
        """A formula of doubles."""
        return self.make(FLOAT, template, list(args), FLOAT, cost)

    def test(self, template: str, *args: Any) -> Value:
        """A condition on doubles."""
        return self.make(BOOL, template, list(args), FLOAT)

    def choose(self, condition: Value, yes: Any, no: Any, ctype: str = FLOAT) -> Value:
        args = [condition, self.cast(yes, ctype), self.cast(no, ctype)]
        return self.builder.formula(ctype, "{0} ? {1} : {2}", args)

    def cast(self, arg: Any, ctype: str) -> Value:
        if not isinstance(arg, Value):
            return Literal((), ctype, _converted(arg, ctype))
        if arg.ctype == ctype:
            return arg
        if isinstance(arg, Literal):
            return Literal(arg.shape, ctype, _converted(arg.number, ctype))
        return self.builder.formula(ctype, f"({ctype}){{0}}", [arg])

    def common(self, args: list[Any]) -> str:
        """The type in which values are compared."""
        kinds = {arg.ctype if isinstance(arg, Value) else PYTHON_TYPES[type(arg)] for arg in args}
        return next(kind for kind in (FLOAT, INTEGER, BOOL) if kind in kinds)

    def shared(self, value: Value) -> Value:
        """A value that will be read more than once."""
        return self.builder.realised(value) if value.cost > 2 else self.builder.settled(value)

    # -- operations with a rule of their own ---------------------------------------------------------------------------
    def op_add(self, ctype: str, a: Any, b: Any, alpha: Any = 1) -> Value:
        if alpha == 1:
            return self.make(ctype, "{0} | {1}" if ctype == BOOL else "{0} + {1}", [a, b], ctype)
        return self.make(ctype, "{0} + {2} * {1}", [a, b, alpha], ctype)

    def op_sub(self, ctype: str, a: Any, b: Any, alpha: Any = 1) -> Value:
        return self.make(ctype, "{0} - {1}" if alpha == 1 else "{0} - {2} * {1}", [a, b, alpha], ctype)

    def op_rsub(self, ctype: str, a: Any, b: Any, alpha: Any = 1) -> Value:
        return self.op_sub(ctype, b, a, alpha)

    def op_div(self, ctype: str, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
        if ctype != FLOAT:
            raise Unsupported("division of integers")
        found = self.f("{0} / {1}", a, b, cost=2)
        return found if rounding_mode is None else self.f(f"{rounding_mode}({{0}})", found)

    def op_abs(self, ctype: str, a: Value) -> Value:
        return self.make(ctype, "fabs({0})" if ctype == FLOAT else "{0} < 0 ? -{0} : {0}", [a], ctype)

    def op_square(self, ctype: str, a: Value) -> Value:
        return self.make(ctype, "{0} * {0}", [a], ctype)

    def op_bitwise_not(self, ctype: str, a: Value) -> Value:
        return self.make(ctype, "!{0}" if ctype == BOOL else "~{0}", [a], ctype)

    def op_where(self, ctype: str, condition: Value, a: Any, b: Any) -> Value:
        return self.choose(self.cast(condition, BOOL), a, b, ctype)

    def op_masked_fill(self, ctype: str, a: Value, mask: Value, value: Any) -> Value:
        return self.choose(mask, value, a, ctype)

    def op_clamp(self, ctype: str, a: Value, low: Any = None, high: Any = None) -> Value:
        # a bound that is a tensor may be NaN, and then the result is
        for bound, name, sign in ((low, "maximum", "<"), (high, "minimum", ">")):
            if isinstance(bound, Value):
                a = self.make(ctype, EITHER[name], [a, bound], ctype)
            elif bound is not None:
                a = self.make(ctype, f"{{0}} {sign} {{1}} ? {{1}} : {{0}}", [a, bound], ctype)
        return a

    def op_sigmoid(self, ctype: str, a: Value) -> Value:
        return self.f("1 / (1 + {0})", self.f("exp(-{0})", a, cost=HEAVY), cost=2)

    def op_logit(self, ctype: str, a: Value, eps: float | None = None) -> Value:
        a = a if eps is None else self.op_clamp(FLOAT, a, eps, 1 - eps)
        return self.f("log({0})", self.f("{0} / (1 - {0})", a), cost=HEAVY)

    def op_softplus(self, ctype: str, a: Value, beta: Any = 1, threshold: Any = 20) -> Value:
        scaled = self.f("{0} * {1}", a, beta)
        curved = self.f("log1p({0})", self.f("exp({0})", scaled, cost=HEAVY), cost=HEAVY)
        return self.choose(self.test("{0} > {1}", scaled, threshold), a, self.f("{0} / {1}", curved, beta))

    def op_softplus_backward(self, ctype: str, grad: Value, a: Value, beta: Any, threshold: Any) -> Value:
        scaled = self.f("{0} * {1}", a, beta)
        z = self.f("exp({0})", scaled, cost=HEAVY)
        return self.choose(self.test("{0} > {1}", scaled, threshold), grad, self.f("{0} * {1} / ({1} + 1)", grad, z))

    def op_log_sigmoid(self, ctype: str, a: Value) -> Value:
        z = self.f("exp(-fabs({0}))", a, cost=HEAVY)
        return self.f("({0} > 0 ? 0 : {0}) - {1}", a, self.f("log1p({0})", z, cost=HEAVY))

    def op_log_sigmoid_backward(self, ctype: str, grad: Value, a: Value, buffer: Any) -> Value:
        z = self.f("exp(-fabs({0}))", a, cost=HEAVY)
        return self.f("{0} * ({1} < 0 ? 1 - {2} / (1 + {2}) : {2} / (1 + {2}))", grad, a, z)

    def op_silu(self, ctype: str, a: Value) -> Value:
        return self.f("{0} / (1 + {1})", a, self.f("exp(-{0})", a, cost=HEAVY))

    def op_gelu(self, ctype: str, a: Value, approximate: str = "none") -> Value:
        if approximate != "none":
            inner = self.f("{1} * ({0} + 0.044715 * {0} * {0} * {0})", a, math.sqrt(2 / math.pi))
            return self.f("0.5 * {0} * (1 + {1})", a, self.f("tanh({0})", inner, cost=HEAVY))
        return self.f("0.5 * {0} * (1 + {1})", a, self.f("erf({0} * {1})", a, math.sqrt(0.5), cost=HEAVY))

    def op_leaky_relu(self, ctype: str, a: Value, slope: Any = 0.01) -> Value:
        return self.f("{0} > 0 ? {0} : {0} * {1}", a, slope)

    def op_leaky_relu_backward(self, ctype: str, grad: Value, a: Value, slope: Any, is_result: bool) -> Value:
        return self.f("{1} > 0 ? {0} : {0} * {2}", grad, a, slope)

    def op_elu(self, ctype: str, a: Value, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Value:
        curved = self.f("expm1({0} * {1})", a, input_scale, cost=HEAVY)
        return self.f("{0} <= 0 ? {1} * {2} : {0} * {3}", a, curved, alpha * scale, scale)

    def op_polygamma(self, ctype: str, order: int, a: Value) -> Value:
        if order not in (0, 1):
            raise Unsupported(f"polygamma({order})")
        return self.f("px_trigamma({0})" if order else "px_digamma({0})", a, cost=HEAVY)

    def op_xlogy(self, ctype: str, a: Any, b: Any) -> Value:
        product = self.f("{0} * {1}", a, self.f("log({0})", b, cost=HEAVY))
        return self.f("{1} != {1} ? {1} : {0} == 0 ? 0 : {2}", a, b, product)

    def op_special_xlog1py(self, ctype: str, a: Any, b: Any) -> Value:
        product = self.f("{0} * {1}", a, self.f("log1p({0})", b, cost=HEAVY))
        return self.f("{1} != {1} ? {1} : {0} == 0 ? 0 : {2}", a, b, product)

    def op_addcmul(self, ctype: str, a: Any, b: Any, c: Any, value: Any = 1) -> Value:
        return self.make(ctype, "{0} + {3} * {1} * {2}", [a, b, c, value], ctype)

    def op_addcdiv(self, ctype: str, a: Any, b: Any, c: Any, value: Any = 1) -> Value:
        return self.f("{0} + {3} * {1} / {2}", a, b, c, value)

    def op_lerp(self, ctype: str, a: Any, b: Any, weight: Any) -> Value:
        return self.f("fabs({2}) < 0.5 ? {0} + {2} * ({1} - {0}) : {1} - ({1} - {0}) * (1 - {2})", a, b, weight)

    def op_nan_to_num(self, ctype: str, a: Any, nan: Any = None, high: Any = None, low: Any = None) -> Value:
        top = torch.finfo(torch.float64).max
        args = [a, nan or 0.0, top if high is None else high, -top if low is None else low]
        text = "{0} != {0} ? {1} : {0} == __builtin_inf() ? {2} : {0} == -__builtin_inf() ? {3} : {0}"
        return self.f(text, *args)

    def op_pow(self, ctype: str, a: Any, b: Any) -> Value:
        if ctype != FLOAT:
            if b in (1, 2, 3):
                return self.make(ctype, " * ".join(["{0}"] * int(b)), [a], ctype)
            raise Unsupported("powers of integers")
        number = b.number if isinstance(b, Literal) and not isinstance(a, Literal) else b
        if isinstance(number, int | float) and number in POWERS:
            return self.f(POWERS[number], a, cost=2)
        return self.f("pow({0}, {1})", a, b, cost=2 * HEAVY)


POWERS = {
    0: "1.0",
    1: "{0}",
    2: "{0} * {0}",
    3: "{0} * {0} * {0}",
    4: "({0} * {0}) * ({0} * {0})",
    -1: "1 / {0}",
    -2: "1 / ({0} * {0})",
    0.5: "sqrt({0})",
    -0.5: "1 / sqrt({0})",
}


def ctype_of(tensor: torch.Tensor) -> str:
    if tensor.dtype not in CTYPES or tensor.dtype == torch.int32:
        raise Unsupported(f"entries of type {tensor.dtype}")
    return CTYPES[tensor.dtype]


def _converted(number: Any, ctype: str) -> float | int | bool:
    if ctype == FLOAT:
        return float(number)
    return bool(number) if ctype == BOOL else int(number)
