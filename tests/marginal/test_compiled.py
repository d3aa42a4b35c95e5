"""Mode searches in C: values against dense algebra, gradients against differences, draws against the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from numpy.testing import assert_allclose

import pyromix as pmx
from pyromix import native
from pyromix.families.base import AbstractFamily
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.plan import data_of, make_plan
from pyromix.running import Record, run
from tests.marginal.programs import KINDS, Case, grouped, tensor

needs_compiler = pytest.mark.skipif(native.compiler_problem() is not None, reason="no C compiler")
FAMILIES = [pmx.Gaussian("log"), pmx.Poisson(), pmx.Binomial(), pmx.Binomial("probit"), pmx.Binomial("cloglog")]


class Exponential(AbstractFamily):
    """Waiting times with a log link, by nothing but their distribution."""

    links = ("log",)

    def __init__(self) -> None:
        super().__init__("log")

    def distribution(self, eta: torch.Tensor, trials: Any = None, **dispersion: torch.Tensor) -> dist.Distribution:
        return dist.Exponential(torch.exp(-eta))


def dense_laplace(record: Record) -> float:
    """Newton's method and ``log|A|`` with dense matrices; derivatives of the family's distribution by torch."""
    role = data_of(record)
    columns = []
    for site in record.latents.values():
        rows, levels = site.role.rows, site.fn.event_shape[0]
        index = rows.index.reshape(len(role.eta), -1)
        share = (
            torch.ones(index.shape, dtype=torch.float64) if rows.weight is None else rows.weight.reshape(index.shape)
        )
        member = (torch.nn.functional.one_hot(index, levels) * share[..., None]).sum(1)
        design = torch.ones(len(index), 1, dtype=torch.float64) if rows.design is None else rows.design
        columns.append((member[:, :, None] * (design @ site.fn.operator.block)[:, None, :]).reshape(len(index), -1))
    z = torch.cat(columns, dim=1)
    weight = torch.ones(len(z), dtype=torch.float64) if role.weights is None else role.weights

    def rows_at(eta: torch.Tensor) -> torch.Tensor:
        return weight * role.family.distribution(eta, role.trials, **role.dispersion).log_prob(role.obs)

    b = torch.zeros(z.shape[1], dtype=torch.float64)
    for _ in range(60):
        eta = (role.eta + z @ b).detach().requires_grad_(True)
        (score,) = torch.autograd.grad(rows_at(eta).sum(), eta, create_graph=True)
        (second,) = torch.autograd.grad(score.sum(), eta)
        curvature = z.T @ (-second[:, None] * z) + torch.eye(len(b), dtype=torch.float64)
        step = torch.linalg.solve(curvature, z.T @ score.detach() - b)
        b = b + step / max(1.0, float(step.abs().max()))
    return float(rows_at(role.eta + z @ b).sum() - 0.5 * b @ b - 0.5 * torch.logdet(curvature))


def prepared(case: Case) -> tuple[BoundLaplace, Record]:
    bound = BoundLaplace(make_plan(case.program, case.args))
    with torch.no_grad():
        record = run(case.program, case.args, case.values)
    bound.compile(record)
    bound.forget()
    return bound, record


def value(bound: BoundLaplace, case: Case, values: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return bound.log_marginal(run(case.program, case.args, values)).item()


def check(case: Case) -> None:
    bound, record = prepared(case)
    assert bound.compiled is not None
    assert value(bound, case, case.values) == pytest.approx(dense_laplace(record), abs=1e-9)
    leaves = {name: x.clone().requires_grad_(True) for name, x in case.values.items()}
    bound.log_marginal(run(case.program, case.args, leaves)).backward()
    plain = BoundLaplace(bound.plan)
    others = {name: x.clone().requires_grad_(True) for name, x in case.values.items()}
    plain.log_marginal(run(case.program, case.args, others)).backward()
    for name, leaf in leaves.items():
        assert_allclose(leaf.grad, others[name].grad, rtol=1e-9, atol=1e-9)
    steps = [(name, k) for name, x in case.values.items() for k in range(x.numel()) if not name.endswith("cholesky")]
    for name, k in steps:
        at = {}
        for step in (-2e-4, -1e-4, 1e-4, 2e-4):
            values = {n: x.clone() for n, x in case.values.items()}
            values[name].reshape(-1)[k] += step
            at[step] = value(bound, case, values)
        near, wide = (at[1e-4] - at[-1e-4]) / 2e-4, (at[2e-4] - at[-2e-4]) / 4e-4
        assert float(leaves[name].grad.reshape(-1)[k]) == pytest.approx((4 * near - wide) / 3, rel=1e-7, abs=1e-6)


@needs_compiler
@pytest.mark.parametrize("kind", list(KINDS))
def test_patterns(kind: str) -> None:
    check(grouped(pmx.Binomial(), kind))


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_families(family: AbstractFamily) -> None:
    check(grouped(family, "crossed", seed=1, weights=True))


def waiting() -> Case:
    """A family of the user's, effects nested in three levels, the rows in no order."""
    rng = np.random.default_rng(4)
    index = {"a": rng.permutation(np.repeat(np.arange(20), 6))}
    index["b"] = index["a"] // 2
    index["c"] = index["b"] // 5
    index = {name: torch.from_numpy(x) for name, x in index.items()}
    y = tensor(rng.exponential(np.exp(0.5 * rng.normal(size=20))[index["a"]]))

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(len(data["y"]), 1, dtype=torch.float64))
        for name, x in index.items():
            eta = eta + pmx.RandomEffect(name, pmx.IID(), levels=int(x.max()) + 1)(x)
        pmx.observe("y", Exponential(), eta, data["y"])

    values = {"beta": tensor([0.1]), "a.sd": tensor(0.5), "b.sd": tensor(0.4), "c.sd": tensor(0.3)}
    return Case(program, ({"y": y},), values)


