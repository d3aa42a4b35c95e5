"""Saved results: one safetensors file with arrays and a JSON specification, never pickle.

Layout: an ordinary safetensors file (8 bytes of header length, a JSON header, raw arrays) whose metadata hold one
string under ``"pyromix"``: JSON with the format's version, the specification and a SHA-256 over the
specification and every array's name, type, shape and bytes. A damaged file is refused, never read in part.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from pyromix.errors import CheckpointError, ConfigError, DataTypeError, Status, UnsafeFileError
from pyromix.results.estimate import Draws, Estimate, HealthRecord

if TYPE_CHECKING:
    from pyromix.results.fit import Fit

FORMAT = 1
KEY = "pyromix"
MAX_HEADER = 100_000_000
_DTYPES = ("float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool")


# -- containers -------------------------------------------------------------------------------------------------------
def write_container(path: str | PathLike[str], spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a specification and arrays to exactly this path, whole or not at all.

    Parameters
    ----------
    spec
        Anything that JSON can hold.
    arrays
        Numeric or boolean arrays by name.

    Raises
    ------
    CheckpointError
        The file cannot be written there.
    DataTypeError
        A value that JSON cannot hold, or an array of another type.
    """
    tidy = {name: _tidy(name, array) for name, array in arrays.items()}
    text = _json(spec)
    envelope = json.dumps({"format": FORMAT, "sha256": _digest(text, tidy), "spec": text})
    content = safetensors.numpy.save(tidy, metadata={KEY: envelope})
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"cannot save to {str(target)!r}: it is a directory; name a file in it.")
    try:
        _replace(target, content)
    except OSError as error:
        reason = f"{error.strerror or error}; what was there before is unchanged"
        raise CheckpointError(f"cannot save to {str(target)!r}: {reason}.") from error


def read_container(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Specification and arrays of a file that `write_container` wrote.

    Raises
    ------
    CheckpointError
        No such file, not readable, damaged, or of a later format.
    UnsafeFileError
        A file in another format; nothing in it is interpreted.
    """
    where = str(path)
    try:
        content = Path(path).read_bytes()
    except IsADirectoryError as error:
        raise CheckpointError(f"cannot read {where!r}: it is a directory; name the saved file.") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {where!r}: {error.strerror or error}.") from error
    envelope = _envelope(where, content)
    try:
        arrays = safetensors.numpy.load(content)
        text, digest = envelope["spec"], envelope["sha256"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, f"its arrays cannot be read ({error})") from error
    if not isinstance(text, str) or _digest(text, arrays) != digest:
        raise _damaged(where, "its checksum does not match")
    return json.loads(text), arrays


def _envelope(where: str, content: bytes) -> dict[str, Any]:
    if not content:
        raise _damaged(where, "it is empty")
    start = b'{"__metadata__"'
    if content[8 : 8 + len(start)] != start[: max(0, len(content) - 8)]:
        raise UnsafeFileError(
            f"{where!r} is not a file saved by pyromix (it does not start like one); pyromix opens no pickle, "
            "archive or other format that can run code. Save the fit with fit.save(path)."
        )
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER, len(content) - 8):
        raise _damaged(where, f"it ends after {len(content)} bytes")
    try:
        metadata = json.loads(content[8 : 8 + length].decode("utf-8"))["__metadata__"]
        if KEY not in metadata:
            raise UnsafeFileError(f"{where!r} is a safetensors file, but not one saved by pyromix.")
        envelope = json.loads(metadata[KEY])
        version = envelope["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, "its header cannot be read") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{where!r} has format {version!r}, this pyromix reads format {FORMAT}; load it with the version that "
            "saved it."
        )
    return envelope


def _damaged(where: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{where!r} is damaged: {reason}. Restore it from a copy or fit again.")


def _json(spec: Mapping[str, Any]) -> str:
    try:
        return json.dumps(spec, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataTypeError(f"cannot save this specification: {error}.") from error


def _tidy(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    native = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    if native.dtype.name not in _DTYPES:
        raise DataTypeError(f"cannot save array {name!r} of type {array.dtype}; allowed are {', '.join(_DTYPES)}.")
    return native if native.flags.c_contiguous else native.copy(order="C")


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _replace(target: Path, content: bytes) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, whatever happens between."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's umask, read without setting it."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


# -- values -----------------------------------------------------------------------------------------------------------
def pack(value: Any, arrays: dict[str, np.ndarray], prefix: str) -> Any:
    """Turn tensors, arrays, scalars, strings and containers of them into JSON; arrays go to `arrays` under `prefix`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        if array.dtype.kind in "UO":
            return {"strings": pack(array.reshape(-1).tolist(), arrays, prefix), "shape": list(array.shape)}
        arrays[prefix] = array
        return {"tensor" if isinstance(value, torch.Tensor) else "array": prefix}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [pack(k, arrays, f"{prefix}#{i}"), pack(v, arrays, f"{prefix}.{k}")]
                for i, (k, v) in enumerate(value.items())
            ]
        }
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(v, arrays, f"{prefix}.{i}") for i, v in enumerate(value)]}
    what = f"{type(value).__name__} is not a tensor, array, number, string or container of these"
    raise DataTypeError(f"cannot save {prefix}: {what}.")


