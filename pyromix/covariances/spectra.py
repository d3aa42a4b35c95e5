r"""Spectral densities of GPyTorch's kernels, which are known here by the names of their classes.

.. math:: k(r) = (2\pi)^{-d} \int S(\omega)\, e^{i \omega^T r}\, d\omega
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pyromix.covariances.kernel_parameters import inner_dims, seen_dims
from pyromix.errors import ConfigError

KNOWN = "RBFKernel, MaternKernel, scaled or not, sums of them over the same dimensions, products over different ones"


class Spectrum:
    """Log spectral densities at hyper-parameter values.

    Parameters
    ----------
    values
        By path in the kernel, (*batch, shape), on the natural scale.
    """

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self.values = values

    def log_density(self, kernel: Any, path: str, omega: torch.Tensor, dims: list[int]) -> torch.Tensor:
        """At angular frequencies omega (m, d): (*batch, m). In logarithms, where products do not underflow."""
        seen = seen_dims(kernel, dims)
        kind = type(kernel).__name__
        if kind == "ScaleKernel":
            scale, inner = self._value(f"{path}raw_outputscale", ()), inner_dims(kernel, dims)
            return scale.log()[..., None] + self.log_density(kernel.base_kernel, f"{path}base_kernel.", omega, inner)
        if kind in ("AdditiveKernel", "ProductKernel"):
            parts = [
                self.log_density(part, f"{path}kernels.{i}.", omega, seen) for i, part in enumerate(kernel.kernels)
            ]
            parts = list(torch.broadcast_tensors(*parts))
            return torch.stack(parts).logsumexp(0) if kind == "AdditiveKernel" else torch.stack(parts).sum(0)
        lengths = self._value(f"{path}raw_lengthscale", (kernel.raw_lengthscale.shape[-1],))
        lengths = lengths.expand(*lengths.shape[:-1], len(seen))
        volume = lengths.log().sum(-1)[..., None]
        squares = (lengths[..., None, :] * omega[:, seen]).square().sum(-1)
        d = len(seen)
        if kind == "RBFKernel":
            return 0.5 * d * math.log(2 * math.pi) + volume - 0.5 * squares
        nu = float(kernel.nu)
        constant = d * math.log(2) + 0.5 * d * math.log(math.pi) + nu * math.log(2 * nu)
        constant += math.lgamma(nu + 0.5 * d) - math.lgamma(nu)
        return constant + volume - (nu + 0.5 * d) * (2 * nu + squares).log()

    def _value(self, path: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A hyper-parameter, whose single entries come without a dimension, in the given shape after the batch."""
        value = self.values[path]
        return value[..., None] if shape == (1,) else value


def check_spectrum(kernel: Any, dims: list[int]) -> None:
    """`ConfigError` where the kernel has no spectral density over the dimensions that is known here."""
    kind, seen = type(kernel).__name__, seen_dims(kernel, dims)
    if kind in ("AdditiveKernel", "ProductKernel"):
        for part in kernel.kernels:
            check_spectrum(part, seen)
        over = [_leaf_dims(part, seen) for part in kernel.kernels]
        apart = sum(map(len, over)) == len(set().union(*over))
        if kind == "ProductKernel" and not apart:
            raise ConfigError(f"HilbertSpace: a product of kernels over the same dimensions; known are {KNOWN}.")
        if kind == "AdditiveKernel" and any(set(part) != set(over[0]) for part in over):
            raise ConfigError(f"HilbertSpace: a sum of kernels over different dimensions; known are {KNOWN}.")
    elif kind == "ScaleKernel":
        check_spectrum(kernel.base_kernel, inner_dims(kernel, dims))
    elif kind not in ("RBFKernel", "MaternKernel"):
        raise ConfigError(f"HilbertSpace: the spectral density of {kind} is not known; known are {KNOWN}.")


def check_dimensions_covered(kernel: Any, dims: list[int]) -> None:
    """`ConfigError` where the kernel does not look at some dimension, along which its spectrum is no density."""
    if set(_leaf_dims(kernel, dims)) != set(dims):
        raise ConfigError("HilbertSpace: the kernel does not use all coordinates of the places; leave the others out.")


def _leaf_dims(kernel: Any, dims: list[int]) -> list[int]:
    """Dimensions that a kernel looks at."""
    seen = seen_dims(kernel, dims)
    if hasattr(kernel, "kernels"):
        return sorted(set().union(*(_leaf_dims(part, seen) for part in kernel.kernels)))
    return _leaf_dims(kernel.base_kernel, inner_dims(kernel, dims)) if hasattr(kernel, "base_kernel") else seen
