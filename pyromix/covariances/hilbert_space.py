r"""Stationary processes over a box by sines.

.. [1] Solin & Saerkkae (2020), Hilbert space methods for reduced-rank Gaussian process regression.
.. [2] Riutort-Mayol, Buerkner, Andersen, Solin & Vehtari (2023), Practical Hilbert space approximate Bayesian Gaussian
   processes for probabilistic programming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from pyromix.covariances.low_rank import Approximation, Process
from pyromix.covariances.sites import Sites
from pyromix.covariances.spectra import Spectrum, check_dimensions_covered, check_spectrum
from pyromix.errors import ConfigError, DataError

MAX_FUNCTIONS = 2000
MAX_DIMENSIONS = 3


class HilbertSpace(Approximation):
    r"""Sines over a box around the places, for stationary kernels in one to three dimensions.

    .. math::
        u(x) \approx \sum_j \sqrt{S(\omega_j)}\, \phi_j(x)\, b_j, \quad
        \phi_j(x) = \prod_d L_d^{-1/2} \sin(\omega_{jd} (x_d - a_d + L_d)), \quad \omega_{jd} = \frac{\pi j_d}{2 L_d}

    over all combinations of :math:`j_d = 1, \dots, m_d`, with S the kernel's spectral density and
    :math:`L_d = boundary \cdot s_d` for places whose range in dimension d is :math:`a_d \pm s_d`. In every dimension it
    is close to the process where the length l is neither too short for the number of functions nor too long for the
    box: for `RBFKernel` where functions >= 1.75 boundary s / l and boundary >= 3.2 l / s, for
    ``MaternKernel(nu=2.5)`` with 2.65 and 4.1 in their places, ``nu=1.5`` with 3.42 and 4.5 ([2]_, section 4; a
    boundary is at least 1.2). An evaluation of a Gaussian likelihood costs the cube of the number of functions,
    whatever the number of rows.

    Parameters
    ----------
    functions
        Sines in every dimension, one number for all or one for each; their product is at most 2,000.
    boundary
        How far the box reaches, in half ranges of the places, likewise; more than 1.

    Raises
    ------
    ConfigError
        Numbers out of range; where the effect is used, more than three dimensions, too many functions, or a kernel
        without a known spectral density: known are RBF and Matern kernels, also scaled, sums of them over the same
        dimensions, products over different ones.
    DataError
        Where new levels are placed: a place outside the box.
    """

    moves = False

    def __init__(self, functions: int | Sequence[int], boundary: float | Sequence[float] = 1.5) -> None:
        self.functions = _numbers(functions, "functions", lambda m: m == int(m) and m >= 2, "whole numbers from 2 on")
        self.boundary = _numbers(boundary, "boundary", lambda c: 1.0 < c < math.inf, "numbers above 1")

    def check(self, kernel: Any, sites: Sites) -> None:
        d = len(sites.dims)
        for name in ("functions", "boundary"):
            given = getattr(self, name)
            if isinstance(given, tuple) and len(given) != d:
                raise ConfigError(f"HilbertSpace({name}={given!r}): the places have {d} dimensions.")
        if d > MAX_DIMENSIONS or self.size(sites) > MAX_FUNCTIONS:
            raise ConfigError(
                f"{self!r} over {d} dimensions has {self.size(sites)} functions; it takes {MAX_DIMENSIONS} dimensions "
                f"and {MAX_FUNCTIONS} functions at most. Use InducingPoints(...), or fewer functions."
            )
        check_spectrum(kernel, sites.dims)
        check_dimensions_covered(kernel, sites.dims)
        flat = (self._half_ranges(sites) == 0).nonzero()
        if len(flat):
            raise ConfigError(
                f"{self!r}: all places have one {sites.names[int(flat[0])]!r}; leave that coordinate out."
            )

    def size(self, sites: Sites) -> int:
        return math.prod(self._per_dimension(sites))

    def at(self, process: Process, sites: Sites, x: torch.Tensor) -> torch.Tensor:
        middle, reach = self._box(sites)
        outside = ((x - middle).abs() >= reach).any(1).nonzero()
        if len(outside):
            place = [round(v, 6) for v in x[int(outside[0])].tolist()]
            box = [f"{float(a - b):.6g} to {float(a + b):.6g}" for a, b in zip(middle, reach, strict=True)]
            raise DataError(
                f"{self!r}: the place {place} is outside the box ({', '.join(box)}), where the sum of sines says "
                "nothing; fit with a larger boundary."
            )
        frequencies = self._frequencies(sites)
        out = torch.ones(len(x), 1, dtype=x.dtype)
        for d, reach_d in enumerate(reach):
            waves = torch.sin((x[:, d, None] - middle[d] + reach_d) * frequencies[d]) / reach_d.sqrt()
            out = (out[:, :, None] * waves[:, None, :]).reshape(len(x), -1)
        return out

    def root(self, process: Process, sites: Sites) -> torch.Tensor:
        grids = torch.meshgrid(*self._frequencies(sites), indexing="ij")
        omega = torch.stack([grid.reshape(-1) for grid in grids], 1)
        log_density = Spectrum(process.values).log_density(process.kernel, "", omega, sites.dims)
        return torch.diag_embed((0.5 * log_density).exp())

    # -- the box -----------------------------------------------------------------------------------------------------
    def _per_dimension(self, sites: Sites) -> tuple[int, ...]:
        return self.functions if isinstance(self.functions, tuple) else (self.functions,) * len(sites.dims)

    def _half_ranges(self, sites: Sites) -> torch.Tensor:
        return 0.5 * (sites.x.amax(0) - sites.x.amin(0))

    def _box(self, sites: Sites) -> tuple[torch.Tensor, torch.Tensor]:
        """Middle and half widths."""
        boundary = torch.tensor(self.boundary, dtype=torch.float64)
        return 0.5 * (sites.x.amax(0) + sites.x.amin(0)), boundary * self._half_ranges(sites)

    def _frequencies(self, sites: Sites) -> list[torch.Tensor]:
        """In every dimension, ascending."""
        _, reach = self._box(sites)
        counts = self._per_dimension(sites)
        return [
            math.pi * torch.arange(1, m + 1, dtype=torch.float64) / (2 * half)
            for m, half in zip(counts, reach, strict=True)
        ]


def _numbers(given: Any, name: str, allowed: Any, what: str) -> Any:
    """One number, or a tuple of one for each dimension."""
    values = given if isinstance(given, (tuple, list)) else [given]
    fine = all(isinstance(v, Real) and not isinstance(v, bool) and allowed(v) for v in values)
    if not values or not fine:
        raise ConfigError(f"HilbertSpace({name}={given!r}): pass {what}, one for all dimensions or one for each.")
    cast = int if name == "functions" else float
    return tuple(map(cast, values)) if isinstance(given, (tuple, list)) else cast(given)
