"""Variational inference: bounds against exact evidence, posteriors against closed forms, batches against everything."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
import torch
from pyro.infer.autoguide import AutoNormal

import pyromix as pmx
from pyromix.backends.svi import SVI
from pyromix.backends.variational.build import build
from tests.backends.svi_programs import SD, SIGMA, WIDTH, fixed_evidence, fixed_gaussian, grouped_data, intercepts

DATA = grouped_data(12, 5, seed=1)
QUIET: dict[str, Any] = {"progress": False}


def quietly(program: Any, data: Any, backend: SVI, seed: int = 0) -> Any:
    """A fit whose findings are not the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pmx.PyromixWarning)
        return pmx.fit(program, data, backend, seed=seed, progress=False)


# -- the bound --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("guide", "gap"), [("group", 0.01), ("amortised", 0.05), ("full", 0.5)])
def test_the_bound_is_tight_where_everything_is_gaussian(guide: str, gap: float) -> None:
    fit = quietly(fixed_gaussian, DATA, SVI(guide, steps=120))
    evidence, mean, covariance = fixed_evidence(DATA)
    elbo, error = fit.estimate.log_evidence, fit.estimate.settings["elbo_error"]
    assert elbo <= evidence + 5 * error + 1e-8
    assert evidence - elbo < gap
    draws = fit.draws()["beta"].numpy()
    # 1000 draws: the mean is within 5 standard errors, false alarm 1e-6; the guide's own error is allowed 0.05 SD
    sd = np.sqrt(np.diag(covariance))
    assert np.abs(draws.mean(0) - mean).max() < (5 / np.sqrt(1000) + 0.05) * sd.max()
    assert draws.std(0) == pytest.approx(sd, rel=0.15)


def test_mean_field_is_a_looser_bound_and_too_narrow() -> None:
    """Independent normals miss what ties coefficients and effects together."""
    fit = quietly(fixed_gaussian, DATA, SVI("mean_field", steps=120))
    evidence, _, covariance = fixed_evidence(DATA)
    assert fit.estimate.log_evidence < evidence - 1
    assert bool((fit.draws()["beta"].std(0).numpy() < 0.8 * np.sqrt(np.diag(covariance))).all())


def test_the_bound_stays_below_the_integrated_evidence() -> None:
    """Hyper-parameters free: the evidence by quadrature over the SD, everything else in closed form."""
    data = {k: v[:40] for k, v in grouped_data(8, 5, seed=3).items()}

    def program(d: dict[str, torch.Tensor]) -> None:
        prior = dist.HalfNormal(torch.tensor(2.0, dtype=torch.float64))
        eta = pmx.RandomEffect("g", pmx.IID(sd=prior), levels=8)(d["g"])
        pmx.observe("y", pmx.Gaussian(sigma=SIGMA), eta, d["y"])

    g, y = data["g"].numpy(), data["y"].numpy()
    same = (g[:, None] == g[None]).astype(float)

    def density(sd: float) -> float:
        v = sd**2 * same + SIGMA**2 * np.eye(len(y))
        log = scipy.stats.multivariate_normal(np.zeros(len(y)), v).logpdf(y) + scipy.stats.halfnorm(scale=2).logpdf(sd)
        return float(np.exp(log + 60))

    evidence = np.log(scipy.integrate.quad(density, 1e-6, 12, limit=200)[0]) - 60
    fit = quietly(program, data, SVI(steps=200))
    error = fit.estimate.settings["elbo_error"]
    assert fit.estimate.log_evidence <= evidence + 5 * error
    assert evidence - fit.estimate.log_evidence < 0.1  # the posterior of a log SD from eight groups is skew
    assert fit.estimate.settings["importance_bound"] == pytest.approx(evidence, abs=0.05)


