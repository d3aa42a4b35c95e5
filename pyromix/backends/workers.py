"""Independent pieces of work in processes of their own.

Processes are forked: they see the caller's objects as they are, closures and compiled code included, and need no main
guard. Where forking is not to be had (or one core was asked for) the work is done here, one piece after the other.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from pyromix.errors import NumericalError, PyromixError
from pyromix.threads import one_thread_for_good

Task = Callable[[Callable[[Any], None]], Any]


def default_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Whether work can be given to forked processes here."""
    return sys.platform.startswith("linux") and not multiprocessing.current_process().daemon


def run_tasks(
    tasks: Sequence[Task],
    cores: int,
    on_message: Callable[[int, Any], None] = lambda task, message: None,
    on_result: Callable[[int, Any], None] = lambda task, result: None,
) -> list[Any]:
    """Results of the tasks, in order.

    Parameters
    ----------
    tasks
        Each is called with a function that sends messages (progress) to `on_message`.
    on_result
        Called here, when a task is done.

    Raises
    ------
    PyromixError
        What a task raised; its kind survives, the other tasks are stopped.
    NumericalError
        A process died.
    """
    if cores < 2 or len(tasks) < 2 or not can_fork():
        results = []
        for k, task in enumerate(tasks):
            results.append(task(lambda message, k=k: on_message(k, message)))
            on_result(k, results[-1])
        return results
    return _Pool(tasks, cores, on_message, on_result).run()


class _Pool:
    """At most `cores` forked processes at a time, one task each."""

    def __init__(self, tasks: Sequence[Task], cores: int, on_message: Any, on_result: Any) -> None:
        self.tasks, self.cores = tasks, cores
        self.on_message, self.on_result = on_message, on_result
        self.results: list[Any] = [None] * len(tasks)
        self.running: dict[Connection, tuple[int, Any]] = {}
        self.context = multiprocessing.get_context("fork")

    def run(self) -> list[Any]:
        waiting = list(range(len(self.tasks)))[::-1]
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.cores:
                    self._start(waiting.pop())
                for connection in wait(list(self.running)):
                    self._receive(connection)
        finally:
            for _, process in self.running.values():
                process.terminate()
                process.join()
        return self.results

    def _start(self, k: int) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(self.tasks[k], theirs, os.getpid()), daemon=True)
        sys.stdout.flush()
        sys.stderr.flush()
        process.start()
        theirs.close()
        self.running[ours] = (k, process)

    def _receive(self, connection: Any) -> None:
        k, process = self.running[connection]
        try:
            kind, content = connection.recv()
        except EOFError:
            process.join()
            del self.running[connection]
            raise NumericalError(
                f"a worker process died (exit code {process.exitcode}); it may have run out of memory. Fit again with "
                "cores=1, or fewer draws."
            ) from None
        if kind == "message":
            self.on_message(k, content)
            return
        process.join()
        del self.running[connection]
        if kind == "error":
            error, text = content
            error.add_note(text)
            raise error
        self.results[k] = content
        self.on_result(k, content)


def _work(task: Task, connection: Any, parent: int) -> None:
    torch.set_num_threads(1)  # a forked process must not enter the parent's thread pool
    one_thread_for_good()
    gc.freeze()  # looking through the parent's objects for garbage would copy their memory
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    turn = threading.Lock()  # a sampler reports from a thread of its own, also while the result is being sent

    def send(item: tuple[str, Any]) -> None:
        with turn:
            connection.send(item)

    try:
        outcome = ("result", task(lambda message: send(("message", message))))
    except PyromixError as error:
        outcome = ("error", (error, traceback.format_exc()))
    except Exception as error:  # a program's own error of any class, which may not travel
        outcome = ("error", (RuntimeError(f"{type(error).__name__}: {error}"), traceback.format_exc()))
    send(outcome)
    connection.close()


def _follow(parent: int) -> None:
    """End this process when its parent is gone: a parent that was killed cannot stop it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
