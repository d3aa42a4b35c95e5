"""Results kept for arguments that cannot change: what follows from times and labels is worked out once a data set."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
KEPT = 16  # results a function keeps


def remembered(function: Callable[..., T]) -> Callable[..., T]:
    """Keep the last results by the identity of arguments: tuples, tensors as they now are, read-only arrays, text.

    Where an argument could change unseen (a list, an array that can be written to), nothing is kept.
    """
    held: OrderedDict[Any, tuple[tuple[Any, ...], T]] = OrderedDict()
    lock = threading.Lock()

    @wraps(function)
    def call(*args: Any) -> T:
        key = tuple(_key(arg) for arg in args)
        if None in key:
            return function(*args)
        with lock:
            if key in held:
                held.move_to_end(key)
                return held[key][1]
        result = function(*args)
        with lock:
            held[key] = (args, result)  # the arguments too: an identity is one only while its object lives
            while len(held) > KEPT:
                held.popitem(last=False)
        return result

    return call


def _key(value: Any) -> Any:
    """What stands for an argument; ``None`` for one that could change."""
    if value is None or isinstance(value, (str, int, float)):
        return ("value", value)
    if isinstance(value, torch.Tensor):
        return ("tensor", id(value), value._version)
    if isinstance(value, np.ndarray):
        return None if value.flags.writeable or value.base is not None else ("array", id(value))
    return ("tuple", id(value)) if isinstance(value, tuple) else None
