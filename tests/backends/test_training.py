"""Training of networks: what a batch is, where training ends, and what it leaves behind when it fails."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyromix as pmx
from pyromix.backends import training as training_module
from pyromix.backends.batches import Split, Subsets, Units, independent_units, subset
from pyromix.backends.maximum_likelihood import Search
from pyromix.backends.trainer import Trainer
from pyromix.marginal.plan import make_plan
from pyromix.results.storage import write_container
from pyromix.running import run

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"epochs": 12, "validation": 0.0}


def tensor(x: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def simulate(seed: int = 0, groups: int = 30, size: int = 8) -> dict[str, torch.Tensor]:
    """A sine with a random intercept: a straight line explains little of it."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), size)
    x = rng.uniform(-1, 1, (len(g), 1))
    eta = 1 + 1.5 * np.sin(3 * x[:, 0]) + 0.6 * rng.normal(size=groups)[g]
    return {
        "x": tensor(x),
        "g": torch.from_numpy(g),
        "h": torch.from_numpy(rng.integers(0, 4, len(g))),
        "y": tensor(eta + 0.3 * rng.normal(size=len(g))),
        "count": tensor(rng.poisson(np.exp(eta))),
    }


def network(seed: int = 0, dropout: float = 0.0) -> torch.nn.Module:
    return pmx.networks.MLP(1, (12,), activation="tanh", dropout=dropout, skip=False, seed=seed)


def neural(module: torch.nn.Module, family: Any = None, crossed: bool = False, levels: int | None = 30) -> Any:
    """Program: intercept + module(x) + random intercept (+ a crossed one)."""
    response = "y" if family is None else "count"

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.LinearEffect("beta")(torch.ones(len(data["x"]), 1, dtype=torch.float64))
        eta = eta + pmx.NeuralEffect("f", module)(data["x"])
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=levels)(data["g"])
        if crossed:
            eta = eta + pmx.RandomEffect("h", pmx.IID(), levels=4)(data["h"])
        pmx.observe("y", pmx.Gaussian() if family is None else family, eta, data[response])

    return program


def fit(program: Any, data: Any, seed: int = 0, **settings: Any) -> Any:
    backend = pmx.MaximumLikelihood(training=pmx.Training(**settings))
    return backend.estimate(program, (data,), seed=seed, progress=False)


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1).to(torch.float64) for value in module.state_dict().values()])


# -- settings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs'.*'adam', 'adamw'"),
        ({"schedule": "linear"}, "schedule='linear'.*'cosine'"),
        ({"lr": 0.0}, r"lr=0.0\): must be a finite number > 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"epochs": 0}, r"epochs=0\): must be a positive integer"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"batch_groups": 0}, "batch_groups=0"),
        ({"batch_groups": True}, "batch_groups=True"),
        ({"patience": -1}, "patience=-1"),
        ({"validation": 1.0}, r"validation=1.0\): must be in \[0, 1\)"),
        ({"validation": -0.1}, "validation=-0.1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"max_time": math.inf}, "max_time=inf"),
        ({"checkpoint_every": -1.0}, "checkpoint_every=-1.0"),
        ({"patience": 3, "validation": 0.0}, "patience=3, validation=0.*nothing is held out"),
    ],
)
def test_settings_outside_their_set_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        pmx.Training(**settings)


