"""Graphs as C: every operation against torch itself, whole programs against autograd, and what happens without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special
from torch.fx.experimental.proxy_tensor import make_fx

import pyromix as pmx
from pyromix import compile as compilation
from pyromix import native
from pyromix.compile import compile_function
from pyromix.potential import log_joint

pytestmark = pytest.mark.skipif(native.compiler_problem() is not None, reason="no C compiler")

F = torch.nn.functional
INF = float("inf")
EXTREME = (0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, 1e-300, 1e-20, -1e-20, 1e-8, -1e-8, 20.0, 21.0, -20.0, 37.0)
EXTREME += (-37.0, 300.0, 700.0, -700.0, 710.0, -746.0, 1e5, -1e5, 1e300, -1e300, INF, -INF, float("nan"))
TOLERANCE = 1e-13


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def extremes() -> torch.Tensor:
    """Ordinary and extreme numbers, more than fit one vector."""
    return torch.cat([torch.tensor(EXTREME, dtype=torch.float64), randn(40), 8 * randn(40, seed=1)])


def _gradient(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Of a sum with unequal weights."""

    def weighted(*tensors: torch.Tensor) -> torch.Tensor:
        out = function(*tensors)
        return (out * torch.cos(torch.arange(out.numel())).view(out.shape)).sum()

    return torch.func.grad(weighted, argnums=tuple(range(count)))


def check(
    function: Callable[..., Any], *inputs: torch.Tensor, gradient: bool = False, tolerance: float = TOLERANCE
) -> None:
    """The compiled graph of a function (or of its gradient) gives what torch gives."""
    if gradient:
        function = _gradient(function, len(inputs))
    graph = make_fx(lambda *tensors: function(*tensors))(*inputs)
    before = [tensor.clone() for tensor in inputs]
    found = native.compile_graph(graph, inputs)(*inputs)
    expected = graph(*inputs)
    single = isinstance(expected, torch.Tensor)
    for got, want in zip([found] if single else found, [expected] if single else expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
    for tensor, old in zip(inputs, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), old.nan_to_num())


# -- one by one --------------------------------------------------------------------------------------------------------
UNARY = [
    *(torch.neg, torch.reciprocal, torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10, torch.sqrt),
    *(torch.rsqrt, torch.square, torch.abs, torch.sign, torch.tan, torch.tanh, torch.atan, torch.sigmoid),
    *(torch.sinh, torch.cosh, torch.asin, torch.acos, torch.asinh, torch.acosh, torch.atanh, torch.floor, torch.ceil),
    *(torch.round, torch.trunc, torch.erf, torch.erfc, torch.exp2, torch.logit, torch.nan_to_num, torch.isnan),
    *(torch.isinf, torch.isfinite, torch.logical_not, F.softplus, F.relu, F.logsigmoid, F.silu, F.elu, F.leaky_relu),
    F.gelu,
]


@pytest.mark.parametrize("function", UNARY, ids=lambda f: f.__name__)
def test_functions_of_one_number(function: Callable[..., Any]) -> None:
    x = extremes()
    if function in (torch.sinh, torch.cosh):  # torch's own overflow early in vectors
        x = x[x.abs() != 710]
    even = len(x) // 2 * 2

    def everywhere(x: torch.Tensor) -> Any:
        strided = function(x[:even].view(-1, 2).t())[::3]
        return function(x), strided, function(x[:3]), function(x[4]), function(x[:0])

    check(everywhere, x)


@pytest.mark.parametrize("function", [torch.sin, torch.cos], ids=["sin", "cos"])
def test_trigonometric_functions(function: Callable[..., Any]) -> None:
    x = extremes()
    check(function, x[x.abs() < 1e6])
    check(function, torch.tensor([INF, -INF, float("nan")] * 4, dtype=torch.float64))


