"""Threads of BLAS: one while matrices are small, all of them for large ones.

NumPy's, SciPy's and torch's pools of threads wait in turn for the same cores: between two operations of torch, a
Cholesky factor of 200 rows takes 0.2 ms on one thread and 9 ms on two, where there are two cores. From about 1,500 rows
on more threads win.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import Any

import scipy.linalg  # noqa: F401  its BLAS must be loaded before the libraries are looked for
from threadpoolctl import ThreadpoolController, threadpool_limits

LARGE = 1500  # rows


class _Limit:
    """The limit of this process, which OpenBLAS keeps for every thread apart.

    A thread sets it for itself when it comes in, and when it goes out sets what there was before the first came in:
    what it would find for itself may be another thread's limit.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.here = threading.Lock(), 0, threading.local()
        self.libraries: Any = None
        self.original: Any = None

    @property
    def depth(self) -> int:
        """How often this thread has come in."""
        return getattr(self.here, "depth", 0)

    def enter(self) -> None:
        self.here.depth = self.depth + 1
        if self.depth > 1:
            return
        with self.lock:
            if self.libraries is None:  # looking for them takes 5 ms, once
                self.libraries = ThreadpoolController().select(user_api="blas")
            limited = self.libraries.limit(limits=1)
            if not self.users:
                self.original = limited
            self.users += 1

    def leave(self) -> None:
        self.here.depth -= 1
        if not self.depth:
            with self.lock:
                self.users -= 1
                self.original.restore_original_limits()

    def lift(self) -> None:
        if self.depth:
            self.original.restore_original_limits()

    def lower(self) -> None:
        if self.depth:
            self.libraries.limit(limits=1)


_limit = _Limit()


def one_thread_for_good() -> None:
    """In a forked process, of as many as there are cores: no matrix is large enough for more."""
    threadpool_limits(1)
    _limit.__init__()  # type: ignore[misc]  # the parent's lock may have been held when this process was forked
    _limit.enter()  # where one thread is what there was before


class one_thread(ContextDecorator):  # noqa: N801  used like a function
    """One BLAS thread in a block, or in a function; the number there was before comes back with its end."""

    def __enter__(self) -> None:
        _limit.enter()

    def __exit__(self, *_: Any) -> None:
        _limit.leave()


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Within `one_thread`, all threads again where a matrix is large."""
    if rows < LARGE:
        yield
        return
    _limit.lift()
    try:
        yield
    finally:
        _limit.lower()
