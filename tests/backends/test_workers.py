"""Work in processes of their own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pyromix.backends import workers

needs_fork = pytest.mark.skipif(not workers.can_fork(), reason="no forked processes here")


@needs_fork
def test_messages_of_another_thread_do_not_break_into_a_result() -> None:
    """A sampler reports its progress from a thread of its own, also while the draws are on their way."""

    size = 3_000_000

    def task(send: Callable[[Any], None]) -> np.ndarray:
        def report() -> None:
            with contextlib.suppress(OSError):  # the connection is closed behind the result
                while True:
                    send("going on")

        threading.Thread(target=report, daemon=True).start()
        return np.arange(float(size))

    heard: list[str] = []
    results = workers.run_tasks([task] * 4, 2, on_message=lambda task, message: heard.append(message))
    assert all(np.array_equal(result, np.arange(float(size))) for result in results)
    assert set(heard) <= {"going on"}