GRADIENTS = [
    *(torch.exp, torch.log, torch.log1p, torch.expm1, torch.sqrt, torch.tanh, torch.sigmoid, torch.sin, torch.atan),
    *(torch.erf, torch.erfc, torch.reciprocal, torch.square, torch.abs, torch.relu, F.softplus, F.logsigmoid),
    *(F.elu, F.leaky_relu, torch.rsqrt, lambda x: x.clamp(0.3, 1.2), lambda x: x.clamp(min=0.5), lambda x: x**2.5),
    *(F.silu, F.gelu, torch.lgamma, torch.sinc, lambda x: x**3, lambda x: x.cumsum(0), lambda x: x.cumprod(0)),
    *(lambda x: x.logsumexp(0), lambda x: x.softmax(0), lambda x: x.log_softmax(0), lambda x: torch.logit(x / 9)),
    *(lambda x: x.amax(), lambda x: x.view(5, -1).amin(1), lambda x: x.prod(), lambda x: x.view(5, -1).prod(1)),
    *(lambda x: x.std(), lambda x: x.view(5, -1).var(1), lambda x: x.norm(), lambda x: x.xlogy(x + 1)),
    *(lambda x: x.max(), lambda x: torch.linalg.vector_norm(x.view(5, -1), dim=1), lambda x: torch.log2(x)),
]


@pytest.mark.parametrize("k", range(len(GRADIENTS)))
def test_gradients(k: int) -> None:
    x = randn(20).abs() + 0.1
    check(GRADIENTS[k], x, gradient=True, tolerance=1e-11 if k in (27, 28, 29, 38) else 1e-12)


@pytest.mark.parametrize("function", [torch.lgamma, torch.digamma], ids=["lgamma", "digamma"])
def test_gamma_functions(function: Callable[..., Any]) -> None:
    """Close to a pole, and to a large argument's reflection, torch's own digits are lost to the argument's."""
    x = torch.cat([torch.linspace(0.01, 40, 400).double(), torch.logspace(-12, 12, 200).double()])
    check(function, x)
    check(function, -torch.linspace(0.05, 12, 300).double(), tolerance=1e-10)
    special = torch.tensor([0.0, -0.0, -1.0, -2.0, 1.0, 2.0, INF, float("nan")], dtype=torch.float64)
    check(function, special)
    check(torch.lgamma, torch.tensor([-INF, 1e305, 1e-300], dtype=torch.float64))


def test_trigamma() -> None:
    """Against SciPy, for torch's has nine digits only."""
    x = torch.cat([torch.linspace(0.01, 40, 400).double(), torch.linspace(-5.3, -0.2, 50).double()])
    found = native.compile_graph(make_fx(lambda x: torch.polygamma(1, x))(x), [x])(x)
    torch.testing.assert_close(found, torch.from_numpy(special.polygamma(1, x.numpy())), rtol=1e-12, atol=1e-12)


BINARY = [
    *(torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.atan2, torch.xlogy),
    *(torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.fmod, torch.special.xlog1py),
    *(lambda a, b: torch.add(a, b, alpha=2.5), lambda a, b: torch.sub(a, b, alpha=3), torch.hypot),
    *(lambda a, b: torch.where(a > b, a, 2.0), lambda a, b: (a > 0) & (b > 0) | ~(a < 1), torch.logical_xor),
    *(lambda a, b: torch.lerp(a, b, 0.3), lambda a, b: a.addcmul(a, b, value=2), lambda a, b: a.addcdiv(a, b)),
    *(lambda a, b: a.clamp(min=b), lambda a, b: a.clamp(b, b + 1), lambda a, b: a.masked_fill(b > 0, 3.0)),
]


@pytest.mark.parametrize("k", range(len(BINARY)))
def test_functions_of_two_numbers(k: int) -> None:
    x = extremes()
    a, b = x.repeat_interleave(7), x[:7].repeat(len(x))
    c, d = randn(5, 1, 3), randn(4, 1)

    def everywhere(*given: torch.Tensor) -> Any:
        a, b, c, d = given
        f = BINARY[k]
        return f(a, b), f(c, d), f(c[:, 0].t(), d[0]), f(c[0, 0], d[::2]), f(c[:, 0], c[:1, 0, ::1]), f(c[:0], d)

    check(everywhere, a, b, c, d)


