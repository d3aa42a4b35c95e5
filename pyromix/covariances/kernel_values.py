r"""Values of GPyTorch's kernels between places, written out in plain tensor operations.

GPyTorch's own evaluation branches on values (``torch.equal``), so that no program over it could be traced, and takes
one set of hyper-parameters at a time. Kernels are known here by the names of their classes, with GPyTorch's formulas:

.. math::
    \text{RBF: } e^{-d^2/2}, \quad \text{RQ: } \Bigl(1 + \frac{d^2}{2\alpha}\Bigr)^{-\alpha}, \quad
    \text{Matern: } e^{-\sqrt{2\nu}\,d}\,\{1;\ 1 + \sqrt3\,d;\ 1 + \sqrt5\,d + \tfrac53 d^2\}
    \text{ for } \nu = \tfrac12, \tfrac32, \tfrac52

with :math:`d^2 = \sum_k (x_k - x'_k)^2 / \ell_k^2`, and

.. math::
    \text{Cosine: } \cos(\pi \|x - x'\| / p), \quad
    \text{Periodic: } \exp\Bigl(-2 \sum_k \frac{\sin^2(\pi (x_k - x'_k) / p_k)}{\ell_k}\Bigr), \quad
    \text{Linear: } \sum_k v_k x_k x'_k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pyromix.covariances.kernel_parameters import inner_dims, seen_dims

SMALLEST = 1e-150  # of a squared distance whose root is taken: below it the root has no slope
MATERN = {0.5: (1.0,), 1.5: (1.0, 1.0), 2.5: (1.0, 1.0, 1 / 3)}  # coefficients of powers of sqrt(2 nu) d


class Pairs:
    """All pairs of places (n, d) and (m, d), which do not depend on hyper-parameters.

    Parameters
    ----------
    values
        Hyper-parameters by path in the kernel, on the natural scale, (*batch, shape).
    """

    def __init__(self, x: torch.Tensor, other: torch.Tensor, values: Mapping[str, torch.Tensor]) -> None:
        self.x, self.other, self.values = x, other, values

    def between(self, kernel: Any, path: str, dims: list[int]) -> torch.Tensor:
        """The kernel's values over these dimensions, (*batch, n, m)."""
        kind = type(kernel).__name__
        if kind == "ScaleKernel":
            inner = self.between(kernel.base_kernel, f"{path}base_kernel.", inner_dims(kernel, dims))
            return self._one(f"{path}raw_outputscale") * inner
        dims = seen_dims(kernel, dims)
        if kind in ("AdditiveKernel", "ProductKernel"):
            parts = [self.between(part, f"{path}kernels.{i}.", dims) for i, part in enumerate(kernel.kernels)]
            total = parts[0]
            for part in parts[1:]:
                total = total + part if kind == "AdditiveKernel" else total * part
            return total
        return self._leaf(kernel, kind, path, dims)

    def _leaf(self, kernel: Any, kind: str, path: str, dims: list[int]) -> torch.Tensor:
        if kind == "LinearKernel":
            weighed = self.x[:, dims] * self._each(kernel, f"{path}raw_variance").unsqueeze(-2)
            return weighed @ self.other[:, dims].mT
        if kind == "CosineKernel":
            return (math.pi * self._square(dims).sqrt() / self._one(f"{path}raw_period_length")).cos()
        lengths = self._each(kernel, f"{path}raw_lengthscale")
        if kind == "PeriodicKernel":
            periods = self._each(kernel, f"{path}raw_period_length")
            return (-2.0 * self._waves(dims, periods, lengths)).exp()
        if kind == "RBFKernel":
            return (-0.5 * self._scaled_square(dims, lengths)).exp()
        if kind == "RQKernel":
            alpha = self._one(f"{path}raw_alpha")
            return (-alpha * (self._scaled_square(dims, lengths) / (2 * alpha)).log1p()).exp()
        steps = math.sqrt(2 * kernel.nu) * self._distance(dims, lengths)
        polynomial = sum(c * steps**k for k, c in enumerate(MATERN[kernel.nu]))
        return polynomial * (-steps).exp()

    # -- distances -----------------------------------------------------------------------------------------------------
    def _gap(self, dim: int) -> torch.Tensor:
        return self.x[:, dim, None] - self.other[None, :, dim]

    def _square(self, dims: list[int]) -> torch.Tensor:
        """Squared distances, (n, m)."""
        return sum((self._gap(dim).square() for dim in dims), torch.zeros(len(self.x), len(self.other)).to(self.x))

    def _scaled_square(self, dims: list[int], lengths: torch.Tensor) -> torch.Tensor:
        """With one length for all dimensions, or one for each; (*batch, n, m)."""
        if lengths.shape[-1] == 1:
            return self._square(dims) / lengths.square()[..., None]
        parts = [self._gap(dim).square() / lengths[..., k, None, None].square() for k, dim in enumerate(dims)]
        return torch.stack(parts).sum(0)

    def _distance(self, dims: list[int], lengths: torch.Tensor) -> torch.Tensor:
        if lengths.shape[-1] == 1:  # the root of a constant, which needs no slope where it is zero
            return self._square(dims).sqrt() / lengths[..., None]
        return self._scaled_square(dims, lengths).clamp(min=SMALLEST).sqrt()

    def _waves(self, dims: list[int], periods: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        parts = []
        for k, dim in enumerate(dims):
            period, length = (v[..., min(k, v.shape[-1] - 1), None, None] for v in (periods, lengths))
            parts.append((math.pi * self._gap(dim) / period).sin().square() / length)
        return torch.stack(parts).sum(0)

    # -- hyper-parameters ----------------------------------------------------------------------------------------------
    def _one(self, path: str) -> torch.Tensor:
        """A single number, (*batch, 1, 1)."""
        return self.values[path][..., None, None]

    def _each(self, kernel: Any, path: str) -> torch.Tensor:
        """One number for all dimensions (*batch, 1), or one for each (*batch, d)."""
        alone = kernel.get_parameter(path.rpartition(".")[2]).numel() == 1  # comes without a dimension
        value = self.values[path]
        return value[..., None] if alone else value


def is_written_out(kernel: Any, library: Any) -> bool:
    """Whether the kernel is, with all its parts, exactly of classes of `library` that are known here."""
    kind = type(kernel).__name__
    if type(kernel) is not getattr(library.kernels, kind, None):
        return False
    if kind in ("AdditiveKernel", "ProductKernel"):
        return all(is_written_out(part, library) for part in kernel.kernels)
    if kind == "ScaleKernel":
        return is_written_out(kernel.base_kernel, library)
    known = ("CosineKernel", "LinearKernel", "PeriodicKernel", "RBFKernel", "RQKernel")
    return kind in known or (kind == "MaternKernel" and kernel.nu in MATERN)
