"""Mutations: one file damaged, or forged, in many ways that a seed decides.

Damage leaves checksums as they were; a forger writes one number, array or part of the JSON anew and
seals the file again, as the package itself would.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from nbi_plus.io.archive import read_archive, write_archive

_PAGE = 512
_SCALES = (0.5, 2.0, 1e-3, 1e3, 1e9, -1.0, 1.0 + 1e-3)
_VALUES = (None, True, "", "nan", "inf", "other", [], {}, 0, -1, 1e308, 2**53, [[1.0]])


@dataclass(frozen=True)
class Mutation:
    """One way in which a file was changed."""

    name: str
    forged: bool


def mutations(
    source: Path, kind: str | None, target: Path, n: int, seed: int, forged_share: float = 0.5
) -> Iterator[Mutation]:
    """Write n changed copies of ``source`` to ``target``, one after the other; yield what each is.

    A change may by chance be none, as where a page of zeros is zeroed. Files of no kind are no
    archives: they are damaged alone.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        if kind is None:
            ways: dict[str, Callable] = DAMAGES
        elif rng.random() < forged_share:
            ways = FORGERIES
        else:
            ways = DAMAGES if rng.random() < 0.7 else EDITS
        name = str(rng.choice(list(ways)))
        if ways is DAMAGES:
            raw = bytearray(source.read_bytes())
            told = ways[name](raw, rng)
            target.write_bytes(raw)
        elif ways is EDITS:
            shutil.copyfile(source, target)
            with h5py.File(target, "r+") as file:
                told = ways[name](file, rng)
        else:
            archive = read_archive(source, kind)
            told = ways[name](archive.meta, archive.arrays, rng)
            write_archive(target, kind, archive.meta, archive.arrays)
        yield Mutation(f"{name}: {told}", ways is FORGERIES)


# --- damage: bytes, whatever they mean -----------------------------------------------------------


def _flip(raw, rng):
    at = int(rng.integers(len(raw)))
    raw[at] ^= 1 << int(rng.integers(8))
    return f"bit at {at}"


def _truncate(raw, rng):
    length = int(rng.integers(len(raw)))
    del raw[length:]
    return f"to {length} bytes"


