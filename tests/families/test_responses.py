"""What a family says about a response that it cannot have."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pyromix.errors import ConfigError, DataError
from pyromix.families import AbstractFamily, Binomial, Gaussian, Poisson, from_config, named

LABELS = [f"a{i}" for i in range(1, 8)]


def describe(position: int) -> str:
    return f"row {LABELS[position]!r} (position {position})"


BAD = [
    (
        Poisson(),
        [3, 0, -1, 2, -4, 5, -2],
        None,
        r"column 'y' \(response, Poisson\): 3 values below 0, first -1 at row 'a3' \(position 2\)\. Counts must be >= ",
    ),
    (
        Poisson(),
        [3, 0.5, 1, 2, 4, 5, 2],
        None,
        r"1 value not whole, first 0\.5 at row 'a2' .*offset\(log\(exposure\)\)",
    ),
    (Poisson(), [3, 0, np.nan, 2, 4, 5, 2], None, r"1 value not finite, first nan at row 'a3'"),
    (Poisson(), [0] * 7, None, r"response, Poisson\): response 'y' is constant \(= 0\.0\) in all 7 rows"),
    (Gaussian(), [1.0] * 7, None, r"response 'y' is constant \(= 1\.0\)"),
    (Gaussian(), [1, 2, np.inf, 2, 4, -np.inf, 2], None, r"2 values not finite, first inf at row 'a3'"),
    (Binomial(), [1] * 7, None, r"response 'y' is constant \(= 1\.0\)"),
    (
        Binomial(),
        [0, 2, 0, 2, 2, 0, 0],
        None,
        r"column 'y' \(response, Binomial\): values 0, 2 where 0 and 1 are expected, first 2 at row 'a2' \(position 1\)"
        r"\. Recode 0 as 0 and 2 as 1, e\.g\. \(y == 2\)",
    ),
    (Binomial(), [1, 2, 1, 2, 2, 1, 1], None, r"values 1, 2 where .* first 2 at row 'a2' .*Recode 1 as 0 and 2 as 1"),
    (Binomial(), [1, -1, 1, 1, -1, 1, 1], None, r"values -1, 1 where .* first -1 at row 'a2' .*Recode -1 as 0 and 1"),
    (Binomial(), [0.2, 0.5, 1, 0, 0.1, 1, 1], None, r"values 0, 0\.1, .*For proportions pass the counts: cbind"),
    (Binomial(), [0, 3, 1, 7, 4, 5, 6], None, r"values 0, 1, 3, 4, 5, \.\.\. where .*For counts out of trials"),
    (
        Binomial(),
        [0, 3, 1, 7, 4, 5, 6],
        [5, 5, 5, 5, 5, 5, 5],
        r"2 rows with more successes than trials, first 7 out of 5 trials at row 'a4' \(position 3\)\. Check both",
    ),
    (Binomial(), [0, 3, 1, 2, 4, 5, 6], [9, 9, 0, 9, 9, 0, 9], r"its trials: 2 values below 1, first 0 at row 'a3'"),
    (
        Binomial(),
        [0, 3, 1, 2, 4, 5, 6],
        [9, 9, 9.5, 9, 9, 9, 9],
        r"its trials: 1 value not whole, first 9\.5 at row 'a3'",
    ),
    (Binomial(), [0, 3, 1, 2, 4, 5, 6], [9, 9, np.nan, 9, 9, 9, 9], r"its trials: 1 value not finite, first nan"),
    (Binomial(), [0, -3, 1, 2, 4, 5, 6], [9] * 7, r"1 value below 0, first -3 at row 'a2'"),
    (Binomial(), [0, 3.5, 1, 2, 4, 5, 6], [9] * 7, r"1 value not whole, first 3\.5 at row 'a2'"),
    (Binomial(), [3] * 7, [9] * 7, r"response 'y' is constant \(= 0\.333"),
    (Binomial(), [0] * 7, [1, 2, 3, 4, 5, 6, 7], r"response 'y' is constant \(= 0\.0\)"),
    (Binomial(), [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7], r"response 'y' is constant \(= 1\.0\)"),
]


@pytest.mark.parametrize(("family", "y", "trials", "message"), BAD)
def test_bad_response(family: AbstractFamily, y: list[float], trials: list[float] | None, message: str) -> None:
    counts = None if trials is None else np.array(trials, dtype=float)
    with pytest.raises(DataError, match=message):
        family.check_response(np.array(y, dtype=float), counts, describe)
        family.check_varies(np.array(y, dtype=float), counts)


GOOD = [
    (Gaussian(), [1, 2, 3], None),
    (Poisson(), [0, 0, 1], None),
    (Poisson(), [1e12, 3, 0], None),
    (Binomial(), [0, 1, 1], None),
    (Binomial(), [3, 3, 3], [4, 5, 6]),
    (Binomial(), [0, 1, 4], [4, 4, 4]),
]


@pytest.mark.parametrize(("family", "y", "trials"), GOOD)
def test_good_response(family: AbstractFamily, y: list[float], trials: list[float] | None) -> None:
    given = np.array(y, dtype=float)
    before = given.copy()
    counts = None if trials is None else np.array(trials, dtype=float)
    family.check_response(given, counts, describe)
    family.check_varies(given, counts)
    assert np.array_equal(given, before)


def test_a_million_rows_are_checked_in_a_second(rng: np.random.Generator) -> None:
    y = rng.poisson(3.0, 1_000_000).astype(float)
    start = time.perf_counter()
    Poisson().check_response(y, None, describe)
    assert time.perf_counter() - start < 1.0


def test_families_by_name() -> None:
    assert named("Poisson") is Poisson
    with pytest.raises(ConfigError, match="unknown family 'Cauchy'; choose one of Binomial, Gaussian, Poisson"):
        named("Cauchy")


def test_a_family_is_read_back() -> None:
    family = from_config({"class": "Gaussian", "link": "log", "sigma": 2.5})
    assert isinstance(family, Gaussian) and family.link.name == "log" and family.parameters()[0].fixed == 2.5
    with pytest.raises(ConfigError, match="unknown family None"):
        from_config({})
    with pytest.raises(ConfigError, match="saved family Poisson: unknown argument 'sigma'"):
        from_config({"class": "Poisson", "sigma": 1.0})
