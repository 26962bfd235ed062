"""Archives: HDF5 files of one JSON header beside plain numeric arrays, safe to read.

Model, posterior and checkpoint files have this form::

    header           uint8 (n,): JSON, with a checksum of itself and of every array
    arrays/<name>    bool, integers or floats; the name is percent-encoded

Nothing in such a file is ever executed, imported or unpickled, nothing is allocated before the file
was seen to hold the bytes that it declares, and nothing is returned that differs from what was
written.
"""

from __future__ import annotations

import itertools
import math
import os
import reprlib
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5t, h5z
from numpy.typing import ArrayLike, NDArray

from nbi_plus.io.disk import disk_errors
from nbi_plus.io.fingerprint import checksum
from nbi_plus.io.header import (
    FOREIGN,
    MAX_HEADER,
    ArchiveError,
    Header,
    OtherKindError,
    decode_header,
    encode_header,
)
from nbi_plus.io.placing import place, remove_leftovers, temporary_beside
from nbi_plus.io.planned import write_file

MAX_ARRAYS = 100_000
MAX_INFLATION = 200  # declared bytes for each stored one; compressed real numbers rarely reach 10
_FREE_INFLATION = 16 * 2**20  # small arrays of equal values may compress better than that
_STALE = 24 * 3600.0
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CODES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
PLAIN_DTYPES = frozenset(map(np.dtype, _CODES))
_SHUFFLE, _DEFLATE = (h5z.FILTER_SHUFFLE,), (h5z.FILTER_DEFLATE,)
_PIPELINES = ((), _SHUFFLE, _DEFLATE, _SHUFFLE + _DEFLATE)
_BROKEN = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, zlib.error)
_UNFIT = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError)
IN_USE = "{} must be free, but another process has it open. Wait for that, or use another path."
_DAMAGED = "The file is damaged: copy it again, or write it anew."
_ODD_DATA = "Store it as a plain, complete array of numbers."


@dataclass(frozen=True)
class Archive:
    """What one archive holds.

    Attributes
    ----------
    meta : dict
        The JSON part.
    arrays : dict of str to ndarray
        The numbers by name, in native byte order.
    """

    meta: dict[str, object]
    arrays: dict[str, NDArray]


def write_archive(
    path: Path | str, kind: str, meta: Mapping[str, object], arrays: Mapping[str, ArrayLike]
) -> None:
    """Write one archive at once: an older file stays until the new one is complete on disk.

    Parameters
    ----------
    path : Path or str
        The file; a missing folder is made.
    kind : str
        What the file is, say "model"; `read_archive` must be asked for the same.
    meta : mapping
        JSON: None, bool, int, finite float, str, and lists and dicts (str keys) of these. Tuples
        come back as lists. An infinite or NaN float is refused: use None, or an array.
    arrays : mapping of str to array_like
        Bool, integer or float arrays of at most 64 bits; infinities and NaN are kept.
    """
    path = Path(path).resolve()
    plain = {name: _plain_array(name, array) for name, array in arrays.items()}
    sums = {name: checksum_of(name, array) for name, array in plain.items()}
    header = np.frombuffer(encode_header(kind, meta, arrays=sums), dtype=np.uint8)
    if len(plain) > MAX_ARRAYS:
        raise ArchiveError(f"arrays must be {MAX_ARRAYS} at most, but are {len(plain)}. Join some.")
    stored = {f"arrays/{_encode_name(name)}": array for name, array in plain.items()}
    with disk_errors(path.name, ArchiveError):
        temporary = temporary_beside(path)
        remove_leftovers(path, older_than=_STALE)
        try:
            write_file(temporary, {"header": header, **stored}, groups=["arrays"])
            place(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_archive(path: Path | str, kind: str) -> Archive:
    """Read one archive, refusing with `ArchiveError` all that `write_archive` does not write.

    Parameters
    ----------
    path : Path or str
        The file.
    kind : str
        The kind that it must have.

    Returns
    -------
    Archive

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_archive(folder + "/a.nbi", "model", {"depth": 2}, {"weight": [0.5, 1.5]})
    ...     archive = read_archive(folder + "/a.nbi", "model")
    >>> archive.meta, archive.arrays["weight"].tolist()
    ({'depth': 2}, [0.5, 1.5])
    """
    with hdf5_errors(path), open_hdf5(path) as file:
        header = _header(file, kind)
        if set(file) != {"header", "arrays"} or _target(file, "arrays") != h5o.TYPE_GROUP:
            raise refusal(file, "must hold header and arrays", f"holds {_show(sorted(file))}")
        group = file["arrays"]
        if len(group) > MAX_ARRAYS:
            raise refusal(file, f"must hold at most {MAX_ARRAYS} arrays", f"holds {len(group)}")
        names = {key: _decode_name(file, key) for key in group}
        if header.sealed:
            _refuse_other_arrays(file, header, set(names.values()))
        datasets = checked_datasets(group, names)
        arrays = {names[key]: read_plain(data) for key, data in datasets.items()}
        for name in header.arrays:
            if checksum_of(name, arrays[name]) != header.arrays[name]:
                came = f"the checksum of {_show(name)} is another"
                raise refusal(file, "must hold the arrays that were written", came, _DAMAGED)
    if not header.sealed:
        warnings.warn(
            f"{Path(path).name} must be of a schema with checksums, but is of schema "
            f"{header.schema}: damage would not be seen. Save it again.",
            stacklevel=3,
        )
    return Archive(header.meta, arrays)


def checksum_of(name: str, array: NDArray) -> str:
    """Return the SHA-256 of an array: of its name, dtype, shape and numbers."""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))  # as a rule no copy
    told = f"{plain.dtype.str} {array.shape} {name}".encode("utf-8", "surrogatepass")
    return checksum([told, plain.reshape(-1).view(np.uint8).data])