def memberships() -> Case:
    """Rows that belong to two levels of one factor each, beside another factor."""
    rng = np.random.default_rng(5)
    pairs, weight = torch.from_numpy(rng.integers(0, 9, (80, 2))), tensor(rng.uniform(0.2, 0.8, (80, 2)))
    other = torch.from_numpy(rng.integers(0, 12, 80))
    y = tensor(rng.poisson(1.5, 80))

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(len(data["y"]), 1, dtype=torch.float64))
        eta = eta + pmx.RandomEffect("m", pmx.IID(), levels=9)(pairs, weight=weight)
        eta = eta + pmx.RandomEffect("o", pmx.IID(), levels=12)(other)
        pmx.observe("y", pmx.Poisson(), eta, data["y"])

    return Case(program, ({"y": y},), {"beta": tensor([0.2]), "m.sd": tensor(0.6), "o.sd": tensor(0.3)})


@needs_compiler
@pytest.mark.parametrize("case", [waiting, memberships])
def test_nested_multiple_and_own_families(case: Callable[[], Case]) -> None:
    check(case())


@needs_compiler
def test_small_blocks_and_a_zero_sd() -> None:
    """Sixty-five outer levels and more: a complement of many blocks."""
    rng = np.random.default_rng(6)
    inner = torch.from_numpy(np.repeat(np.arange(280), 2))
    y = tensor(rng.poisson(1.0, 560))

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(len(data["y"]), 1, dtype=torch.float64))
        for name, x in (("inner", inner), ("outer", inner // 2), ("top", inner // 4)):
            eta = eta + pmx.RandomEffect(name, pmx.IID(), levels=int(x.max()) + 1)(x)
        pmx.observe("y", pmx.Poisson(), eta, data["y"])

    values = {"beta": tensor([0.1]), "inner.sd": tensor(0.5), "outer.sd": tensor(0.4), "top.sd": tensor(0.0)}
    case = Case(program, ({"y": y},), values)
    bound, record = prepared(case)
    assert bound.compiled is not None
    assert not bound.plan.layout.dense
    assert value(bound, case, values) == pytest.approx(dense_laplace(record), abs=1e-8)


@needs_compiler
@pytest.mark.parametrize("case", [lambda: grouped(pmx.Binomial(), "crossed"), memberships, waiting])
def test_draws_are_those_without_compiling(case: Callable[[], Case]) -> None:
    made = case()
    bound, record = prepared(made)
    plain = BoundLaplace(bound.plan)
    (got, ours), (want, theirs) = bound.evaluate(record), plain.evaluate(record)
    assert got == pytest.approx(want, abs=1e-10)
    for name in theirs.mode:
        assert_allclose(ours.mode[name], theirs.mode[name], atol=1e-10)
        assert_allclose(ours.sd[name], theirs.sd[name], atol=1e-10)
    bound.log_marginal(run(made.program, made.args, made.values))  # the draws do not depend on what came after
    for n in (1, 3):
        first = ours.draw(n, torch.Generator().manual_seed(2), {})
        second = theirs.draw(n, torch.Generator().manual_seed(2), {})
        for name, expected in second.items():
            assert_allclose(first[name], expected, atol=1e-10)


@needs_compiler
def test_a_failed_search_is_left_to_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    case = grouped(pmx.Binomial(), "crossed")
    bound, record = prepared(case)
    expected = value(bound, case, case.values)
    assert bound.compiled is not None
    monkeypatch.setattr(bound.compiled, "_run", lambda *arguments: 2)
    assert value(bound, case, case.values) == pytest.approx(expected, abs=1e-9)
    assert set(bound.evaluate(record)[1].mode) == {"a", "b", "c"}


def test_without_a_compiler_everything_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "not-there")
    case = grouped(pmx.Poisson(), "slope")
    bound, _ = prepared(case)
    assert bound.compiled is None
    assert np.isfinite(value(bound, case, case.values))
