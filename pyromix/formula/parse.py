"""The formula language: lme4's grammar, read before any data are seen.

``response ~ fixed + (terms | group) + offset(...)``. Bars are split off here, since the builder of the fixed part
would read ``1|g`` as a bitwise or. Every piece passes the whitelist, so a parsed formula is safe to evaluate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pyromix.errors import FormulaError
from pyromix.formula.structures import (
    BY_NAME,
    KNOWN,
    PLACED,
    STRUCTURES,
    TERMWISE,
    Value,
    arguments_of,
    is_keyword,
)
from pyromix.formula.terms import as_sum, grouping_factors, signed, uncorrelated, with_intercept
from pyromix.formula.tokens import Token, called, enclosed, fail, name_columns, render, split, tokenize
from pyromix.formula.whitelist import CONTRASTS, FUNCTIONS, Checker, Usage


@dataclass(frozen=True)
class Bar:
    """One random term ``(terms | group)``.

    Attributes
    ----------
    terms
        Right-hand side with its intercept spelt out: ``"1 + x"``, ``"0 + x"`` or ``"1"``.
    group
        Columns whose combinations are the levels: ``("a",)``, or ``("a", "b")`` for ``a:b``.
    structure
        ``"us"`` (unstructured, the default), ``"diag"`` (uncorrelated), ``"cs"``, ``"homcs"``, ``"toep"``,
        ``"homtoep"`` (one correlation, or one a distance, with an SD a term or one for all), ``"ar1"``, ``"ou"``,
        ``"rw"``, ``"arma"`` (levels are times), ``"gp"``, ``"spde"`` (levels are places), ``"besag"``, ``"bym2"``
        (areas), ``"propto"``, ``"ped"`` (relatives), ``"kron"`` (pairs).
    arguments
        What the structure was given, by name: numbers, and names of things that are handed over beside the formula.
    members
        For ``mm(a, b)``: whether a row belongs to the levels of all columns at once, with weights.
    weights
        Expressions of the weights of ``mm``, by column; equal ones if empty.
    normalised
        Whether the weights of a row are divided by their sum.
    """

    terms: str
    group: tuple[str, ...]
    structure: str = "us"
    arguments: tuple[tuple[str, Value], ...] = ()
    members: bool = False
    weights: tuple[str, ...] = ()
    normalised: bool = True

    @property
    def name(self) -> str:
        """The grouping factor: ``a``, ``a:b`` or ``mm(a, b)``."""
        return f"mm({', '.join(self.group)})" if self.members else ":".join(self.group)


def structure_of(structure: str, terms: int) -> str:
    """What a term is called by its structure and the number of effects a level has."""
    return "iid" if terms == 1 and structure in TERMWISE else structure


@dataclass(frozen=True)
class Formula:
    """A formula taken apart.

    Attributes
    ----------
    text
        What the user wrote.
    response
        Expression of the response, or the two expressions of ``cbind(success, failure)``.
    fixed
        Right-hand side of the fixed part, without bars and offsets.
    bars
        Random terms after expansion of ``||`` and ``/``, in order of appearance.
    offsets
        Expressions inside ``offset(...)``.
    names
        Internal to original names of the columns that had to be renamed (backquoted names).
    usage
        How each column of the fixed part, the bars' terms, the response and the offsets is used.
    """

    text: str
    response: str | tuple[str, str]
    fixed: str
    bars: tuple[Bar, ...]
    offsets: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict, compare=False)
    usage: Mapping[str, Usage] = field(default_factory=dict, compare=False, repr=False)

    @property
    def effects(self) -> tuple[str, ...]:
        """Name of each bar's effect: its grouping factor, with ``.1``, ``.2`` for further bars on the same one."""
        groups = [bar.name for bar in self.bars]
        counts = [groups[:k].count(group) for k, group in enumerate(groups)]
        return tuple(f"{group}.{count}" if count else group for group, count in zip(groups, counts, strict=True))

    def original(self, name: str) -> str:
        """The column name a user knows, from the internal one."""
        return self.names.get(name, name)

    def restore(self, text: str) -> str:
        """Text with every internal name replaced by the original one, as in coefficient names."""
        for internal, original in self.names.items():
            parts = re.split(rf"\b{re.escape(internal)}\b", text)
            text = original.join(parts)
        return text


def parse(text: str, functions: Mapping[str, Callable] | None = None) -> Formula:
    """Read a formula.

    Parameters
    ----------
    text
        For example ``"Reaction ~ Days + (Days | Subject)"``. Random terms follow lme4: ``(1|g)``, ``(x|g)`` with its
        implied intercept, ``(0+x|g)``, ``(x||g)``, ``(1|a/b)``, ``(1|a:b)``, and one of `STRUCTURES` around
        one, as in ``ar1(1 | time)``. Names in backquotes may hold anything.
    functions
        Further functions the formula may call, by name.

    Returns
    -------
    Formula

    Raises
    ------
    FormulaError
        Naming the token that cannot be read or is not allowed, a covariance structure that formulas do not have
        among them.
    """
    functions = _checked_functions(functions)
    tokens, names = name_columns(tokenize(text), FUNCTIONS + tuple(functions), CONTRASTS)
    left, right = _sides(tokens, text)
    reader = _Reader(Checker(names, functions), names)
    response = reader.response(left)
    reader.right_hand_side(right)
    return Formula(
        text=text,
        response=response,
        fixed=as_sum(reader.fixed) or "1",
        bars=tuple(reader.bars),
        offsets=tuple(reader.offsets),
        names=names,
        usage=reader.usage,
    )


