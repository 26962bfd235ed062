"""Hashing: a short text that tells an object's data from others', however they are laid out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.data.units import base_factor

if TYPE_CHECKING:
    from nbi_plus.data.flat import FlatData

_DIGITS = 30  # bits of a number that count: what rounding in other units leaves alone
_BYTES = 8


def data_hashes(data: FlatData) -> NDArray[np.str_]:
    """Return a text of 16 digits for each object, shape (N,).

    It depends on the values, errors, mask, coordinates and scalars of the object, in their order:
    not on its id, on other objects, padding, points that are masked in every channel, the codes of
    categories, the origin of times, or the unit that a quantity is given in. Nine digits of each
    number count.
    """
    flat = data.laid_out()
    columns = [flat.valid.astype(np.int64), _bits(flat.values * _factor(flat, "x"), flat.valid)]
    if flat.errors is not None:
        columns.append(_bits(flat.errors * _factor(flat, "x"), flat.valid))
    columns += [_coordinate(flat, name)[None] for name in sorted(flat.points)]
    own = {k: _bits(v * _factor(flat, k), True) for k, v in sorted(flat.scalars.items())}
    seen = flat.valid.any(0)
    points = np.concatenate(columns).T[seen]
    ends = np.concatenate([[0], np.cumsum(seen)])[flat.offsets]
    about = [len(flat.values), flat.errors is not None, sorted(flat.points), sorted(own)]
    head = json.dumps(about).encode()
    each = np.stack(list(own.values()), 1) if own else np.zeros((len(flat), 0), np.int64)
    digests = [  # a digest is made of one object's bytes
        blake2b(head + each[i].tobytes() + points[a:b].tobytes(), digest_size=_BYTES).hexdigest()
        for i, (a, b) in enumerate(zip(ends[:-1], ends[1:], strict=True))
    ]
    return np.array(digests, f"<U{2 * _BYTES}")


def _coordinate(flat: FlatData, name: str) -> NDArray[np.int64]:
    """Return a coordinate (n_points,) as whole numbers: absolute times, and names of categories."""
    values = flat.points[name]
    if name in flat.categories:
        texts = [blake2b(c.encode(), digest_size=8).digest() for c in flat.categories[name]]
        return np.frombuffer(b"".join(texts), np.int64)[values.astype(np.int64)]
    if values.dtype.kind != "f":
        return values.astype(np.int64)
    whole = values + flat.origins[flat.owner] if name == "t" else values
    return _bits(whole * _factor(flat, name), True)


def _bits(values: NDArray[np.float64], keep: NDArray[np.bool_] | bool) -> NDArray[np.int64]:
    """Return numbers rounded to their first bits, as whole numbers; 0 where they do not count."""
    mantissa, exponent = np.frexp(np.where(keep, values, 0.0))
    finite = np.isfinite(mantissa)
    rounded = np.rint(np.where(finite, mantissa, 0.0) * 2.0**_DIGITS).astype(np.int64)
    # one that rounds up to the next power of two is that power
    top = np.abs(rounded) == 2**_DIGITS
    rounded, exponent = np.where(top, rounded // 2, rounded), exponent + top
    return np.where(finite, rounded + (exponent.astype(np.int64) << 33), -1)


def _factor(flat: FlatData, name: str) -> float:
    units: Mapping[str, str] = flat.units
    return base_factor(units[name]) if name in units else 1.0
