"""Sums of terms and grouping expressions, cut and put together again as text."""

from __future__ import annotations

from collections.abc import Mapping

from pyromix.errors import FormulaError
from pyromix.formula.tokens import Token, called, enclosed, fail, render, split


def signed(tokens: list[Token]) -> list[tuple[str, list[Token]]]:
    """Cut a sum into signed terms; a sign after an operator belongs to its term."""
    out: list[tuple[str, list[Token]]] = []
    for sign, part in split(tokens, "+", "-"):
        previous = out[-1][1] if out else []
        if sign is not None and previous and previous[-1].kind == "op" and previous[-1].text in ("*", "/", ":", "**"):
            out[-1] = (out[-1][0], [*previous, sign, *part])
            continue
        if not part:
            if sign is None:  # a leading sign: its own part follows
                out.append(("", []))
                continue
            raise fail(sign, "an operand is missing after it")
        out.append((sign.text if sign else "+", part))
    return [(sign, part) for sign, part in out if part]


def as_sum(terms: list[tuple[str, str]]) -> str:
    """Signed terms as one string."""
    text = ""
    for sign, term in terms:
        text += f" {sign} {term}" if text else (term if sign == "+" else f"-{term}")
    return text


def _intercept_and_rest(tokens: list[Token]) -> tuple[bool, list[tuple[str, list[Token]]]]:
    """Whether the intercept is in, and the other signed terms; the last word on the intercept counts."""
    intercept, rest = True, []
    for sign, term in signed(tokens):
        if len(term) == 1 and term[0].text in ("0", "1"):
            intercept = (term[0].text == "1") == (sign == "+")
        else:
            rest.append((sign, term))
    return intercept, rest


def with_intercept(tokens: list[Token]) -> str:
    """Right-hand side with the intercept in front."""
    while enclosed(tokens):
        tokens = tokens[1:-1]
    intercept, rest = _intercept_and_rest(tokens)
    return as_sum([("+", "1" if intercept else "0"), *((sign, render(term)) for sign, term in rest)])


def uncorrelated(tokens: list[Token]) -> list[str]:
    """One right-hand side a term, for ``||``: products are expanded first, a factor keeps all its columns."""
    from patsy import ModelDesc, PatsyError

    while enclosed(tokens):
        tokens = tokens[1:-1]
    intercept, rest = _intercept_and_rest(tokens)
    out = ["1"] if intercept else []
    if rest:
        text = "0" + "".join(f" {sign} {render(term)}" for sign, term in sorted(rest, key=lambda pair: pair[0] == "-"))
        try:
            description = ModelDesc.from_formula(text)
        except PatsyError as error:
            raise FormulaError(f"formula: {render(tokens)!r} left of '||' cannot be expanded: {error}") from None
        out += [f"0 + {term.name()}" for term in description.rhs_termlist if term.factors]
    return out or ["0"]


def grouping_factors(tokens: list[Token], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Expand a grouping expression: ``a/b/c`` is a, a:b, a:b:c."""
    while enclosed(tokens):
        tokens = tokens[1:-1]
    parts = split(tokens, "/")
    if len(parts) > 1:
        out = grouping_factors(_some(parts[0][1], parts[1][0]), names)
        for separator, part in parts[1:]:
            parent = tuple(dict.fromkeys(name for group in out for name in group))
            out = out + [tuple(dict.fromkeys(parent + g)) for g in grouping_factors(_some(part, separator), names)]
        return out
    parts = split(tokens, ":")
    if len(parts) > 1:
        merged: tuple[str, ...] = ()
        for separator, part in parts:
            inner = grouping_factors(_some(part, separator or parts[1][0]), names)
            if len(inner) != 1:
                raise fail(separator or tokens[0], "'/' inside ':' in a grouping factor; write the terms out")
            merged = tuple(dict.fromkeys(merged + inner[0]))
        return [merged]
    if called(tokens) == "mm":
        raise fail(tokens[0], "mm(...) stands alone right of the bar")
    if len(tokens) != 1 or tokens[0].kind != "name":
        odd = next((t for t in tokens if t.kind == "op"), tokens[0])
        reason = "a grouping factor is a column, a:b or a/b"
        if odd.text in ("+", "*"):
            reason += "; for crossed factors write (1 | a) + (1 | b)"
        elif odd.text == "(":
            reason += "; make a column of the function's result first"
        raise fail(odd, reason)
    return [(names.get(tokens[0].text, tokens[0].text),)]


def _some(tokens: list[Token], operator: Token | None) -> list[Token]:
    if not tokens:
        assert operator is not None
        raise fail(operator, "an operand is missing in the grouping factor")
    return tokens
