"""Programs as people write them in Pyro, none of pyromix's primitives in them: the density a sampler gets of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from scipy import special, stats
from torch.distributions import constraints

import pyromix as pmx
from pyromix.potential import log_density, log_joint

Y = np.array([0.4, -1.1, 2.3, 0.9, -0.2, 1.5])
GROUP = np.array([0, 0, 1, 1, 2, 2])
N, HN = stats.norm.logpdf, stats.halfnorm.logpdf


def f64(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def normal(mean: Any = 0.0, sd: Any = 1.0) -> dist.Normal:
    return dist.Normal(f64(mean), f64(sd))


def check(program: Any, values: dict[str, Any], expected: float, jacobian: float = 0.0, *args: Any) -> None:
    """Density at the values, and minus the potential there, which adds the log Jacobian; a trace agrees."""
    sites = {name: f64(value) for name, value in values.items()}
    assert float(log_density(program, args, sites)) == pytest.approx(expected, rel=1e-9)
    potential = log_joint(program, args)
    assert set(potential.names) == set(values)
    z = potential.flat(sites)
    assert z.dtype == torch.float64
    for name, value in potential.values(z).items():
        torch.testing.assert_close(value, sites[name], rtol=1e-9, atol=1e-12)
    for mode in ("eager", "traced"):
        made = potential.value_and_gradient(mode=mode, evaluations=1)
        assert made.mode == mode, made.reason
        value, gradient = made(z)
        assert float(value) == pytest.approx(-expected - jacobian, rel=1e-9)
        step = 1e-5 * torch.cos(torch.arange(potential.size, dtype=torch.float64))
        change = float(potential(z + step) - potential(z - step)) / 2
        assert float(gradient @ step) == pytest.approx(change, rel=1e-5, abs=1e-10)


# -- plates ------------------------------------------------------------------------------------------------------------
def test_a_loop_over_a_plate() -> None:
    def program() -> None:
        sd = pyro.sample("sd", dist.HalfNormal(f64(2.0)))
        for g in pyro.plate("groups", 3):
            u = pyro.sample(f"u_{g}", dist.Normal(f64(0.0), sd))
            for i in pyro.plate(f"rows_{g}", 2):
                pyro.sample(f"y_{g}_{i}", dist.Normal(u, f64(0.5)), obs=f64(Y[2 * g + i]))

    u = np.array([0.2, 1.0, -0.3])
    expected = HN(0.7, scale=2.0) + N(u, 0, 0.7).sum() + N(Y, u[GROUP], 0.5).sum()
    check(program, {"sd": 0.7} | {f"u_{g}": u[g] for g in range(3)}, expected, np.log(0.7))


def test_sites_inside_nested_vectorised_plates() -> None:
    y = Y.reshape(2, 3)

    def program() -> None:
        with pyro.plate("columns", 3, dim=-1):
            a = pyro.sample("a", normal())
            with pyro.plate("rows", 2, dim=-2):
                b = pyro.sample("b", normal(0.0, 2.0))
                s = pyro.sample("s", dist.Gamma(f64(3.0), f64(2.0)))
                pyro.sample("y", dist.Normal(a + b, s), obs=f64(y))

    a, b, s = np.array([0.1, -0.4, 0.6]), 0.3 * y, 0.5 + 0.1 * np.arange(6).reshape(2, 3)
    expected = N(a).sum() + N(b, 0, 2).sum() + stats.gamma.logpdf(s, 3, scale=0.5).sum() + N(y, a + b, s).sum()
    check(program, {"a": a, "b": b, "s": s}, expected, np.log(s).sum())


def test_python_numbers_in_distributions() -> None:
    """Torch makes them float32 constants, so seven digits; the values and the gradient stay in float64."""

    def program(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0, 5))
        sd = pyro.sample("sd", dist.HalfCauchy(2.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, sd), obs=y)

    potential = log_joint(program, (f64(Y),))
    z = potential.flat({"mu": f64(0.3), "sd": f64(1.2)})
    value, gradient = potential.value_and_gradient(mode="traced", evaluations=1)(z)
    expected = N(0.3, 0, 5) + stats.halfcauchy.logpdf(1.2, scale=2.5) + N(Y, 0.3, 1.2).sum()
    assert (value.dtype, gradient.dtype) == (torch.float64, torch.float64)
    assert float(value) == pytest.approx(-expected - np.log(1.2), rel=1e-6)


# -- modules -----------------------------------------------------------------------------------------------------------
class Line(PyroModule):
    """A Bayesian line, as in Pyro's tutorials."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](columns, 1, dtype=torch.float64)
        self.linear.weight = PyroSample(normal(0.0, 3.0).expand([1, columns]).to_event(2))
        self.linear.bias = PyroSample(normal(0.0, 10.0).expand([1]).to_event(1))
        self.sigma = PyroSample(dist.LogNormal(f64(0.0), f64(1.0)))
        self.scaled = PyroSample(lambda self: dist.Normal(f64(0.0), self.sigma))

    def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        mean = self.linear(data["x"]).squeeze(-1) + self.scaled
        with pyro.plate("rows", len(mean)):
            pyro.sample("y", dist.Normal(mean, self.sigma), obs=data["y"])
        return mean


