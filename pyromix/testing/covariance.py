"""The contract of a covariance structure, as tests against its dense twin."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

from pyromix.covariances import from_config
from pyromix.covariances.base import Coords, Covariance
from pyromix.distributions import StructuredNormal
from pyromix.effects import RandomEffect
from pyromix.families import Gaussian
from pyromix.linalg.operators import AbstractOperator
from pyromix.program import observe
from pyromix.sites import Hyper, Latent, annotation
from pyromix.testing.checks import close, covariance_scores, seeded, z_limit

Theta = dict[str, torch.Tensor]


class CovarianceSuite:
    """Subclass, define `make`, `coords`, `theta` and `dense`; every check then runs.

    A structure without an entry in ``pyromix.covariances`` sets ``shipped = False``.
    """

    shipped = True
    draws = 20_000

    # -- define these ------------------------------------------------------------------------------------------------
    def make(self) -> Covariance:
        """A new instance with nothing fixed."""
        raise AssertionError(f"{type(self).__name__} must define make()")

    def coords(self) -> Coords:
        """Levels, terms and coordinates to check it on; a few of each, so that the dense twin stays small."""
        raise AssertionError(f"{type(self).__name__} must define coords()")

    def theta(self) -> Theta:
        """Float64 values by parameter name, inside the supports and away from their edges."""
        raise AssertionError(f"{type(self).__name__} must define theta()")

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        """The covariance matrix of ``u.reshape(-1)``, written without the structure's own code."""
        raise AssertionError(f"{type(self).__name__} must define dense()")

    # -- define these where they apply -------------------------------------------------------------------------------
    def singular(self) -> Theta | None:
        """Values at which the covariance is zero; ``None`` if there are none. By default every ``sd`` is zero."""
        theta = self.theta()
        return {**theta, "sd": torch.zeros_like(theta["sd"])} if "sd" in theta else None

    def shape(self) -> tuple[int, int]:
        """Shape of the array: levels and terms, or (1, functions * terms) for a structure of functions."""
        return len(self.coords().levels), len(self.coords().terms)

    def permuted(self, coords: Coords, order: list[int]) -> Coords:
        """The same levels in another order, with their coordinates."""
        values = coords.values
        if values is not None:
            values = values[order] if isinstance(values, torch.Tensor) else [values[i] for i in order]
        return Coords(tuple(coords.levels[i] for i in order), coords.terms, values)

    # -- helpers -----------------------------------------------------------------------------------------------------
    def _operator(self, theta: Theta | None = None, coords: Coords | None = None) -> AbstractOperator:
        return self.make().operator(self.theta() if theta is None else theta, coords or self.coords())

    def _u(self, *batch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn((*batch, *self.shape()), dtype=torch.float64, generator=generator)

    def _reference(self, theta: Theta | None = None) -> torch.distributions.MultivariateNormal:
        matrix = self.dense(self.theta() if theta is None else theta, self.coords())
        return torch.distributions.MultivariateNormal(torch.zeros(len(matrix), dtype=torch.float64), matrix)

    def _effect(self, name: str = "g", covariance: Covariance | None = None) -> torch.Tensor:
        coords = self.coords()
        effect = RandomEffect(name, covariance or self.make(), coords.levels, coords.values, terms=coords.terms)
        index = torch.arange(len(coords.levels)).repeat(3)
        design = torch.ones(len(index), len(coords.terms), dtype=torch.float64)
        return effect(index, design)

    # -- the operator against its dense twin -------------------------------------------------------------------------
    def test_shape_is_levels_by_terms(self) -> None:
        assert self._operator().shape == self.shape()

    def test_dense_equals_its_twin(self) -> None:
        close(self._operator().dense(), self.dense(self.theta(), self.coords()))

    def test_dense_is_symmetric_positive_definite(self) -> None:
        matrix = self._operator().dense()
        close(matrix, matrix.T.contiguous(), 0.0, 1e-13)
        assert int(torch.linalg.cholesky_ex(matrix).info) == 0

    def test_factor_is_a_square_root(self) -> None:
        d = self._u().numel()
        eye = torch.eye(d, dtype=torch.float64).reshape(d, *self._u().shape)
        root = self._operator().factor(eye).reshape(d, d).T
        close(root @ root.T, self.dense(self.theta(), self.coords()))

    def test_factor_is_linear(self) -> None:
        operator, a, b = self._operator(), self._u(), self._u(2)[1]
        close(operator.factor(2 * a - 3 * b), 2 * operator.factor(a) - 3 * operator.factor(b))

    def test_solve_factor_inverts_factor(self) -> None:
        operator, u = self._operator(), self._u()
        close(operator.solve_factor(operator.factor(u)), u)
        close(operator.factor(operator.solve_factor(u)), u)

    def test_batches_are_rowwise(self) -> None:
        operator, u = self._operator(), self._u(2, 3)
        for method in (operator.factor, operator.solve_factor, operator.log_prob):
            each = [method(u[i, j]) for i in range(2) for j in range(3)]
            close(method(u), torch.stack(each).reshape(2, 3, *each[0].shape))

    def test_logdet_equals_that_of_the_twin(self) -> None:
        sign, logdet = torch.linalg.slogdet(self.dense(self.theta(), self.coords()))
        assert sign == 1
        close(self._operator().logdet_factor(), 0.5 * logdet)

    def test_log_prob_equals_that_of_the_twin(self) -> None:
        u = self._u(4)
        close(self._operator().log_prob(u), self._reference().log_prob(u.reshape(4, -1)))

    def test_block_describes_independent_levels(self) -> None:
        operator = self._operator()
        if operator.block is None:
            return
        levels = torch.eye(operator.shape[0], dtype=torch.float64)
        close(torch.kron(levels, operator.block @ operator.block.mT), self.dense(self.theta(), self.coords()))
        close(operator.block, operator.block.tril(), 0.0, 0.0)

    # -- gradients ---------------------------------------------------------------------------------------------------
    def test_gradient_in_theta_equals_that_of_the_twin(self) -> None:
        u = self._u()
        gradients = []
        for density in (lambda t: self._operator(t).log_prob(u), lambda t: self._reference(t).log_prob(u.reshape(-1))):
            theta = {name: value.clone().requires_grad_(True) for name, value in self.theta().items()}
            gradients.append(torch.autograd.grad(density(theta), list(theta.values())))
        for got, expected in zip(*gradients, strict=True):
            close(got, self._tangent(expected, got), 1e-7)

    def _tangent(self, expected: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
        # a triangular parameter is read on its triangle only; the twin's matrix product may read all of it
        lower_only = expected.dim() == 2 and bool((got == got.tril()).all())
        return expected.tril() if lower_only else expected

    def test_gradient_in_theta_by_differences(self) -> None:
        names, u = list(self.theta()), self._u()
        values = [value.clone().requires_grad_(True) for value in self.theta().values()]
        assert torch.autograd.gradcheck(
            lambda *t: self._operator(dict(zip(names, t, strict=True))).log_prob(u), values, raise_exception=True
        )

    def test_gradient_in_u_is_minus_precision_times_u(self) -> None:
        u = self._u().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self._operator().log_prob(u), u)
        expected = -torch.linalg.solve(self.dense(self.theta(), self.coords()), u.detach().reshape(-1))
        close(gradient.reshape(-1), expected)

    def test_factor_is_differentiable_in_theta(self) -> None:
        names, noise = list(self.theta()), self._u()
        values = [value.clone().requires_grad_(True) for value in self.theta().values()]
        assert torch.autograd.gradcheck(
            lambda *t: self._operator(dict(zip(names, t, strict=True))).factor(noise), values
        )

    # -- draws -------------------------------------------------------------------------------------------------------
    def test_draws_have_the_covariance(self) -> None:
        """Fixed seed; with another one it fails on correct code with probability 1e-5."""
        with seeded(20240229):
            sample = StructuredNormal(self._operator()).sample((self.draws,)).reshape(self.draws, -1)
        scores = covariance_scores(sample, self.dense(self.theta(), self.coords()))
        assert abs(scores).max() < z_limit(len(scores))

    def test_draws_have_mean_zero(self) -> None:
        """Fixed seed; with another one it fails on correct code with probability 1e-5."""
        with seeded(20240301):
            sample = StructuredNormal(self._operator()).sample((self.draws,)).reshape(self.draws, -1)
        scores = sample.mean(0) / (self.dense(self.theta(), self.coords()).diagonal() / self.draws).sqrt()
        assert scores.abs().max() < z_limit(len(scores))

    # -- levels and limits -------------------------------------------------------------------------------------------
    def test_permuted_levels_permute_the_covariance(self) -> None:
        coords, theta = self.coords(), self.theta()
        order = list(range(len(coords.levels)))[::-1]
        order = order[1:] + order[:1]
        moved = self._operator(theta, self.permuted(coords, order))
        u = self._u()
        of_levels = self.shape()[0] == len(coords.levels)
        close(moved.log_prob(u[order] if of_levels else u), self._operator().log_prob(u))

    def test_zero_scale_draws_zeros(self) -> None:
        theta = self.singular()
        if theta is None:
            return
        operator = self._operator(theta)
        assert torch.equal(operator.factor(self._u()), torch.zeros_like(self._u()))
        assert torch.equal(operator.dense(), torch.zeros_like(operator.dense()))

    def test_zero_scale_has_no_density_and_no_nan(self) -> None:
        theta = self.singular()
        if theta is None:
            return
        operator = self._operator(theta)
        assert operator.logdet_factor() == -math.inf
        for u in (self._u(), torch.zeros_like(self._u())):
            assert operator.log_prob(u) == -math.inf

    def test_zero_scale_has_a_finite_gradient_through_the_factor(self) -> None:
        theta = self.singular()
        if theta is None:
            return
        values = {name: value.clone().requires_grad_(True) for name, value in theta.items()}
        total = self._operator(values).factor(self._u()).square().sum()
        for gradient in torch.autograd.grad(total, list(values.values()), allow_unused=True):
            assert gradient is None or torch.isfinite(gradient).all()

    # -- dtype and state ---------------------------------------------------------------------------------------------
    def test_float64_stays_float64(self) -> None:
        operator, u = self._operator(), self._u()
        assert operator.dtype == torch.float64
        results = (operator.factor(u), operator.solve_factor(u), operator.logdet_factor(), operator.log_prob(u))
        assert {result.dtype for result in (*results, operator.dense())} == {torch.float64}
        assert StructuredNormal(operator).mean.dtype == torch.float64
        with seeded():
            assert StructuredNormal(operator).sample().dtype == torch.float64

    def test_priors_are_float64_and_of_the_right_shape(self) -> None:
        theta = self.theta()
        parameters = self.make().parameters(self.coords())
        assert [p.name for p in parameters] == list(theta)
        for parameter in parameters:
            assert parameter.prior is not None and parameter.fixed is None
            assert parameter.shape == theta[parameter.name].shape
            with seeded():
                assert parameter.prior.sample().dtype == torch.float64

    def test_supports_contain_the_priors_draws_and_theta(self) -> None:
        theta = self.theta()
        for parameter in self.make().parameters(self.coords()):
            assert parameter.support.check(theta[parameter.name]).all()
            with seeded():
                assert parameter.support.check(parameter.prior.sample((100,))).all()
            assert torch.isfinite(parameter.prior.log_prob(theta[parameter.name])).all()

    def test_names_and_shapes_do_not_depend_on_the_call(self) -> None:
        covariance, coords = self.make(), self.coords()
        first, second = ([(p.name, p.shape) for p in covariance.parameters(coords)] for _ in range(2))
        assert first == second

    def test_copies_and_pickles_describe_the_same_covariance(self) -> None:
        covariance, coords, theta = self.make(), self.coords(), self.theta()
        expected = covariance.operator(theta, coords).dense()
        for twin in (copy.deepcopy(covariance), pickle.loads(pickle.dumps(covariance))):
            assert repr(twin) == repr(covariance)
            close(twin.operator(theta, coords).dense(), expected, 0.0, 0.0)

    def test_config_describes_it(self) -> None:
        covariance = self.make()
        config = covariance.config()
        assert config["class"] == type(covariance).__name__
        if self.shipped:
            assert from_config(config).config() == config

    def test_nothing_is_kept_between_uses(self) -> None:
        covariance, coords = self.make(), self.coords()
        before = dict(vars(covariance))
        covariance.parameters(coords)
        covariance.operator(self.theta(), coords)
        covariance.describe(self.theta())
        assert vars(covariance) == before

    # -- inside a program --------------------------------------------------------------------------------------------
    def _trace(self, program: Any) -> Any:
        with seeded():
            return poutine.trace(program).get_trace()

    def test_sites_of_an_effect(self) -> None:
        trace = self._trace(self._effect)
        hypers = [name for name, site in trace.nodes.items() if isinstance(annotation(site), Hyper)]
        latents = [name for name, site in trace.nodes.items() if isinstance(annotation(site), Latent)]
        assert hypers == [f"g.{name}" for name in self.theta()]
        assert latents == ["g"]
        described = {f"g.{name}" for name in self.make().describe(self.theta())}
        assert described == {n for n, site in trace.nodes.items() if site.get("infer", {}).get("_deterministic")}

    def test_effect_has_the_density_of_the_twin(self) -> None:
        values = {f"g.{name}": value for name, value in self.theta().items()}
        u = self._u()
        trace = self._trace(poutine.condition(self._effect, data={**values, "g": u}))
        trace.compute_log_prob()
        close(trace.nodes["g"]["log_prob"], self._reference().log_prob(u.reshape(-1)))

    def test_two_effects_share_an_instance(self) -> None:
        covariance = self.make()

        def program() -> None:
            self._effect("a", covariance)
            self._effect("b", covariance)

        sites = set(self._trace(program).nodes)
        assert {f"{effect}.{name}" for effect in ("a", "b") for name in self.theta()} <= sites

    def test_works_under_pyros_own_initialisation(self) -> None:
        def program() -> None:
            eta = self._effect()
            observe("y", Gaussian(), eta, torch.linspace(-1.0, 1.0, len(eta), dtype=torch.float64))

        with seeded(), pyro.validation_enabled(True), pyro.get_param_store().scope():
            start, potential, _, _ = initialize_model(program)
            assert set(start) == {"g", "y.sigma", *(f"g.{name}" for name in self.theta())}
            point = {name: value.clone().requires_grad_(True) for name, value in start.items()}
            gradients = torch.autograd.grad(potential(point), list(point.values()))
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
