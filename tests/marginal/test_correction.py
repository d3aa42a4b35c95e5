"""Importance weights on the exact joint density, against quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pyromix as pmx
from pyromix.marginal.correction import corrected
from pyromix.running import run


def few_rows(seed: int, groups: int = 12, per: int = 4, sd: float = 2.0) -> dict[str, torch.Tensor]:
    """0/1 data with few rows a group, where Laplace's approximation is poor."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), per)
    eta = 0.3 + rng.normal(0, sd, groups)[g]
    y = (rng.uniform(size=len(g)) < 1 / (1 + np.exp(-eta))).astype(float)
    return {"y": torch.from_numpy(y), "g": torch.from_numpy(g)}


def program(data: dict[str, torch.Tensor]) -> None:
    eta = pmx.LinearEffect("beta")(torch.ones(len(data["g"]), 1, dtype=torch.float64))
    eta = eta + pmx.RandomEffect("group", pmx.IID(), levels=12)(data["g"])
    pmx.observe("y", pmx.Binomial(), eta, data["y"])


VALUES = {"beta": torch.tensor([0.3], dtype=torch.float64), "group.sd": torch.tensor(2.0, dtype=torch.float64)}


def test_the_estimate_of_the_likelihood_is_unbiased(seed: int) -> None:
    args = (few_rows(5),)
    record = run(program, args, VALUES)
    exact = float(pmx.GaussHermite(60).prepare(program, args).log_marginal(record).detach())
    bound = pmx.Laplace().prepare(program, args)
    laplace = float(bound.log_marginal(record))
    assert abs(laplace - exact) > 0.1  # or there would be nothing to correct
    generator = torch.Generator().manual_seed(seed)
    ratio = np.exp([corrected(bound, record, 30, generator).log_marginal - exact for _ in range(400)])
    # mean of an unbiased estimate: five standard errors, false alarm 1 in 2 million
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 20
    assert ratio.std() < 0.5


def test_effects_come_from_the_exact_conditional(seed: int) -> None:
    args = (few_rows(5),)
    record = run(program, args, VALUES)
    bound = pmx.GaussHermite(60).prepare(program, args)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([corrected(bound, record, 60, generator).effects["group"][:, 0] for _ in range(3000)])
    # conditional mean of every group by brute force on a grid
    u = torch.linspace(-14, 14, 4001, dtype=torch.float64)
    y, g = args[0]["y"], args[0]["g"]
    for k in range(12):
        log = -0.5 * (u / 2) ** 2 + sum(
            torch.distributions.Bernoulli(logits=0.3 + u).log_prob(value) for value in y[g == k]
        )
        weight = torch.softmax(log, 0)
        mean, second = float(weight @ u), float(weight @ u**2)
        sd = (second - mean**2) ** 0.5
        # 5 standard errors of 3000 draws, and the bias of choosing among 60
        assert abs(float(drawn[:, k].mean()) - mean) < 5 * sd / 3000**0.5 + 0.02 * sd
        assert abs(float(drawn[:, k].std()) / sd - 1) < 0.08


def test_crossed_effects_are_one_unit(seed: int) -> None:
    rng = np.random.default_rng(0)
    data = {"g": torch.from_numpy(rng.integers(4, size=40)), "h": torch.from_numpy(rng.integers(3, size=40))}
    data["y"] = torch.from_numpy(rng.poisson(2.0, size=40).astype(float))

    def crossed(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.RandomEffect("g", pmx.IID(sd=0.5), levels=4)(data["g"])
        eta = eta + pmx.RandomEffect("h", pmx.IID(sd=0.7), levels=3)(data["h"])
        pmx.observe("y", pmx.Poisson(), eta, data["y"])

    record = run(crossed, (data,), {})
    bound = pmx.Laplace().prepare(crossed, (data,))
    generator = torch.Generator().manual_seed(seed)
    # counts are nearly Gaussian: the correction is small, and by many draws it is the likelihood
    large = corrected(bound, record, 20_000, generator).log_marginal
    small = np.exp([corrected(bound, record, 50, generator).log_marginal - large for _ in range(200)])
    assert abs(small.mean() - 1) < 5 * small.std() / 200**0.5 + 0.01
    found = corrected(bound, record, 50, generator)
    assert {name: tuple(x.shape) for name, x in found.effects.items()} == {"g": (4, 1), "h": (3, 1)}


def test_what_cannot_be_corrected_says_so() -> None:
    df = pmx.datasets.load("sleepstudy")
    model = pmx.model("Reaction ~ Days + (1 | Subject)", df)
    bound = pmx.Exact().prepare(model.program, (model.design,))
    record = run(model.program, (model.design,), hypers="moderate", seed=0)
    with pytest.raises(pmx.UnsupportedError, match="BoundExact has no Gaussian around the effects' mode"):
        corrected(bound, record, 5, torch.Generator())