def test_a_module_of_sampled_weights() -> None:
    x = np.column_stack([Y**2, np.sin(Y)])
    w, bias, sigma, shift = np.array([[0.5, -0.2]]), np.array([0.1]), 0.8, -0.3
    expected = N(w, 0, 3).sum() + N(bias, 0, 10).sum() + stats.lognorm.logpdf(sigma, 1) + N(shift, 0, sigma)
    expected += N(Y, x @ w[0] + bias + shift, sigma).sum()
    values = {"linear.weight": w, "linear.bias": bias, "sigma": sigma, "scaled": shift}
    check(Line(2), values, expected, np.log(sigma), {"x": f64(x), "y": f64(Y)})


# -- more than one response, and statements that change no density or change it on purpose ----------------------------
def test_several_responses_and_deterministic_sites() -> None:
    counts = np.array([0, 2, 1, 3, 0, 5])

    def program() -> None:
        mu = pyro.sample("mu", normal())
        rate = pyro.deterministic("rate", torch.exp(mu))
        pyro.sample("y", normal().expand([6]).to_event(1), obs=f64(Y))
        with pyro.plate("rows", 6):
            pyro.sample("n", dist.Poisson(rate), obs=f64(counts))
        pyro.sample("flag", dist.Bernoulli(logits=mu), obs=f64(1.0))

    expected = N(0.4) + N(Y).sum() + stats.poisson.logpmf(counts, np.exp(0.4)).sum() + np.log(special.expit(0.4))
    check(program, {"mu": 0.4}, expected)


def test_masks_and_scales_of_latent_and_observed_sites() -> None:
    keep = torch.tensor([True, False, True, True, False, True])

    def program() -> None:
        with poutine.scale(scale=0.5):
            mu = pyro.sample("mu", normal())
        with pyro.plate("rows", 6), poutine.mask(mask=keep):
            u = pyro.sample("u", normal(0.0, 2.0))
            with poutine.scale(scale=3.0):
                pyro.sample("y", dist.Normal(mu + u, f64(1.0)), obs=f64(Y))

    u = 0.1 * Y
    counted = keep.numpy()
    expected = 0.5 * N(0.2) + N(u, 0, 2)[counted].sum() + 3 * N(Y, 0.2 + u, 1)[counted].sum()
    check(program, {"mu": 0.2, "u": u}, expected)


def test_masked_distributions_and_factors() -> None:
    def program() -> None:
        a = pyro.sample("a", normal().expand([3]).mask(torch.tensor([True, False, True])).to_event(1))
        pyro.factor("penalty", -2.0 * a.square().sum())
        pyro.sample("y", dist.Normal(a[torch.as_tensor(GROUP)], f64(1.0)).to_event(1), obs=f64(Y))

    a = np.array([0.3, 0.1, -0.7])
    expected = N(a[[0, 2]]).sum() - 2 * (a**2).sum() + N(Y, a[GROUP], 1).sum()
    check(program, {"a": a}, expected)


def test_a_program_conditioned_from_outside() -> None:
    def free() -> None:
        mu = pyro.sample("mu", normal())
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.Normal(mu, f64(1.0)))

    check(poutine.condition(free, {"y": f64(Y)}), {"mu": 0.2}, N(0.2) + N(Y, 0.2).sum())


