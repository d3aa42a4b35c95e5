"""Threads of BLAS while something is fitted, and after."""

from __future__ import annotations

import threading

import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

import pyromix as pmx
from pyromix.threads import LARGE, one_thread, threads_for


def counts() -> list[int]:
    return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        yield


def test_one_while_it_lasts_and_as_many_as_before_after_it() -> None:
    assert set(counts()) == {2}
    with one_thread():
        assert set(counts()) == {1}
        with one_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {1}
        with threads_for(LARGE - 1):
            assert set(counts()) == {1}
        with threads_for(LARGE):
            assert set(counts()) == {2}
        assert set(counts()) == {1}
    assert set(counts()) == {2}
    with threads_for(LARGE):
        assert set(counts()) == {2}


def test_an_error_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError), one_thread(), threads_for(LARGE):
        raise ZeroDivisionError
    assert set(counts()) == {2}


def test_who_leaves_last_takes_the_limit_away() -> None:
    """Fits in threads end in any order."""
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with one_thread():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with one_thread():
        leave.set()
        thread.join()
        assert set(counts()) == {1}
    assert set(counts()) == {2}


def test_a_program_is_fitted_on_one_thread() -> None:
    seen: list[set[int]] = []
    data = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def program(y: torch.Tensor) -> None:
        seen.append(set(counts()))
        pmx.observe("y", pmx.Gaussian(), pmx.LinearEffect("beta")(torch.ones(20, 1, dtype=torch.float64)), y)

    pmx.fit(program, data, progress=False)
    assert {1} in seen and set(counts()) == {2}
