"""Formulas and data: the only part of pyromix that sees data frames."""

from __future__ import annotations

from pyromix.formula.design import Design, RandomTerm
from pyromix.formula.parse import Bar, Formula, parse

__all__ = ["Bar", "Design", "Formula", "RandomTerm", "parse"]
