"""Default priors against the documented rules, priors of single entries, the table of priors, draws from priors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.integrate import quad
from scipy.stats import kstest, norm

import pyromix as pmx
from pyromix.errors import ConfigError
from pyromix.model import prior_predictive
from pyromix.priors import readable
from pyromix.results import draws
from pyromix.running import run


def frame(n: int = 60, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    year = 2000 + rng.integers(0, 20, n)
    g = np.arange(n) % 6
    y = 5 + 0.4 * (year - 2010) + rng.normal(size=n) + rng.normal(size=6)[g]
    hit = rng.integers(0, 2, n)
    return pd.DataFrame({"y": y, "year": year, "x": rng.normal(0.5, 3, n), "g": g, "hit": hit, "k": rng.poisson(2, n)})


def sites(model: pmx.Model) -> dict[str, Any]:
    return {
        name: site.fn for name, site in run(model.program, (model.design,), hypers="moderate", seed=0).hypers.items()
    }


# -- defaults ---------------------------------------------------------------------------------------------------------
def test_default_scales_of_a_gaussian_model() -> None:
    """rstanarm's and Bambi's rules; the intercept at zero has the spread that centred columns give it (Bambi)."""
    df = frame()
    model = pmx.model("y ~ year + x + (x | g)", df)
    found = sites(model)
    s_y, s = df["y"].std(), df[["year", "x"]].std().to_numpy()
    beta = found["beta"].base_dist
    assert beta.scale[1:].numpy() == pytest.approx(2.5 * s_y / s)
    assert beta.loc.numpy() == pytest.approx([df["y"].mean(), 0, 0])
    means = df[["year", "x"]].mean().to_numpy()
    assert float(beta.scale[0]) == pytest.approx(np.sqrt((2.5 * s_y) ** 2 + ((2.5 * s_y / s) ** 2 * means**2).sum()))
    rms = np.sqrt((df["x"] ** 2).mean())
    assert found["g.sd"].base_dist.scale.numpy() == pytest.approx([2.5 * s_y, 2.5 * s_y / rms])
    assert float(found["y.sigma"].scale) == pytest.approx(2.5 * s_y)
    assert float(found["g.corr_cholesky"].concentration) == 1


def test_an_intercept_far_from_the_data_is_not_pulled_there() -> None:
    """The least squares intercept of a trend over years, at year 0, lies within its prior."""
    df = frame()
    slope, intercept = np.polyfit(df["year"], df["y"], 1)
    beta = sites(pmx.model("y ~ year + (1 | g)", df))["beta"].base_dist
    assert abs(intercept - df["y"].mean()) > 100 * df["y"].std()
    assert abs(intercept - float(beta.loc[0])) < 2 * float(beta.scale[0])
    priors = {"y.sigma": df["y"].std(), "g.sd": 1.0}
    fit = pmx.model("y ~ year + (1 | g)", df, priors=priors).fit(pmx.MaximumLikelihood(criterion="map"), progress=False)
    assert fit.fixed_effects()["estimate"]["year"] == pytest.approx(slope, rel=0.15)


@pytest.mark.parametrize(("response", "family"), [("hit", pmx.Binomial()), ("k", pmx.Poisson())])
def test_default_scales_of_other_families(response: str, family: Any) -> None:
    df = frame()
    found = sites(pmx.model(f"{response} ~ x + (1 | g)", df, family))
    s = df["x"].std()
    expected = [2.5 * np.sqrt(1 + (df["x"].mean() / s) ** 2), 2.5 / s]
    assert found["beta"].base_dist.scale.numpy() == pytest.approx(expected)
    assert found["beta"].base_dist.loc.tolist() == [0, 0]
    assert float(found["g.sd"].base_dist.scale) == 2.5


def test_default_priors_are_proper() -> None:
    found = sites(pmx.model("y ~ x + (x | g)", frame()))
    for prior, low in ((found["beta"].base_dist, -np.inf), (found["g.sd"].base_dist, 0.0), (found["y.sigma"], 0.0)):
        scale = float(prior.scale.reshape(-1)[0])

        def density(v: float, prior: Any = prior, scale: float = scale) -> float:
            return scale * float(torch.exp(prior.log_prob(torch.tensor(v * scale, dtype=torch.float64)).reshape(-1)[0]))

        start = float(prior.mean.reshape(-1)[0]) / scale if low < 0 else 0.0
        total = quad(density, start if low == 0 else start - 12, start + 12)[0]
        assert total == pytest.approx(1.0, abs=1e-8)
    rho = np.linspace(-0.999, 0.999, 4001)
    factors = torch.zeros(len(rho), 2, 2, dtype=torch.float64)
    factors[:, 0, 0], factors[:, 1, 0] = 1, torch.from_numpy(rho)
    factors[:, 1, 1] = torch.from_numpy(np.sqrt(1 - rho**2))
    # in rho, by the determinant of the map (rho) -> (L_21): one
    density = found["g.corr_cholesky"].log_prob(factors).exp().numpy()
    assert density == pytest.approx(np.full(len(rho), 0.5), rel=1e-9), "uniform on (-1, 1)"


# -- priors of single entries -----------------------------------------------------------------------------------------
def test_single_entries_take_their_own_priors() -> None:
    df = frame()
    asked = {"beta": {"x": dist.Normal(0.3, 0.1)}, "g.sd": {"Intercept": dist.HalfNormal(0.5)}}
    model, plain = pmx.model("y ~ year + x + (x | g)", df, priors=asked), pmx.model("y ~ year + x + (x | g)", df)
    beta, default = sites(model)["beta"].base_dist, sites(plain)["beta"].base_dist
    assert beta.scale.tolist() == pytest.approx([*default.scale.tolist()[:2], 0.1])
    assert beta.loc.tolist() == pytest.approx([*default.loc.tolist()[:2], 0.3])
    sd, rest = sites(model)["g.sd"].base_dist.scale, sites(plain)["g.sd"].base_dist.scale
    assert sd.tolist() == pytest.approx([0.5, float(rest[1])])
    # all entries of another family
    every = {name: dist.StudentT(4.0, 0.0, scale) for name, scale in (("Intercept", 9.0), ("year", 1.0), ("x", 2.0))}
    beta = sites(pmx.model("y ~ year + x + (1 | g)", df, priors={"beta": every}))["beta"].base_dist
    assert isinstance(beta, dist.StudentT) and beta.scale.tolist() == [9, 1, 2] and beta.df.tolist() == [4, 4, 4]
    # those of a structure the user gave are the rest
    given = {"g": pmx.Unstructured(sd=dist.HalfNormal(torch.tensor([3.0, 4.0])))}
    model = pmx.model("y ~ x + (x | g)", df, covariances=given, priors={"g.sd": {"x": dist.HalfNormal(1.0)}})
    assert sites(model)["g.sd"].base_dist.scale.tolist() == [3, 1]


BAD = [
    ({"beta": {"z": dist.Normal(0.0, 1.0)}}, "priors\\['beta'\\]: no entry 'z'; the entries are Intercept, x"),
    ({"beta": {"x": 2.0}}, "priors\\['beta'\\]\\['x'\\] = 2.0: pass a prior of one number"),
    ({"beta": {"x": dist.Normal(torch.zeros(2), 1.0)}}, "pass a prior of one number"),
    ({"beta": {"x": dist.Cauchy(0.0, 1.0)}}, "one family; found Normal for Intercept, Cauchy for x"),
    ({"g.sd": {"x": dist.HalfNormal(1.0)}}, "priors\\['g.sd'\\] = .*no named entries"),
    ({"y.sigma": {"x": dist.HalfNormal(1.0)}}, "pass a number|no named entries"),
]


@pytest.mark.parametrize(("priors", "message"), BAD)
def test_bad_priors_of_entries(priors: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pmx.model("y ~ x + (1 | g)", frame(), priors=priors)


def test_priors_of_some_entries_do_not_excuse_a_design_that_the_data_do_not_identify() -> None:
    df = frame(4).assign(g=0)
    with pytest.raises(pmx.DataError):
        pmx.model("y ~ x + (1 | g)", df, priors={"beta": {"x": dist.Normal(0.0, 1.0)}, "g.sd": 1.0, "y.sigma": 1.0})


# -- the table --------------------------------------------------------------------------------------------------------
def test_the_table_says_what_every_prior_is_and_where_it_came_from() -> None:
    df = frame()
    priors = {"beta": {"x": dist.Normal(0.0, 5.0)}, "y.sigma": 2.0}
    found = pmx.model(
        "y ~ x + (x | g) + (0 + x || k)", df, priors=priors, covariances={"k": pmx.IID(dist.Gamma(2.0, 1.0))}
    )
    table = found.priors().table
    assert list(table.columns) == ["site", "name", "prior", "source", "scale"]
    rows = [tuple(row) for row in table[["site", "name", "source"]].to_numpy()]
    assert rows == [
        ("beta", "Intercept", "default"),
        ("beta", "x", "user"),
        ("g.sd", "Intercept", "default"),
        ("g.sd", "x", "default"),
        ("g.corr", "", "default"),
        ("k.sd", "x", "user"),
        ("y.sigma", "", "fixed"),
    ]
    shown = dict(zip(zip(table["site"], table["name"], strict=True), table["prior"], strict=True))
    assert shown["beta", "x"] == "Normal(0, 5)" and shown["y.sigma", ""] == "2" and shown["k.sd", "x"] == "Gamma(2, 1)"
    s_y, rms = df["y"].std(), np.sqrt((df["x"] ** 2).mean())
    assert shown["g.sd", "x"] == f"HalfNormal({2.5 * s_y / rms:.4g})" and shown["g.corr", ""] == "LKJCholesky(1)"
    assert table["scale"][3] == f"2.5 SD(y) / rms(x) = 2.5 x {s_y:.4g} / {rms:.4g}"
    assert (table.loc[table["source"] != "default", "scale"] == "").all()
    text = repr(found.priors()).splitlines()
    assert text[0].split() == ["site", "name", "prior", "source", "scale"] and "priors={site: prior}" in text[-1]
    assert len({line.index(word) for line, word in zip(text[1:4], ("Intercept", "x ", "Intercept"), strict=True)}) == 1
    assert "<table" in found.priors()._repr_html_()


def test_the_table_of_a_network_says_that_weights_have_no_prior() -> None:
    shown = pmx.model("y ~ x + (1 | g)", frame(), mean=pmx.networks.MLP(hidden=(2,))).priors()
    assert shown.table["name"].tolist()[0] == "Intercept" and "network mean have no prior" in repr(shown)


def test_priors_are_readable() -> None:
    assert readable(dist.HalfNormal(torch.tensor([1.0, 2.0])).to_event(1)) == "HalfNormal([1, 2])"
    assert readable(dist.Normal(torch.zeros(6), torch.arange(6.0) + 1)) == "Normal(0, [1, 2, 3, 4, ...])"
    assert readable(dist.Normal(0.0, 3.0).expand([4]).to_event(1), 2) == "Normal(0, 3)"
    assert readable(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0))) == (
        "MixtureSameFamily"
    )
    assert readable(1 / 3) == "0.3333"


# -- draws from priors ------------------------------------------------------------------------------------------------
def test_prior_draws_have_their_distributions_and_a_fits_names() -> None:
    df = frame()
    priors = {"g.sd": dist.Exponential(2.0), "y.sigma": 0.5, "beta": dist.Normal(1.0, 3.0)}
    model = pmx.model("y ~ x + (1 | g)", df, priors=priors)
    drawn = model.prior_predictive(2000, seed=1)
    fit = model.fit(pmx.MaximumLikelihood(criterion="map"), progress=False)
    for group, of in (("prior", "posterior"), ("prior_predictive", "posterior_predictive")):
        mine, its = drawn[group], fit.idata[of]
        assert {name: a.dims for name, a in mine.items()} == {name: a.dims for name, a in its.items()}
        assert all(
            (mine[dim].to_numpy() == its[dim].to_numpy()).all() for dim in its.dims if dim not in ("chain", "draw")
        )
    beta, sd = drawn.prior["beta"].to_numpy()[0], drawn.prior["g.sd"].to_numpy()[0]
    u, y = drawn.prior["g"].to_numpy()[0, :, :, 0], drawn.prior_predictive["y"].to_numpy()[0]
    x, g = df["x"].to_numpy(), df["g"].to_numpy()
    residual = (y - beta[:, :1] - beta[:, 1:] * x - u[:, g]) / 0.5
    # four tests at 1e-5 each
    for sample, cdf in (
        ((beta[:, 1] - 1) / 3, norm.cdf),
        (sd, lambda v: 1 - np.exp(-2 * v)),
        (u[:, 2] / sd, norm.cdf),
        (residual[:, 7], norm.cdf),
    ):
        assert kstest(sample, cdf).pvalue > 1e-5
    assert "observed_data" in drawn and drawn.prior.attrs["inference"] == "prior"


def test_prior_draws_of_correlated_terms_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: Any) -> None:
        raise AssertionError("draw by draw")

    monkeypatch.setattr(draws, "_one_by_one", slow)
    drawn = pmx.model("y ~ x + (x | g)", frame()).prior_predictive(50)
    assert drawn.prior["g"].shape == (1, 50, 6, 2)


def test_priors_that_depend_on_other_parameters() -> None:
    """A chain of parameters: the second's variance adds that of the first."""

    def program(d: dict) -> None:
        top = pyro.sample("top", dist.Normal(torch.tensor(0.0).double(), 3.0), infer=hyper())
        low = pyro.sample("low", dist.Normal(top, 4.0), infer=hyper())
        pmx.observe("y", pmx.Gaussian(sigma=1.0), low.expand(3), d["y"])

    drawn = prior_predictive(program, {"y": torch.zeros(3, dtype=torch.float64)}, 2000, seed=2)
    # SD of a sample SD is 5 / sqrt(4000)
    assert abs(float(drawn.prior["low"].std()) - 5) < 5 * 5 / 4000**0.5


