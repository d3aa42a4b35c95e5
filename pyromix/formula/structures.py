"""Wrappers of random terms: which there are, what their levels are, and what they are given beside their term."""

from __future__ import annotations

from pyromix.formula.tokens import Token, fail

# of the terms of a level: with one term they all say the same
TERMWISE = ("us", "diag", "cs", "homcs", "toep", "homtoep")
TEMPORAL = ("ar1", "ou", "rw", "arma")  # levels are times, or times within series: the last column is the time
PLACED = ("gp", "spde", "besag", "bym2")  # may be written without a bar: gp(x, y) is gp(1 | x:y)
LEVELWISE = (*TEMPORAL, *PLACED, "propto", "ped", "kron")  # of the levels themselves
STRUCTURES = TERMWISE + LEVELWISE
# what follows the term, in order; each may also be given by name
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "rw": ("order",),
    "arma": ("p", "q"),
    "gp": ("kernel", "basis", "inducing"),
    "spde": ("mesh", "alpha"),
    "besag": ("graph",),
    "bym2": ("graph",),
    "propto": ("K",),
    "ped": ("pedigree",),
    "kron": ("first", "second"),
}
ANYWHERE = ("spde",)  # takes any place: new ones are no new levels
BY_NAME = ("gp", "spde")  # without a bar, what follows is columns; arguments need their names
KNOWN = "Structures: " + ", ".join(f"{name}(...)" for name in STRUCTURES)
Value = str | int | float


def is_keyword(tokens: list[Token]) -> bool:
    return len(tokens) > 2 and tokens[0].kind == "name" and tokens[1].text == "=" and tokens[1].kind == "op"


def arguments_of(
    name: str, token: Token, parts: list[tuple[Token | None, list[Token]]]
) -> tuple[tuple[str, Value], ...]:
    """What stands behind a random term in its wrapper, by name."""
    allowed = ARGUMENTS.get(name, ())
    takes = f"{name}(...) takes {', '.join(allowed)} beside its term" if allowed else f"{name}(...) takes a term alone"
    found: dict[str, Value] = {}
    for position, (_, part) in enumerate(parts):
        if not part:
            raise fail(token, f"an argument is missing; {takes}")
        keyword = part[0].text if is_keyword(part) else None
        value = part[2:] if keyword else part
        if keyword is None and position >= len(allowed):
            raise fail(part[0], takes)
        key = keyword or allowed[position]
        if key not in allowed or key in found:
            raise fail(part[0], takes if key not in allowed else f"{key} is given twice")
        if len(value) != 1 or value[0].kind == "op":
            raise fail(value[0], f"{key}= takes a number, or the name of something handed over by known={{...}}")
        found[key] = literal(value[0])
    return tuple(found.items())


def literal(token: Token) -> Value:
    if token.kind == "number":
        return int(token.text) if token.text.isdigit() else float(token.text)
    return token.source.strip("\"'`")