# -- batches ----------------------------------------------------------------------------------------------------------
def test_units_are_the_groups_of_the_coarsest_factor() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 12, 100)
    schools = classes // 3

    def program(crossing: np.ndarray) -> None:
        eta = pmx.RandomEffect("class", pmx.IID(), levels=12)(torch.from_numpy(classes))
        eta = eta + pmx.RandomEffect("school", pmx.IID(), levels=9)(torch.from_numpy(schools))
        eta = eta + pmx.RandomEffect("other", pmx.IID(), levels=9)(torch.from_numpy(crossing))
        pmx.observe("y", pmx.Gaussian(), eta, torch.zeros(100, dtype=torch.float64))

    nested = independent_units(make_plan(program, (schools // 2,)))
    assert nested.count == 2
    assert len(set(zip(nested.of_row, schools // 2, strict=True))) == 2
    assert independent_units(make_plan(program, (rng.integers(0, 9, 100),))).count == 1


def test_without_random_effects_every_row_is_a_unit() -> None:
    def program(y: torch.Tensor) -> None:
        pmx.observe("y", pmx.Gaussian(), torch.zeros_like(y), y)

    assert independent_units(make_plan(program, (torch.arange(5, dtype=torch.float64),))).count == 5


@pytest.mark.parametrize(
    ("marginal", "family"),
    [
        (pmx.Exact(), None),
        (pmx.Laplace(), None),
        (pmx.Laplace(), pmx.Poisson()),
        (pmx.GaussHermite(5), pmx.Poisson()),
    ],
    ids=repr,
)
def test_batches_of_whole_groups_add_up_to_the_whole(marginal: Any, family: Any) -> None:
    data, module = simulate(), network()
    program = neural(module, family)
    plan = make_plan(program, (data,))
    record = run(program, (data,), hypers="moderate", seed=3)
    values = {name: site.value for name, site in record.hypers.items()}
    whole = marginal.bind(program, (data,), plan).log_marginal(record)
    expected = torch.autograd.grad(whole, list(module.parameters()))
    subsets, split = Subsets(program, (data,), plan, marginal), Split(plan, 7, 0.0, 0)
    total = torch.zeros((), dtype=torch.float64)
    for position in range(split.batches):
        chosen = split.batch(4, position)
        args, bound = subsets.bound(split.units.rows(chosen))
        assert bound.plan.layout.terms[0].levels == len(chosen)  # the cost is that of the batch
        total = total + bound.log_marginal(run(program, args, values))
    assert split.batches == 5
    torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-9)
    for got, want in zip(torch.autograd.grad(total, list(module.parameters())), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_a_plan_of_some_rows_where_the_effect_is_inside_a_network() -> None:
    data, module = simulate(), network()

    def program(data: dict[str, torch.Tensor]) -> None:
        u = pmx.RandomEffect("g", pmx.IID(), levels=30)(data["g"])
        eta = pmx.NeuralEffect("f", module)(data["x"] + u[:, None])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    plan = make_plan(program, (data,))
    assert not plan.affine
    values = {"g.sd": tensor(0.3), "y.sigma": tensor(0.5)}
    whole = pmx.Laplace().bind(program, (data,), plan).log_marginal(run(program, (data,), values))
    subsets, total = Subsets(program, (data,), plan, pmx.Laplace()), 0.0
    for rows in (np.arange(0, 80), np.arange(80, 240)):  # groups 0-9, 10-29
        args, bound = subsets.bound(rows)
        total += float(bound.log_marginal(run(program, args, values)).detach())
    assert total == pytest.approx(float(whole.detach()), rel=1e-10)


@dataclass(frozen=True)
class Frame:
    y: torch.Tensor
    table: torch.Tensor
    label: str = "a"


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.arange(4), torch.tensor([3, 1])),
        (np.arange(4.0), np.array([3.0, 1.0])),
        (torch.arange(5), torch.arange(5)),
        ("text", "text"),
        (None, None),
        ((torch.arange(4), 2), (torch.tensor([3, 1]), 2)),
        ([torch.arange(4)], [torch.tensor([3, 1])]),
        ({"a": torch.arange(4)}, {"a": torch.tensor([3, 1])}),
        (Pair(torch.arange(4), 1), Pair(torch.tensor([3, 1]), 1)),
    ],
)
def test_arguments_are_taken_apart(value: Any, expected: Any) -> None:
    got = subset(value, torch.tensor([3, 1]), 4)
    assert type(got) is type(expected)
    assert repr(got) == repr(expected)


def test_dataclasses_and_designs_give_some_rows() -> None:
    got = subset(Frame(torch.arange(4), torch.arange(7)), torch.tensor([3, 1]), 4)
    assert got.y.tolist() == [3, 1] and len(got.table) == 7 and got.label == "a"
    frame = pmx.datasets.load("sleepstudy")
    design = pmx.model("Reaction ~ Days + (Days | Subject)", frame).design
    part = subset(design, torch.tensor([179, 12]), 180)
    assert part.y.tolist() == frame["Reaction"].iloc[[179, 12]].tolist()
    assert part.terms[0].index.tolist() == [17, 1] and part.terms[0].design.tolist() == [[1, 9], [1, 2]]
    assert part.describe_row(0) == "row 179 (position 179)"


def test_opaque_arguments_need_full_batches() -> None:
    class Opaque:
        def __init__(self, data: dict[str, torch.Tensor]) -> None:
            self.data = data

    inner = neural(network())

    def program(box: Opaque) -> None:
        inner(box.data)

    box = Opaque(simulate())
    with pytest.raises(pmx.UnsupportedError, match=r"holds a Opaque.*subset\(rows\).*batch_groups=None, validation=0"):
        fit(program, box)
    assert math.isfinite(fit(program, box, **QUICK).log_likelihood)


def test_a_predictor_that_looks_at_other_rows_cannot_be_trained_in_batches() -> None:
    module = network()

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.NeuralEffect("f", module)(data["x"] - data["x"].mean())
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=30)(data["g"])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    with pytest.raises(pmx.UnsupportedError, match="depends on which other rows are there.*validation=0"):
        fit(program, simulate())
    assert math.isfinite(fit(program, simulate(), **QUICK).log_likelihood)


def test_a_program_that_needs_all_rows_says_so() -> None:
    inner, noise = neural(network()), torch.zeros(240, dtype=torch.float64)

    def program(data: dict[str, torch.Tensor]) -> None:
        inner({**data, "x": data["x"] + noise[:, None]})

    with pytest.raises(pmx.UnsupportedError, match="does not run on a part of its rows.*validation=0"):
        fit(program, simulate())


# -- where training ends ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", [None, pmx.Poisson()], ids=repr)
def test_a_sine_is_learnt(family: Any) -> None:
    data, module = simulate(size=20), network()
    estimate = fit(neural(module, family), data, lr=0.02, epochs=250)
    assert estimate.status in (pmx.Status.CONVERGED, pmx.Status.STOPPED_EARLY)
    assert [record.code for record in estimate.health] == ["training"]
    grid = torch.linspace(-0.9, 0.9, 30, dtype=torch.float64)[:, None]
    with torch.no_grad():
        mean = module(grid) + estimate.point["beta"]
    error = mean - 1 - 1.5 * torch.sin(3 * grid[:, 0])
    assert float((error - error.mean()).square().mean().sqrt()) < (0.1 if family is None else 0.25)  # the sine's is 1.1
    assert not module.training and all(weight.grad is None for weight in module.parameters())


@pytest.mark.parametrize("settings", [{}, {"batch_groups": 8}, {"schedule": "plateau"}, {"schedule": "constant"}])
def test_same_seed_same_weights_and_no_global_state(settings: dict[str, Any]) -> None:
    found = []
    for draws in (0, 5):
        module = network(dropout=0.2)
        torch.rand(draws)  # the global stream must not matter
        before = torch.get_rng_state()
        fit(neural(module), simulate(), seed=7, epochs=15, **settings)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(weights(module))
    assert torch.equal(*found)
    other = network(dropout=0.2)
    fit(neural(other), simulate(), seed=8, epochs=15, **settings)
    assert not torch.equal(weights(other), found[0])


def test_dropout_inside_a_network_that_takes_an_effect() -> None:
    """The mode search runs the program many times a step: each time with the same units dropped, which then change."""
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(dropout=0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(tuple(torch.nn.functional.dropout(torch.ones(8), 0.5).tolist()))
            return self.inner(x)

    module = Spy()

    def program(data: dict[str, torch.Tensor]) -> None:
        u = pmx.RandomEffect("g", pmx.IID(), levels=8)(data["g"])
        eta = pmx.NeuralEffect("f", module)(data["x"] + u[:, None])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    plan = make_plan(program, (simulate(groups=8),))
    seen.clear()
    search = Search(pmx.MaximumLikelihood(), pmx.Laplace(), program, (simulate(groups=8),), plan, None)
    trainer = Trainer(search, pmx.Training(validation=0.0), 0)
    steps = []
    for _ in range(4):
        seen.clear()
        trainer._step()
        assert len(seen) > 2 and len(set(seen)) == 1
        steps.append(seen[0])
    assert len(set(steps)) == 4


def test_best_state_is_restored() -> None:
    """With a noisy response and a large rate, later states are worse on held-out groups."""
    data, module = simulate(), pmx.networks.MLP(1, (64, 64), seed=0)
    search, trainer = prepared(neural(module), data, lr=0.05, epochs=400, patience=30)
    del search
    trained = trainer.train(None, progress=False)
    scores = [score for _, _, score in trained.history]
    assert trained.status is pmx.Status.STOPPED_EARLY
    assert int(np.argmax(scores)) < len(scores) - 1
    assert trainer._score() == pytest.approx(max(scores), abs=1e-12)


def prepared(program: Any, data: Any, criterion: str = "ml", seed: int = 0, **settings: Any) -> tuple[Any, Trainer]:
    backend = pmx.MaximumLikelihood(criterion=criterion)
    plan = make_plan(program, (data,))
    search = Search(backend, pmx.Exact(), program, (data,), plan, None)
    return search, Trainer(search, pmx.Training(**settings), seed)


def test_first_step_is_adams_first_step() -> None:
    """Adam's first step moves every weight by its rate, against the sign of the gradient."""
    data, module = simulate(), network()
    program = neural(module)
    search, trainer = prepared(program, data, lr=1e-3, validation=0.0, clip_norm=None, schedule="constant")
    start = search.chart.values(torch.from_numpy(search.objective.origin))
    value = search.bound.log_marginal(run(program, (data,), start))
    gradients = torch.autograd.grad(value, list(module.parameters()))
    before = [weight.detach().clone() for weight in module.parameters()]
    trainer._step()
    for old, new, gradient in zip(before, module.parameters(), gradients, strict=True):
        torch.testing.assert_close(new - old, 1e-3 * gradient.sign(), rtol=1e-4, atol=1e-8)


def test_losses_of_an_epochs_batches_average_to_the_whole() -> None:
    data, program = simulate(), neural(network())
    search, trainer = prepared(program, data, lr=1e-12, validation=0.0, batch_groups=6, epochs=2)
    record = run(program, (data,), search.chart.values(torch.from_numpy(search.objective.origin)))
    whole = -float(search.bound.log_marginal(record).detach()) / 240
    losses = [trainer._step()[0] for _ in range(5)]
    assert np.mean(losses) == pytest.approx(whole, rel=1e-7)
    assert np.std(losses) > 1e-3


def test_rows_of_units() -> None:
    rng = np.random.default_rng(0)
    units = Units(rng.integers(0, 9, 50), 10)  # the last has none
    for chosen in (np.array([3]), np.array([8, 0, 9]), np.arange(10), np.array([], dtype=int)):
        assert units.rows(chosen).tolist() == np.flatnonzero(np.isin(units.of_row, chosen)).tolist()


def test_penalised_training_adds_the_priors() -> None:
    data, program = simulate(), neural(network())
    _, plain = prepared(program, data, validation=0.0)
    search, penalised = prepared(program, data, criterion="map", validation=0.0)
    record = run(program, (data,), search.chart.values(torch.from_numpy(search.objective.origin)))
    expected = plain._step()[0] - float(record.log_prior()) / 240
    penalised._load_weights([network().state_dict()])
    assert penalised._step()[0] == pytest.approx(expected, rel=1e-9)


def test_schedules() -> None:
    _, trainer = prepared(neural(network()), simulate(), lr=0.1, epochs=10, validation=0.0)
    rates = []
    for step in range(11):
        trainer.now.step = step
        rates.append(trainer._rate())
    assert rates[0] == 0.1 and rates[5] == pytest.approx(0.05) and rates[10] == pytest.approx(0.0)
    _, trainer = prepared(neural(network()), simulate(), lr=0.1, epochs=90, patience=9, schedule="plateau")
    for epoch, score in enumerate([1.0, 2.0, 1.5, 1.5, 1.5, 1.5, 3.0], start=1):
        trainer.now.epoch = epoch
        trainer._plateau(score)
    assert trainer._rate() == pytest.approx(0.05)


def test_time_limit() -> None:
    estimate = fit(neural(network()), simulate(), max_time=1e-6)
    assert estimate.status is pmx.Status.TIME_LIMIT
    assert "1 steps" in estimate.health[-1].parameter


def test_crossed_factors_train_in_full_with_a_note() -> None:
    data = simulate()
    data["y"] = data["y"] + data["h"]
    estimate = fit(neural(network(), crossed=True), data, batch_groups=4, epochs=3)
    notes = {record.parameter: record.remedy for record in estimate.health}
    assert "Crossed factors tie all groups together" in notes["batch_groups"]
    assert any(name.startswith("3 steps, 3 epochs on 26 of 30") for name in notes)


def test_too_few_groups_to_hold_any_out() -> None:
    data = simulate(groups=4)
    data["y"] = data["y"] + 2 * data["g"]
    estimate = fit(neural(network(), levels=4), data, epochs=3)
    assert any(record.parameter == "validation" for record in estimate.health)


# -- failures ---------------------------------------------------------------------------------------------------------
def test_divergence_names_the_step_and_restores_the_weights() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)).double()

    class Squeezed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            out = self.inner(x).squeeze(-1)
            return out / 0.0 if self.calls > 3 else out

    wrapped = Squeezed().eval()
    before = weights(wrapped)
    with pytest.raises(
        pmx.NumericalError, match=r"training of f failed at step 4 .*NeuralEffect\('f'\).*Lower Training\(lr=0.003\)"
    ):
        fit(neural(wrapped), simulate(), **QUICK)
    assert torch.equal(weights(wrapped), before)
    assert not wrapped.training


def test_a_gradient_that_is_not_finite_is_named() -> None:
    class Root(torch.nn.Module):
        """Finite at zero, where its derivative is not."""

        def __init__(self) -> None:
            super().__init__()
            self.slope = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.slope.abs() + 0 * x[:, 0]).sqrt()

    with pytest.raises(pmx.NumericalError, match="step 1 .*gradient of f.slope is not finite"):
        fit(neural(Root()), simulate(), **QUICK)


