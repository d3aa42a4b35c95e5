r"""What is left of a factorial after Stirling's formula.

Densities of large counts are small differences of huge terms: :math:`\log y!` at :math:`y = 10^{12}` is known to 0.004
only. Written as a deviance plus Stirling remainders nothing large is left to cancel (Loader 2000, "Fast and accurate
computation of binomial probabilities").
"""

from __future__ import annotations

import math

import torch

_SERIES_FROM = 16.0


def remainder(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\log x! - [(x + 1/2)\log x - x + \tfrac12\log 2\pi]` for counts x >= 1, to 1e-14."""
    small = x.clamp(1.0, _SERIES_FROM)
    direct = torch.lgamma(small + 1) - (small + 0.5) * small.log() + small - 0.5 * math.log(2 * math.pi)
    inverse = 1 / x.clamp(min=_SERIES_FROM)
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    return torch.where(x < _SERIES_FROM, direct, series)
