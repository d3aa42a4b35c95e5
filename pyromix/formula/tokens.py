"""Tokens of a model formula: cutting the text, naming columns safely, writing tokens back."""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyromix.errors import FormulaError

MAX_LENGTH = 20_000
MAX_DEPTH = 40
LITERALS = frozenset({"True", "False", "None"})
# keywords that mean something inside a Python expression; the others, such as `class`, can only be columns
PART_OF_EXPRESSIONS = frozenset(
    {"and", "async", "await", "else", "for", "from", "if", "in", "is", "lambda", "not", "or", "yield"}
)

_PATTERN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[^\W\d]\w*)
  | (?P<quoted>`[^`\n]+`)
  | (?P<string>"[^"\\\n]*"|'[^'\\\n]*')
  | (?P<op>\|\||\*\*|[~+\-*/:^()|,=\[\]])
    """,
    re.VERBOSE,
)
_REASON = {
    ".": "attributes are not allowed, nor '.' for all columns: name them. A dotted name needs backquotes: `my.column`",
    "`": "a backquoted name is not closed, or is empty",
    '"': "a string is not closed, or holds a backslash",
    "'": "a string is not closed, or holds a backslash",
}


@dataclass(frozen=True)
class Token:
    """One token: ``kind`` is ``number``, ``name``, ``string`` or ``op``; ``text`` is what the builder reads."""

    kind: str
    text: str
    position: int
    source: str

    @property
    def where(self) -> str:
        """The token and its place, for messages."""
        return f"{self.source!r} at character {self.position + 1}"


def fail(token: Token, reason: str) -> FormulaError:
    """The error that names a token, its place and what is wrong with it."""
    return FormulaError(f"formula: token {token.where}: {reason}")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'Days'?``, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, [str(item) for item in known], n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ""