def _checked_functions(functions: Mapping[str, Callable] | None) -> Mapping[str, Callable]:
    functions = functions or {}
    for name, value in functions.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            raise FormulaError(f"functions: {name!r} is not a plain name")
        if name in FUNCTIONS or name in CONTRASTS or name in STRUCTURES:
            raise FormulaError(f"functions: {name!r} already means something in a formula; choose another name")
        if not callable(value):
            raise FormulaError(f"functions[{name!r}]: expected a callable, got {type(value).__name__}")
    return functions


def _sides(tokens: list[Token], text: str) -> tuple[list[Token], list[Token]]:
    tildes = [token for token in tokens if token.text == "~" and token.kind == "op"]
    if not tildes:
        raise FormulaError(f"formula: no '~' in {text!r}; write response ~ terms, as in 'y ~ x + (1 | g)'")
    if len(tildes) > 1:
        raise fail(tildes[1], "a formula has one '~'")
    parts = split(tokens, "~")
    if len(parts) < 2:
        raise fail(tildes[0], "'~' inside parentheses")
    if not parts[0][1]:
        raise fail(tildes[0], "one-sided formula: the response is missing left of '~'")
    if not parts[1][1]:
        raise fail(tildes[0], "nothing right of '~'; write '~ 1' for an intercept alone")
    return parts[0][1], parts[1][1]


def _bars_in(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.kind == "op" and token.text in ("|", "||")]