def test_groups_have_their_conditional_gaussians() -> None:
    fit = quietly(fixed_gaussian, DATA, SVI(steps=120, draws=4000))
    x, g, y = (DATA[k].numpy() for k in ("x", "g", "y"))
    columns = np.stack([np.ones_like(x), x], 1)
    # everything at once: coefficients and effects of one Gaussian linear model
    z = np.zeros((len(y), 24))
    for k in range(2):
        z[np.arange(len(y)), 2 * g + k] = columns[:, k]
    design = np.hstack([columns, z])
    one = np.array([[1.0, 0.15], [0.15, 0.25]]) * SD**2
    prior = scipy.linalg.block_diag(np.eye(2) / WIDTH**2, *[np.linalg.inv(one)] * 12)
    covariance = np.linalg.inv(design.T @ design / SIGMA**2 + prior)
    mean = covariance @ design.T @ y / SIGMA**2
    sd = np.sqrt(np.diag(covariance))[2:]
    found = fit.draws()["g"].reshape(4000, -1).numpy()
    # largest of 24 standard errors of 4000 draws, false alarm below 1e-5, and 0.03 SD for the guide
    assert np.abs((found.mean(0) - mean[2:]) / sd).max() < 5.2 / np.sqrt(4000) + 0.03
    assert np.abs(np.log(found.std(0) / sd)).max() < 0.1


# -- batches ----------------------------------------------------------------------------------------------------------
def _objective(guide: Any, data: Any, batch: int) -> Any:
    backend = SVI(guide, steps=10, batch_groups=batch)
    return build(backend, intercepts(pmx.Binomial()), (data,), 0)


@pytest.mark.parametrize("guide", ["group", "mean_field", "full", AutoNormal])
def test_scaled_batches_add_up_to_the_whole(guide: Any) -> None:
    """At the same guide and the same noise, the batches' bounds, weighed by their shares, are the full one exactly.

    The trap this excludes: a guide that draws its own subsample of a plate, so that model and guide disagree.
    """
    data = grouped_data(10, 3, seed=2, family="binomial")
    data["levels"] = torch.tensor(10)
    problem = _objective(guide, data, 3)
    objective, batches = problem.objective, problem.batches
    assert batches.per_epoch == 4
    frozen = {name: table.clone() for name, table in objective.tables().items()}

    def bound(rows: Any, share: float) -> float:
        value = objective.step(rows, share, seed=7)
        for name, table in objective.tables().items():
            table.copy_(frozen[name])
        return value

    if guide in ("group", "mean_field"):  # updates of the groups would move the guide
        objective._update = lambda passes: None
    whole = bound(None, 1.0)
    parts = sum(share * bound(rows, share) for rows, share in map(batches.at, range(4)))
    assert parts == pytest.approx(whole, rel=1e-10)


def test_batches_and_all_rows_end_at_the_same_posterior() -> None:
    data = grouped_data(40, 6, seed=4, family="binomial")
    data["levels"] = torch.tensor(40)
    program = intercepts(pmx.Binomial())
    full = quietly(program, data, SVI(steps=200)).draws()
    part = quietly(program, data, SVI(steps=400, batch_groups=10)).draws()
    for name in ("beta", "g.sd"):
        sd = full[name].std(0)
        # 1000 draws each: five standard errors of a difference are 0.22 SD (false alarm 1e-6); both fits may be off
        assert float(((part[name].mean(0) - full[name].mean(0)) / sd).abs().max()) < 0.3
        assert float((part[name].std(0) / sd).log().abs().max()) < 0.3


class _Work(torch.utils._python_dispatch.TorchDispatchMode):
    """Numbers written by all tensor operations."""

    written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.endswith("_"):  # in place: what is written is no more than what is handed over
            parts = torch.utils._pytree.tree_leaves(args[1:])
            self.written += max((t.numel() for t in parts if isinstance(t, torch.Tensor)), default=args[0].numel())
            return out
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.written += tensor.untyped_storage().nbytes() // 8 if 0 in tensor.stride() else tensor.numel()
        return out


