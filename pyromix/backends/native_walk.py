"""A target's density as a C function that nutpie calls without Python, where everything in it is compiled."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyromix import native
from pyromix.backends.coordinates import Coordinates, NestedRoot
from pyromix.compile import Compiled
from pyromix.marginal.roots import AbstractRoot, BorderedRoot, DenseRoot, DiagonalRoot
from pyromix.native import affine


@dataclass(frozen=True)
class NativeWalk:
    """Addresses of ``density`` and ``copy`` (`pyromix.native.affine`) and of what is handed to both.

    Attributes
    ----------
    held
        What the addresses need alive.
    """

    density: int
    copy: int
    data: int
    held: Any


def native_walk(function: Compiled, coordinates: Coordinates, size: int) -> NativeWalk | None:
    """The density of ``-function(c + Lw)``; ``None`` where a part of it is not compiled, or no root known here."""
    if function.by != "c":
        return None
    try:
        library = affine.library()
    except native.Unsupported:
        return None
    made = _Made()
    walk = affine.Walk(run=function.address, centre=made(coordinates.centre), work=made(np.zeros(5 * size)))
    root = coordinates.root
    if isinstance(root, NestedRoot):
        inner = _root(root.inner, made)
        if inner is None:
            return None
        walk.outer, walk.inner, walk.h, walk.parts = affine.Root(kind=affine.NESTED), inner, len(root.hypers), 0
        walk.hypers, walk.effects = made(root.hypers), made(root.effects)
        walk.hyper, walk.follow = made(root.hyper), made(root.follow)
        walk.parts = len(root.scale)
        walk.part = made(np.array([[part.start, part.stop, len(tril)] for part, tril in root.scale], dtype=np.int64))
        walk.tril = made(np.concatenate([np.empty(0), *(tril.reshape(-1) for _, tril in root.scale)]))
    else:
        outer = _root(root, made)
        if outer is None:
            return None
        walk.outer = outer
    density, copy = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in ("density", "copy"))
    assert density is not None and copy is not None
    return NativeWalk(density, copy, ctypes.addressof(walk), (function, walk, made.held))


class _Made:
    """Addresses of arrays, each kept."""

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []

    def __call__(self, array: np.ndarray) -> int:
        kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64
        self.held.append(np.ascontiguousarray(array, dtype=kind))
        return self.held[-1].ctypes.data


def _root(root: AbstractRoot, made: _Made) -> affine.Root | None:
    if isinstance(root, DiagonalRoot):
        return affine.Root(kind=affine.DIAGONAL, d=len(root.scale), matrix=made(root.scale))
    if isinstance(root, DenseRoot):
        return affine.Root(kind=affine.DENSE, d=len(root.matrix), matrix=made(root.matrix))
    if not isinstance(root, BorderedRoot):
        return None
    levels, q, _ = root.blocks.shape
    return affine.Root(
        kind=affine.BORDERED,
        d=len(root.lead) + len(root.border),
        levels=levels,
        q=q,
        border=len(root.border),
        lead=made(root.lead),
        tail=made(root.border),
        blocks=made(root.blocks),
        coupling=None if root.coupling is None else made(root.coupling),
        corner=made(root.corner),
    )