def test_a_program_reparametrised_by_pyro() -> None:
    @poutine.reparam(config={"u": LocScaleReparam(centered=0.0)})
    def program() -> None:
        sd = pyro.sample("sd", dist.HalfNormal(f64(1.0)))
        with pyro.plate("groups", 3):
            u = pyro.sample("u", dist.Normal(f64(1.0), sd))
        pyro.sample("y", dist.Normal(u[torch.as_tensor(GROUP)], f64(1.0)).to_event(1), obs=f64(Y))

    raw = np.array([0.5, -1.0, 0.2])
    expected = HN(0.6) + N(raw).sum() + N(Y, (1 + 0.6 * raw)[GROUP], 1).sum()
    check(program, {"sd": 0.6, "u_decentered": raw}, expected, np.log(0.6))


# -- supports ----------------------------------------------------------------------------------------------------------
def test_flat_priors() -> None:
    def program() -> None:
        beta = pyro.sample("beta", dist.ImproperUniform(constraints.real, (), (2,)))
        sd = pyro.sample("sd", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("groups", 3):
            u = pyro.sample("u", dist.ImproperUniform(constraints.real, (), ()))
        mean = beta[0] + beta[1] * f64(Y**2) + u[torch.as_tensor(GROUP)]
        pyro.sample("y", dist.Normal(mean, sd).to_event(1), obs=f64(Y))

    u = np.array([0.1, 0.2, -0.3])
    expected = N(Y, 0.3 - 0.2 * Y**2 + u[GROUP], 0.9).sum()
    check(program, {"beta": [0.3, -0.2], "sd": 0.9, "u": u}, expected, np.log(0.9))


def test_a_support_that_depends_on_another_site() -> None:
    """The interval (0, 2 - a) has length 2 - a at every a, not that of the first run."""

    def program() -> None:
        a = pyro.sample("a", dist.Uniform(f64(0.0), f64(2.0)))
        b = pyro.sample("b", dist.Uniform(f64(0.0), 2 - a))
        pyro.sample("y", dist.Normal(a - b, f64(1.0)).expand([6]).to_event(1), obs=f64(Y))

    for a, b in ((0.1, 1.8), (1.9, 0.05), (1.0, 0.5)):
        expected = -np.log(2) - np.log(2 - a) + N(Y, a - b, 1).sum()
        share = b / (2 - a)
        jacobian = np.log(a * (2 - a) / 2) + np.log(share * (1 - share) * (2 - a))
        check(program, {"a": a, "b": b}, expected, jacobian)


def test_a_prior_that_is_a_mixture() -> None:
    def program() -> None:
        parts = dist.Normal(f64([-6.0, 6.0]), f64([0.5, 2.0]))
        x = pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(f64([0.2, 0.8])), parts))
        rates = dist.Exponential(f64([1.0, 3.0]))
        s = pyro.sample("s", dist.MixtureSameFamily(dist.Categorical(f64([0.5, 0.5])), rates))
        pyro.sample("y", dist.Normal(x, s).expand([6]).to_event(1), obs=f64(Y))

    expected = np.log(0.2 * stats.norm.pdf(1.0, -6, 0.5) + 0.8 * stats.norm.pdf(1.0, 6, 2)) + N(Y, 1.0, 0.7).sum()
    expected += np.log(0.5 * np.exp(-0.7) + 1.5 * np.exp(-2.1))
    check(program, {"x": 1.0, "s": 0.7}, expected, np.log(0.7))


def test_constrained_vectors_integrate_to_one() -> None:
    """exp(-potential) of a simplex and of a correlation matrix have mass one."""

    def program(kind: str) -> None:
        if kind == "simplex":
            pyro.sample("x", dist.Dirichlet(f64([2.0, 3.0])))
        else:
            pyro.sample("x", dist.LKJCholesky(2, f64(1.5)))
        pyro.sample("y", normal(), obs=f64(0.0))

    for kind in ("simplex", "correlation"):
        potential = log_joint(program, (kind,))
        grid = torch.linspace(-18.0, 18.0, 361, dtype=torch.float64)  # the trapezoid rule is exact to 1e-9 on it
        density = torch.tensor([float(torch.exp(-potential(z[None]))) for z in grid], dtype=torch.float64)
        assert potential.size == 1
        assert float(torch.trapezoid(density, grid)) == pytest.approx(stats.norm.pdf(0), rel=1e-6)


