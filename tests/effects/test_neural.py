"""Neural effects."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyromix import ConfigError, DataError, DataTypeError, NeuralEffect, NumericalError
from pyromix.sites import Function, Hyper, annotation

X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)


class _Named(torch.nn.Module):
    """Takes named inputs, as networks over data frames do."""

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return 2 * x["a"] + x["b"]


class _Returns(torch.nn.Module):
    """Returns what it is told to."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> object:
        return self.result


def _linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))


def test_output_and_site() -> None:
    module = _linear().double()
    with poutine.trace() as tracer:
        rows = NeuralEffect("f", module)(X)
    assert torch.equal(rows, module(X)) and rows.requires_grad
    site = tracer.trace.nodes["f"]
    role = annotation(site)
    assert isinstance(role, Function) and role.module is module
    tracer.trace.compute_log_prob()
    assert float(site["log_prob_sum"]) == 0.0


def test_named_inputs() -> None:
    rows = NeuralEffect("f", _Named())({"a": X[:, 0], "b": X[:, 1]})
    assert torch.equal(rows, 2 * X[:, 0] + X[:, 1])


def test_a_prior_replaces_the_weights_of_this_run_only() -> None:
    module = _linear().double()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with poutine.trace() as tracer:
        rows = NeuralEffect("f", module, dist.Normal(0.0, 1.0))(X)
    weight, bias = (tracer.trace.nodes[f"f.0.{key}"] for key in ("weight", "bias"))
    assert isinstance(annotation(weight), Hyper) and weight["value"].dtype == torch.float64
    assert weight["fn"].event_shape == (1, 2)
    assert torch.allclose(rows, X @ weight["value"][0] + bias["value"])
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("prior", [None, dist.Normal(0.0, 1.0)])
@pytest.mark.parametrize("x", [X, X.float()], ids=["double", "single"])
def test_single_precision_weights_are_fed_and_read_as_they_are(
    prior: dist.Distribution | None, x: torch.Tensor
) -> None:
    value = NeuralEffect("f", _linear(), prior)(x)
    assert value.dtype == torch.float64
    assert torch.equal(value, value.float().double())  # computed in single precision


def test_a_shape_that_the_module_refuses_is_named() -> None:
    message = r"NeuralEffect\('f'\): Sequential refused an input of shape \(\d+, 1\): mat1 and mat2 shapes"
    with pytest.raises(DataError, match=message):
        NeuralEffect("f", _linear().double())(X[:, :1])


ROWS = torch.zeros(3, dtype=torch.float64)
BAD = [
    (lambda: NeuralEffect("f", len), ConfigError, r"NeuralEffect\('f'\): module=<built-in .* is not a torch.nn.Module"),
    (lambda: NeuralEffect("f", _Named(), 1.0), ConfigError, "prior=1.0 must be a scalar distribution or None"),
    (lambda: NeuralEffect("f", _Named(), dist.Normal(torch.zeros(2), 1)), ConfigError, "must be a scalar distribution"),
    (
        lambda: NeuralEffect("f", _Returns(ROWS))([1.0]),
        DataTypeError,
        "its input must be a tensor or a dict of tensors",
    ),
    (lambda: NeuralEffect("f", _Returns(ROWS))({}), DataTypeError, "its input must be a tensor or a dict of tensors"),
    (
        lambda: NeuralEffect("f", _Returns((ROWS,)))(X),
        DataTypeError,
        "the module returned a tuple, expected one tensor",
    ),
    (
        lambda: NeuralEffect("f", _Returns(ROWS[:, None]))(X),
        DataError,
        r"shape \(3, 1\), expected \(3,\); end it with torch\.nn\.Flatten\(0\), or \.sq",
    ),
    (lambda: NeuralEffect("f", _Returns(ROWS[:2]))(X), DataError, r"returned shape \(2,\), expected \(3,\)"),
    (lambda: NeuralEffect("f", _Returns(ROWS.sum()))(X), DataError, r"returned shape \(\), expected \(3,\)"),
    (
        lambda: NeuralEffect("f", _Returns(torch.tensor([0.0, float("nan"), float("inf")])))(X),
        NumericalError,
        r"NeuralEffect\('f'\): _Returns returned nan at row 1, the first of its kind; check its inputs",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