def _refuse_other_arrays(file: h5py.File, header: Header, present: set[str]) -> None:
    """Refuse a file in which arrays are missing, or that were not written."""
    missing, more = sorted(set(header.arrays) - present), sorted(present - set(header.arrays))
    if missing or more:
        came = f"lacks {_show(missing)}" if missing else f"holds {_show(more)}, too"
        raise refusal(file, "must hold the arrays that were written", came, _DAMAGED)


def read_header(file: h5py.File, kind: str) -> dict[str, object]:
    """Return the meta of an open file, if its header is sound and of this kind."""
    return _header(file, kind).meta


def _header(file: h5py.File, kind: str) -> Header:
    if "header" not in set(file):
        raise refusal(file, "must be a file of nbi-plus", "has no header")
    data = checked_datasets(file, ["header"])["header"]
    if data.dtype != np.uint8 or data.ndim != 1 or data.size > MAX_HEADER:
        came = f"has one of dtype {data.dtype} and shape {data.shape}"
        raise refusal(file, f"must have a header of at most {MAX_HEADER} bytes", came)
    return decode_header(read_plain(data).tobytes(), kind, Path(file.filename).name)


# --- names and arrays ----------------------------------------------------------------------------


def _encode_name(name: str) -> str:
    """Return the HDF5 name of an array: '/' and all else that HDF5 would interpret is encoded."""
    if not isinstance(name, str) or not name:
        raise ArchiveError(f"arrays must have non-empty str names, but has {name!r}. Rename it.")
    return "%2E" if name == "." else quote(name, safe="", errors="surrogatepass")


def _decode_name(file: h5py.File, key: str) -> str:
    name = unquote(key, errors="surrogatepass")
    if _encode_name(name) != key:
        raise refusal(file, "must have percent-encoded array names", f"has {_show(key)}")
    return name


def _plain_array(name: str, array: ArrayLike) -> NDArray:
    array = np.asarray(array)
    if array.dtype.newbyteorder("=") not in PLAIN_DTYPES:
        raise ArchiveError(
            f"arrays[{name!r}] must be bool, integer or float of at most 64 bits, "
            f"but has dtype {array.dtype}. Convert it, or put it into meta."
        )
    return array