def test_powers() -> None:
    x = extremes()
    check(lambda x: tuple(x**e for e in (0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5, -3, 0.0, 2.0, 7)), x)
    check(lambda x: 2.0**x, x)
    positive = randn(50).abs()
    check(torch.pow, positive, 3 * randn(50, seed=1))
    a, b = x.repeat_interleave(5), torch.tensor([0.0, 1.0, 2.5, -1.0, INF], dtype=torch.float64).repeat(len(x))
    check(torch.pow, a, b)


def test_types_are_promoted() -> None:
    counts, flags = torch.arange(-3, 9), torch.arange(12) % 3 == 0
    x = randn(12)
    check(lambda x, n: x * n + n.double() / 2 + (n + 2) * (n > 1), x, counts)
    check(lambda x, f: torch.where(f, x, 0) + f * 2 - f.double() + f.sum() + (~f).long(), x, flags)
    check(lambda n: (n.clamp(0, 4) - n.abs(), n.double().sqrt(), -n, n == 2, n.sum(), n.minimum(n * n)), counts)
    check(lambda x: ((x * 3).long(), x.bool(), x > 0.1, (x > 0).all(), (x > 9).any()), x)


# -- entries moved -----------------------------------------------------------------------------------------------------
INDEX = torch.tensor([2, 0, 3, 3, -1, 0, 1])
WIDE = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(3))
MOVES: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x.t() + x.t().exp(),
    lambda x: x.exp().t().reshape(-1),
    lambda x: x.permute(1, 0)[1:, ::2] * 2,
    lambda x: x.view(2, 2, 5)[:, 1].transpose(0, 1).sin(),
    lambda x: x.unsqueeze(1).expand(4, 3, 5).reshape(12, 5) * 2,
    lambda x: x.exp().unsqueeze(1).expand(4, 3, 5) + 1,
    lambda x: (x[1] + x[:, :1], x.select(1, -1), x.narrow(1, 1, 3)),
    lambda x: x.flip(0).flip(1).cumsum(1),
    lambda x: x.roll(2, 1),
    lambda x: x[:, :4].diagonal().log1p() + x[:, :4].diagonal(1).sum(),
    lambda x: x.tril() - x.triu(1) + x.tril(-1),
    lambda x: x[0].diag_embed() @ x.t(),
    lambda x: torch.cat([x, x.exp(), x[:1]]) * 2,
    lambda x: torch.cat([x, (x > 0).double()], dim=1),
    lambda x: torch.stack([x.sin(), x, x + 1], dim=1),
    lambda x: torch.stack([x[0, 0], x[1, 1].exp(), x.sum()]),
    lambda x: F.pad(x, (1, 2)) + F.pad(x.exp(), (2, 1), value=3.0),
    lambda x: F.pad(x, (-1, 1, 0, -2)),
    lambda x: x[INDEX],
    lambda x: x.exp()[INDEX] * 2,
    lambda x: x[:, INDEX],
    lambda x: x[INDEX, INDEX],
    lambda x: x[WIDE, 2] + x.sin()[WIDE, WIDE],
    lambda x: x[INDEX][:, None, 1:].sum() + x.view(2, 2, 5)[:, INDEX % 2],
    lambda x: x[torch.tensor([0])],
    lambda x: x[torch.tensor([[True] * 5, [False] * 5, [True, False, True, False, True], [False] * 5])],
    lambda x: x[torch.zeros(4, dtype=torch.bool)],
    lambda x: x.index_select(1, INDEX.clamp(min=0)),
    lambda x: x.gather(0, INDEX[:5].clamp(min=0).expand(3, 5)),
    lambda x: F.embedding(WIDE, x),
    lambda x: x.repeat(2, 3),
    lambda x: x.repeat_interleave(3, dim=0),
    lambda x: torch.zeros(4, 5, dtype=torch.float64).index_put((WIDE,), x[WIDE].sin(), accumulate=True),
    lambda x: x.index_put((WIDE, WIDE), x[WIDE, 0], accumulate=True),
    lambda x: x.index_put((torch.tensor([3, 1]),), x[:2] + 1),
    lambda x: x.index_put((torch.tensor([3, 1]), torch.tensor([0, 2])), x[0, 0]),
    lambda x: x.scatter_add(0, INDEX[:5].clamp(min=0).expand(3, 5), x[:3].exp()),
    lambda x: x.scatter(1, torch.tensor([[1, 0], [2, 3]]), x[:2, :2] * 2),
    lambda x: x.index_add(0, torch.tensor([3, 3, 0]), x[:3], alpha=2),
    lambda x: x.slice_scatter(x[:2] * 2, 0, 1, 3) + x.select_scatter(x[0], 0, 2),
    lambda x: torch.diagonal_scatter(x, x[0, :4]),
    lambda x: torch.zeros(30, dtype=torch.float64).index_add(0, torch.arange(20) + 5, x.reshape(-1)),
    lambda x: sum(x.unbind(1)) + sum(part.sum() for part in x.split([1, 3])) + x.chunk(2)[1].sum(),
    lambda x: (x, x.view(-1), x[2:], torch.ones(3, dtype=torch.float64) * 2, x.new_zeros(2, 2), torch.arange(4)),
    lambda x: torch.tril_indices(4, 4)[0] * x[:, :1].sum() + x.new_full((10,), 2.0),
    lambda x: torch.eye(4, dtype=torch.float64) @ x + torch.linspace(0, 1, 5, dtype=torch.float64),
]


