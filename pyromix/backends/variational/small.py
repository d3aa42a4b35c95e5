"""Many small symmetric positive definite matrices at once, differentiable.

LAPACK is called once per matrix, which for 1e5 of them takes longer than everything else; up to order four the
recurrences are written out over all matrices.
"""

from __future__ import annotations

import torch

UNROLLED = 4


def inverse_factor(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse of the Cholesky factor, (*batch, q, q) lower triangular, and log determinant of the matrix, (*batch,)."""
    q = matrix.shape[-1]
    if q == 1:
        root = matrix.sqrt()
        return root.reciprocal(), 2 * root[..., 0, 0].log()
    if q > UNROLLED:
        root = torch.linalg.cholesky(matrix)
        eye = torch.eye(q, dtype=matrix.dtype).expand(matrix.shape)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False)
        return inverse, 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    root = _cholesky(matrix, q)
    inverse = _invert(root, q, torch.zeros_like(matrix[..., 0, 0]))
    logdet = sum((root[k][k].log() for k in range(q)), torch.zeros_like(matrix[..., 0, 0]))
    return torch.stack([torch.stack(row, -1) for row in inverse], -2), 2 * logdet


def _cholesky(matrix: torch.Tensor, q: int) -> list[list[torch.Tensor]]:
    """Entries of the factor, row by row up to the diagonal."""
    root: list[list[torch.Tensor]] = []
    for i in range(q):
        row: list[torch.Tensor] = []
        for j in range(i):
            inner = matrix[..., i, j]
            for k in range(j):
                inner = inner - row[k] * root[j][k]
            row.append(inner / root[j][j])
        rest = matrix[..., i, i]
        for entry in row:
            rest = rest - entry.square()
        row.append(rest.sqrt())
        root.append(row)
    return root


def _invert(root: list[list[torch.Tensor]], q: int, zero: torch.Tensor) -> list[list[torch.Tensor]]:
    """Entries of the factor's inverse, all of them."""
    inverse = [[zero] * q for _ in range(q)]
    for i in range(q):
        inverse[i][i] = root[i][i].reciprocal()
        for j in range(i):
            inner = root[i][j] * inverse[j][j]
            for k in range(j + 1, i):
                inner = inner + root[i][k] * inverse[k][j]
            inverse[i][j] = -inner * inverse[i][i]
    return inverse