class _Reader:
    """Collects the parts of one formula."""

    def __init__(self, checker: Checker, names: Mapping[str, str]) -> None:
        self.checker = checker
        self.names = names
        self.fixed: list[tuple[str, str]] = []
        self.bars: list[Bar] = []
        self.offsets: list[str] = []
        self.usage: dict[str, Usage] = {"fixed": Usage(), "random": Usage(), "response": Usage(), "offset": Usage()}

    def response(self, tokens: list[Token]) -> str | tuple[str, str]:
        for bar in _bars_in(tokens):
            raise fail(bar, "a bar cannot stand left of '~'")
        if called(tokens) != "cbind":
            self.usage["response"].merge(self.checker.value(tokens, "response"))
            return render(tokens)
        parts = [part for _, part in split(tokens[2:-1], ",")]
        if len(parts) != 2 or not all(parts):
            raise fail(tokens[0], f"cbind takes two arguments, cbind(successes, failures); found {len(parts)}")
        for part in parts:
            self.usage["response"].merge(self.checker.value(part, "response"))
        return render(parts[0]), render(parts[1])

    def right_hand_side(self, tokens: list[Token]) -> None:
        for sign, term in signed(tokens):
            if _bars_in(term):
                self._random(sign, term)
            elif called(term) == "offset":
                self._offset(sign, term)
            elif called(term) in PLACED:
                self._placed(sign, term)
            else:
                self.usage["fixed"].merge(self.checker.terms(term))
                self.fixed.append((sign, render(term)))

    def _offset(self, sign: str, term: list[Token]) -> None:
        inner = term[2:-1]
        if sign == "-":
            raise fail(term[0], "an offset cannot be subtracted; write + offset(-(...))")
        if not inner or len(split(inner, ",")) > 1:
            raise fail(term[0], "offset takes one expression, as in offset(log(exposure))")
        self.usage["offset"].merge(self.checker.value(inner, "offset"))
        self.offsets.append(render(inner))

    def _random(self, sign: str, term: list[Token]) -> None:
        """A term that holds a bar: ``(... | g)``, a wrapper around one, or a parenthesised sum of such terms."""
        bar = _bars_in(term)[0]
        name = called(term)
        if len(split(term, "|", "||")) > 1:
            raise fail(bar, "a bar outside parentheses; write (terms | group)")
        if sign == "-":
            raise fail(bar, "a random term cannot be subtracted")
        if name is None and not enclosed(term):
            operator = next(t for t in term if t.kind == "op" and t.text not in ("(", ")"))
            raise fail(operator, "random terms can only be added; '(1 | g)' takes part in no other operation")
        inner = term[2:-1] if name else term[1:-1]
        pieces = split(inner, "|", "||")
        if name is not None:
            self._wrapped(name, term, inner, pieces)
        elif len(pieces) > 1:
            self._bar(pieces, "us", ())
        else:
            self.right_hand_side(inner)

    def _wrapped(self, name: str, term: list[Token], inner: list[Token], pieces: list) -> None:
        if name not in STRUCTURES:
            raise FormulaError(
                f"formula: token {term[0].where}: {name}(...) cannot hold a random term. {KNOWN}; (1 | g) gives "
                "independent, identically distributed intercepts. For any other structure write (1 | g) and hand it "
                "over: covariances={'g': ...}"
            )
        first, *rest = split(inner, ",")
        inner = first[1]
        arguments = arguments_of(name, term[0], rest)
        pieces = split(inner, "|", "||")
        while len(pieces) == 1 and enclosed(inner):
            inner = inner[1:-1]
            pieces = split(inner, "|", "||")
        if len(pieces) == 1:
            raise fail(term[0], f"{name}(...) takes exactly one random term, as in {name}(1 + x | g)")
        if pieces[1][0].text == "||":
            raise fail(pieces[1][0], f"'||' inside {name}(...); write diag(x | g), or (x || g) without a wrapper")
        self._bar(pieces, name, arguments)

    def _placed(self, sign: str, term: list[Token]) -> None:
        """``gp(x, y)``: columns are places, or a column is areas; ``besag(g, graph)``."""
        name = term[0].text
        if sign == "-":
            raise fail(term[0], "a random term cannot be subtracted")
        parts = split(term[2:-1], ",")
        count = len(parts) if name in BY_NAME else 1
        columns = [part for _, part in parts[:count] if not is_keyword(part)]
        for part in columns:
            if len(part) != 1 or part[0].kind != "name":
                raise fail(part[0] if part else term[0], f"{name}(...) takes columns; make one of an expression first")
        if not columns:
            raise fail(term[0], f"{name}(...) names no column")
        group = tuple(self.names.get(part[0].text, part[0].text) for part in columns)
        self._add(term[0], Bar("1", group, name, arguments_of(name, term[0], parts[len(columns) :])))

    def _bar(self, pieces: list, structure: str, arguments: tuple[tuple[str, Value], ...]) -> None:
        bar = pieces[1][0]
        if len(pieces) > 2:
            raise fail(pieces[2][0], "two bars in one random term")
        left, right = pieces[0][1], pieces[1][1]
        if not left:
            raise fail(bar, "nothing left of the bar; write (1 | g)")
        if not right:
            raise fail(bar, "no grouping factor right of the bar")
        for nested in _bars_in(left + right):
            raise fail(nested, "a random term inside a random term")
        self.usage["random"].merge(self.checker.terms(left))
        terms = [with_intercept(left)] if bar.text == "|" else uncorrelated(left)
        if "0" in terms:
            raise fail(bar, "no term is left in the random term once the intercept is removed")
        members = called(right) == "mm"
        if structure == "propto" and len(terms) == 1 and (name := re.fullmatch(r"0 \+ (\w+)", terms[0])):
            # glmmTMB's propto(0 + id | g, K): levels of id within those of g
            (group,) = grouping_factors(right, self.names)
            self._add(bar, Bar("1", (self.names.get(name[1], name[1]), *group), structure, arguments))
            return
        if members:
            group, weights, normalised = self._members(right, structure)
            for text in terms:
                self._add(bar, Bar(text, group, structure, arguments, True, weights, normalised))
            return
        for group in grouping_factors(right, self.names):
            for text in terms:
                self._add(bar, Bar(text, group, structure, arguments))

    def _add(self, token: Token, new: Bar) -> None:
        if any((old.terms, old.name, old.structure) == (new.terms, new.name, new.structure) for old in self.bars):
            raise fail(token, f"the random term ({new.terms} | {new.name}) occurs twice")
        self.bars.append(new)

    def _members(self, tokens: list[Token], structure: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Columns and weights of ``mm(a, b, weights = cbind(v, w), scale = FALSE)``."""
        columns, weights, normalised = [], (), True
        for _, part in split(tokens[2:-1], ","):
            if not is_keyword(part):
                if len(part) != 1 or part[0].kind != "name":
                    raise fail(part[0] if part else tokens[0], "mm(...) takes columns, as in mm(first, second)")
                columns.append(self.names.get(part[0].text, part[0].text))
            elif part[0].text == "weights":
                weights = self._weights(part)
            elif part[0].text == "scale" and len(part) == 3 and part[2].text in ("True", "False", "TRUE", "FALSE"):
                normalised = part[2].text in ("True", "TRUE")
            else:
                raise fail(part[0], "mm(...) knows weights=cbind(w1, w2) and scale=True or False")
        if len(columns) < 2:
            raise fail(tokens[0], "mm(...) takes two or more columns, as in (1 | mm(first, second))")
        if weights and len(weights) != len(columns):
            raise fail(tokens[0], f"mm(...): {len(columns)} columns and {len(weights)} weights")
        return tuple(columns), weights, normalised

    def _weights(self, part: list[Token]) -> tuple[str, ...]:
        if called(part[2:]) != "cbind":
            raise fail(part[0], "weights= takes cbind(w1, w2), an expression for each column")
        values = [value for _, value in split(part[4:-1], ",")]
        for value in values:
            self.usage["offset"].merge(self.checker.value(value, "weights"))
        return tuple(render(value) for value in values)
