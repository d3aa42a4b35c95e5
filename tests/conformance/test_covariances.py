"""Every covariance against its dense twin, and that none is left out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from pyromix.covariances import IID, Coords, Covariance, Diagonal, Unstructured
from pyromix.linalg.operators import BlockOperator
from pyromix.parameters import Parameter
from pyromix.testing import CovarianceSuite, without_suite
from tests.covariances import (
    test_ar1,
    test_arma,
    test_besag,
    test_compound_symmetry,
    test_gp,
    test_kinship,
    test_kronecker,
    test_ou,
    test_random_walk,
    test_spde,
    test_toeplitz,
)

ONE = Coords(("a", "b", "c", "d"), ("Intercept",))
TWO = Coords(("a", "b", "c", "d", "e"), ("Intercept", "x"))
THREE = Coords(("a", "b", "c"), ("Intercept", "x", "z"))


def _double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestIID(CovarianceSuite):
    def make(self) -> IID:
        return IID()

    def coords(self) -> Coords:
        return ONE

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": torch.tensor(0.7, dtype=torch.float64)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        return theta["sd"] ** 2 * torch.eye(len(coords.levels) * len(coords.terms), dtype=torch.float64)


class TestIIDWithTwoTerms(TestIID):
    def coords(self) -> Coords:
        return TWO


class TestDiagonal(CovarianceSuite):
    def make(self) -> Diagonal:
        return Diagonal()

    def coords(self) -> Coords:
        return THREE

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(0.3, 1.1, 2.0)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        return torch.diag(theta["sd"].square().repeat(len(coords.levels)))


class TestUnstructured(CovarianceSuite):
    def make(self) -> Unstructured:
        return Unstructured()

    def coords(self) -> Coords:
        return THREE

    def theta(self) -> dict[str, torch.Tensor]:
        corr = torch.tensor([[1.0, 0.4, -0.3], [0.4, 1.0, 0.1], [-0.3, 0.1, 1.0]], dtype=torch.float64)
        return {"sd": _double(0.5, 1.5, 0.9), "corr_cholesky": torch.linalg.cholesky(corr)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        corr = theta["corr_cholesky"] @ theta["corr_cholesky"].mT
        block = torch.outer(theta["sd"], theta["sd"]) * corr
        return torch.kron(torch.eye(len(coords.levels), dtype=torch.float64), block)


class TestUnstructuredWithTwoTerms(TestUnstructured):
    def coords(self) -> Coords:
        return TWO

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(2.0, 0.1), "corr_cholesky": torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=torch.float64)}


class TestUnstructuredWithOneTerm(CovarianceSuite):
    def make(self) -> Unstructured:
        return Unstructured()

    def coords(self) -> Coords:
        return ONE

    def theta(self) -> dict[str, torch.Tensor]:
        return {"sd": _double(1.3)}

    def dense(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> torch.Tensor:
        return theta["sd"] ** 2 * torch.eye(len(coords.levels), dtype=torch.float64)


SUITES = (
    TestIID,
    TestDiagonal,
    TestUnstructured,
    test_ar1.TestAR1,
    test_arma.TestARMA,
    test_random_walk.TestRandomWalk,
    test_toeplitz.TestToeplitz,
    test_compound_symmetry.TestCompoundSymmetry,
    test_ou.TestOU,
    test_kinship.TestKinship,
    test_gp.TestGP,
    test_spde.TestSPDE,
    test_besag.TestBesag,
    test_besag.TestBYM2,
    test_kronecker.TestKronecker,
)


def test_every_covariance_has_a_suite() -> None:
    assert without_suite(Covariance, SUITES, "pyromix.covariances") == []


def test_a_covariance_without_a_suite_is_found() -> None:
    rest = [suite for suite in SUITES if suite is not TestUnstructured]
    assert without_suite(Covariance, rest, "pyromix.covariances") == ["Unstructured"]


class _Broken(IID):
    """A structure with one mistake, chosen by name: the suite must see it."""

    def __init__(self, mistake: str) -> None:
        self.mistake = mistake

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        self.sd = None
        return super().parameters(coords)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> BlockOperator:
        return _BrokenOperator(theta["sd"] * torch.eye(len(coords.terms), dtype=torch.float64), self.mistake, coords)


class _BrokenOperator(BlockOperator):
    def __init__(self, tril: torch.Tensor, mistake: str, coords: Coords) -> None:
        super().__init__(tril.detach() if mistake == "gradient" else tril, len(coords.levels))
        self.mistake = mistake

    def logdet_factor(self) -> torch.Tensor:
        value = super().logdet_factor()
        return value / self.shape[0] if self.mistake == "logdet" else value

    def factor(self, b: torch.Tensor) -> torch.Tensor:
        value = super().factor(b)
        if self.mistake == "scale":
            return 1.05 * value
        return value.float().double() if self.mistake == "precision" else value

    def solve_factor(self, u: torch.Tensor) -> torch.Tensor:
        value = super().solve_factor(u)
        return value.flip(-2) * 2 if self.mistake == "solve" else value

    def log_prob(self, u: torch.Tensor) -> torch.Tensor:
        value = super().log_prob(u)
        return torch.nan_to_num(value, neginf=0.0) if self.mistake == "limit" else value


CAUGHT = [
    ("logdet", "test_logdet_equals_that_of_the_twin"),
    ("logdet", "test_log_prob_equals_that_of_the_twin"),
    ("scale", "test_dense_equals_its_twin"),
    ("scale", "test_solve_factor_inverts_factor"),
    ("scale", "test_draws_have_the_covariance"),
    ("precision", "test_factor_is_a_square_root"),
    ("solve", "test_gradient_in_u_is_minus_precision_times_u"),
    ("gradient", "test_gradient_in_theta_by_differences"),
    ("limit", "test_zero_scale_has_no_density_and_no_nan"),
    ("logdet", "test_nothing_is_kept_between_uses"),
]


@pytest.mark.parametrize(("mistake", "check"), CAUGHT)
def test_the_suite_catches_a_mistake(mistake: str, check: str) -> None:
    class Suite(TestIID):
        def make(self) -> IID:
            return _Broken(mistake)

    with pytest.raises((AssertionError, RuntimeError)):
        getattr(Suite(), check)()
