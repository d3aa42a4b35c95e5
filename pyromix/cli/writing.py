"""Writing results: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pyromix.errors import ConfigError, PyromixError

if TYPE_CHECKING:
    import pandas as pd

    from pyromix.results import Fit

OURS = re.compile(
    r"fit\.pyromix|summary\.txt|fixed_effects\.csv|variance_components\.csv|random_effects_.*\.csv|posterior\.nc|"
    r"fitted\.png|residuals\.png|agreement\.csv|demo\.png|\w+\.nc"
)


class Folder:
    """A folder that appears with all its files, or stays as it was.

    Parameters
    ----------
    path
        The folder. It must not exist, or be empty, or be replaced with `force`.
    force
        Write into a folder that holds files: those with the names of results are replaced, others stay.

    Raises
    ------
    ConfigError
        The folder cannot be written to; checked before anything is computed.
    """

    def __init__(self, path: str, force: bool = False) -> None:
        self.path = Path(path)
        with _as_config_error(f"-o {path}"):
            if self.path.is_dir():
                if any(self.path.iterdir()) and not force:
                    raise ConfigError(f"-o {path}: the folder is not empty; name another, or pass --force.")
            elif self.path.exists() or self.path.is_symlink():
                raise ConfigError(f"-o {path}: exists and is no folder.")
            parent = self._ancestor()
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise ConfigError(f"-o {path}: {str(parent)!r} is no folder that can be written to.")

    def _ancestor(self) -> Path:
        """The nearest folder above that exists; files are prepared there, so that moving them is one step."""
        return next(parent for parent in self.path.absolute().parents if parent.exists())

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder to write into, which takes its place when the block ends without an error."""
        with _as_config_error(f"-o {self.path}"):
            draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self._ancestor()))
            try:
                yield draft
                self._publish(draft)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def _publish(self, draft: Path) -> None:
        draft.chmod(0o777 & ~_umask())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or not any(self.path.iterdir()):
            os.replace(draft, self.path)
            return
        written = sorted(file.name for file in draft.iterdir())
        for old in list(self.path.iterdir()):
            if old.is_file() and OURS.fullmatch(old.name) and old.name not in written:
                old.unlink()  # of an earlier run, and not of this one
        for name in written:
            os.replace(draft / name, self.path / name)


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