def hyper() -> dict[str, Any]:
    from torch.distributions import constraints

    from pyromix.sites import Hyper, annotate

    return annotate(Hyper(constraints.real))


def test_programs_of_plain_pyro() -> None:
    def program(d: dict) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, 2.0))
            pyro.sample("y", dist.Normal(theta, d["s"]), obs=d["y"])

    data = {"y": torch.arange(8.0), "s": torch.ones(8)}
    drawn = prior_predictive(program, data, 1000, seed=0)
    assert drawn.prior["theta"].dims == ("chain", "draw", "theta_dim_0")
    assert drawn.prior_predictive["y"].dims == ("chain", "draw", "obs_id")
    total = drawn.prior_predictive["y"].to_numpy()[0, :, 3].std()
    # SD sqrt(25 + 4 + 1), of a sample of 1000
    assert abs(total / 30**0.5 - 1) < 5 / 2000**0.5
    again = prior_predictive(program, data, 1000, seed=0)
    assert (again.prior["theta"].to_numpy() == drawn.prior["theta"].to_numpy()).all()
    # conditioned sites are data, not parameters
    fixed = poutine.condition(program, {"mu": torch.tensor(1.0)})
    assert "mu" not in prior_predictive(fixed, data, 20).prior


def test_counts_that_no_integer_holds_are_infinite() -> None:
    def program(d: dict) -> None:
        pmx.observe("y", pmx.Poisson(), pmx.LinearEffect("beta")(d["x"]), d["y"])

    data = {"x": torch.ones(2, 1, dtype=torch.float64), "y": torch.tensor([1.0, 2.0]).double()}
    drawn = prior_predictive(program, data, 100)
    counts = drawn.prior_predictive["y"].to_numpy()[0]
    large = drawn.prior["beta"].to_numpy()[0, :, 0] > 50
    assert large.any() and np.isinf(counts[large]).all() and (counts >= 0).all()


def test_priors_that_cannot_be_drawn_from() -> None:
    from torch.distributions import constraints

    def program(d: dict) -> None:
        flat = dist.ImproperUniform(constraints.real, (), ())
        level = pyro.sample("level", flat, infer=hyper())
        pmx.observe("y", pmx.Gaussian(sigma=1.0), level.expand(3), d["y"])

    data = {"y": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(ConfigError, match="prior of 'level' .ImproperUniform. cannot be drawn from"):
        prior_predictive(program, data)

    def bare(d: dict) -> None:
        pmx.observe("y", pmx.Gaussian(sigma=1.0), torch.zeros(3, dtype=torch.float64), d["y"])

    with pytest.raises(ConfigError, match="has no parameters"):
        prior_predictive(bare, data)
