"""Saved files: what goes in comes out, and nothing else is ever opened."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from pyromix.errors import CheckpointError, ConfigError, DataTypeError, Status, UnsafeFileError
from pyromix.results import storage
from pyromix.results.storage import (
    estimate_from_payload,
    estimate_to_payload,
    pack,
    read_container,
    split_payload,
    unpack,
    write_container,
)
from tests.results.models import sleepstudy_estimate, sleepstudy_fit, tensor, warning

SPEC = {"name": "β", "list": [1, 2.5, None, True], "deep": {"a": {"b": "c"}}}
ARRAYS = {
    "x": np.arange(12.0).reshape(3, 4),
    "scalar": np.array(np.pi),
    "empty": np.zeros((0, 2)),
    "codes": np.array([-1, 0, 2**40]),
    "flags": np.array([True, False]),
    "single": np.array([1.5], dtype=np.float32),
    "transposed": np.arange(6.0).reshape(2, 3).T,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fit.pmx"


def _same(arrays: dict[str, np.ndarray]) -> bool:
    return set(arrays) == set(ARRAYS) and all(
        np.array_equal(arrays[k], v) and arrays[k].dtype == v.dtype and arrays[k].shape == v.shape
        for k, v in ARRAYS.items()
    )


def test_container_round_trip(path: Path) -> None:
    write_container(path, SPEC, ARRAYS)
    spec, arrays = read_container(path)
    assert spec == SPEC and _same(arrays)
    assert os.listdir(path.parent) == [path.name], "exactly one file, at exactly this path"
    assert set(safetensors.numpy.load_file(path)) == set(ARRAYS), "it is an ordinary safetensors file"


def test_byte_order_is_made_native(path: Path) -> None:
    write_container(path, {}, {"big": np.array([1.0, 2.0], dtype=">f8")})
    assert read_container(path)[1]["big"].tolist() == [1.0, 2.0]


def test_no_truncation_and_no_flipped_bit_is_ever_loaded(path: Path, rng: np.random.Generator) -> None:
    write_container(path, SPEC, ARRAYS)
    content = path.read_bytes()
    for size in rng.choice(len(content), 200, replace=False):
        path.write_bytes(content[: int(size)])
        with pytest.raises((CheckpointError, UnsafeFileError), match="fit.pmx"):
            read_container(path)
    # every bit of the first bytes, where the format's own lengths and names are, and 200 anywhere
    places = [*range(160 * 8), *rng.choice(len(content) * 8, 200, replace=False).tolist()]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises((CheckpointError, UnsafeFileError), match="fit.pmx"):
            read_container(path)


def test_appended_bytes_are_noticed(path: Path) -> None:
    write_container(path, SPEC, ARRAYS)
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    with pytest.raises(CheckpointError, match="damaged"):
        read_container(path)


class _Bomb:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.")


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escape", "x")


def _torch_file(path: Path) -> None:
    torch.save({"bomb": _Bomb()}, path)


def _huge_header(path: Path) -> None:
    path.write_bytes((2**60).to_bytes(8, "little") + b'{"__metadata__"' + b" " * 64)


def _huge_shape(path: Path) -> None:
    envelope = json.dumps({"format": 1, "sha256": "0", "spec": "{}"})
    entry = {"dtype": "F64", "shape": [10**18], "data_offsets": [0, 8 * 10**18]}
    header = json.dumps({"__metadata__": {"pyromix": envelope}, "x": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)


def _deep_json(path: Path) -> None:
    header = b'{"__metadata__": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _forged_spec(path: Path) -> None:
    write_container(path, SPEC, ARRAYS)
    path.write_bytes(path.read_bytes().replace(b"2.5", b"3.5"))


def _other_safetensors(path: Path) -> None:
    safetensors.numpy.save_file({"x": np.zeros(2)}, path, metadata={"format": "pt"})


HOSTILE = [
    (_foreign, UnsafeFileError, "not a file saved by pyromix"),
    (_archive, UnsafeFileError, "not a file saved by pyromix"),
    (_torch_file, UnsafeFileError, "not a file saved by pyromix"),
    (_huge_header, CheckpointError, "damaged: it ends after"),
    (_huge_shape, CheckpointError, "damaged: its arrays cannot be read"),
    (_deep_json, CheckpointError, "damaged: its header cannot be read"),
    (_forged_spec, CheckpointError, "damaged: its checksum does not match"),
    (_other_safetensors, UnsafeFileError, "not one saved by pyromix"),
    (lambda path: path.write_bytes(b""), CheckpointError, "damaged: it is empty"),
    (lambda path: path.write_bytes(b"a,b\n1,2\n3,4\n"), UnsafeFileError, "not a file saved by pyromix"),
]


@pytest.mark.parametrize(("make", "error", "message"), HOSTILE)
def test_foreign_and_forged_files_are_refused(make, error, message: str, path: Path) -> None:
    make(path)
    before = sorted(os.listdir(path.parent))
    with pytest.raises(error, match=message) as caught:
        read_container(path)
    assert "fit.pmx" in str(caught.value)
    assert sorted(os.listdir(path.parent)) == before


def test_later_format_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FORMAT", 2)
    write_container(path, SPEC, ARRAYS)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 2, this pyromix reads format 1"):
        read_container(path)


def test_places_that_cannot_be_read_or_written(path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_container(path)
    with pytest.raises(CheckpointError, match="is a directory"):
        read_container(path.parent)
    with pytest.raises(CheckpointError, match="is a directory"):
        write_container(path.parent, SPEC, ARRAYS)
    with pytest.raises(CheckpointError, match="No such file"):
        write_container(path / "deeper" / "fit.pmx", SPEC, ARRAYS)


def test_failed_writing_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_container(path, SPEC, ARRAYS)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left.*unchanged"):
        write_container(path, {"new": 1}, {})
    monkeypatch.undo()
    assert read_container(path)[0] == SPEC
    assert os.listdir(path.parent) == [path.name]


def test_killed_writer_leaves_the_old_file(path: Path) -> None:
    write_container(path, SPEC, ARRAYS)
    code = (
        "import os, sys\n"
        "from pyromix.results import storage\n"
        "storage.os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
        "storage.write_container(sys.argv[1], {'new': 1}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == -9
    assert read_container(path)[0] == SPEC


def test_permissions_are_ordinary(path: Path) -> None:
    reference = path.parent / "plain"
    reference.touch()
    write_container(path, SPEC, ARRAYS)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)
    path.chmod(0o600)
    write_container(path, SPEC, ARRAYS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_values_that_json_cannot_hold_are_refused(path: Path) -> None:
    with pytest.raises(DataTypeError, match="cannot save this specification"):
        write_container(path, {"f": test_permissions_are_ordinary}, {})
    with pytest.raises(DataTypeError, match="array 'names' of type"):
        write_container(path, {}, {"names": np.array(["a"])})
    assert not path.exists()


VALUES = [
    None,
    3,
    0.1,
    "text",
    (1, [2.0, "a"], {"k": (True,)}),
    {1: "one", "two": 2, (3, "c"): 3},
    np.float64(2.5),
]


@pytest.mark.parametrize("value", VALUES)
def test_plain_values_survive(value: object) -> None:
    arrays: dict[str, np.ndarray] = {}
    packed = json.loads(json.dumps(pack(value, arrays, "v")))
    assert unpack(packed, arrays) == value


def test_arrays_survive_inside_containers() -> None:
    arrays: dict[str, np.ndarray] = {}
    value = {"t": tensor([1.0, 2.0]), "a": [np.arange(3), np.array([["x", "y"]], dtype=object)]}
    back = unpack(json.loads(json.dumps(pack(value, arrays, "v"))), arrays)
    assert torch.equal(back["t"], value["t"])
    assert back["a"][0].tolist() == [0, 1, 2] and back["a"][1].tolist() == [["x", "y"]]
    with pytest.raises(DataTypeError, match="cannot save v.f: function"):
        pack({"f": _foreign}, {}, "v")
    with pytest.raises(CheckpointError, match="kind 'reduce'"):
        unpack({"reduce": []}, {})


def _check_equal(found, estimate) -> None:
    for key in ("point", "latents", "latent_sd", "covariance"):
        a, b = getattr(found, key), getattr(estimate, key)
        assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in b)
    for key in ("kind", "inference", "n_parameters", "status", "health", "settings", "n_draws", "chains"):
        assert getattr(found, key) == getattr(estimate, key)
    assert np.array_equal(found.log_likelihood, estimate.log_likelihood, equal_nan=True)


@pytest.mark.parametrize("loglik", [-871.814135979246, float("nan")])
def test_estimate_round_trip(path: Path, loglik: float) -> None:
    settings = {"criterion": "reml", "tolerance": 1e-8, "starts": [1, 2], "nested": {"a": None}}
    estimate = sleepstudy_estimate(
        status=Status.SINGULAR, health=(warning(),), settings=settings, log_likelihood=loglik
    )
    write_container(path, *estimate_to_payload(estimate))
    found = estimate_from_payload(*read_container(path), draw=estimate.draw)
    _check_equal(found, estimate)
    assert torch.equal(found.draw(3, 1)["beta"], estimate.draw(3, 1)["beta"])
    with pytest.raises(ConfigError, match="a point estimate needs draw="):
        estimate_from_payload(*read_container(path))
    spec, arrays = read_container(path)
    del spec["status"]
    with pytest.raises(CheckpointError, match="lacks 'status'"):
        estimate_from_payload(spec, arrays, draw=estimate.draw)


def test_draws_are_stored(path: Path) -> None:
    point = sleepstudy_estimate()
    stats = {"diverging": np.zeros((2, 10), dtype=bool), "lp": np.arange(20.0).reshape(2, 10)}
    estimate = sleepstudy_estimate(kind="draws", n_draws=20, chains=2, sample_stats=stats)
    write_container(path, *estimate_to_payload(estimate))
    found = estimate_from_payload(*read_container(path))
    _check_equal(found, estimate)
    assert all(torch.equal(found.draw(20, 0)[k], v) for k, v in point.draw(20, 0).items())
    assert np.array_equal(found.sample_stats["lp"], stats["lp"])
    with pytest.raises(ConfigError, match="n_draws is missing"):
        estimate_to_payload(sleepstudy_estimate(kind="draws"))


def test_fit_saves_with_what_the_facade_adds(path: Path) -> None:
    fit = sleepstudy_fit()
    described = {"levels": ["308", "309"]}
    fit.describe = lambda: (described, {"frame/Days": np.arange(4.0)})
    fit.save(path)
    estimate, arrays, extra, extra_arrays = split_payload(*read_container(path))
    _check_equal(estimate_from_payload(estimate, arrays, fit.estimate.draw), fit.estimate)
    assert extra == described and extra_arrays["frame/Days"].tolist() == [0, 1, 2, 3]
    write_container(path, {"what": "checkpoint"}, {})
    with pytest.raises(CheckpointError, match="holds 'checkpoint', not a fit"):
        split_payload(*read_container(path))
