"""What an expression in a formula may hold. Everything else is refused before anything is evaluated.

The formula builder underneath evaluates Python, so a formula is code. Only names, numbers, arithmetic and calls to
known functions pass; no attributes, subscripts, lambdas, comprehensions, dunder names or computed keywords.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pyromix.errors import FormulaError
from pyromix.formula.structures import STRUCTURES, TEMPORAL
from pyromix.formula.tokens import Token, nearest, render

ELEMENTWISE = ("I", "abs", "exp", "log", "log1p", "sqrt")
STATEFUL = ("bs", "center", "cr", "poly", "scale", "standardize")
SPECIAL = ("C", "cbind", "offset")
CONTRASTS = ("Diff", "Helmert", "Poly", "Sum", "Treatment")
FUNCTIONS = tuple(sorted(ELEMENTWISE + STATEFUL + SPECIAL, key=str.lower))
MAX_TERMS = 5_000
MAX_POWER = 10

_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
_STRINGS_IN = ("C", "cr", *CONTRASTS)


@dataclass
class Usage:
    """How each column is used: ``factor`` (bare in a term), ``C`` (inside ``C(...)``), ``call`` (in another call)."""

    columns: dict[str, set[str]] = field(default_factory=dict)

    def add(self, name: str, how: str) -> None:
        """Record one use of a column."""
        self.columns.setdefault(name, set()).add(how)

    def merge(self, other: Usage) -> None:
        """Take over the uses recorded elsewhere."""
        for name, ways in other.columns.items():
            self.columns.setdefault(name, set()).update(ways)


class Checker:
    """Walks expressions and refuses what is not allowed.

    Parameters
    ----------
    names : mapping
        Internal to original column names, for messages.
    functions : iterable of str
        Names of the functions the user handed over.
    """

    def __init__(self, names: Mapping[str, str], functions: Iterable[str] = ()) -> None:
        self.names = names
        self.user = tuple(functions)

    def terms(self, tokens: list[Token]) -> Usage:
        """Check the terms of a formula part (``a * b + log(x)``) and say how columns are used."""
        usage = Usage()
        depth, calls, out = 0, [], []
        for i, token in enumerate(tokens):
            if token.kind == "op" and token.text in ("(", "["):
                calls.append(i > 0 and tokens[i - 1].kind == "name")
                depth += calls[-1]
            elif token.kind == "op" and token.text in (")", "]"):
                depth -= calls.pop()
            if token.kind == "op" and token.text == ":" and depth == 0:
                # ':' is no Python operator: for this check any operator of its own will do
                token = Token("op", "@", token.position, token.source)
            out.append(token)
        count = self._formula(self._parse(out), usage)
        if count > MAX_TERMS:
            raise FormulaError(f"formula: {self._shown(tokens)!r} expands to more than {MAX_TERMS} terms")
        return usage

    def value(self, tokens: list[Token], what: str) -> Usage:
        """Check an expression computed row by row (response, offset) and say which columns it reads."""
        usage = Usage()
        node = self._parse(tokens)
        self._value(node, usage, elementwise=what)
        if not usage.columns:
            raise FormulaError(f"formula: {what} {self._shown(tokens)!r} names no column")
        return usage

    def _shown(self, tokens: list[Token]) -> str:
        return render([Token(t.kind, t.source, t.position, t.source) for t in tokens])

    def _parse(self, tokens: list[Token]) -> ast.expr:
        # one space between tokens: columns of the tree then point back into this text
        text = " ".join(token.text for token in tokens)
        try:
            return ast.parse(text.strip() or "()", mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            shown = self._shown(tokens)
            raise FormulaError(f"formula: {shown!r} cannot be read{self._near(error, tokens)}") from None

    def _near(self, error: BaseException, tokens: list[Token]) -> str:
        at = getattr(error, "offset", None)
        position = 0
        for token in tokens:
            position += len(token.text) + 1
            if at is not None and position >= at:
                return f", near token {token.where}"
        return f", near token {tokens[-1].where}" if tokens else ""

    def _formula(self, node: ast.expr, usage: Usage) -> int:
        """Check one node of a term expression; returns how many terms it can expand to."""
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.Pow):
                return self._power(node, usage)
            if isinstance(node.op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.MatMult)):
                left, right = self._formula(node.left, usage), self._formula(node.right, usage)
                size = left * right if isinstance(node.op, ast.MatMult) else left + right
                size += left * right if isinstance(node.op, ast.Mult) else 0
                return min(size, MAX_TERMS + 1)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            return self._formula(node.operand, usage)
        if isinstance(node, ast.Constant):
            if type(node.value) is int and node.value in (0, 1):
                return 1
            raise self._refuse(node, "only 0 and 1 stand alone in a formula; write arithmetic inside I(...)")
        if isinstance(node, ast.Name):
            self._column(node, usage, "factor")
            return 1
        if isinstance(node, ast.Call):
            self._call(node, usage, top=True, elementwise=None)
            return 1
        raise self._refuse(node, "not allowed as a term")

    def _power(self, node: ast.BinOp, usage: Usage) -> int:
        power = node.right
        if not (isinstance(power, ast.Constant) and type(power.value) is int and 1 <= power.value <= MAX_POWER):
            raise self._refuse(
                power, f"a power of terms must be a whole number from 1 to {MAX_POWER}; for x squared write I(x**2)"
            )
        return min(self._formula(node.left, usage) ** power.value, MAX_TERMS + 1)

    def _value(self, node: ast.expr, usage: Usage, elementwise: str | None) -> None:
        """Check one node of an arithmetic expression."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, _ARITHMETIC):
            if isinstance(node.op, ast.Pow):
                self._check_exponent(node)
            self._value(node.left, usage, elementwise)
            self._value(node.right, usage, elementwise)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            self._value(node.operand, usage, elementwise)
        elif isinstance(node, ast.Constant):
            if type(node.value) not in (int, float):
                raise self._refuse(node, "a literal of this kind is allowed only inside C(...)")
        elif isinstance(node, ast.Name):
            self._column(node, usage, "call")
        elif isinstance(node, ast.Call):
            self._call(node, usage, top=False, elementwise=elementwise)
        else:
            raise self._refuse(node, "not allowed; names, numbers, arithmetic and known functions are")

    def _check_exponent(self, node: ast.BinOp) -> None:
        """Powers of plain numbers could run for ever; powers of columns are float64 and cannot."""
        if not any(isinstance(child, ast.Name) for child in ast.walk(node.left)):
            raise self._refuse(node, "a power needs a column in its base")
        if any(isinstance(child, ast.BinOp) and isinstance(child.op, ast.Pow) for child in ast.walk(node.right)):
            raise self._refuse(node, "a power inside an exponent is not allowed")

    def _call(self, node: ast.Call, usage: Usage, top: bool, elementwise: str | None) -> None:
        if not isinstance(node.func, ast.Name):
            raise self._refuse(node.func, "only a function's plain name can be called")
        name = node.func.id
        if name not in FUNCTIONS and name not in self.user:
            raise self._unknown(name)
        if name in ("offset", "cbind"):
            where = "alone as a term, as in + offset(log(e))" if name == "offset" else "left of ~"
            raise FormulaError(f"formula: {name}(...) is allowed only {where}")
        if elementwise and name not in ELEMENTWISE and name not in self.user:
            raise FormulaError(
                f"formula: {name}(...) cannot be used in the {elementwise}, which is computed row by "
                f"row; allowed there: {', '.join(ELEMENTWISE)}. Make a column of it first."
            )
        if name == "C":
            self._categorical(node, usage, top)
            return
        if not node.args:
            raise self._refuse(node, f"{name}() needs an argument")
        uses = Usage()
        for argument in node.args:
            self._value(argument, uses, elementwise)
        if not uses.columns:
            raise self._refuse(node, f"{name}(...) names no column")
        usage.merge(uses)
        self._keywords(node)

    def _categorical(self, node: ast.Call, usage: Usage, top: bool) -> None:
        if not top:
            raise self._refuse(node, "C(...) must be a term of its own, not part of arithmetic")
        if not node.args:
            raise self._refuse(node, "C() needs a column")
        if not isinstance(node.args[0], ast.Name):
            raise self._refuse(node.args[0], "the first argument of C(...) must be a column")
        self._column(node.args[0], usage, "C")
        for argument in node.args[1:]:
            self._contrast(argument)
        self._keywords(node)

    def _contrast(self, node: ast.expr) -> None:
        if isinstance(node, ast.Name) and node.id in CONTRASTS:
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONTRASTS:
            for argument in node.args:
                self._literal(argument, strings=True)
            self._keywords(node)
            return
        raise self._refuse(node, f"expected a contrast: {', '.join(CONTRASTS)}")

    def _keywords(self, node: ast.Call) -> None:
        name = node.func.id  # type: ignore[attr-defined]
        for item in node.keywords:
            if item.arg is None or item.arg.startswith("_"):
                raise self._refuse(node, "only plain name=literal keywords are allowed")
            if name == "C" and not isinstance(item.value, (ast.Constant, ast.List, ast.Tuple)):
                self._contrast(item.value)
            else:
                self._literal(item.value, strings=name in _STRINGS_IN)

    def _literal(self, node: ast.expr, strings: bool) -> None:
        """Check a number, True/False/None, a string where allowed, or a flat list of these."""
        if isinstance(node, (ast.List, ast.Tuple)):
            for item in node.elts:
                if isinstance(item, (ast.List, ast.Tuple)):
                    raise self._refuse(item, "nested lists are not allowed")
                self._literal(item, strings)
            return
        inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
        kinds = (int, float, bool, type(None), str) if strings else (int, float, bool, type(None))
        if not isinstance(inner, ast.Constant) or type(inner.value) not in kinds:
            raise self._refuse(node, "only a literal is allowed here")

    def _column(self, node: ast.Name, usage: Usage, how: str) -> None:
        usage.add(node.id, how)

    def _unknown(self, name: str) -> FormulaError:
        shown = self.names.get(name, name)
        if shown in STRUCTURES:
            return FormulaError(
                f"formula: {shown}(...) is a structure of random effects and takes a term with a bar, as in "
                f"{shown}({'1 | time' if shown in TEMPORAL else '1 | g'})"
            )
        if shown == "mm":
            return FormulaError("formula: mm(...) is a grouping factor and stands behind a bar, as in (1 | mm(a, b))")
        allowed = ", ".join(FUNCTIONS + self.user)
        hint = nearest(shown, FUNCTIONS + self.user)
        return FormulaError(
            f"formula: unknown function {shown!r}{hint}. Allowed: {allowed}; hand others over with "
            f"functions={{{shown!r}: callable}}"
        )

    def _refuse(self, node: ast.expr, reason: str) -> FormulaError:
        text = ast.unparse(node).replace("@", ":")
        for internal, original in self.names.items():
            text = text.replace(internal, f"`{original}`")
        return FormulaError(f"formula: token {text!r}: {reason}")