def test_an_interrupted_fit_restores_weights_and_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network().train()
    before = weights(module)

    def interrupt(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(neural(module), simulate(), **QUICK)
    assert torch.equal(weights(module), before)
    assert module.training and all(weight.grad is None for weight in module.parameters())


def test_batch_norm_uses_running_statistics_after_training() -> None:
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1)).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).squeeze(-1)

    torch.manual_seed(0)
    module, data = Normed(), simulate()
    estimate = fit(neural(module), data, epochs=80)
    mean = float(module.inner[0].running_mean)
    assert mean != 0.0 and abs(mean - float(data["x"].mean())) < 0.1
    again = run(neural(module), (data,), estimate.point)
    bound = pmx.Exact().prepare(neural(module), (data,))
    assert float(bound.log_marginal(again).detach()) == pytest.approx(estimate.log_likelihood, abs=1e-9)


def test_weights_with_a_prior_are_refused() -> None:
    import pyro.distributions as dist

    module = network()

    def program(data: dict[str, torch.Tensor]) -> None:
        eta = pmx.NeuralEffect("f", module, prior=dist.Normal(0.0, 1.0))(data["x"])
        eta = eta + pmx.RandomEffect("g", pmx.IID(), levels=30)(data["g"])
        pmx.observe("y", pmx.Gaussian(), eta, data["y"])

    with pytest.raises(pmx.UnsupportedError, match="NeuralEffect\\('f'\\).*hyper-parameters.*weight_decay"):
        fit(program, simulate(), **QUICK)


