"""Work in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
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


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and not been waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_fork
def test_no_worker_outlives_its_parent() -> None:
    script = (
        "import os, time\nfrom pyromix.backends import workers\n"
        "def task(send):\n    send(os.getpid())\n    time.sleep(60)\n"
        "workers.run_tasks([task, task], 2, on_message=lambda task, pid: print(pid, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not any(map(alive, pids))