def _pages(raw, rng, n=1):
    return [_PAGE * int(i) for i in rng.integers(max(len(raw) // _PAGE, 1), size=n)]


def _zero(raw, rng):
    (at,) = _pages(raw, rng)
    raw[at : at + _PAGE] = bytes(len(raw[at : at + _PAGE]))
    return f"page at {at}"


def _swap(raw, rng):
    a, b = _pages(raw, rng, 2)
    raw[a : a + _PAGE], raw[b : b + _PAGE] = raw[b : b + _PAGE], raw[a : a + _PAGE]
    return f"pages at {a} and {b}"


def _splice(raw, rng):
    a, b = _pages(raw, rng, 2)
    raw[a:a] = raw[b : b + _PAGE]
    return f"page of {b} into {a}"


def _append(raw, rng):
    raw += rng.bytes(int(rng.integers(1, 2000)))
    return "bytes"


DAMAGES = {"flip": _flip, "truncate": _truncate, "zero": _zero, "swap": _swap, "splice": _splice,
           "append": _append}  # fmt: skip


# --- edits: datasets, with checksums as they were ------------------------------------------------


def _some(file, rng, n=1):
    return [str(k) for k in rng.permutation(list(file["arrays"]))[:n]]


def _swap_datasets(file, rng):
    a, b = (_some(file, rng, 2) * 2)[:2]
    if a != b:
        file["arrays"].move(a, "spare")
        file["arrays"].move(b, a)
        file["arrays"].move("spare", b)
    return f"{a} and {b}"


def _drop_dataset(file, rng):
    (name,) = _some(file, rng)
    del file["arrays"][name]
    return name


def _add_dataset(file, rng):
    file["arrays"]["more"] = rng.normal(size=3)
    return "more"


def _reshape_dataset(file, rng):
    (name,) = _some(file, rng)
    value = file["arrays"][name][()]
    del file["arrays"][name]
    file["arrays"][name] = value[None]
    return name


def _retype_dataset(file, rng):
    (name,) = _some(file, rng)
    value = file["arrays"][name][()]
    del file["arrays"][name]
    file["arrays"][name] = value.astype("f4" if value.dtype == np.float64 else "f8")
    return name


def _attribute(file, rng):
    (name,) = _some(file, rng)
    file["arrays"][name].attrs["shape"] = np.arange(3)
    return name


EDITS = {"swap": _swap_datasets, "drop": _drop_dataset, "add": _add_dataset,
         "reshape": _reshape_dataset, "retype": _retype_dataset,
         "attribute": _attribute}  # fmt: skip


# --- forgeries: one change, sealed again ---------------------------------------------------------


def _leaves(value, path=()):
    """Return where the values of nested JSON stand."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += _leaves(item, (*path, key))
    return found


def _place(meta, rng, numbers_only=False):
    places = _leaves(meta)
    if numbers_only:
        places = [p for p in places if _is_number(_at(meta, p))]
    path = places[int(rng.integers(len(places)))]
    return _at(meta, path[:-1]), path[-1], ".".join(map(str, path))


def _at(meta, path):
    for key in path:
        meta = meta[key]
    return meta


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scale_number(meta, arrays, rng):  # noqa: ARG001 - as all forgeries
    if not any(_is_number(_at(meta, p)) for p in _leaves(meta)):
        return "nothing"
    holder, key, told = _place(meta, rng, numbers_only=True)
    value = (holder[key] or 1) * float(rng.choice(_SCALES))
    if isinstance(holder[key], int):
        value = int(value)
    holder[key] = value if math.isfinite(value) else 0.0
    return f"{told} = {holder[key]}"


def _replace_value(meta, arrays, rng):  # noqa: ARG001
    if not meta:
        return "nothing"
    holder, key, told = _place(meta, rng)
    holder[key] = _VALUES[int(rng.integers(len(_VALUES)))]
    return f"{told} = {holder[key]!r}"


def _drop_value(meta, arrays, rng):  # noqa: ARG001
    if not meta:
        return "nothing"
    holder, key, told = _place(meta, rng)
    del holder[key]
    return told


def _array(arrays, rng):
    name = str(rng.choice(sorted(arrays)))
    arrays[name] = np.array(arrays[name])
    return name


def _forge_number(meta, arrays, rng):  # noqa: ARG001
    name = _array(arrays, rng)
    own = arrays[name].reshape(-1)
    if own.size:
        at = int(rng.integers(own.size))
        kind = own.dtype.kind
        value = rng.choice([np.nan, np.inf, -np.inf, -1.0, 0.0, 1e300, 3.5]) if kind == "f" else 1
        with np.errstate(over="ignore"):
            own[at] = value
        return f"{name}[{at}] = {own[at]}"
    return f"{name} is empty"


def _forge_scale(meta, arrays, rng):  # noqa: ARG001
    name = _array(arrays, rng)
    if arrays[name].dtype.kind == "f":
        with np.errstate(all="ignore"):
            arrays[name] = (arrays[name] * rng.choice(_SCALES)).astype(arrays[name].dtype)
    return name


def _forge_shape(meta, arrays, rng):  # noqa: ARG001
    name = _array(arrays, rng)
    own = arrays[name]
    ways = [own[None], own.reshape(-1), np.zeros((10**6, 0)), own[:0] if own.ndim else own[None],
            own[:-1] if own.ndim else own[None], own.astype("f4")]  # fmt: skip
    arrays[name] = ways[int(rng.integers(len(ways)))]
    return f"{name} of {arrays[name].shape}"


def _forge_missing(meta, arrays, rng):  # noqa: ARG001
    name = _array(arrays, rng)
    del arrays[name]
    return name


FORGERIES = {"number": _scale_number, "value": _replace_value, "key": _drop_value,
             "element": _forge_number, "scale": _forge_scale, "shape": _forge_shape,
             "missing": _forge_missing}  # fmt: skip