def tokenize(text: str) -> list[Token]:
    """Cut a formula into tokens; anything outside the grammar's alphabet is an error."""
    if not isinstance(text, str):
        raise FormulaError(f"formula: expected a string such as 'y ~ x + (1 | g)', got {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"formula: {len(text)} characters long, at most {MAX_LENGTH} are read")
    out: list[Token] = []
    at = 0
    while at < len(text):
        match = _PATTERN.match(text, at)
        if match is None:
            bad = text[at]
            reason = _REASON.get(bad, "not part of the formula grammar (names, numbers, + - * / : ** ( ) | || , =)")
            raise FormulaError(f"formula: token {bad!r} at character {at + 1}: {reason}")
        kind = match.lastgroup or ""
        if kind != "space":
            out.append(Token(kind, match.group(), at, match.group()))
        at = match.end()
    _check_balance(out)
    return [Token("op", "**", t.position, t.source) if t.text == "^" else t for t in out]


def _check_balance(tokens: list[Token]) -> None:
    """Refuse unbalanced or very deep brackets, and two operands with no operator between them."""
    stack: list[Token] = []
    close = {")": "(", "]": "["}
    before: Token | None = None
    for token in tokens:
        if token.text in ("(", "[") and token.kind == "op":
            stack.append(token)
            if len(stack) > MAX_DEPTH:
                raise fail(token, f"brackets nested more than {MAX_DEPTH} deep")
        elif token.text in close and token.kind == "op":
            if not stack or stack[-1].text != close[token.text]:
                raise fail(token, "unbalanced parentheses: nothing open to close here")
            stack.pop()
        elif before is not None and token.kind != "op" and (before.kind != "op" or before.text in (")", "]")):
            hint = "; a name with blanks needs backquotes" if token.kind == before.kind == "name" else ""
            raise fail(token, f"an operator is missing between {before.source!r} and {token.source!r}{hint}")
        before = token
    if stack:
        raise fail(stack[-1], "unbalanced parentheses: this one is never closed")


def name_columns(tokens: list[Token], functions: Iterable[str], contrasts: Iterable[str]) -> tuple[list[Token], dict]:
    """Replace column names that Python cannot read as they stand by safe internal ones.

    Backquoted names, names outside ASCII, statement keywords and columns called like a known function get an internal
    name.

    Returns
    -------
    tuple
        The tokens, and the mapping from internal to original names.
    """
    reserved, contrast_names = set(functions), set(contrasts)
    taken = {t.text for t in tokens if t.kind == "name"}
    names: dict[str, str] = {}
    inverse: dict[str, str] = {}
    out: list[Token] = []
    calls: list[str] = []
    for i, token in enumerate(tokens):
        after = tokens[i + 1].text if i + 1 < len(tokens) and tokens[i + 1].kind == "op" else ""
        if token.kind == "op" and token.text in ("(", "["):
            calls.append(tokens[i - 1].text if i and tokens[i - 1].kind == "name" else "")
        elif token.kind == "op" and token.text in (")", "]"):
            calls.pop()
        elif token.kind in ("name", "quoted"):
            token = _safe_name(token, after, bool(calls) and calls[-1] == "C", reserved, contrast_names)
            if token.kind == "quoted":
                if token.text not in inverse:
                    inverse[token.text] = _internal(len(names), taken)
                    names[inverse[token.text]] = token.text
                token = Token("name", inverse[token.text], token.position, token.source)
        out.append(token)
    return out, names


def _safe_name(token: Token, after: str, in_c: bool, reserved: set[str], contrasts: set[str]) -> Token:
    """A name as it is, or as kind ``quoted`` with the bare column name when it needs an internal one."""
    if token.kind == "quoted":
        return Token("quoted", token.text[1:-1], token.position, token.source)
    text = token.text
    if after == "=" or text in LITERALS or (in_c and text in contrasts):
        return token
    if text in PART_OF_EXPRESSIONS or (keyword.iskeyword(text) and after == "("):
        raise fail(token, f"a Python keyword is not allowed; if it is a column write `{text}`")
    if "__" in text and text.startswith("__"):
        raise fail(token, f"names that start with two underscores are not allowed; if it is a column write `{text}`")
    if after != "(" and (text in reserved or not text.isascii() or keyword.iskeyword(text)):
        return Token("quoted", text, token.position, token.source)
    return token


def _internal(number: int, taken: set[str]) -> str:
    name = f"column{number}_"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def render(tokens: list[Token]) -> str:
    """Tokens back to text, with single spaces around binary operators."""
    out: list[str] = []
    for i, token in enumerate(tokens):
        text = token.text
        unary = i == 0 or (tokens[i - 1].kind == "op" and tokens[i - 1].text not in (")", "]"))
        if token.kind == "op" and text in ("+", "-", "*", "/", "**", "~", "|", "||"):
            out.append(text if unary else f" {text} ")
        else:
            out.append(", " if text == "," and token.kind == "op" else text)
    return "".join(out)


def split(tokens: list[Token], *separators: str) -> list[tuple[Token | None, list[Token]]]:
    """Cut at operators outside brackets: ``(separator or None, tokens)`` pairs in order."""
    parts: list[tuple[Token | None, list[Token]]] = [(None, [])]
    depth = 0
    for token in tokens:
        if token.kind == "op":
            depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
            if depth == 0 and token.text in separators:
                parts.append((token, []))
                continue
        parts[-1][1].append(token)
    return parts


def enclosed(tokens: list[Token]) -> bool:
    """Whether one pair of parentheses holds all the tokens."""
    if len(tokens) < 2 or tokens[0].text != "(" or tokens[0].kind != "op":
        return False
    depth = 0
    for i, token in enumerate(tokens):
        if token.kind == "op":
            depth += (token.text in ("(", "[")) - (token.text in (")", "]"))
            if depth == 0:
                return i == len(tokens) - 1
    return False


def called(tokens: list[Token]) -> str | None:
    """Name of the function if the tokens are one call and nothing else."""
    if len(tokens) > 2 and tokens[0].kind == "name" and enclosed(tokens[1:]):
        return tokens[0].text
    return None
