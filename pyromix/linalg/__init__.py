"""Tensor and sparse-matrix mathematics: no Pyro, no pandas."""