# -- what cannot be sampled --------------------------------------------------------------------------------------------
def _mixture() -> None:
    p = pyro.sample("p", dist.Beta(f64(1.0), f64(1.0)))
    with pyro.plate("rows", 6):
        k = pyro.sample("component", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(2 * k, f64(1.0)), obs=f64(Y))


def _counts() -> None:
    n = pyro.sample("animals", dist.Poisson(f64(5.0)))
    pyro.sample("y", dist.Normal(n, f64(1.0)), obs=f64(4.0))


def _category() -> None:
    k = pyro.sample("category", dist.Categorical(f64([0.3, 0.7])).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(k.double().sum(), f64(1.0)), obs=f64(4.0))


def _point() -> None:
    a = pyro.sample("point", dist.Delta(f64(2.0)))
    pyro.sample("y", dist.Normal(a * pyro.sample("mu", normal()), f64(1.0)), obs=f64(4.0))


@pytest.mark.parametrize(
    ("program", "site"),
    [(_mixture, "component"), (_counts, "animals"), (_category, "category"), (_point, "point")],
)
def test_sites_without_a_density_are_refused_by_name(program: Any, site: str) -> None:
    with pytest.raises(pmx.UnsupportedError, match=rf"site '{site}' .*has no density over real numbers"):
        log_joint(program, ())


def test_a_mixture_summed_out_can_be_sampled() -> None:
    """What the message recommends."""

    def program() -> None:
        p = pyro.sample("p", dist.Beta(f64(2.0), f64(1.0)))
        parts = dist.Normal(f64([0.0, 2.0]), f64(1.0))
        with pyro.plate("rows", 6):
            pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.stack([1 - p, p])), parts), obs=f64(Y))

    expected = stats.beta.logpdf(0.3, 2, 1) + np.log(0.7 * stats.norm.pdf(Y) + 0.3 * stats.norm.pdf(Y, 2)).sum()
    check(program, {"p": 0.3}, expected, np.log(0.3 * 0.7))


def test_sites_that_come_and_go_are_refused() -> None:
    def program() -> None:
        a = pyro.sample("a", normal())
        b = pyro.sample("b", normal()) if bool(a > 0.4) else f64(0.0)
        pyro.sample("y", dist.Normal(a + b, f64(1.0)), obs=f64(0.5))

    with pytest.raises(pmx.UnsupportedError, match="sites of the program are not the same in every run"):
        log_joint(program, ())


def test_a_program_without_data_is_refused() -> None:
    with pytest.raises(pmx.DataError, match="observes nothing"):
        log_joint(lambda: pyro.sample("a", normal()), ())


def test_a_subsampled_plate_is_refused() -> None:
    """One random subset, fixed by the trace, would pass for the data."""

    def program() -> None:
        mu = pyro.sample("mu", normal())
        with pyro.plate("rows", 6, subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mu, f64(1.0)), obs=f64(Y)[index])

    with pytest.raises(pmx.UnsupportedError, match=r"plate 'rows' takes 2 of 6"):
        log_joint(program, ())


@pytest.mark.parametrize("product", [lambda x, b: x @ b, lambda x, b: torch.nn.functional.linear(x, b)])
def test_data_of_another_precision_are_refused_with_a_remedy(product: Any) -> None:
    def program(x: torch.Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(product(x, b), 1.0).to_event(1), obs=torch.zeros(3))

    with pytest.raises(pmx.DataTypeError, match=r"mixes float32 and float64.*x\.double\(\)"):
        log_joint(program, (torch.ones(3, 2),))


def test_other_errors_of_a_program_are_its_own() -> None:
    def program() -> None:
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="^no such thing$"):
        log_joint(program, ())


def test_the_process_stays_as_it_was() -> None:
    line = Line(2)
    state = torch.random.get_rng_state()
    with pyro.get_param_store().scope():
        pyro.param("kept", torch.ones(1))
        potential = log_joint(line, ({"x": f64(np.ones((6, 2))), "y": f64(Y)},))
        potential.value_and_gradient(mode="traced", evaluations=1)(potential.example)
        assert list(pyro.get_param_store().keys()) == ["kept"]
    assert torch.equal(torch.random.get_rng_state(), state)
