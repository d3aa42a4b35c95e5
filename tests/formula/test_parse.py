"""The formula grammar against hand-written expansions, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyromix.errors import FormulaError, PyromixError
from pyromix.formula.parse import Bar, parse, structure_of


def bars(*items: tuple) -> tuple[Bar, ...]:
    """``(terms, group, structure)`` with the group as one string of columns."""
    return tuple(Bar(item[0], tuple(item[1].split(":")), *item[2:]) for item in items)


# Right-hand side, fixed part, bars. Written by hand and compared once with findbars() of lme4 1.1-31, which orders
# nested terms the other way round, calls them b:a, and fails on (1||g), (1|(a/b)/c), (1|a/(b/c)) and (1|a:b/c).
EXPANSIONS = [
    ("(1|g)", "1", bars(("1", "g"))),
    ("x + (1|g)", "x", bars(("1", "g"))),
    ("(1|g) + x", "x", bars(("1", "g"))),
    ("1 + x + (1|g)", "1 + x", bars(("1", "g"))),
    ("0 + x + (1|g)", "0 + x", bars(("1", "g"))),
    ("x - 1 + (1|g)", "x - 1", bars(("1", "g"))),
    ("-1 + x + (1|g)", "-1 + x", bars(("1", "g"))),
    ("(x|g)", "1", bars(("1 + x", "g"))),
    ("(1+x|g)", "1", bars(("1 + x", "g"))),
    ("(x+1|g)", "1", bars(("1 + x", "g"))),
    ("(0+x|g)", "1", bars(("0 + x", "g"))),
    ("(x+0|g)", "1", bars(("0 + x", "g"))),
    ("(x-1|g)", "1", bars(("0 + x", "g"))),
    ("(-1+x|g)", "1", bars(("0 + x", "g"))),
    ("(x+z|g)", "1", bars(("1 + x + z", "g"))),
    ("(x*z|g)", "1", bars(("1 + x * z", "g"))),
    ("(x:z|g)", "1", bars(("1 + x:z", "g"))),
    ("(I(x^2)|g)", "1", bars(("1 + I(x ** 2)", "g"))),
    ("(log(x)|g)", "1", bars(("1 + log(x)", "g"))),
    ("(1||g)", "1", bars(("1", "g"))),
    ("((x)|g)", "1", bars(("1 + x", "g"))),
    ("((x + z)||g)", "1", bars(("1", "g"), ("0 + x", "g"), ("0 + z", "g"))),
    ("(0+1+x|g)", "1", bars(("1 + x", "g"))),
    ("(1-1+x|g)", "1", bars(("0 + x", "g"))),
    ("(x - z|g)", "1", bars(("1 + x - z", "g"))),
    ("(x||g)", "1", bars(("1", "g"), ("0 + x", "g"))),
    ("(1+x||g)", "1", bars(("1", "g"), ("0 + x", "g"))),
    ("(0+x||g)", "1", bars(("0 + x", "g"))),
    ("(x-1||g)", "1", bars(("0 + x", "g"))),
    ("(x+z||g)", "1", bars(("1", "g"), ("0 + x", "g"), ("0 + z", "g"))),
    ("(x*z||g)", "1", bars(("1", "g"), ("0 + x", "g"), ("0 + z", "g"), ("0 + x:z", "g"))),
    ("(x*z-x||g)", "1", bars(("1", "g"), ("0 + z", "g"), ("0 + x:z", "g"))),
    ("(C(f)||g)", "1", bars(("1", "g"), ("0 + C(f)", "g"))),
    ("(1|a/b)", "1", bars(("1", "a"), ("1", "a:b"))),
    ("(1|a/b/c)", "1", bars(("1", "a"), ("1", "a:b"), ("1", "a:b:c"))),
    ("(1|(a/b)/c)", "1", bars(("1", "a"), ("1", "a:b"), ("1", "a:b:c"))),
    ("(1|a/(b/c))", "1", bars(("1", "a"), ("1", "a:b"), ("1", "a:b:c"))),
    ("(x|a/b)", "1", bars(("1 + x", "a"), ("1 + x", "a:b"))),
    ("(x||a/b)", "1", bars(("1", "a"), ("0 + x", "a"), ("1", "a:b"), ("0 + x", "a:b"))),
    ("(1|a:b)", "1", bars(("1", "a:b"))),
    ("(1|(a:b))", "1", bars(("1", "a:b"))),
    ("(1|a:b:c)", "1", bars(("1", "a:b:c"))),
    ("(1|a:b/c)", "1", bars(("1", "a:b"), ("1", "a:b:c"))),
    ("(1|a/b:c)", "1", bars(("1", "a"), ("1", "a:b:c"))),
    ("(x|a:b)", "1", bars(("1 + x", "a:b"))),
    ("(1|g1) + (1|g2)", "1", bars(("1", "g1"), ("1", "g2"))),
    ("(1|g1) + (x|g2)", "1", bars(("1", "g1"), ("1 + x", "g2"))),
    ("(1|g) + (0+x|g)", "1", bars(("1", "g"), ("0 + x", "g"))),
    ("(1|a) + (1|b) + (1|a:b)", "1", bars(("1", "a"), ("1", "b"), ("1", "a:b"))),
    ("((1|g))", "1", bars(("1", "g"))),
    ("x + ((1|g) + (1|h))", "x", bars(("1", "g"), ("1", "h"))),
    ("(x + (1|g))", "x", bars(("1", "g"))),
    ("us(x|g)", "1", bars(("1 + x", "g", "us"))),
    ("us(1|g)", "1", bars(("1", "g", "us"))),
    ("diag(x|g)", "1", bars(("1 + x", "g", "diag"))),
    ("diag(0+x+z|g)", "1", bars(("0 + x + z", "g", "diag"))),
    ("diag(x|a/b)", "1", bars(("1 + x", "a", "diag"), ("1 + x", "a:b", "diag"))),
    ("us((x|g))", "1", bars(("1 + x", "g", "us"))),
    ("x*z + (1|g)", "x * z", bars(("1", "g"))),
    ("a/b + (1|g)", "a / b", bars(("1", "g"))),
    ("(a+b)^2 + (1|g)", "(a + b) ** 2", bars(("1", "g"))),
    ("(a+b)**2 + (1|g)", "(a + b) ** 2", bars(("1", "g"))),
    ("x - z + (1|g)", "x - z", bars(("1", "g"))),
    ("0 + (1|g)", "0", bars(("1", "g"))),
    ("1", "1", ()),
    ("x", "x", ()),
    (" x\n + ( 1 |\tg ) ", "x", bars(("1", "g"))),
]


@pytest.mark.parametrize(("text", "fixed", "expected"), EXPANSIONS, ids=[row[0] for row in EXPANSIONS])
def test_expansion(text: str, fixed: str, expected: tuple[Bar, ...]) -> None:
    formula = parse(f"y ~ {text}")
    assert formula.response == "y"
    assert formula.fixed == fixed
    assert formula.bars == expected
    assert formula.offsets == ()


@pytest.mark.parametrize(
    ("text", "response", "fixed", "offsets"),
    [
        ("log(y) ~ x", "log(y)", "x", ()),
        ("I(y^2) ~ x", "I(y ** 2)", "x", ()),
        ("cbind(s, f) ~ x", ("s", "f"), "x", ()),
        ("cbind(s, n - s) ~ x", ("s", "n - s"), "x", ()),
        ("y ~ x + offset(log(e))", "y", "x", ("log(e)",)),
        ("y ~ offset(log(e)) + x", "y", "x", ("log(e)",)),
        ("y ~ offset(a) + x + offset(-(b + 1))", "y", "x", ("a", "-(b + 1)")),
        ("y ~ offset(e)", "y", "1", ("e",)),
        ("y ~ x + offset(log(e)) + (1|g)", "y", "x", ("log(e)",)),
    ],
)
def test_response_and_offsets(text: str, response: object, fixed: str, offsets: tuple[str, ...]) -> None:
    formula = parse(text)
    assert (formula.response, formula.fixed, formula.offsets) == (response, fixed, offsets)


def test_backquoted_names_get_safe_names_and_read_as_written() -> None:
    formula = parse("`the y` ~ `a b` * x + I(`a b`^2) + (`a b` | `g.1`/h)")
    assert set(formula.names.values()) == {"the y", "a b", "g.1"}
    assert "`" not in formula.fixed
    assert formula.restore(formula.fixed) == "a b * x + I(a b ** 2)"
    assert [bar.group for bar in formula.bars] == [("g.1",), ("g.1", "h")]
    assert formula.restore(str(formula.response)) == "the y"


def test_internal_names_avoid_names_in_use() -> None:
    formula = parse("y ~ column0_ + `a b`")
    assert formula.restore(formula.fixed) == "column0_ + a b"


def test_columns_named_like_functions_are_columns_when_not_called() -> None:
    formula = parse("y ~ log + scale(log) + C")
    assert sorted(formula.names.values()) == ["C", "log"]
    assert formula.restore(formula.fixed) == "log + scale(log) + C"


@pytest.mark.parametrize("word", ["class", "return", "import", "global", "def", "pass", "with"])
def test_keywords_that_can_only_be_columns_need_no_backquotes(word: str) -> None:
    formula = parse(f"{word} ~ x * {word} + log({word}) + ({word} | {word})")
    (internal,) = formula.names
    assert formula.names[internal] == word
    assert formula.response == internal
    assert formula.restore(formula.fixed) == f"x * {word} + log({word})"
    assert [(formula.restore(bar.terms), bar.group) for bar in formula.bars] == [(f"1 + {word}", (word,))]


def test_user_functions() -> None:
    assert parse("y ~ half(x) + (half(x)|g)", {"half": lambda x: x / 2}).fixed == "half(x)"
    assert parse("half(y) ~ x", {"half": lambda x: x / 2}).response == "half(y)"


# formula, what the message must name
HOSTILE = [
    ("y ~ __import__('os').system('true')", r"'\.'"),
    ("y ~ I(__import__('os'))", "__import__"),
    ("y ~ eval('1')", "'eval'"),
    ("y ~ exec(x)", "'exec'"),
    ("y ~ open('f')", "'open'"),
    ("y ~ getattr(x, 'y')", "'getattr'"),
    ("y ~ I(x.mean())", r"'\.'"),
    ("y ~ I(x - x.mean())", r"'\.'"),
    ("y ~ I(x-mean(x))", "'mean'.*Allowed: .*center.*functions="),
    ("y ~ np.log(x)", r"'\.'"),
    ("y ~ x[0]", r"'x\[0\]'"),
    ("y ~ I(x[0])", r"'x\[0\]'"),
    ("y ~ [x]", r"'\[x\]'"),
    ("y ~ I([x, x])", r"'\[x, x\]'"),
    ("y ~ [x for x in y]", "'for'"),
    ("y ~ {x}", "'{'"),
    ("y ~ I(lambda x: x)", "'lambda'|'x'"),
    ("y ~ (lambda: 0)()", "'lambda'"),
    ("y ~ I(x if x else x)", "'if'"),
    ("y ~ x; import os", "';'"),
    ("y ~ import os", "'import' and 'os'"),
    ("y ~ import(os)", "'import'"),
    ("y ~ x if x else x", "an operator is missing"),
    ("y ~ lambda", "'lambda'"),
    ("y ~ I(x := 1)", "':'|'=' |cannot be read"),
    ("y ~ I(x == 1)", "cannot be read.*'='"),
    ("y ~ I(x < 1)", "'<'"),
    ("y ~ I(x & x)", "'&'"),
    ("y ~ I(~x)", "'~'"),
    ("y ~ I(x @ x)", "'@'"),
    ("y ~ I(x % 2)", "'%'"),
    ("y ~ log(x, *x)", r"'\*'|Starred|x"),
    ("y ~ log(x, **x)", "keywords"),
    ("y ~ bs(x, df=y)", "'y'"),
    ("y ~ bs(x, df=log(3))", "literal"),
    ("y ~ C(x, levels=f(x))", "contrast"),
    ("y ~ C(x, Treatment(reference=y))", "'y'"),
    ("y ~ C(x, os)", "'os'"),
    ("y ~ C('a')", "'a'"),
    ("y ~ C(x.y)", r"'\.'"),
    ("y ~ I('a' * 10)", "'a'"),
    ('y ~ log("a")', "'a'"),
    ("y ~ f'{x}'", "operator is missing"),
    ("y ~ I(9**9**9)", r"9 \*\* 9"),
    ("y ~ I(x**9**9)", "inside an exponent"),
    ("y ~ x ** 99", "'99'"),
    ("y ~ I(1e400)", "names no column"),
    ("y ~ __class__", "'__class__'"),
    ("y ~ I(x)(x)", "'I\\(x\\)'|operator|plain name"),
    ("y ~ I(None)", "'None'"),
    ("y ~ True", "'True'"),
    ("y ~ (1 | __import__('os'))", "__import__"),
    ("y ~ (1 | g.__class__)", r"'\.'"),
    ("y ~ (eval('x') | g)", "'eval'"),
    ("y ~ offset(eval('x'))", "'eval'"),
    ("y ~ offset(x.y)", r"'\.'"),
    ("eval('y') ~ x", "'eval'"),
    ("cbind(eval('y'), f) ~ x", "'eval'"),
    ("y.mean() ~ x", r"'\.'"),
    ("y ~ x\\", r"'\\\\'"),
    ("y ~ $x", r"'\$'"),
    ("y ~ a*b*c*d*e*f*g*h*i*j*k*l*m*n", "more than 5000 terms"),
    ("y ~ (a+b+c+d+e+f)^10", "more than 5000 terms"),
    ("y ~ " + "(" * 100 + "x" + ")" * 100, "deep"),
    ("y ~ " + "+".join(["x"] * 20000), "characters long"),
]


@pytest.mark.parametrize(("text", "names"), HOSTILE, ids=[row[0][:40] for row in HOSTILE])
def test_hostile_formulas_are_refused_by_name(text: str, names: str) -> None:
    with pytest.raises(FormulaError, match=names):
        parse(text)


MALFORMED = [
    ("y", "no '~'"),
    ("", "no '~'"),
    ("~ x", "one-sided"),
    ("y ~", "nothing right"),
    ("y ~ x ~ z", "one '~'"),
    ("(y ~ x)", "inside parentheses"),
    ("y ~ .", "name the columns|attributes"),
    ("y ~ x | g", "outside parentheses"),
    ("y ~ x + 1 | g", "outside parentheses"),
    ("y | g ~ x", "left of '~'"),
    ("y ~ x * (1|g)", r"'\*'.*only be added"),
    ("y ~ (1|g) : x", "only be added"),
    ("y ~ (1|g)^2", "only be added"),
    ("y ~ log((1|g))", "log.*cannot hold a random term"),
    ("y ~ x - (1|g)", "cannot be subtracted"),
    ("y ~ (1|g", "never closed"),
    ("y ~ 1|g)", "nothing open"),
    ("y ~ (x))", "nothing open"),
    ("y ~ (|g)", "nothing left"),
    ("y ~ (1|)", "no grouping factor"),
    ("y ~ (1||)", "no grouping factor"),
    ("y ~ (1|g|h)", "two bars"),
    ("y ~ (1|(1|g))", "inside a random term"),
    ("y ~ (0|g)", "no term is left"),
    ("y ~ (0||g)", "no term is left"),
    ("y ~ (1|g) + (1|g)", "occurs twice"),
    ("y ~ (1|a) + (1|a/b)", "occurs twice"),
    ("y ~ (1|a+b)", r"'\+'.*crossed factors"),
    ("y ~ (1|a*b)", r"'\*'.*crossed factors"),
    ("y ~ (1|log(g))", "make a column"),
    ("y ~ (1|a//b)", "operand is missing"),
    ("y ~ (1|a:)", "operand is missing"),
    ("y ~ (1|(a/b):c)", "'/' inside ':'"),
    ("y ~ (x:1||g)", "cannot be expanded.*intercept"),
    ("y ~ C()", "needs a column"),
    ("y ~ bs(x, knots=[1, [2]])", "nested lists"),
    ("y ~ log((x | g))", "cannot hold a random term"),
    ("y ~ C(levels='a')", "needs a column"),
    ("y ~ (1|2)", "'2'.*grouping factor"),
    ("y ~ us(x||g)", r"'\|\|' inside us"),
    ("y ~ diag(x)", r"diag\(...\) is a structure of random effects and takes a term with a bar"),
    ("y ~ diag((1|g) + (1|h))", "exactly one random term"),
    ("y ~ foo(1|g)", "foo.*us.*diag"),
    ("y ~ x +", "operand is missing"),
    ("y ~ x + + z", "operand is missing|two signs"),
    ("y ~ x z", "operator is missing between 'x' and 'z'.*backquotes"),
    ("y ~ x:", "cannot be read"),
    ("y ~ ()", "not allowed"),
    ("y ~ 2*x", "'2'.*I\\("),
    ("y ~ x + 3", "'3'"),
    ("y ~ log()", "needs an argument"),
    ("y ~ I(3)", "names no column"),
    ("y ~ I(C(x))", "term of its own"),
    ("y ~ C(log(x))", "must be a column"),
    ("y ~ cbind(a, b)", "left of ~"),
    ("y ~ x:offset(e)", "alone as a term"),
    ("y ~ x - offset(e)", "cannot be subtracted"),
    ("y ~ offset()", "one expression"),
    ("y ~ offset(a, b)", "one expression"),
    ("y ~ offset(1)", "names no column"),
    ("y ~ offset(center(e))", "row by row"),
    ("center(y) ~ x", "row by row"),
    ("C(y) ~ x", "row by row"),
    ("1 ~ x", "names no column"),
    ("cbind(s) ~ x", "two arguments"),
    ("cbind(s, f, g) ~ x", "two arguments"),
    ("log(cbind(s, f)) ~ x", "left of ~"),
    ("y ~ `a", "not closed"),
    ("y ~ ``", "not closed, or is empty"),
    ("y ~ C(x, 'a)", "not closed"),
    ("y ~ logg(x)", "'logg'; did you mean 'log'"),
    *((f"y ~ x + {word}", "keyword") for word in "lambda if else for in is and or not await".split()),
    ("y ~ class(x)", "keyword"),
    ("y ~ None", "None"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED, ids=[row[0] for row in MALFORMED])
def test_malformed_formulas(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse(text)


@pytest.mark.parametrize("name", ["vm", "nonsense"])
def test_structures_that_are_handed_over(name: str) -> None:
    with pytest.raises(FormulaError, match=rf"'{name}'.*us\(.*diag\(.*\(1 \| g\).*covariances="):
        parse(f"y ~ {name}(0 + t | g)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arma(1 | g:t, p=2, q=1)", Bar("1", ("g", "t"), "arma", (("p", 2), ("q", 1)))),
        ("arma(1 | t, 2)", Bar("1", ("t",), "arma", (("p", 2),))),
        ("rw(1 | t, order=2)", Bar("1", ("t",), "rw", (("order", 2),))),
        ("gp(x, y)", Bar("1", ("x", "y"), "gp")),
        ("gp(1 + z | x:y, kernel=rbf)", Bar("1 + z", ("x", "y"), "gp", (("kernel", "rbf"),))),
        ("gp(x, kernel='my kernel')", Bar("1", ("x",), "gp", (("kernel", "my kernel"),))),
        ("spde(x, y, mesh=M, alpha=2)", Bar("1", ("x", "y"), "spde", (("mesh", "M"), ("alpha", 2)))),
        ("spde(z | x:y, M)", Bar("1 + z", ("x", "y"), "spde", (("mesh", "M"),))),
        ("besag(area, G)", Bar("1", ("area",), "besag", (("graph", "G"),))),
        ("bym2(1 | area, graph=G)", Bar("1", ("area",), "bym2", (("graph", "G"),))),
        ("propto(1 | id, K)", Bar("1", ("id",), "propto", (("K", "K"),))),
        ("propto(1 + x | id, K)", Bar("1 + x", ("id",), "propto", (("K", "K"),))),
        ("propto(0 + id | g, K)", Bar("1", ("id", "g"), "propto", (("K", "K"),))),
        ("ped(1 | id, P)", Bar("1", ("id",), "ped", (("pedigree", "P"),))),
        ("kron(1 | a:b, us, K)", Bar("1", ("a", "b"), "kron", (("first", "us"), ("second", "K")))),
        ("(1 | mm(a, b))", Bar("1", ("a", "b"), "us", (), True)),
        ("(x | mm(a, b, weights = cbind(v, 2 * w)))", Bar("1 + x", ("a", "b"), "us", (), True, ("v", "2 * w"))),
        ("diag(x | mm(a, b, scale = FALSE))", Bar("1 + x", ("a", "b"), "diag", (), True, (), False)),
    ],
)
def test_wrappers(text: str, expected: Bar) -> None:
    assert parse(f"y ~ x + {text}").bars == (expected,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arma(1 | t, 1, 1, 1)", r"takes p, q beside its term"),
        ("arma(1 | t, r=1)", r"takes p, q beside its term"),
        ("arma(1 | t, 1, p=1)", "p is given twice"),
        ("ar1(1 | t, 2)", r"ar1\(...\) takes a term alone"),
        ("arma(1 | t, p=1+1)", "takes a number, or the name"),
        ("propto(1 | id, f(K))", "takes a number, or the name"),
        ("gp(log(x), y)", "takes columns; make one"),
        ("gp(kernel=rbf)", "names no column"),
        ("besag(area, G, 3)", "takes graph beside its term"),
        ("(1 | mm(a))", "two or more columns"),
        ("(1 | mm(a, b, weights = cbind(v)))", "2 columns and 1 weights"),
        ("(1 | mm(a, b, weights = v))", r"takes cbind\(w1, w2\)"),
        ("(1 | mm(a, b, scale = 3))", "knows weights=cbind"),
        ("(1 | mm(a, log(b)))", "mm.* takes columns"),
        ("(1 | c/mm(a, b))", "stands alone right of the bar"),
        ("(1 | g) + gp(x) + gp(x)", r"\(1 \| x\) occurs twice"),
    ],
)
def test_wrappers_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse(f"y ~ x + {text}")


def test_terms_of_one_factor_with_different_structures() -> None:
    formula = parse("y ~ (1 | id) + ped(1 | id, P)")
    assert formula.effects == ("id", "id.1")


@pytest.mark.parametrize("name", ["ar1", "ou", "rw"])
def test_structures_of_levels(name: str) -> None:
    (bar,) = parse(f"y ~ x + {name}(1 | time)").bars
    assert (bar.terms, bar.group, bar.structure) == ("1", ("time",), name)
    assert structure_of(name, 1) == name
    assert structure_of("us", 1) == structure_of("diag", 1) == "iid"


@pytest.mark.parametrize("text", [None, 3, b"y ~ x", ["y ~ x"]])
def test_a_formula_is_text(text: object) -> None:
    with pytest.raises(FormulaError, match="expected a string"):
        parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"log": np.log}, "already means something"),
        ({"Sum": np.sum}, "already means something"),
        ({"a b": np.sum}, "not a plain name"),
        ({"__f": np.sum}, "not a plain name"),
        ({"f": 3}, "expected a callable"),
    ],
)
def test_bad_user_functions(functions: dict, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse("y ~ x", functions)


PIECES = ["y", "~", "x", "g", "1", "0", "2", "+", "-", "*", ":", "/", "^", "**", "(", ")", "|", "||", "(1|g)", "(x|g)"]
PIECES += ["C(", "I(", "log(", "offset(", "cbind(", "diag(", "us(", ",", "=", "'a'", "`a b`", "[", "]", ".", "lambda"]
PIECES += ["poly(x, 2)", "bs(x, df=4)", " ", "\n", "é", "__x__", "True", "1e9", "%"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_random_pieces_give_a_formula_or_a_formula_error(text: str) -> None:
    for candidate in (text, f"y ~ {text}", f"y ~ x + {text}"):
        try:
            parse(candidate)
        except PyromixError as error:
            assert str(error)


@given(st.text(max_size=40))
def test_random_text_gives_a_formula_or_a_formula_error(text: str) -> None:
    for candidate in (text, f"y ~ {text}"):
        try:
            parse(candidate)
        except FormulaError as error:
            assert str(error)


NAMES = st.sampled_from(["a", "b", "x"])
TERMS = st.recursive(
    NAMES | st.sampled_from(["I(a**2)", "log(b)", "C(x)", "center(a)"]),
    lambda inner: st.tuples(inner, st.sampled_from([" + ", ":", "*", "/"]), inner).map(lambda t: f"({''.join(t)})"),
    max_leaves=4,
)


@given(TERMS, st.lists(st.tuples(TERMS, st.sampled_from(["|", "||"]), NAMES), max_size=2))
def test_well_formed_formulas_are_read(fixed: str, random: list[tuple[str, str, str]]) -> None:
    text = " + ".join([f"y ~ {fixed}", *(f"({terms} {bar} {group})" for terms, bar, group in random)])
    try:
        formula = parse(text)
    except FormulaError as error:
        assert "occurs twice" in str(error)
        return
    assert {name for bar in formula.bars for name in bar.group} == {group for *_, group in random}
