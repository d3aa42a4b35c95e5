"""Levels that are pairs: one covariance of the first halves times one of the second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pyromix.covariances.base import Coords, Covariance
from pyromix.covariances.between import BetweenLevels, cholesky, semidefinite_root
from pyromix.errors import ConfigError, StructureError
from pyromix.linalg.operators import AbstractOperator, RootOperator
from pyromix.parameters import Argument, Parameter, encode

ONE = ("Intercept",)  # the parts see levels alone


class Kronecker(BetweenLevels):
    r"""Levels (a, b) correlated as a is and as b is: space and time, trait and descent, line and year.

    .. math:: cov(u_{ab}, u_{a'b'}) = A_{aa'} B_{bb'} T, \qquad \Sigma = (A \otimes B)_{observed} \otimes T, \quad
        T = diag(sd^2)

    A and B are structures of unit scale: their own `sd` is 1 and no parameter, so there is one variance, sommer's
    convention (``vsm(ar1m(row), ar1m(col))``). Their other hyper-parameters are named ``first.rho``, ``second.rho``,
    priors and fixed numbers included. Pairs that are not among the levels are left out, which is the covariance of
    those that are, not an approximation. For complete grids in order of either half, the root is the product of the
    roots of A and B; else a dense Cholesky factor is taken of all pairs.

    A structure of independent levels is the identity: ``Kronecker(Kinship(K), IID())`` gives every b a copy of the
    relatives, independent of the others. For freely correlated traits make them terms of a level,
    ``Kinship(K, terms=Unstructured())``.

    Parameters
    ----------
    first, second
        A and B, without SDs; they place their levels by the halves of the labels.
    sd
        Standard deviations, >= 0, (terms,) or one number for all: numbers fix them, a distribution is their prior; by
        default HalfNormal(scale 10), or scaled to the data by `pyromix.model`.
    terms
        Structure of the terms of a level where they are correlated: ``Unstructured()``.

    Raises
    ------
    ConfigError
        A part that is no structure, or has SDs of its own; coordinates beside the labels.
    StructureError
        Where the effect is used: a level that is no pair.
    NumericalError
        The covariance of an incomplete grid is singular to working precision.
    """

    def __init__(
        self, first: Covariance, second: Covariance, sd: Argument = None, *, terms: Covariance | None = None
    ) -> None:
        for name, part in (("first", first), ("second", second)):
            if not isinstance(part, Covariance):
                raise ConfigError(f"Kronecker({name}={part!r}): pass a structure, e.g. AR1().")
            if getattr(part, "approximation", None) is not None:
                raise ConfigError(f"Kronecker({name}={part!r}): its parts are exact; leave the approximation out.")
            if getattr(part, "sd", None) is not None:
                raise ConfigError(
                    f"Kronecker({name}={part!r}): the product has one variance; pass the SD to Kronecker(sd=...)."
                )
        self.first, self.second = first, second
        self._set_terms(sd, terms)

    def parameters(self, coords: Coords) -> tuple[Parameter, ...]:
        own = list(self._term_parameters(coords.terms))
        for name, part, halves in self._parts(coords):
            own += [replace(p, name=f"{name}.{p.name}") for p in part.parameters(halves) if p.name != "sd"]
        return tuple(own)

    def operator(self, theta: Mapping[str, torch.Tensor], coords: Coords) -> RootOperator:
        tril = self._tril(theta, coords)
        (first, second), free = self._halves(coords), any("." in name for name in theta)
        a, b = (_root(self._part(name, part, theta, halves)) for name, part, halves in self._parts(coords))
        levels = list(coords.levels)
        if levels == [(x, y) for x in first for y in second]:
            return RootOperator(torch.kron(a.contiguous(), b.contiguous()), tril)
        if levels == [(x, y) for y in second for x in first]:
            return RootOperator(torch.kron(b.contiguous(), a.contiguous()), tril)
        at, bt = ({x: i for i, x in enumerate(half)} for half in (first, second))
        rows = a[[at[x] for x, _ in levels]], b[[bt[y] for _, y in levels]]
        covariance = (rows[0] @ rows[0].mT) * (rows[1] @ rows[1].mT)
        # without hyper-parameters it may be singular, as a relationship matrix may
        return RootOperator(cholesky(covariance, "Kronecker") if free else semidefinite_root(covariance), tril)

    def describe(self, theta: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = super().describe(theta)
        for name, part in (("first", self.first), ("second", self.second)):
            own = {key.removeprefix(f"{name}."): value for key, value in theta.items() if key.startswith(f"{name}.")}
            if own:
                found |= {f"{name}.{key}": value for key, value in part.describe(own).items()}
        return found

    def config(self) -> dict[str, Any]:
        terms = None if self.terms is None else self.terms.config()
        sd = encode(self.sd, "Kronecker(sd=...)")
        parts = {"first": self.first.config(), "second": self.second.config()}
        return {"class": "Kronecker", **parts, "sd": sd, "terms": terms}

    # -- the parts ---------------------------------------------------------------------------------------------------
    def _halves(self, coords: Coords) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Labels of either half, in order of appearance."""
        if coords.values is not None:
            raise ConfigError("Kronecker: it takes no coords; the halves of the labels place the levels.")
        odd = [level for level in coords.levels if not isinstance(level, tuple) or len(level) != 2]
        if odd:
            raise StructureError(f"Kronecker: level {odd[0]!r} is no pair; its levels are tuples (a, b).")
        return tuple(dict.fromkeys(a for a, _ in coords.levels)), tuple(dict.fromkeys(b for _, b in coords.levels))

    def _parts(self, coords: Coords) -> tuple[tuple[str, Covariance, Coords], ...]:
        first, second = self._halves(coords)
        seen = coords.levels[: coords.known]
        known = (len({a for a, _ in seen}), len({b for _, b in seen}))
        return (
            ("first", self.first, Coords(first, ONE, known=known[0])),
            ("second", self.second, Coords(second, ONE, known=known[1])),
        )

    def _part(self, name: str, part: Covariance, theta: Mapping[str, torch.Tensor], halves: Coords) -> AbstractOperator:
        """A part at unit scale."""
        dtype = next(iter(theta.values())).dtype
        values = {}
        for p in part.parameters(halves):
            values[p.name] = torch.ones(p.shape, dtype=dtype) if p.name == "sd" else theta[f"{name}.{p.name}"]
        return part.operator(values, halves)


def _root(operator: AbstractOperator) -> torch.Tensor:
    """Lower-triangular root of the covariance of levels with one term, (levels, levels)."""
    parts = operator.separable()
    scale = parts.tril[0, 0] if len(parts.tril) == 1 else parts.tril.new_ones(())
    if parts.root is not None:
        return scale * parts.root
    if parts.precision is None:
        return scale * torch.eye(operator.shape[0], dtype=parts.tril.dtype)
    # P = U U^T with U upper triangular, from the factor of P in reverse order, has P^-1 = U^-T U^-1
    found, failure = torch.linalg.cholesky_ex(parts.precision.dense().flip(0, 1))
    # singular to rounding, as at a correlation of one: NaN, so that a search steps back from there
    upper = torch.where(failure == 0, found, torch.nan).flip(0, 1)
    eye = torch.eye(len(upper), dtype=upper.dtype)
    return scale * torch.linalg.solve_triangular(upper, eye, upper=True).mT
