r"""Gauss-Hermite quadrature of the marginal likelihood, for one grouping factor.

Each group's integral over its q spherical effects is taken on a tensor grid centred at the mode :math:`\hat b` and
scaled by the curvature :math:`A = R R^T` there (Liu and Pierce, 1994; Pinheiro and Bates, 1995):

.. math:: \int g(b)\,db \approx 2^{q/2} |R|^{-1} \sum_m w_m e^{|x_m|^2} g(\hat b + \sqrt2 R^{-T} x_m).

One node is Laplace's approximation. Mode and curvature stay attached to the graph (one Newton step at the mode), so the
gradient is that of the computed value, not only of its limit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pyromix.errors import ConfigError, UnsupportedError
from pyromix.linalg.factor import Factor
from pyromix.linalg.quadrature import gauss_hermite
from pyromix.marginal.base import AbstractMarginal, BoundMarginal, Conditional, blocks_of
from pyromix.marginal.laplace import BoundLaplace
from pyromix.marginal.plan import Plan, data_of
from pyromix.running import Program, Record

MAX_EFFECTS = 3


class GaussHermite(AbstractMarginal):
    """Adaptive Gauss-Hermite quadrature, for any family, one grouping factor and up to three effects a group.

    Parameters
    ----------
    nodes
        Nodes in each dimension; one is Laplace's approximation.
    adaptive
        Centre and scale the nodes at each group's mode. Without, they sit on the prior, which needs many more.

    Raises
    ------
    UnsupportedError
        On `bind`: several grouping factors, more than three effects a group, or a predictor that is not affine.
    """

    def __init__(self, nodes: int = 15, adaptive: bool = True) -> None:
        if isinstance(nodes, bool) or not isinstance(nodes, int) or not 1 <= nodes <= 350:
            raise ConfigError(f"GaussHermite(nodes={nodes!r}): nodes must be an integer from 1 to 350.")
        self.nodes, self.adaptive = nodes, bool(adaptive)

    @property
    def label(self) -> str:
        kind = "adaptive Gauss-Hermite" if self.adaptive else "Gauss-Hermite"
        return f"{kind}, {self.nodes} node{'s' if self.nodes > 1 else ''}"

    def bind(self, program: Program, args: tuple[Any, ...], plan: Plan) -> BoundMarginal:
        terms = plan.layout.terms
        index = [slot.index for term in terms for slot in term.slots]
        names = ", ".join(plan.latents)
        if not terms or any(not np.array_equal(index[0], other) for other in index[1:]):
            raise UnsupportedError(
                f"GaussHermite() integrates group by group and needs one grouping factor; {names or 'no effect'} "
                "was given. Use Laplace(), which takes nested and crossed factors."
            )
        size = sum(term.q for term in terms)
        if size > MAX_EFFECTS:
            raise UnsupportedError(
                f"GaussHermite(): {names} have {size} effects a group, {self.nodes}^{size} nodes; at most "
                f"{MAX_EFFECTS} are supported. Use Laplace()."
            )
        if not plan.affine:
            raise UnsupportedError(
                f"GaussHermite(): the predictor is not affine in {names}; use Laplace(), which takes effects anywhere."
            )
        return BoundQuadrature(plan, self.nodes, self.adaptive)


class BoundQuadrature(BoundMarginal):
    """`GaussHermite` on one program and data set."""

    def __init__(self, plan: Plan, nodes: int, adaptive: bool) -> None:
        self.plan, self.adaptive = plan, adaptive
        self.laplace = BoundLaplace(plan)
        self.groups = plan.layout.terms[0].levels
        self.size = sum(term.q for term in plan.layout.terms)
        self.index = torch.from_numpy(plan.layout.terms[0].slots[0].index)
        x, log_weight = gauss_hermite(nodes, self.size)
        self.x = torch.from_numpy(x)
        self.log_weight = torch.from_numpy(log_weight) + (self.x**2).sum(-1)

    def log_marginal(self, record: Record) -> torch.Tensor:
        role = data_of(record)
        tril = torch.block_diag(*blocks_of(record, self.plan, "GaussHermite()"))
        z = self._design(record) @ tril
        if self.adaptive:
            mode, root = self._mode(record, z, tril)
            back = torch.linalg.solve_triangular(root.mT, torch.eye(self.size, dtype=torch.float64), upper=True)
            nodes = mode[:, None, :] + math.sqrt(2.0) * (self.x @ back.mT)  # (groups, M, q)
            volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            nodes = (math.sqrt(2.0) * self.x).expand(self.groups, -1, -1)
            volume = torch.zeros(self.groups, dtype=torch.float64)
        rows = role.eta[:, None] + (nodes[self.index] * z[:, None, :]).sum(-1)  # (n, M)
        log_prob = self._log_prob(role, rows.T).T
        total = torch.zeros(self.groups, len(self.x), dtype=torch.float64).index_add(0, self.index, log_prob)
        inside = total - 0.5 * (nodes**2).sum(-1) + self.log_weight
        constant = 0.5 * self.size * (math.log(2.0) - math.log(2.0 * math.pi))
        return (torch.logsumexp(inside, dim=1) - volume + constant).sum()

    def conditional(self, record: Record) -> Conditional:
        """Mode and curvature of each group: the Gaussian that the nodes are centred on."""
        return self.laplace.conditional(record)

    def curvature(self, record: Record) -> Factor:
        return self.laplace.curvature(record)

    def forget(self) -> None:
        self.laplace.forget()

    def _design(self, record: Record) -> torch.Tensor:
        columns = []
        for name in self.plan.latents:
            rows = record.latents[name].role.rows
            design = torch.ones(len(self.index), 1, dtype=torch.float64) if rows.design is None else rows.design
            columns.append(design if rows.weight is None else design * rows.weight.reshape(-1, 1))
        return torch.cat(columns, dim=1)

    def _log_prob(self, role: Any, eta: torch.Tensor) -> torch.Tensor:
        """Weighted log density of every row: eta (..., n)."""
        value = role.family.log_prob(
            eta, self.plan.obs, self.plan.trials, prepared=self.plan.prepared, **role.dispersion
        )
        return value if self.plan.row_weight is None else value * self.plan.row_weight

    def _mode(self, record: Record, z: torch.Tensor, tril: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mode (groups, q) and curvature factor R (groups, q, q), attached to the graph."""
        role = data_of(record)
        with torch.no_grad():
            problem, _, _ = self.laplace.problem(record)
            point = self.laplace.mode(problem)
        b = torch.from_numpy(np.concatenate(point.b, axis=1))
        with torch.enable_grad():
            score, weight = self._derivatives(role, role.eta + (b[self.index] * z).sum(-1))
            gradient = self._scatter(score[:, None] * z) - b
            curvature = self._curvature(weight, z).detach()
            mode = b + torch.linalg.solve(curvature, gradient[..., None])[..., 0]
            _, weight = self._derivatives(role, role.eta + (mode[self.index] * z).sum(-1))
            root = torch.linalg.cholesky(self._curvature(weight, z))
        return mode, root

    def _derivatives(self, role: Any, eta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score and observed weight of every row, with their graphs."""
        eta = eta if eta.requires_grad else eta.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(self._log_prob(role, eta).sum(), eta, create_graph=True)
        (curvature,) = torch.autograd.grad(score.sum(), eta, create_graph=True)
        return score, -curvature

    def _curvature(self, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        outer = (weight[:, None] * z)[:, :, None] * z[:, None, :]
        return self._scatter(outer.reshape(len(z), -1)).reshape(self.groups, self.size, self.size) + torch.eye(
            self.size, dtype=torch.float64
        )

    def _scatter(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(self.groups, rows.shape[1], dtype=torch.float64).index_add(0, self.index, rows)
