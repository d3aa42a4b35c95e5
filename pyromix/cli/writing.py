"""Writing results: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyromix.errors import ConfigError, PyromixError

if TYPE_CHECKING:
    import pandas as pd

    from pyromix.results import Fit

# what a fit may or may not write: left over from an earlier fit, they would be taken for results of this one
LEFTOVERS = re.compile(r"random_effects_.*\.csv|fitted\.png|residuals\.png")


class Folder:
    """A folder that gets all its files or none.

    Parameters
    ----------
    path
        The folder; it may exist if it is empty.
    force
        Write into a folder that holds files: those with the names of results are replaced, others stay.
    own
        Names of files that may be replaced without being forced, if the folder holds nothing else.

    Raises
    ------
    ConfigError
        The folder cannot be written to; checked before anything is computed.
    """

    def __init__(self, path: str, force: bool = False, own: Collection[str] = ()) -> None:
        self.path = Path(path)
        self._option = f"-o {path}"
        with _as_config_error(self._option):
            self._target = self.path.resolve()
            if self._target.is_dir():
                if not force and any(file.name not in own for file in self._target.iterdir()):
                    remedy = "name another" if own else "name another, or pass --force"
                    raise ConfigError(f"{self._option}: the folder is not empty; {remedy}.")
            elif self._target.exists():
                raise ConfigError(f"{self._option}: exists and is no folder.")
            nearest = self._nearest()
            if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
                raise ConfigError(f"{self._option}: {str(nearest)!r} is no folder that can be written to.")

    def _nearest(self) -> Path:
        """The folder, or the nearest above it that exists: files are drafted there, so that moving them is one step."""
        return next(folder for folder in (self._target, *self._target.parents) if folder.exists())

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A draft of the folder, which takes its place when the block ends without an error."""
        with _as_config_error(self._option):
            draft = Path(tempfile.mkdtemp(prefix=f".{self._target.name}-", dir=self._nearest()))
            try:
                yield draft
                self._publish(draft)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _publish(self, draft: Path) -> None:
        if not self._target.exists():
            draft.chmod(0o777 & ~_umask())
            self._target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft, self._target)
            return
        written = sorted(file.name for file in draft.iterdir())
        for old in list(self._target.iterdir()):
            if old.is_file() and LEFTOVERS.fullmatch(old.name) and old.name not in written:
                old.unlink()
        for name in written:
            os.replace(draft / name, self._target / name)


def write_file(path: str, write: Callable[[Path], object], inputs: tuple[str, ...] = ()) -> None:
    """Write a file through a draft beside it, which takes its place when it is whole.

    Raises
    ------
    ConfigError
        It cannot be written, or is one of the inputs.
    """
    target = Path(path)
    with _as_config_error(f"-o {path}"):
        if target.is_dir():
            raise ConfigError(f"-o {path}: is a folder; name a file.")
        if any(target.exists() and os.path.samefile(target, name) for name in inputs):
            raise ConfigError(f"-o {path}: is the file that was read; name another.")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", suffix=target.suffix, dir=target.absolute().parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def _as_config_error(where: str) -> Iterator[None]:
    try:
        yield
    except PyromixError:
        raise
    except OSError as error:
        raise ConfigError(f"{where}: cannot be written: {error.strerror or error}.") from error


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_fit(fit: Fit, folder: Path) -> list[str]:
    """All results of a fit as files; what could not be drawn, as notes."""
    fit.save(folder / "fit.pyromix")
    (folder / "summary.txt").write_text(f"{fit.summary()}\n", encoding="utf-8")
    write_csv(fit.fixed_effects(), folder / "fixed_effects.csv", "coefficient")
    write_csv(fit.variance_components(), folder / "variance_components.csv")
    for group in dict.fromkeys(fit.variance_components()["group"]):
        if group != "Residual":
            table = fit.random_effects(group).join(fit.random_effects(group, "sd").add_suffix(".sd"))
            write_csv(table, folder / f"random_effects_{_file_name(group)}.csv", "level")
    fit.idata.to_netcdf(str(folder / "posterior.nc"))
    notes = []
    for name, draw in (("fitted.png", fit.plot_fitted), ("residuals.png", fit.plot_residuals)):
        try:
            draw().savefig(folder / name)
        except PyromixError as error:  # such as no predictor to draw against: the fit is worth keeping
            notes.append(f"{name} is left out: {error}")
    return notes


def write_csv(table: pd.DataFrame, path: Path, index: str | None = None) -> None:
    """A table as CSV, numbers with all their digits."""
    table.to_csv(path, index=index is not None, index_label=index, na_rep="NaN", lineterminator="\n")


def _file_name(group: str) -> str:
    """A grouping factor's name as part of a file name: ``a:b`` becomes ``a-b``."""
    return re.sub(r"[^\w.-]+", "-", group.replace(":", "-")).strip("-") or "group"