def test_a_formula_fit_leaves_the_users_module_alone() -> None:
    frame = pmx.datasets.load("sleepstudy")
    module = pmx.networks.MLP(1, (4,), seed=1)
    before = weights(module)
    model = pmx.model("Reaction ~ Days + (Days | Subject)", frame, mean=module)
    backend = pmx.MaximumLikelihood(training=pmx.Training(epochs=5))
    first, second = (model.fit(backend, progress=False).log_likelihood for _ in range(2))
    assert first == second
    assert torch.equal(weights(module), before) and module.training


def test_a_plan_on_some_rows() -> None:
    data = simulate()
    plan = make_plan(neural(network(), pmx.Poisson()), (data,))
    rows = np.array([5, 100, 7])
    part = plan.on_rows(rows)
    assert torch.equal(part.obs, plan.obs[rows]) and torch.equal(part.linear["beta"], plan.linear["beta"][rows])
    for got, whole in zip(part.prepared, plan.prepared, strict=True):
        assert torch.equal(got, whole[rows])
    assert part.layout.terms[0].slots[0].index.tolist() == [0, 1, 0]


def test_modules_are_found_by_running_the_program() -> None:
    module = network()
    assert training_module.modules_of(neural(module), (simulate(),)) == {"f": module}


# -- checkpoints ------------------------------------------------------------------------------------------------------
def saving(path: Path, **settings: Any) -> pmx.MaximumLikelihood:
    return pmx.MaximumLikelihood(training=pmx.Training(**{"epochs": 4, **settings}), checkpoint=path)


