"""Gathered: simulations made elsewhere, in several files, as one set of numbered rows."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import path_of
from nbi_plus.io.blocks import row_numbers, shuffled_pools
from nbi_plus.io.store import good_rows, read_rows, told_of
from nbi_plus.problem.prior.prior import Prior

_LOG = logging.getLogger("nbi_plus")
_BLOCK_BYTES = 2**26  # that are looked through at once
_FLOAT = 8
Files = str | os.PathLike | Sequence[str | os.PathLike]


def are_files(x: Any) -> bool:  # noqa: ANN401 - data of any kind
    """Say whether ``x`` names files instead of being data."""
    one = (str, os.PathLike)
    several = isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(p, one) for p in x)
    return several or isinstance(x, one)


def files_of(x: Files) -> list[Path]:
    """Return the files that a path, a pattern such as ``"sims/*.h5"``, or a list of these names.

    In the order of their names, which does not depend on how they were given.
    """
    found: list[Path] = []
    for given in x if isinstance(x, (list, tuple)) else [x]:
        path = path_of("x", given)
        if glob.has_magic(str(path)) and not path.exists():
            matches = glob.glob(str(path), recursive=True)
            if not matches:
                raise FileNotFoundError(
                    f"x must name files of simulations, but {str(path)!r} matches none in "
                    f"{Path.cwd()}. Give another pattern, or a list of paths."
                )
            found += map(Path, matches)
        elif not path.exists():
            raise FileNotFoundError(
                f"x must name files of simulations, but there is no file {path}. Give its path."
            )
        else:
            found.append(path)
    seen: dict[tuple[int, int], Path] = {}
    for path in found:
        about = path.stat()
        before = seen.setdefault((about.st_dev, about.st_ino), path)
        if before is not path:
            raise ValueError(
                f"x must name each file once, but {str(before)!r} and {str(path)!r} are the "
                "same. Leave one out: its simulations would be trained on and held out."
            )
    return sorted(found, key=os.fspath)


@dataclass(frozen=True)
class GatheredFiles:
    """Simulations in several HDF5 files, read when they are needed.

    Rows are numbered through all files in their order; those that are not finite, or not inside
    the prior, have no number. It is to training what a `SimulationStore` is.

    Attributes
    ----------
    paths : tuple of Path
    rows : tuple of ndarray of int64
        Of each file: its rows that count.
    shape : tuple of int
        Channels and points (C, L) of one simulation.
    prior : Prior
    thetas : tuple of ndarray, or None
        Of each file: the parameters of these rows, where the files do not hold them.
    """

    paths: tuple[Path, ...]
    rows: tuple[NDArray[np.int64], ...]
    shape: tuple[int, int]
    prior: Prior
    thetas: tuple[NDArray[np.float64], ...] | None = None

    @classmethod
    def open(cls, x: Files, prior: Prior, theta: ArrayLike | None = None) -> GatheredFiles:
        """Look through all files, once, or say what is wrong with which of them.

        ``theta`` (n, D), where it is given, is of the rows of all files in their order.
        """
        paths = files_of(x)
        names = ("theta", "x") if theta is None else ("x",)
        if theta is None:
            check_parameters(paths, prior.full_names)
        rows, shapes = zip(*(good_rows(path, names) for path in paths), strict=True)
        shape = _one_shape(paths, [s["x"][1:] for s in shapes])
        thetas = None if theta is None else _shared_out(prior.check(theta), rows)
        found = cls(tuple(paths), rows, shape, prior, thetas)
        good = [found._usable(i) for i in range(len(paths))]
        n, n_all = sum(int(own.sum()) for own in good), found.n_rows
        if n < 2:
            raise ValueError(
                f"theta and x must have finite rows inside the prior, but {n_all - n} of {n_all} "
                f"in {len(paths)} files have not."
            )
        if n < n_all:
            told = "%d of %d simulations are not finite or not inside the prior"
            _LOG.warning(told, n_all - n, n_all)
        rows = tuple(own[kept] for own, kept in zip(rows, good, strict=True))
        if thetas is not None:
            thetas = tuple(own[kept] for own, kept in zip(thetas, good, strict=True))
        return replace(found, rows=rows, thetas=thetas)

    @property
    def n_rows(self) -> int:
        """How many rows count."""
        return sum(map(len, self.rows))

    @property
    def nbytes(self) -> int:
        """Bytes of all columns in memory."""
        return self.n_rows * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return _FLOAT * (2 * self.prior.n_dim + int(np.prod(self.shape)) + 2)

    def good_rows(self, n: int) -> NDArray[np.int64]:
        """Return the first ``n`` numbers."""
        return np.arange(min(n, self.n_rows))

    def read(
        self, rows: slice | Sequence[int] | NDArray, names: Sequence[str] | None = None
    ) -> dict[str, NDArray]:
        """Return columns of numbered rows, in the order given: z, theta, x, owner and shift."""
        rows = row_numbers(rows, self.n_rows)
        edges = np.cumsum([0, *map(len, self.rows)])
        owner = np.searchsorted(edges, rows, side="right") - 1
        theta = np.empty((len(rows), self.prior.n_dim))
        x = np.empty((len(rows), *self.shape))
        for i in np.unique(owner):  # files, not rows
            mine = owner == i
            theta[mine], x[mine] = self._pairs(i, rows[mine] - edges[i])
        zeros = {"owner": np.zeros(len(rows), np.int64), "shift": np.zeros(len(rows))}
        found = {"z": np.asarray(self.prior.to_latent(theta)), "theta": theta, "x": x, **zeros}
        return {name: found[name] for name in (found if names is None else names)}

    def stream(
        self, rows: slice | Sequence[int] | NDArray, names: Sequence[str] | None = None, *,
        buffer_bytes: int, seed: int,
    ) -> Iterator[dict[str, NDArray]]:  # fmt: skip
        """Return shuffled pools of rows, each once, in bounded memory: see `SimulationStore`."""
        rows = row_numbers(rows, self.n_rows)
        pools = shuffled_pools(rows, self._row_bytes, buffer_bytes, seed)
        return (self.read(pool, names) for pool in pools)

    def _pairs(
        self, i: int, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return theta (n, D) and x (n, C, L) of the rows of one file at some places."""
        path, rows = self.paths[i], self.rows[i][places]
        names = ("theta", "x") if self.thetas is None else ("x",)
        found = read_rows(path, names, rows)
        theta = (self.prior.check(found["theta"], f"theta of {path.name}")
                 if self.thetas is None else self.thetas[i][places])  # fmt: skip
        return theta, found["x"].astype(np.float64).reshape(len(rows), *self.shape)

    def _usable(self, i: int) -> NDArray[np.bool_]:
        """Say which rows of one file are finite, and inside the prior."""
        n = len(self.rows[i])
        good = np.zeros(n, bool)
        for part in np.array_split(np.arange(n), max(1, n * self._row_bytes // _BLOCK_BYTES)):
            theta, x = self._pairs(i, part)
            inside = np.isfinite(np.asarray(self.prior.to_latent(theta))).all(1)
            good[part] = inside & np.isfinite(x).all((1, 2))
        return good


def _one_shape(paths: list[Path], shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """Return the shape (C, L) that the rows of all files have."""
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"files of simulations must hold x of one shape, but a row of {paths[0]} has "
                f"{shapes[0]}, of {path} {shape}. Name those of one kind."
            )
    shape = shapes[0]
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(
            f"x of {paths[0]} must have shape (n, L) or (n, C, L), but a row of it has {shape}."
        )
    return (1, *shape) if len(shape) == 1 else shape


def _shared_out(
    theta: NDArray[np.float64], rows: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.float64], ...]:
    """Return the parameters of the rows of each file."""
    lengths = [len(own) for own in rows]
    if len(theta) != sum(lengths):
        raise ValueError(
            f"theta must have a row for each of the {sum(lengths)} that the {len(rows)} files of x "
            f"hold, in the order of their names, but has {len(theta)}."
        )
    return tuple(np.split(theta, np.cumsum(lengths)[:-1]))


def check_parameters(paths: Sequence[Path], wanted: Sequence[str]) -> None:
    """Refuse files that say their parameters are others, or in another order."""
    for path in paths:
        own = told_of(path).get("parameters", list(wanted))
        if own != list(wanted):
            raise ValueError(
                f"theta of {path.name} must be {', '.join(wanted)}, as the prior has them, but is "
                f"{', '.join(map(str, own))}. Name and order the prior's parameters as these are."
            )


def read_files(x: Files, names: Sequence[str]) -> dict[str, NDArray]:
    """Return columns of all files that ``x`` names, in memory, one file after the other."""
    found = [read_rows(path, names, good_rows(path, names)[0]) for path in files_of(x)]
    widths = {tuple(part[name].shape[1:] for name in names) for part in found}
    if len(widths) > 1:
        raise ValueError(
            f"files of simulations must hold rows of one shape, but have {sorted(widths)}. "
            "Name those of one kind."
        )
    return {name: np.concatenate([part[name] for part in found]) for name in names}
