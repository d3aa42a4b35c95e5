"""The observation statement."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyromix import Binomial, ConfigError, DataError, DataTypeError, Gaussian, Poisson, observe
from pyromix.sites import Data, Hyper, annotation

ETA = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
Y = torch.tensor([0.0, 1.0, 3.0, 5.0], dtype=torch.float64)


def _site(*args, **kwargs):
    with poutine.trace() as tracer:
        observe("y", *args, **kwargs)
    tracer.trace.compute_log_prob()
    return tracer.trace.nodes["y"]


def test_poisson_equals_scipy() -> None:
    offset = torch.tensor([0.1, 0.2, 0.3, 0.4])
    site = _site(Poisson(), ETA, Y, offset=offset)
    expected = stats.poisson.logpmf(Y.numpy(), np.exp((ETA + offset.double()).numpy()))
    assert np.allclose(site["log_prob"].numpy(), expected, rtol=1e-12)
    assert torch.allclose(annotation(site).eta, ETA + offset.double())


def test_integer_responses_lose_nothing() -> None:
    counts = torch.tensor([0, 1, 3, 100_000_001])
    site = _site(Poisson(), ETA + 18.0, counts)
    expected = stats.poisson.logpmf(counts.numpy(), np.exp((ETA + 18.0).numpy()))
    assert site["log_prob"].dtype == torch.float64
    assert np.allclose(site["log_prob"].numpy(), expected, rtol=1e-8)


def test_binomial_trials_equal_scipy() -> None:
    trials = torch.tensor([4, 4, 9, 5])
    site = _site(Binomial("probit"), ETA, Y, trials=trials)
    expected = stats.binom.logpmf(Y.numpy(), trials.numpy(), stats.norm.cdf(ETA.numpy()))
    assert np.allclose(site["log_prob"].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("sigma", [2, 2.0, torch.tensor(2.0), torch.full((4,), 2.0, dtype=torch.float64)])
def test_dispersion_given(sigma) -> None:
    site = _site(Gaussian(), ETA, Y, sigma=sigma)
    assert np.allclose(site["log_prob"].numpy(), stats.norm.logpdf(Y.numpy(), ETA.numpy(), 2.0), rtol=1e-12)


def test_dispersion_sampled_or_fixed() -> None:
    with poutine.trace() as tracer:
        observe("y", Gaussian(sigma=dist.HalfNormal(1.0)), ETA, Y)
        observe("z", Gaussian(sigma=3.0), ETA, Y)
    assert isinstance(annotation(tracer.trace.nodes["y.sigma"]), Hyper)
    assert tracer.trace.nodes["y.sigma"]["value"].dtype == torch.float64
    assert tracer.trace.nodes["z.sigma"]["is_observed"] and float(tracer.trace.nodes["z.sigma"]["value"]) == 3.0


def test_weight_two_is_two_rows() -> None:
    once = _site(Poisson(), ETA, Y)["log_prob"]
    weighted = _site(Poisson(), ETA, Y, weights=torch.tensor([2.0, 0.0, 1.0, 0.5]))
    assert torch.allclose(weighted["log_prob_sum"], 2 * once[0] + once[2] + 0.5 * once[3])


def test_masked_rows_may_hold_anything() -> None:
    once = _site(Poisson(), ETA, Y)["log_prob"]
    y = Y.clone()
    y[1] = 999.0
    masked = _site(Poisson(), ETA, y, mask=torch.tensor([True, False, True, True]))
    assert torch.allclose(masked["log_prob_sum"], once[0] + once[2] + once[3])


def test_the_role_carries_what_was_given() -> None:
    mask = torch.tensor([True, False, True, True])
    family, weights = Binomial(), torch.tensor([2.0, 1.0, 1.0, 1.0])
    role = annotation(_site(family, ETA, Y, trials=torch.full((4,), 5), weights=weights, mask=mask))
    assert isinstance(role, Data) and role.family is family and torch.equal(role.obs, Y)
    assert role.trials.dtype == role.weights.dtype == torch.float64 and torch.equal(role.mask, mask)
    assert dict(role.dispersion) == {}


def test_two_responses_in_one_program() -> None:
    with poutine.trace() as tracer:
        observe("y", Poisson(), ETA, Y)
        observe("z", Gaussian(), ETA, Y)
    assert {"y", "z", "z.sigma"} <= set(tracer.trace.nodes)


BAD = [
    (lambda: observe("y", Poisson, ETA, Y), ConfigError, r"observe\('y'\): family=.* is no family; pass an instance"),
    (
        lambda: observe("y", Poisson(), ETA[:, None], Y),
        DataError,
        r"eta has shape \(4, 1\), expected \(n,\); end a net",
    ),
    (lambda: observe("y", Poisson(), ETA[0], Y), DataError, r"eta has shape \(\), expected \(n,\)"),
    (
        lambda: observe("y", Poisson(), ETA.numpy(), Y),
        DataTypeError,
        r"observe\('y'\): eta is a ndarray; pass a real ten",
    ),
    (lambda: observe("y", Poisson(), ETA, Y[:, None]), DataError, r"obs has shape \(4, 1\), eta has \(4,\); they must"),
    (lambda: observe("y", Poisson(), ETA, Y[:1]), DataError, r"obs has shape \(1,\), eta has \(4,\)"),
    (lambda: observe("y", Poisson(), ETA, Y.numpy()), DataTypeError, r"observe\('y'\): obs is a ndarray"),
    (lambda: observe("y", Binomial(), ETA, Y, trials=5), DataTypeError, r"observe\('y'\): trials is a int"),
    (lambda: observe("y", Binomial(), ETA, Y, trials=Y[:2]), DataError, r"trials has shape \(2,\)"),
    (lambda: observe("y", Poisson(), ETA, Y, offset=Y[:2]), DataError, r"offset has shape \(2,\)"),
    (lambda: observe("y", Poisson(), ETA, Y, weights=Y[:2]), DataError, r"weights has shape \(2,\)"),
    (lambda: observe("y", Poisson(), ETA, Y, mask=Y[:2] > 0), DataError, r"mask has shape \(2,\)"),
    (lambda: observe("y", Poisson(), ETA, Y, mask=Y), DataTypeError, "mask is of torch.float64, expected torch.bool"),
    (
        lambda: observe("y", Poisson(), ETA, Y, sigma=1.0),
        ConfigError,
        r"Poisson has no parameter 'sigma' \(it has: none\)",
    ),
    (lambda: observe("y", Gaussian(), ETA, Y, scale=1.0), ConfigError, r"no parameter 'scale' \(it has: sigma\)"),
    (
        lambda: observe("y", Gaussian(), ETA, Y, sigma=-1.0),
        ConfigError,
        r"sigma=\.\.\.\): -1\.0 is not allowed; it must",
    ),
    (lambda: observe("y", Gaussian(), ETA, Y, sigma="a"), ConfigError, r"sigma=\.\.\.\): got 'a'"),
    (
        lambda: observe("y", Gaussian(), ETA, Y, sigma=Y[:2] + 1),
        DataError,
        r"got shape \(2,\), expected a scalar or \(4,",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_running_a_program_leaves_no_trace_of_itself() -> None:
    before = pyro.get_param_store().get_state()["params"]
    observe("y", Gaussian(), ETA, Y)
    assert pyro.get_param_store().get_state()["params"] == before