def crash(folder: Path, kills: int, seed: int, timeout: float) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("crash_worker.py")), str(folder), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_fit_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Two of the kills hit the middle of a write."""
    found = crash(tmp_path, 5, seed=0, timeout=300)
    assert found["wrong"] == []
    assert found["trials"] == 5 and found["resumed"] >= 2  # those killed in a write, at least


@pytest.mark.slow
def test_a_killed_fit_resumes_to_the_same_bits_fifty_times(tmp_path: Path, seed: int) -> None:
    found = crash(tmp_path, 50, seed=seed, timeout=1800)
    assert found["wrong"] == [] and found["resumed"] >= 25


def test_a_finished_checkpoint_is_kept_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, modules = simulate(), [network(seed=0), network(seed=1)]
    path = tmp_path / "fit.ckpt"
    first = saving(path).estimate(neural(modules[0]), (data,), progress=False)
    monkeypatch.setattr(Trainer, "_step", lambda self: pytest.fail("trained again"))
    second = saving(path).estimate(neural(modules[1]), (data,), progress=False)
    assert torch.equal(weights(modules[0]), weights(modules[1]))
    assert first.log_likelihood == second.log_likelihood


@pytest.mark.parametrize(
    ("change", "topic"),
    [
        ({"seed": 1}, "settings"),
        ({"lr": 1e-4}, "settings"),
        ({"data": simulate(seed=1)}, "data"),
        ({"module": pmx.networks.MLP(1, (5,))}, "network"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path, change: dict[str, Any], topic: str) -> None:
    path = tmp_path / "fit.ckpt"
    saving(path).estimate(neural(network()), (simulate(),), progress=False)
    content = path.read_bytes()
    given = {"seed": 0, "lr": 3e-3, "data": simulate(), "module": network(), **change}
    before = weights(given["module"])
    with pytest.raises(pmx.CheckpointError, match=f"fit.ckpt' belongs to another fit: it differs in {topic}\\."):
        saving(path, lr=given["lr"]).estimate(
            neural(given["module"]), (given["data"],), seed=given["seed"], progress=False
        )
    assert path.read_bytes() == content and torch.equal(weights(given["module"]), before)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "fit.ckpt"
    saving(path).estimate(neural(network()), (simulate(),), progress=False)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(pmx.CheckpointError, match="fit.ckpt' is damaged"):
        saving(path).estimate(neural(network()), (simulate(),), progress=False)


def test_a_saved_fit_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    write_container(path, {"what": "fit"}, {})
    with pytest.raises(pmx.CheckpointError, match="holds a 'fit', not a training checkpoint"):
        saving(path).estimate(neural(network()), (simulate(),), progress=False)
