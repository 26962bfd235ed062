"""Hashing: short texts that tell the data of objects apart, whatever rounding did to them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_DIGITS = 30  # bits of a number that count: what rounding in other units leaves alone
_BYTES = 8


def texts_of(
    points: NDArray[np.int64], own: NDArray[np.int64], ends: NDArray[np.int64], about: object
) -> NDArray[np.str_]:
    """Return a text of 16 digits for each of N objects.

    Parameters
    ----------
    points : ndarray, shape (n_points, k)
        What belongs to the points, object after object.
    own : ndarray, shape (N, m)
        What belongs to each object.
    ends : ndarray, shape (N + 1,)
        Where the points of the objects begin and end.
    about : object
        What the columns are, as JSON has it.
    """
    head = json.dumps(about).encode()
    digests = [  # a digest is made of one object's bytes
        blake2b(head + own[i].tobytes() + points[a:b].tobytes(), digest_size=_BYTES).hexdigest()
        for i, (a, b) in enumerate(zip(ends[:-1], ends[1:], strict=True))
    ]
    return np.array(digests, f"<U{2 * _BYTES}")


def together(texts: Sequence[str]) -> str:
    """Return a text of several such texts, whatever their order."""
    return blake2b("".join(sorted(texts)).encode(), digest_size=_BYTES).hexdigest()


def keys_of(ids: NDArray) -> NDArray[np.int64]:
    """Return a number for each id, shape (N,), that depends on it alone."""
    digests = [blake2b(str(i).encode(), digest_size=8).digest() for i in ids.tolist()]
    return np.frombuffer(b"".join(digests), np.int64).copy()


def named(texts: Sequence[str], codes: NDArray) -> NDArray[np.int64]:
    """Return codes as whole numbers that depend on the texts they stand for."""
    return keys_of(np.array(texts, object))[codes.astype(np.int64)]


def bits(values: NDArray[np.float64], keep: NDArray[np.bool_] | bool) -> NDArray[np.int64]:
    """Return numbers rounded to their first bits, as whole numbers; 0 where they do not count."""
    mantissa, exponent = np.frexp(np.where(keep, values, 0.0))
    finite = np.isfinite(mantissa)
    rounded = np.rint(np.where(finite, mantissa, 0.0) * 2.0**_DIGITS).astype(np.int64)
    # one that rounds up to the next power of two is that power
    top = np.abs(rounded) == 2**_DIGITS
    rounded, exponent = np.where(top, rounded // 2, rounded), exponent + top
    return np.where(finite, rounded + (exponent.astype(np.int64) << 33), -1)