@pytest.mark.parametrize("k", range(len(MOVES)))
def test_moves(k: int) -> None:
    x = randn(4, 5).abs() + 0.1
    check(MOVES[k], x)
    if not isinstance(MOVES[k](x), tuple):
        check(MOVES[k], x, gradient=True, tolerance=1e-12)


def test_a_balanced_and_an_unbalanced_sum_by_group() -> None:
    groups = (torch.arange(240) // 24, torch.arange(240) % 10, torch.arange(240) ** 2 % 10)
    zeros = torch.zeros(10, dtype=torch.float64)
    check(lambda x: tuple(zeros.index_put((g,), x.exp(), accumulate=True) for g in groups), randn(240))


# -- entries combined --------------------------------------------------------------------------------------------------
REDUCTIONS: list[Callable[[torch.Tensor], Any]] = [
    lambda x: x.sum(),
    lambda x: x.sum(0),
    lambda x: x.sum((0, 2), keepdim=True) + x,
    lambda x: x.exp().sum(-1) * x.sum((1, 2), keepdim=True).squeeze(2),
    lambda x: x.mean() + x.mean(1),
    lambda x: x.prod(1, keepdim=True),
    lambda x: x.amax((0, 1)) - x.amin(2).sum(),
    lambda x: x.max() - x.min() + x.max(1).values.sum(),
    lambda x: x.logsumexp(2) + x.logsumexp((0, 1)).sum(),
    lambda x: x.softmax(1) + x.log_softmax(2),
    lambda x: x.cumsum(1) * x.cumprod(0) + x.cumsum(2),
    lambda x: (x > 0).sum(1),
    lambda x: (x > -1).all(1) | (x > 2).any(1),
    lambda x: x.var((0, 1)) + x.std(),
    lambda x: torch.linalg.vector_norm(x),
    lambda x: (x - x.mean(1, keepdim=True)).square().sum(1).sqrt(),
]


@pytest.mark.parametrize("k", range(len(REDUCTIONS)))
def test_reductions(k: int) -> None:
    given = [randn(*shape) for shape in ((2, 3, 4), (40, 3, 2), (1, 5, 1), (3, 2, 50))]
    f = REDUCTIONS[k]
    check(lambda *t: tuple(f(x) for x in t) + tuple(f(x.transpose(0, 2)) for x in t), *given, tolerance=1e-12)


def test_reductions_of_infinities_and_nothing() -> None:
    x = torch.tensor([[0.0, -INF, 3.0], [-INF, -INF, -INF], [INF, 1.0, 2.0], [float("nan"), 1.0, 2.0]]).double()
    for function in (lambda x: x.logsumexp(1), lambda x: x.amax(1), lambda x: x.amin(0), lambda x: x.sum(0)):
        check(function, x)
    check(lambda x: (x.sum(), x.sum(0), x.prod(), x.sum(1), x.exp().mean(1)), torch.zeros(2, 0, dtype=torch.float64))


# -- products ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("k", [0, 1, 5, 16, 17, 90])
def test_products(n: int, k: int) -> None:
    known = randn(n, k, seed=9)

    def products(*given: torch.Tensor) -> Any:
        found = []
        for a, b in zip(given[::2], given[1::2], strict=True):
            found += [a @ b, a.exp() @ b.sin(), (a.t().contiguous().t() @ b.t().contiguous().t()).sin(), known @ b]
            found += [a @ b[:, 0], b[:, 0] @ b[:, 0], torch.bmm(a.expand(2, n, k), torch.stack([b, 2 * b])), a.t() @ a]
            found += [a @ known.t(), known.t() @ a]
        return tuple(found)

    given = [randn(*shape, seed=j) for j, shape in enumerate([(n, k), (k, 1), (n, k), (k, 4), (n, k), (k, 33)])]
    check(products, *given, tolerance=1e-12)
    if k:
        check(lambda *t: torch.cat([out.reshape(-1) for out in products(*t)]), *given, gradient=True, tolerance=1e-10)


def test_products_with_a_sum() -> None:
    check(lambda a, b, c: torch.addmm(c, a, b, beta=0.5, alpha=2), randn(3, 4), randn(4, 5), randn(5))
    check(lambda a, b, c: torch.addmv(c, a, b), randn(3, 40), randn(40), randn(3), tolerance=1e-12)
    check(lambda a, w, b: F.linear(a, w, b).tanh(), randn(30, 2), randn(16, 2), randn(16))
    check(torch.outer, randn(3), randn(5))
    check(lambda a, b: torch.einsum("nij,nj->ni", a, b), randn(6, 3, 3), randn(6, 3))


@pytest.mark.parametrize(("n", "columns"), [(1, 4), (2, 4), (5, 4), (40, 4), (40, 30), (30, 40)])
def test_triangular_systems(n: int, columns: int) -> None:
    for shape in ((n, n), (3, n, n)):
        a = randn(*shape)
        a = a @ a.transpose(-1, -2) + n * torch.eye(n, dtype=torch.float64)
        b = randn(*shape[:-1], columns, seed=1)
        check(torch.linalg.cholesky, a, tolerance=1e-12)
        check(lambda a: torch.linalg.cholesky(a).mT.exp(), a, tolerance=1e-12)
        check(lambda a, b: torch.linalg.solve_triangular(a.tril(), b, upper=False), a, b, tolerance=1e-12)
        check(lambda a, b: torch.linalg.solve_triangular(a.mT.triu(), b, upper=True), a, b, tolerance=1e-12)
        check(
            lambda a, b: torch.linalg.solve_triangular(a.tril(), b.mT, upper=False, left=False), a, b, tolerance=1e-12
        )
        check(lambda a: torch.linalg.cholesky(a), a, gradient=True, tolerance=1e-10)
        check(
            lambda a, b: torch.linalg.solve_triangular(0.1 * a.tril(), b, upper=False, unitriangular=True),
            *(a / n, b),
            tolerance=1e-10,
        )
        check(
            lambda a, b: torch.linalg.solve_triangular(a, b, upper=False), a.tril(), b, gradient=True, tolerance=1e-10
        )


@pytest.mark.parametrize("shapes", [((40, 30), (30, 50)), ((64, 33), (33, 17)), ((33, 64), (64, 70))])
def test_large_products(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Of the sizes that BLAS multiplies, in every order of rows and columns."""
    a, b = randn(*shapes[0]), randn(*shapes[1], seed=1)
    check(torch.mm, a, b, tolerance=1e-12)
    check(torch.mm, a.t().contiguous().t(), b, tolerance=1e-12)
    check(lambda a, b: a.t() @ b, a.t().contiguous(), b, tolerance=1e-12)
    check(lambda a, b: a @ b.t(), a, b.t().contiguous(), tolerance=1e-12)
    check(lambda a, b: a.t() @ b.t(), a.t().contiguous(), b.t().contiguous(), tolerance=1e-12)
    check(lambda a, b: a[1:-1] @ b[:, 1:-1] + a[2:] @ b[:, :-2], a, b, tolerance=1e-12)
    check(lambda a, b: a[:, :1].expand_as(a) @ b, a, b, tolerance=1e-12)
    check(lambda a, b: (a @ b).t().exp(), 0.1 * a, 0.1 * b, gradient=True, tolerance=1e-10)


@pytest.mark.parametrize("n", [2, 50])
def test_no_factor_gives_nan(n: int) -> None:
    eye = torch.eye(n, dtype=torch.float64)
    function = native.compile_graph(make_fx(torch.linalg.cholesky_ex)(eye), [eye])
    found = function(eye + 2 * eye.flip(0))[0]
    assert bool(found[n - 1, n - 1].isnan())


# -- writes in place ---------------------------------------------------------------------------------------------------
def _through_views(x: torch.Tensor) -> torch.Tensor:
    base = x.new_zeros(3, 4)
    base[1] = x[:4]
    base[:, 2].add_(x[:3])
    return base * 2 + base.sum()


def _versions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = x.exp()
    before = a * 2
    a.add_(1).mul_(x)
    return before, a.sum() + before


def _masks(x: torch.Tensor) -> torch.Tensor:
    keep = x > 0
    keep.logical_and_(x < 1)
    return torch.where(keep, x, 0.0) + keep.double()


def _seen_later(x: torch.Tensor) -> torch.Tensor:
    a = x.exp()
    row = a[1:3]
    a.mul_(2)
    return row + 1


@pytest.mark.parametrize("function", [_through_views, _versions, _masks, _seen_later])
def test_writes_in_place(function: Callable[..., Any]) -> None:
    check(function, randn(5))


# -- programs ----------------------------------------------------------------------------------------------------------
def f64(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def _mixed(formula: str, name: str, family: Any = None, every: int = 1, **columns: Any) -> tuple[Any, tuple[Any, ...]]:
    frame = pmx.datasets.load(name).iloc[::every].copy()
    for column, function in columns.items():
        frame[column] = function(frame)
    model = pmx.model(formula, frame, family) if family else pmx.model(formula, frame)
    return model.program, (model.design,)


def sleep() -> tuple[Any, tuple[Any, ...]]:
    return _mixed("Reaction ~ Days + (Days | Subject)", "sleepstudy")


def logistic() -> tuple[Any, tuple[Any, ...]]:
    yes = lambda frame: (frame["r2"] == "Y").astype(float)  # noqa: E731
    return _mixed("r2 ~ Anger + Gender + btype + (1 | id) + (1 | item)", "verbagg", pmx.Binomial(), 3, r2=yes)


def poisson() -> tuple[Any, tuple[Any, ...]]:
    counts = lambda frame: (frame["Reaction"] // 50).astype(int)  # noqa: E731
    return _mixed("n ~ Days + (1 | Subject)", "sleepstudy", pmx.Poisson(), n=counts)


def network() -> tuple[Any, tuple[Any, ...]]:
    x = randn(60, 2)

    def program() -> None:
        w1 = pyro.sample("w1", dist.Normal(f64(0.0), f64(1.0)).expand([16, 2]).to_event(2))
        b1 = pyro.sample("b1", dist.Normal(f64(0.0), f64(1.0)).expand([16]).to_event(1))
        w2 = pyro.sample("w2", dist.Normal(f64(0.0), f64(1.0)).expand([16]).to_event(1))
        s = pyro.sample("s", dist.HalfCauchy(f64(1.0)))
        pyro.sample("y", dist.Normal(torch.tanh(x @ w1.T + b1) @ w2, s).to_event(1), obs=x.sum(1).sin())

    return program, ()


def correlated() -> tuple[Any, tuple[Any, ...]]:
    def program() -> None:
        sd = pyro.sample("sd", dist.Gamma(f64(2.0), f64(1.0)).expand([3]).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(3, f64(1.5)))
        with pyro.plate("groups", 12):
            u = pyro.sample("u", dist.MultivariateNormal(f64([0.0] * 3), scale_tril=sd[:, None] * factor))
        pyro.sample("y", dist.StudentT(f64(4.0), u.sum(-1), sd[0]).to_event(1), obs=randn(12))

    return program, ()


def simplex() -> tuple[Any, tuple[Any, ...]]:
    counts = torch.tensor([3, 0, 7, 2])

    def program() -> None:
        p = pyro.sample("p", dist.Dirichlet(f64([1.0, 2.0, 3.0, 1.5])))
        pyro.sample("n", dist.Multinomial(12, p), obs=counts.double())
        parts = dist.Normal(f64([-2.0, 0.0, 1.0, 4.0]), f64(1.0))
        with pyro.plate("rows", 25):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(p), parts), obs=2 * randn(25))

    return program, ()


def families() -> tuple[Any, tuple[Any, ...]]:
    """Densities with gamma functions of what is sampled."""
    counts, shares = torch.arange(30.0).double() % 7, torch.linspace(0.05, 0.95, 30).double()

    def program() -> None:
        a = pyro.sample("a", dist.LogNormal(f64(0.0), f64(1.0)))
        b = pyro.sample("b", dist.InverseGamma(f64(3.0), f64(2.0)))
        df = pyro.sample("df", dist.Gamma(f64(2.0), f64(0.1)))
        with pyro.plate("rows", 30):
            pyro.sample("n", dist.GammaPoisson(a, b), obs=counts)
            pyro.sample("m", dist.NegativeBinomial(a, logits=b.log()), obs=counts)
            pyro.sample("s", dist.Beta(a, b), obs=shares)
            pyro.sample("g", dist.Gamma(a, b), obs=shares)
            pyro.sample("t", dist.StudentT(df, a, b), obs=counts)
            pyro.sample("w", dist.Weibull(a, b), obs=shares)

    return program, ()


def supports() -> tuple[Any, tuple[Any, ...]]:
    def program() -> None:
        a = pyro.sample("a", dist.Uniform(f64(0.0), f64(2.0)))
        cut = pyro.sample("cut", dist.Normal(f64([-1.0, 0.0, 1.0]), f64(2.0)).to_event(1).mask(True))
        inner = pyro.sample("inner", dist.Beta(f64(2.0), f64(2.0)).expand([4]).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(f64(1.0)))
        mean = torch.where(torch.arange(4) > 1, cut.cumsum(0).sum() * inner, a)
        pyro.sample("k", dist.OrderedLogistic(mean, cut.exp().cumsum(0)).to_event(1), obs=f64([0, 1, 2, 3]))
        pyro.sample("y", dist.Laplace(mean[0], 1 / sd), obs=f64(0.3))

    return program, ()


@pytest.mark.parametrize("case", [sleep, logistic, poisson, network, correlated, simplex, families, supports])
def test_programs(case: Any) -> None:
    potential = log_joint(*case())
    eager, made = (potential.value_and_gradient(mode=mode, evaluations=1) for mode in ("eager", "compiled"))
    assert (made.mode, made.by) == ("compiled", "c"), made.reason
    for seed in range(4):
        z = potential.example + 0.4 * randn(potential.size, seed=seed)
        (value, gradient), (value_c, gradient_c) = eager(z), made(z)
        torch.testing.assert_close(value_c, value, rtol=1e-11, atol=1e-11)
        size = float(gradient.abs().max())
        torch.testing.assert_close(gradient_c, gradient, rtol=1e-9, atol=1e-11 * (1 + size))


# -- what is around it -------------------------------------------------------------------------------------------------
def _made(function: Callable[..., Any], *inputs: torch.Tensor) -> Callable[..., Any]:
    return native.compile_graph(make_fx(function)(*inputs), inputs)


def test_results_are_fresh_and_inputs_of_any_layout() -> None:
    function = _made(lambda x: (x.exp(), x.sum()), randn(3, 4))
    first = function(randn(3, 4))[0]
    kept = first.clone()
    second = function(randn(4, 3, seed=1).t())[0]
    assert torch.equal(first, kept)
    torch.testing.assert_close(second, randn(4, 3, seed=1).t().exp())


def test_the_structure_of_the_results_is_kept() -> None:
    graph = make_fx(lambda x: {"a": [x + 1, None], "b": (x * 2).sum()})(randn(3))
    found = native.compile_graph(graph, [randn(3)])(torch.zeros(3, dtype=torch.float64))
    assert found["a"][0].tolist() == [1.0, 1.0, 1.0] and found["a"][1] is None and float(found["b"]) == 0.0


def test_random_numbers_and_other_types_are_refused() -> None:
    x = randn(3)
    for function, inputs, message in (
        (lambda x: x + torch.rand(3), [x], "random"),
        (lambda x: x * 2, [x.float()], "float32"),
        (lambda x: x.sort().values, [x], "aten.sort"),
        (lambda x, k: x[k], [x, torch.tensor([0, 1])], "computed"),
    ):
        with pytest.raises(native.Unsupported, match=message):
            _made(function, *inputs)


def test_many_threads_get_their_own_results() -> None:
    function = _made(lambda x: x.exp().cumsum(0).flip(0) * x.sum(), randn(500))
    points = [randn(500, seed=seed) for seed in range(8)]
    expected = [function(point) for point in points]
    with ThreadPoolExecutor(8) as pool:
        for k, found in enumerate(pool.map(function, points * 50)):
            assert torch.equal(found, expected[k % 8])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_calls_its_own_copy() -> None:
    script = (
        "import os, torch\nfrom pyromix.compile import compile_function\n"
        "made = compile_function(lambda x: x.exp().cumsum(0), [torch.ones(50).double()], mode='compiled',"
        " evaluations=1, differentiable=False)\nassert made.by == 'c', made.reason\n"
        "children = []\n"
        "for k in range(3):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        x = torch.full((50,), k / 10).double()\n"
        "        good = all(torch.allclose(made(x), x.exp().cumsum(0)) for _ in range(2000))\n"
        "        os._exit(0 if good else 1)\n"
        "    children.append(child)\n"
        "assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_inductor_is_not_imported() -> None:
    script = (
        "import sys, torch\nfrom torch.fx.experimental.proxy_tensor import make_fx\nfrom pyromix import native\n"
        "x = torch.ones(3).double()\nfunction = native.compile_graph(make_fx(torch.exp)(x), [x])\n"
        "assert torch.equal(function(0 * x), x)\n"
        "assert 'torch._inductor.compile_fx' not in sys.modules and 'torch._inductor.codegen.cpp' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(native.Unsupported, match="false failed"):
        _made(torch.exp, randn(3))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(native.Unsupported, match="CC=no-such-compiler is not there"):
        _made(torch.exp, randn(3))


def test_a_compiler_that_knows_no_fast_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plain C of the same source, one number at a time."""
    script = tmp_path / "plain-cc"
    words = " ".join(native.compiler() or [])
    refusal = 'for flag in "$@"; do case "$flag" in -march=*|-lmvec|-fopenmp*) exit 1;; esac; done'
    script.write_text(f'#!/bin/sh\n{refusal}\nexec {words} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    check(lambda x: x.exp().sum() + x.tanh() * torch.lgamma(x.abs()), randn(100), tolerance=1e-12)


def test_what_c_does_not_know_goes_to_another_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_compile", lambda graph, inputs, differentiable: graph)
    example = [torch.arange(3, dtype=torch.float64)]
    made = compile_function(lambda x: x.sort().values, example, mode="compiled", evaluations=1, differentiable=False)
    if compilation.compiler_problem() is None:
        assert (made.mode, made.by) == ("compiled", "inductor")


def test_a_wrong_result_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "compiler_problem", lambda by: None if by == "c" else "none")
    monkeypatch.setattr(compilation.native, "compile_graph", lambda graph, inputs: lambda x: x)
    example = [torch.ones(3, dtype=torch.float64)]
    made = compile_function(torch.sin, example, mode="compiled", evaluations=1, differentiable=False)
    assert made.mode == "traced" and "its result differs from the function's" in made.reason
