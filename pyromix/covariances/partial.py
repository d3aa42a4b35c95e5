r"""Partial autocorrelations: numbers in (-1, 1), free of each other, for every stationary autoregression."""

from __future__ import annotations

import torch


def regressions(partial: torch.Tensor) -> list[torch.Tensor]:
    r"""Coefficients of the best linear predictors from one, two, ... steps back (Durbin and Levinson).

    .. math:: \phi^{(k)}_k = r_k, \qquad \phi^{(k)}_l = \phi^{(k-1)}_l - r_k \phi^{(k-1)}_{k-l}

    Parameters
    ----------
    partial
        :math:`r_1, ..., r_p`, (*batch, p).

    Returns
    -------
    For k = 1 ... p, the coefficients (*batch, k), nearest step first. The last are those of the autoregression.
    """
    out: list[torch.Tensor] = []
    for k in range(partial.shape[-1]):
        r = partial[..., k : k + 1]
        out.append(torch.cat([out[-1] - r * out[-1].flip(-1), r], -1) if out else r)
    return out


def remaining(partial: torch.Tensor) -> torch.Tensor:
    r"""Share of the variance that prediction from 0, 1, ..., p steps back leaves, (*batch, p + 1): prod (1 - r_k^2)."""
    one = torch.ones_like(partial.sum(-1, keepdim=True))
    return torch.cat([one, (1 - partial**2).cumprod(-1)], -1)


def toeplitz_factor(partial: torch.Tensor) -> torch.Tensor:
    """Cholesky factor (*batch, p + 1, p + 1) of the correlation matrix that has these partial autocorrelations."""
    q = partial.shape[-1] + 1
    zeros = partial.new_zeros(*partial.shape[:-1], q)
    rows = [zeros]
    for k, phi in enumerate(regressions(partial), start=1):  # of the matrix that turns effects into innovations
        rows.append(torch.cat([-phi.flip(-1), zeros[..., : q - k]], -1))
    whiten = torch.stack(rows, -2) + torch.eye(q, dtype=partial.dtype)
    scale = torch.diag_embed(remaining(partial).sqrt())
    return torch.linalg.solve_triangular(whiten, scale, upper=False, unitriangular=True)
