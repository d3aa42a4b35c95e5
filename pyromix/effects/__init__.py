"""Terms of a predictor: one call inside a program emits their sites and returns their contribution."""

from pyromix.effects.linear import LinearEffect
from pyromix.effects.neural import NeuralEffect
from pyromix.effects.random import RandomEffect

__all__ = ["LinearEffect", "NeuralEffect", "RandomEffect"]
