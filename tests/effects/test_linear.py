"""Linear effects."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyromix import ConfigError, DataError, DataTypeError, LinearEffect
from pyromix.sites import Hyper, annotation

X = torch.tensor([[1.0, 2.0], [1.0, -1.0], [1.0, 0.5]], dtype=torch.float64)


def test_contribution_and_site() -> None:
    beta = torch.tensor([10.0, 2.0], dtype=torch.float64)
    with poutine.trace() as tracer, poutine.condition(data={"beta": beta}):
        rows = LinearEffect("beta", labels=["Intercept", "x"])(X)
    assert rows.tolist() == [14.0, 8.0, 11.0]
    site = tracer.trace.nodes["beta"]
    role = annotation(site)
    assert isinstance(role, Hyper) and role.labels == ("Intercept", "x") and torch.equal(role.design, X)
    expected = dist.Normal(0.0, torch.tensor(1e3).double()).log_prob(beta).sum()
    assert torch.allclose(site["fn"].log_prob(beta), expected)


@pytest.mark.parametrize(
    "prior", [dist.Normal(0.0, 2.0), dist.Normal(torch.zeros(2), 2.0), dist.StudentT(4.0, 0.0, 1.0)]
)
def test_priors(prior: dist.Distribution) -> None:
    with poutine.trace() as tracer:
        LinearEffect("beta", prior)(X)
    site = tracer.trace.nodes["beta"]
    assert site["value"].shape == (2,) and site["value"].dtype == torch.float64 and site["fn"].event_shape == (2,)


def test_numbers_fix_the_coefficients() -> None:
    with poutine.trace() as tracer:
        rows = LinearEffect("beta", [1.0, -1.0])(X)
    assert rows.tolist() == [-1.0, 2.0, 0.5]
    assert annotation(tracer.trace.nodes["beta"]) is None


def test_no_columns() -> None:
    assert torch.equal(LinearEffect("beta")(torch.zeros(3, 0)), torch.zeros(3, dtype=torch.float64))


BAD = [
    (lambda: LinearEffect(""), ConfigError, "the name of its site must be a string, e.g. 'beta'"),
    (
        lambda: LinearEffect("beta")(X[:, 0]),
        DataError,
        r"LinearEffect\('beta'\): x has shape \(3,\), expected \(n, p\)",
    ),
    (lambda: LinearEffect("beta")(X.numpy()), DataTypeError, r"LinearEffect\('beta'\): x is a ndarray"),
    (lambda: LinearEffect("beta", labels=["a"])(X), ConfigError, "1 labels for 2 columns; name every column"),
    (
        lambda: LinearEffect("beta", dist.Normal(torch.zeros(3), 1.0))(X),
        ConfigError,
        r"LinearEffect\('beta', prior=\.\.\.\): its prior has shape \(3,\), expected a scalar prior or shape \(2,\)",
    ),
    (lambda: LinearEffect("beta", "flat")(X), ConfigError, r"got 'flat'; pass a number \(fixed\), a Pyro distribution"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
