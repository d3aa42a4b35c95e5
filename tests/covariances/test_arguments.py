"""Arguments of covariances: numbers, priors, what is refused and where."""

from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyromix.covariances import IID, Coords, Covariance, Diagonal, Unstructured, from_config, named
from pyromix.errors import ConfigError
from pyromix.families import Gaussian
from pyromix.parameters import parameter

TWO = Coords(("a", "b", "c"), ("Intercept", "x"))


def _tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


BAD = [
    (lambda: IID(sd=-1.0), r"IID\(sd=\.\.\.\): -1\.0 is not allowed; it must be zero or positive"),
    (lambda: IID(sd=float("nan")), r"IID\(sd=\.\.\.\): nan is not allowed"),
    (lambda: IID(sd=float("inf")), r"IID\(sd=\.\.\.\): inf is not allowed"),
    (lambda: IID(sd=[1.0, 2.0]), r"IID\(sd=\.\.\.\): got shape \(2,\), expected a scalar"),
    (lambda: IID(sd="big"), r"IID\(sd=\.\.\.\): got 'big'; pass a number \(fixed\), a Pyro distribution"),
    (lambda: IID(sd=True), r"IID\(sd=\.\.\.\): got True; pass a number"),
    (lambda: IID(sd=dist.Normal(0.0, 1.0)), r"its prior Normal reaches below zero, but it must be zero or positive"),
    (lambda: IID(sd=dist.Uniform(-0.1, 1.0)), r"its prior Uniform reaches below zero"),
    (lambda: IID(sd=dist.HalfNormal(_tensor(1, 2))), r"its prior has shape \(2,\), expected a scalar prior"),
    (lambda: Diagonal(sd=[1.0, -2.0]), r"Diagonal\(sd=\.\.\.\): \[1\.0, -2\.0\] is not allowed"),
    (lambda: Diagonal(sd=dist.Normal(_tensor(0, 0), 1.0)), r"its prior Normal reaches below zero"),
    (lambda: Unstructured(sd=-1), r"Unstructured\(sd=\.\.\.\): -1 is not allowed"),
    (lambda: Unstructured(corr=1.5), r"1\.5 is not a positive definite correlation matrix of 2 terms \(smallest"),
    (lambda: Unstructured(corr=[[1, 0.5], [0.1, 1]]), r"not a positive definite .* largest asymmetry 0\.4"),
    (lambda: Unstructured(corr=[[2, 0.5], [0.5, 2]]), r"a 2 x 2 correlation matrix \(ones on its diagonal\)"),
    (lambda: Unstructured(corr=[[1, 0.5]]), r"got \[\[1, 0\.5\]\], shape \(1, 2\)"),
    (lambda: Unstructured(corr="strong"), r"Unstructured\(corr=\.\.\.\): got 'strong'"),
    (lambda: Unstructured(corr=dist.Normal(0.0, 1.0)), r"its prior has shape \(\), expected \(2, 2\); use LKJCholesky"),
    (
        lambda: Unstructured(corr=dist.Normal(torch.zeros(2, 2), 1.0).to_event(2)),
        r"its prior Independent is not one of correlation matrices; use LKJCholesky\(2, eta\)",
    ),
    (lambda: Gaussian(sigma=0.0), r"Gaussian\(sigma=\.\.\.\): 0\.0 is not allowed; it must be positive"),
    (lambda: Gaussian(sigma=dist.Cauchy(0.0, 1.0)), r"Gaussian\(sigma=\.\.\.\): its prior Cauchy reaches below zero"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_refused_where_it_is_written(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


LATE = [
    (Diagonal(sd=[1.0, 2.0, 3.0]), r"Diagonal\(sd=\.\.\.\): got shape \(3,\), expected a scalar or shape \(2,\)"),
    (
        Diagonal(sd=dist.HalfNormal(_tensor(1, 2, 3))),
        r"its prior has shape \(3,\), expected a scalar prior or shape \(2,",
    ),
    (Unstructured(corr=torch.eye(3)), r"shape \(3, 3\); pass one correlation, or a 2 x 2 correlation matrix"),
    (
        Unstructured(corr=dist.LKJ(3, 1.0)),
        r"its prior has shape \(3, 3\), expected \(2, 2\); use LKJCholesky\(2, eta\)",
    ),
]


@pytest.mark.parametrize(("covariance", "message"), LATE)
def test_refused_where_the_terms_are_known(covariance: Covariance, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        covariance.parameters(TWO)


@pytest.mark.parametrize(
    ("sd", "expected"), [(0.5, [0.5, 0.5]), ([1, 2], [1.0, 2.0]), (torch.tensor([0.0, 3.0]), [0.0, 3.0])]
)
@pytest.mark.parametrize("cls", [Diagonal, Unstructured])
def test_numbers_fix_the_sds(cls, sd, expected: list[float]) -> None:
    fixed = cls(sd=sd).parameters(TWO)[0].fixed
    assert fixed.tolist() == expected and fixed.dtype == torch.float64


def test_numbers_fix_the_correlations() -> None:
    (_, corr) = Unstructured(corr=-0.6).parameters(TWO)
    assert torch.allclose(corr.fixed, torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64))


PRIORS = [
    dist.HalfNormal(0.5),
    dist.HalfCauchy(2.0),
    dist.Exponential(1.5),
    dist.Gamma(2.0, 3.0),
    dist.InverseGamma(2.0, 3.0),
    dist.LogNormal(0.0, 0.5),
    dist.Uniform(0.0, 5.0),
    dist.Weibull(2.0, 1.5),
    dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()]),
    dist.HalfNormal(torch.tensor([0.5, 2.0])),
    dist.HalfNormal(torch.tensor([0.5, 2.0])).to_event(1),
    dist.HalfNormal(0.5).expand([2]),
]


@pytest.mark.parametrize(
    "prior", PRIORS, ids=lambda p: f"{type(p).__name__}{tuple(p.batch_shape)}{tuple(p.event_shape)}"
)
def test_single_precision_priors_become_double(prior: dist.Distribution) -> None:
    (sd,) = Diagonal(sd=prior).parameters(TWO)
    assert sd.prior.event_shape == (2,) and sd.prior.batch_shape == ()
    assert sd.prior.sample().dtype == torch.float64
    point = _tensor(0.4, 1.2)
    single = prior.log_prob(point.float()).sum()
    assert sd.prior.log_prob(point).dtype == torch.float64
    assert float(sd.prior.log_prob(point)) == pytest.approx(float(single), rel=1e-5)


@pytest.mark.parametrize("prior", [dist.LKJCholesky(2, 3.0), dist.LKJ(2, 3.0), dist.LKJCholesky(2, torch.tensor(3.0))])
def test_single_precision_correlation_priors_become_double(prior: dist.Distribution) -> None:
    _, corr = Unstructured(corr=prior).parameters(TWO)
    factor = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    expected = dist.LKJCholesky(2, torch.tensor(3.0, dtype=torch.float64)).log_prob(factor)
    assert isinstance(corr.prior, dist.LKJCholesky) and corr.prior.sample().dtype == torch.float64
    assert torch.allclose(corr.prior.log_prob(factor), expected)


class _Odd(dist.TorchDistribution):
    """A user's own prior, which only it knows how to build."""

    arg_constraints: dict = {}
    support = constraints.positive

    def __init__(self, value: torch.Tensor, extra: str) -> None:
        self.value, self.extra = value, extra
        super().__init__(validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        return self.value


def test_a_prior_that_cannot_be_rebuilt_must_be_double_already() -> None:
    double = _Odd(torch.tensor(1.0, dtype=torch.float64), "kept")
    assert IID(sd=double).parameters(TWO)[0].prior is double
    with pytest.raises(
        ConfigError, match=r"IID\(sd=\.\.\.\): its prior _Odd draws torch.float32, expected torch.float64"
    ):
        IID(sd=_Odd(torch.tensor(1.0), "kept"))


def test_an_unvalidated_bad_scale_is_found() -> None:
    with pytest.raises(ConfigError, match=r"IID\(sd=\.\.\.\): its prior HalfNormal has an invalid argument.*scale"):
        IID(sd=dist.HalfNormal(-1.0, validate_args=False))


def test_looking_at_a_prior_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    IID(sd=_Odd(torch.tensor(1.0, dtype=torch.float64), "kept"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_knows_its_shape() -> None:
    default = dist.HalfNormal(torch.tensor(1.0, dtype=torch.float64))
    for argument in (None, 2.0, dist.HalfNormal(1.0)):
        assert parameter("sd", argument, constraints.nonnegative, default, (3,)).shape == (3,)


SAVED = [
    IID(),
    IID(sd=2),
    IID(sd=dist.HalfCauchy(2.5)),
    Diagonal(sd=[1.0, 2.0]),
    Diagonal(sd=torch.tensor([1.0, 2.0])),
    Diagonal(sd=dist.HalfNormal(torch.tensor([0.25, 2.0])).to_event(1)),
    Unstructured(sd=dist.Gamma(2.0, 0.5), corr=dist.LKJ(2, 2.0)),
    Unstructured(corr=dist.LKJCholesky(2, 2.0)),
    Unstructured(corr=0.3),
]


@pytest.mark.parametrize("covariance", SAVED, ids=repr)
def test_a_covariance_is_read_back_from_json(covariance: Covariance) -> None:
    text = json.dumps(covariance.config())
    twin = from_config(json.loads(text))
    assert type(twin) is type(covariance) and json.dumps(twin.config()) == text
    theta = {"sd": _tensor(0.5, 1.5), "corr_cholesky": torch.eye(2, dtype=torch.float64)}
    for got, expected in zip(twin.parameters(TWO), covariance.parameters(TWO), strict=True):
        if expected.fixed is not None:
            assert torch.equal(got.fixed, expected.fixed)
        else:
            point = theta[got.name] if got.shape else theta[got.name][0]
            assert torch.equal(got.prior.log_prob(point), expected.prior.log_prob(point))


def test_what_cannot_be_saved_or_read() -> None:
    with pytest.raises(ConfigError, match=r"IID\(sd=\.\.\.\): a prior Weibull cannot be saved; those that can: Beta, "):
        IID(sd=dist.Weibull(1.0, 1.0)).config()
    with pytest.raises(ConfigError, match="unknown covariance 'os'; choose one of IID, Diagonal, Unstructured"):
        from_config({"class": "os"})
    with pytest.raises(ConfigError, match="saved prior 'system' is unknown"):
        from_config({"class": "IID", "sd": {"distribution": "system", "args": {}}})
    with pytest.raises(ConfigError, match="saved covariance IID: unknown argument 'command'"):
        from_config({"class": "IID", "command": "rm"})
    with pytest.raises(ConfigError, match="unknown covariance 'Kron'"):
        named("Kron")


@pytest.mark.parametrize("damage", [{}, {"distribution": "Gamma"}, {"distribution": "Gamma", "args": {"rate": 1.0}}])
def test_a_damaged_prior_is_named(damage: dict) -> None:
    with pytest.raises(ConfigError, match="saved prior"):
        from_config({"class": "IID", "sd": damage})