def test_a_step_costs_no_more_with_more_groups() -> None:
    work = []
    for groups in (100, 3000):
        data = grouped_data(groups, 2, seed=5, family="binomial")
        data["levels"] = torch.tensor(groups)
        problem = _objective("group", data, 20)
        with _Work() as count:
            for step in range(3):
                rows, share = problem.batches.at(step)
                assert len(rows) == 40
                problem.objective.step(rows, share, step)
        work.append(count.written)
    assert work[1] < 1.05 * work[0]


# -- a fit of its own -------------------------------------------------------------------------------------------------
def test_fits_leave_the_process_and_each_other_alone() -> None:
    pyro.get_param_store().clear()
    pyro.param("kept", torch.tensor(1.0))
    state = torch.get_rng_state()
    data = grouped_data(6, 4, seed=6)
    first = quietly(intercepts(pmx.Gaussian()), data, SVI(AutoNormal, steps=20, draws=50))
    before = {name: value.clone() for name, value in first.draws().items()}
    again = quietly(intercepts(pmx.Gaussian()), grouped_data(6, 4, seed=7), SVI(AutoNormal, steps=20, draws=50))
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first.draws()[name], value) for name, value in before.items())
    assert not torch.equal(again.draws()["beta"], before["beta"])
    pyro.get_param_store().clear()


@pytest.mark.parametrize("guide", ["group", "amortised", "mean_field", "full"])
def test_draws_are_a_function_of_the_seed(guide: str) -> None:
    data = grouped_data(6, 4, seed=6)
    fits = [quietly(fixed_gaussian, data, SVI(guide, steps=15, draws=20), seed=s) for s in (3, 3, 4)]
    draws = [fit.draws()["g"] for fit in fits]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("guide", ["group", "amortised", AutoNormal])
def test_a_resumed_fit_ends_on_the_same_bits(guide: Any, tmp_path: Any) -> None:
    data = grouped_data(8, 3, seed=8, family="binomial")
    data["levels"] = torch.tensor(8)
    program = intercepts(pmx.Binomial())
    arguments: dict[str, Any] = {"steps": 30, "draws": 20, "batch_groups": 3}
    whole = quietly(program, data, SVI(guide, **arguments))
    path = tmp_path / "state"
    cut = quietly(program, data, SVI(guide, **arguments, checkpoint=path, max_time=1e-9))
    assert cut.status is pmx.Status.TIME_LIMIT
    assert "time_limit" in {record.code for record in cut.health}
    assert cut.estimate.settings["steps_done"] == 1
    resumed = quietly(program, data, SVI(guide, **arguments, checkpoint=path))
    assert all(torch.equal(resumed.draws()[name], value) for name, value in whole.draws().items())
    with pytest.raises(pmx.CheckpointError, match="differs in"):
        quietly(program, data, SVI(guide, **{**arguments, "draws": 21}, checkpoint=path))


def test_saved_and_loaded(tmp_path: Any) -> None:
    frame = pmx.datasets.load("sleepstudy")
    fit = pmx.model("Reaction ~ Days + (1 | Subject)", frame).fit(SVI(steps=60, draws=100), **QUIET)
    fit.save(tmp_path / "fit")
    loaded = pmx.load(tmp_path / "fit")
    assert all(torch.equal(loaded.draws()[name], value) for name, value in fit.draws().items())
    assert loaded.estimate.log_evidence == fit.estimate.log_evidence
    assert loaded.estimate.settings["khat"] == fit.estimate.settings["khat"]
    assert np.array_equal(loaded.predict(), fit.predict())
    assert fit.idata.posterior.attrs["inference"] == "SVI, group"
    assert dict(fit.idata.posterior.sizes)["chain"] == 1