def read_plain(dataset: h5py.Dataset) -> NDArray:
    """Return the whole of a checked dataset."""
    return native(np.asarray(dataset[()]))


def native(array: NDArray) -> NDArray:
    """Return what was read from a checked dataset in native byte order."""
    if array.dtype == np.bool_:  # HDF5 keeps one byte, which a crafted file may set to anything
        return np.asarray(array.view(np.uint8) != 0)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


# --- refusing dangerous HDF5 ---------------------------------------------------------------------


def open_hdf5(path: Path | str, mode: str = "r") -> h5py.File:
    """Open an existing HDF5 file, or say clearly that it is none, broken or in use."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise ArchiveError(f"{path.name} must be a file, but is a folder or device. Name a file.")
    if not path.exists():
        raise FileNotFoundError(f"path must be that of a file, but there is no file {path}.")
    with path.open("rb") as raw:
        start = raw.read(8)
    with hdf5_errors(path):
        if start != _SIGNATURE and (start[:2] == b"PK" or not h5py.is_hdf5(path)):
            raise OtherKindError(
                f"{path.name} must be an HDF5 file, but {_describe(start)}. "
                "Pickles and torch files are never loaded; give a file that nbi-plus wrote."
            )
        return h5py.File(path, mode, locking="best-effort")


def _describe(start: bytes) -> str:
    if start[:2] == b"PK":
        return "is a zip file (torch and numpy write such files)"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a pickle file"
    return f"starts with {start!r}"


@contextmanager
def hdf5_errors(path: Path | str) -> Iterator[None]:
    """Turn what h5py raises on a broken file into `ArchiveError`."""
    name = Path(path).name
    try:
        yield
    except (ArchiveError, FileNotFoundError, PermissionError):
        raise
    except BlockingIOError as error:
        raise ArchiveError(IN_USE.format(name)) from error
    except _BROKEN as error:
        raise ArchiveError(
            f"{name} must be a sound HDF5 file, but cannot be read "
            f"({type(error).__name__}: {error}). Copy it again, or write it anew."
        ) from error


@contextmanager
def fitting_parts(path: Path | str, what: str) -> Iterator[None]:
    """Turn what is raised on parts that do not fit together into `ArchiveError`."""
    try:
        yield
    except ArchiveError:
        raise
    except _UNFIT as error:
        if isinstance(error, ValueError) and " must " in str(error):
            raise ArchiveError(str(error)) from error  # a rule that has its own sentence
        raise ArchiveError(
            f"{path} must hold a complete {what}, but its parts do not fit together: "
            f"{error!r:.300}. Save it again."
        ) from error


def checked_datasets(group: h5py.Group, names: Iterable[str]) -> dict[str, h5py.Dataset]:
    """Return these datasets of an open file, if all are plain numbers that are really stored.

    Links that lead elsewhere, types beyond bool, integer and float, virtual and external data,
    unusual filters, and sizes that the file cannot hold are refused; no data is allocated.
    """
    present = set(group)
    datasets = {name: _hard_dataset(group, name, present) for name in names}
    for data in datasets.values():
        _check_storage(data)
    size = os.fstat(group.file.id.get_vfd_handle()).st_size
    sizes = [_sizes(data, size) for data in datasets.values()]
    declared, stored = sum(pair[0] for pair in sizes), sum(pair[1] for pair in sizes)
    # several datasets that share their bytes would multiply what is read, hence the two sums
    if stored > size or declared > MAX_INFLATION * stored + _FREE_INFLATION:
        came = f"declares {declared} bytes, stored as {stored}"
        raise refusal(group, f"must hold its data within its {size} bytes", came, _ODD_DATA)
    for data in datasets.values():
        _check_chunks(data)
    return datasets


def _target(group: h5py.Group, name: str) -> int:
    """Return the type of the object that a hard link leads to; -1 for other links."""
    raw = name.encode("utf-8", "surrogateescape")
    if group.id.links.get_info(raw).type != h5l.TYPE_HARD:
        return -1
    return h5o.get_info(group.id, raw).type


def _hard_dataset(group: h5py.Group, name: str, present: set[str]) -> h5py.Dataset:
    if name not in present:
        came = f"has {_show(sorted(present))}"
        raise refusal(group, f"must have a dataset {name!r}", came, "Add or rename one.")
    if _target(group, name) != h5o.TYPE_DATASET:
        raise refusal(group, "must hold plain datasets", f"{_show(name)} is none", _ODD_DATA)
    data = h5py.Dataset(h5d.open(group.id, name.encode("utf-8", "surrogateescape")))
    if not _is_plain(data.id.get_type()) or data.shape is None:
        rule, came = "must hold bool, integer or float arrays", f"{_show(name)} is of another type"
        raise refusal(group, rule, came, _ODD_DATA)
    return data


def _is_plain(stored: h5t.TypeID) -> bool:
    """Return whether a stored type is exactly that of a numpy bool, integer or float."""
    family = stored.get_class()
    if family not in (h5t.INTEGER, h5t.FLOAT, h5t.ENUM):
        return False
    dtype = stored.dtype
    if dtype.newbyteorder("=") not in PLAIN_DTYPES or (family == h5t.ENUM) != (dtype.kind == "b"):
        return False
    return stored == h5t.py_create(dtype, logical=True)


def _filters(data: h5py.Dataset) -> tuple[int, ...]:
    plan = data.id.get_create_plist()
    return tuple(plan.get_filter(i)[0] for i in range(plan.get_nfilters()))


def _check_storage(data: h5py.Dataset) -> None:
    """Refuse data that lies in other files, or that needs more than gzip and shuffle."""
    plan = data.id.get_create_plist()
    known = plan.get_layout() in (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
    if not known or plan.get_external_count():
        came = f"that of {_show(data.name)} is virtual or external"
        raise refusal(data, "must store its own data", came, _ODD_DATA)
    if _filters(data) not in _PIPELINES:
        came = f"{_show(data.name)} has the filters {_filters(data)}"
        raise refusal(data, "must be compressed by gzip (and shuffle) or not", came, _ODD_DATA)


def _sizes(data: h5py.Dataset, size: int) -> tuple[int, int]:
    """Return the bytes that a dataset declares and stores, if a file of `size` can hold them."""
    chunk = data.chunks or data.shape
    n_rounded = math.prod(-(-n // c) * c for n, c in zip(data.shape, chunk, strict=True) if n)
    declared = n_rounded * data.dtype.itemsize if data.size else 0
    stored = data.id.get_storage_size() if declared else 0
    end = (data.id.get_offset() or 0) + stored if stored else 0
    inflates = h5z.FILTER_DEFLATE in _filters(data)
    if end > size or (declared > stored and not inflates):
        came = f"{_show(data.name)} declares {declared} bytes and stores {stored} in {size}"
        raise refusal(data, "must hold the data that it declares", came, _ODD_DATA)
    return declared, stored


def _check_chunks(data: h5py.Dataset) -> None:
    """Refuse filtered chunks that are absent or inflate to another size, which HDF5 would do."""
    filters = _filters(data)
    if not filters or not data.size:
        return
    n_bytes = math.prod(data.chunks) * data.dtype.itemsize
    steps = (range(0, n, c) for n, c in zip(data.shape, data.chunks, strict=True))
    for corner in itertools.product(*steps):
        skipped, raw = data.id.read_direct_chunk(corner)
        if filters[-1] == h5z.FILTER_DEFLATE and not skipped >> (len(filters) - 1) & 1:
            raw = zlib.decompressobj().decompress(raw, n_bytes + 1)
        if len(raw) != n_bytes:
            came = f"a chunk of {_show(data.name)} has another size"
            raise refusal(data, "must hold the data that it declares", came, _ODD_DATA)


def refusal(item: h5py.HLObject, rule: str, came: str, advice: str = FOREIGN) -> ArchiveError:
    """Return the error that says which rule an open file breaks."""
    return ArchiveError(f"{Path(item.file.filename).name} {rule}, but {came}. {advice}")


def _show(value: object) -> str:
    """Return a short repr of a value, whatever a file made of it."""
    return reprlib.repr(value)
