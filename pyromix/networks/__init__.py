"""Modules that a `NeuralEffect` or a formula's mean can hold; any ``torch.nn.Module`` will do as well."""

from __future__ import annotations

from pyromix.networks.mlp import MLP

__all__ = ["MLP"]