# -- findings ---------------------------------------------------------------------------------------------------------
def test_too_few_steps_are_found() -> None:
    def far(data: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3, dtype=torch.float64), 100.0).to_event(1))
        with pyro.plate("n", len(data)):
            pyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=data)

    def guide(data: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3, dtype=torch.float64))
        pyro.sample("mu", dist.Normal(loc, 0.1).to_event(1))

    data = torch.full((30, 3), 50.0, dtype=torch.float64)
    with pytest.warns(pmx.PyromixWarning) as caught:
        fit = pmx.fit(far, data, SVI(guide, steps=60, draws=20), **QUIET)
    assert {pmx.ConvergenceWarning, pmx.ApproximationWarning} == {w.category for w in caught}
    assert any("svi_not_converged: ELBO" in str(w.message) for w in caught)
    assert any("khat: guide" in str(w.message) for w in caught)
    (record,) = (r for r in fit.health if r.code == "svi_not_converged")
    assert "steps=120" in record.remedy and fit.status is pmx.Status.ITERATION_LIMIT


def test_too_few_passes_over_the_data_are_found() -> None:
    data = grouped_data(40, 2, seed=9)
    data["levels"] = torch.tensor(40)
    with pytest.warns(pmx.PyromixWarning) as caught:
        fit = pmx.fit(intercepts(pmx.Gaussian()), data, SVI(steps=20, batch_groups=2, draws=20), **QUIET)
    assert any("seen 1 times" in str(w.message) and w.category is pmx.ConvergenceWarning for w in caught)
    assert any("steps=200" in record.remedy for record in fit.health)


def test_beta_is_no_posterior() -> None:
    fit = quietly(fixed_gaussian, DATA, SVI(steps=100, beta=0.5))
    assert "tempered" in {record.code for record in fit.health}
    # half the divergence: the likelihood squared, as if its variance were half as large. 1000 draws: SE of an SD 2.2 %
    _, _, covariance = fixed_evidence(DATA, SIGMA / np.sqrt(2))
    assert fit.draws()["beta"].std(0).numpy() == pytest.approx(np.sqrt(np.diag(covariance)), rel=0.12)
    plain = quietly(fixed_gaussian, DATA, SVI(steps=60)).estimate.latent_sd["g"]
    assert bool((fit.estimate.latent_sd["g"] < plain).double().mean() > 0.9)


def test_held_out_groups_stop_a_fit() -> None:
    data = grouped_data(40, 4, seed=9)
    data["levels"] = torch.tensor(40)
    fit = quietly(intercepts(pmx.Gaussian()), data, SVI(steps=400, validation=0.2, patience=40, draws=50))
    assert fit.status is pmx.Status.STOPPED_EARLY and fit.estimate.settings["steps_done"] < 400


BAD = [
    ({"guide": "flow"}, "guide='flow'"),
    ({"guide": 3}, "guide=3"),
    ({"steps": 0}, "steps=0"),
    ({"optimizer": "lbfgs"}, "optimizer='lbfgs'"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"batch_groups": True}, "batch_groups=True"),
    ({"draws": 1}, "draws=1"),
    ({"particles": 0.5}, "particles=0.5"),
    ({"beta": 0.0}, "beta=0.0"),
    ({"validation": 1.0}, "validation=1.0"),
    ({"patience": 5}, "nothing is held out"),
    ({"max_time": -1}, "max_time=-1"),
    ({"tolerance": -0.1}, "tolerance=-0.1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(pmx.ConfigError, match=message):
        SVI(**arguments)


@pytest.mark.slow
@pytest.mark.statistical
def test_the_group_guide_is_better_calibrated_than_independent_normals() -> None:
    """30 data sets, 80 % intervals of coefficients, SDs and effects: summed distances of the coverages from 80 %.

    Only the order is asserted: `group` itself covers less than it says on twelve small groups (``svi_coverage`` prints
    by how much). With 25 data sets the sums were 0.32 and 0.79, their difference with an error of about 0.1, so that
    the order comes out wrong with a probability of about 1e-5.
    """
    from benchmarks.svi_coverage import LEVEL, study

    found = study(pmx.Binomial(), ("group", "mean_field"), fits=30, steps=300)
    off = {guide: sum(abs(value - LEVEL) for value in found[guide].values()) for guide in found}
    assert off["group"] < off["mean_field"]