def unpack(packed: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    (kind, content), *rest = packed.items()
    if kind == "tensor":
        return torch.from_numpy(np.array(arrays[content]))
    if kind == "array":
        return np.array(arrays[content])
    if "strings" in packed:
        return np.array(unpack(packed["strings"], arrays), dtype=object).reshape(packed["shape"])
    if kind == "dict" and not rest:
        return {unpack(k, arrays): unpack(v, arrays) for k, v in content}
    if kind in ("list", "tuple") and not rest:
        values = [unpack(v, arrays) for v in content]
        return values if kind == "list" else tuple(values)
    raise CheckpointError(f"cannot read a saved value of kind {kind!r}.")


# -- estimates --------------------------------------------------------------------------------------------------------
_TENSORS = ("point", "latents", "latent_sd", "covariance", "state")


def estimate_to_payload(estimate: Estimate) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Everything of an estimate but its `draw`; for ``kind="draws"`` the draws themselves."""
    arrays: dict[str, np.ndarray] = {}
    spec: dict[str, Any] = {
        "kind": estimate.kind,
        "inference": estimate.inference,
        "log_likelihood": float(estimate.log_likelihood).hex(),
        "log_evidence": float(estimate.log_evidence).hex(),
        "n_parameters": int(estimate.n_parameters),
        "status": estimate.status.name,
        "health": [{key: _plain(value) for key, value in vars(record).items()} for record in estimate.health],
        "settings": pack(dict(estimate.settings), arrays, "settings"),
        "n_draws": estimate.n_draws,
        "chains": estimate.chains,
    }
    for key in _TENSORS:
        spec[key] = pack(dict(getattr(estimate, key)), arrays, key)
    if estimate.sample_stats is not None:
        spec["sample_stats"] = pack(plain_stats(estimate.sample_stats), arrays, "stats")
    if estimate.kind == "draws":
        if estimate.n_draws is None:
            raise ConfigError("Estimate(kind='draws'): n_draws is missing; without it the draws cannot be saved.")
        spec["draws"] = pack(dict(estimate.draw(estimate.n_draws, 0)), arrays, "draws")
    return spec, arrays


def estimate_from_payload(
    spec: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    draw: Callable[[int, int], Draws] | None = None,
) -> Estimate:
    """An estimate from its payload.

    Parameters
    ----------
    draw
        For a point estimate, what makes draws from its approximation; stored draws need none.

    Raises
    ------
    CheckpointError
        Entries are missing.
    """
    try:
        if "draws" in spec:
            draw = StoredDraws(unpack(spec["draws"], arrays), spec["chains"])
        if draw is None:
            raise ConfigError("estimate_from_payload: a point estimate needs draw=; only stored draws do without.")
        return Estimate(
            kind=spec["kind"],
            inference=spec["inference"],
            **{key: unpack(spec[key], arrays) for key in _TENSORS},
            draw=draw,
            log_likelihood=float.fromhex(spec["log_likelihood"]),
            log_evidence=float.fromhex(spec.get("log_evidence", "nan")),
            n_parameters=spec["n_parameters"],
            status=Status[spec["status"]],
            health=tuple(HealthRecord(**record) for record in spec["health"]),
            settings=unpack(spec["settings"], arrays),
            sample_stats=unpack(spec.get("sample_stats"), arrays),
            n_draws=spec["n_draws"],
            chains=spec["chains"],
        )
    except KeyError as error:
        raise CheckpointError(f"the saved estimate lacks {error}.") from error


def plain_stats(stats: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Sample statistics as arrays; counts, whatever integers a sampler has for them, as int64."""
    arrays = {name: np.asarray(value) for name, value in stats.items()}
    return {name: value.astype(np.int64) if value.dtype.kind in "iu" else value for name, value in arrays.items()}


def _plain(value: Any) -> float | str:
    return value if isinstance(value, str) else float(value)


class StoredDraws:
    """The `draw` of an estimate whose draws are at hand: all of them, or an evenly spaced part of every chain.

    Parameters
    ----------
    draws
        Site -> (n, *shape), chain after chain.
    chains
        Number of chains in them.
    """

    def __init__(self, draws: Draws, chains: int = 1) -> None:
        self.draws = draws
        self.chains = chains

    def __call__(self, count: int, seed: int) -> Draws:
        """``count`` of the draws; the seed is not needed, for nothing is drawn."""
        del seed
        total = len(next(iter(self.draws.values())))
        if count > total:
            raise ConfigError(f"draws({count}): the fit holds {total} draws; ask for at most that many.")
        if count == total:
            return self.draws
        keep = thinned(total, count, self.chains)
        return {name: value[keep] for name, value in self.draws.items()}


def thinned(total: int, count: int, chains: int) -> torch.Tensor:
    """Positions of `count` of all draws: evenly spaced within every chain, if the chains can share them."""
    if count % chains:
        return torch.linspace(0, total - 1, count).round().long()
    length = total // chains
    inside = torch.linspace(0, length - 1, count // chains).round().long()
    return (torch.arange(chains)[:, None] * length + inside).reshape(-1)


# -- fits -------------------------------------------------------------------------------------------------------------
def fit_to_payload(fit: Fit) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Estimate, formula and what the facade says of the model (``fit.describe()``)."""
    extra, extra_arrays = fit.describe()
    estimate, arrays = estimate_to_payload(fit.estimate)
    spec = {"what": "fit", "estimate": estimate, "formula": fit.formula, "extra": extra}
    joined = {f"estimate/{name}": array for name, array in arrays.items()}
    joined.update({f"extra/{name}": np.asarray(array) for name, array in extra_arrays.items()})
    return spec, joined


def split_payload(
    spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, Any], dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
    """Estimate specification and arrays, then the facade's extra ones, of what `fit_to_payload` made."""
    if spec.get("what") != "fit":
        raise CheckpointError(f"the file holds {spec.get('what')!r}, not a fit.")
    parts: dict[str, dict[str, np.ndarray]] = {"estimate": {}, "extra": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = array
    return spec["estimate"], parts["estimate"], spec["extra"], parts["extra"]
