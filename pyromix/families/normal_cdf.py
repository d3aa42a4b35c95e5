r"""The logarithm of the normal distribution function and its derivatives, accurate in both tails.

Plain formulas lose the left tail twice: :math:`\Phi` underflows at -38, and the differences between the inverse Mills
ratio :math:`m = \phi/\Phi` and its asymptote cancel long before. Left of ``-TAIL`` everything is built on Laplace's
continued fraction

.. math:: m(-t) = t + R, \quad R = \frac{1}{t + 2S}, \quad S = \frac{1}{t + 3T}, \quad T = \frac{1}{t + 4/(t + \dots)}

whose terms are positive, so nothing cancels.
"""

from __future__ import annotations

import math

import torch

TAIL = 5.0
LEVELS = 22  # truncation error below 1e-14 in T at t = TAIL, less beyond
SQRT_HALF = math.sqrt(0.5)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_ndtr(x: torch.Tensor) -> torch.Tensor:
    r""":math:`\log\Phi(x)`, with accurate derivatives by autograd."""
    t = (-x).clamp(min=TAIL)
    _, _, r = _continued_fraction(t)
    tail = -0.5 * t * t - HALF_LOG_2PI - (t + r).log()
    left = (0.5 * torch.erfc(-SQRT_HALF * x.clamp(-TAIL, 0.0))).log()
    right = torch.log1p(-0.5 * torch.erfc(SQRT_HALF * x.clamp(min=0.0)))
    return torch.where(x < -TAIL, tail, torch.where(x < 0, left, right))


def log_ndtr_derivatives(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""First three derivatives of :math:`\log\Phi`: :math:`m`, :math:`-mR`, :math:`-m(1 - mR - R^2)`, R = x + m."""
    far = x < -TAIL
    t = (-x).clamp(min=TAIL)
    t3, s, r = _continued_fraction(t)
    mills = t + r
    tail = (mills, -mills * r, -2 * mills * r * (2 * s - 3 * t3) * r * s)
    c = x.clamp(min=-TAIL)
    m = torch.exp(-0.5 * c * c - HALF_LOG_2PI) / (0.5 * torch.erfc(-SQRT_HALF * c))
    total = c + m
    w = m * total
    centre = (m, -w, -m * (1 - w - total * total))
    first, second, third = (torch.where(far, a, b) for a, b in zip(tail, centre, strict=True))
    return first, second, third


def _continued_fraction(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """T, S and R at t >= TAIL; the recursion starts from the fixed point of its last level."""
    last = LEVELS + 1
    v = 0.5 * ((t * t + 4 * last).sqrt() - t) / last
    for k in range(LEVELS, 3, -1):
        v = 1 / (t + k * v)
    s = 1 / (t + 3 * v)
    return v, s, 1 / (t + 2 * s)
