"""A user's function and the one way it is called: which arguments, backend and batching."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from nbi_plus.data.ingest import ingest, unit_of

Array = Any  # an ndarray or a Tensor; both sides of this module's code read the same

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class OutputError(ValueError):
    """What user code returned has no shape or type that means anything here."""


class SimulationError(RuntimeError):
    """A simulator cannot be used, or failed too often.

    Attributes
    ----------
    failed : list of dict
        ``row``, ``theta`` and ``error`` of each failed simulation.
    """

    def __init__(self, message: str, failed: Iterable[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.failed = [dict(one) for one in failed]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.failed)


def arguments_of(f: Callable[..., Any], available: Collection[str]) -> tuple[tuple[str, ...], int]:
    """Return the names that ``f`` wants after theta, and how many of them go by position.

    A required argument that is not available is a TypeError. A default stands where nothing of
    that name is available, and so does what `functools.partial` has bound. ``**kwargs`` receive
    all that is available. A callable without a signature receives theta alone.
    """
    if not callable(f):
        raise TypeError(f"simulator must be callable, but is {f!r}. Pass a function f(theta, ...).")
    try:
        # nn.Module.__call__ takes (*args, **kwargs); what it is called with stands on forward
        parameters = [
            *inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters.values()
        ]
    except (ValueError, TypeError):
        return (), 0
    if not parameters or parameters[0].kind not in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL):
        raise TypeError(
            f"simulator must take theta as its first positional argument, but has the signature "
            f"{inspect.signature(f)}. Write it as f(theta, ...)."
        )
    if parameters[0].kind in _POSITIONAL:
        parameters = parameters[1:]
    bound = f.keywords if isinstance(f, functools.partial) else {}
    return _looked_up(parameters, [name for name in available if name not in bound])


def _looked_up(
    parameters: list[inspect.Parameter], available: list[str]
) -> tuple[tuple[str, ...], int]:
    """Split the parameters after theta into those that are available and those that may lack."""
    by_position, by_name, missing, others = [], [], [], False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            others = True
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        elif parameter.name not in available:
            missing += [parameter.name] if parameter.default is inspect.Parameter.empty else []
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            by_position.append(parameter.name)
        else:
            by_name.append(parameter.name)
    if missing:
        raise TypeError(
            f"simulator argument {missing[0]!r} must be the name of a coordinate of the "
            f"observations, but these have {tuple(available)}. Pass {missing[0]}=..., or give "
            "the argument a default value."
        )
    if others:
        by_name += [name for name in available if name not in (*by_position, *by_name)]
    return (*by_position, *by_name), len(by_position)


def _fresh(array: Array) -> Array:
    """Return a copy that user code may edit."""
    return array.clone() if isinstance(array, Tensor) else array.copy()


def _twice(row: Array) -> Array:
    """Return a first axis of one as one of two; a list as an index would be sent to a GPU."""
    return (torch if isinstance(row, Tensor) else np).concatenate([row, row])


def _native(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return an array of the machine's byte order, floats in double precision."""
    array = np.asarray(value)
    if array.dtype.kind == "O":
        raise TypeError(
            f"{name} must be an array of numbers, but has dtype object. "
            "Are its rows of different lengths?"
        )
    kind = np.dtype(float) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return np.array(array, dtype=kind, order="C")


@dataclass(frozen=True)
class CallRows:
    """What a simulator is called with: rows of theta and the coordinates that belong to them.

    Attributes
    ----------
    theta : ndarray or Tensor, shape (n, P)
    coords : mapping of str to ndarray or Tensor
        Those named in ``per_row`` have a leading axis of ``n``, the others are shared.
    per_row : frozenset of str
    """

    theta: Array
    coords: Mapping[str, Array]
    per_row: frozenset[str]

    def __post_init__(self) -> None:
        if self.theta.ndim != 2:
            raise ValueError(
                f"theta must have shape (n, P), but has {tuple(self.theta.shape)}. "
                "Pass one row for each simulation."
            )
        for name in self.per_row.intersection(self.coords):
            shape = tuple(self.coords[name].shape)
            if shape[:1] != (len(self),):
                raise ValueError(
                    f"coordinate {name!r} must have one entry for each of the {len(self)} rows of "
                    f"theta, but has shape {shape}. Take it out of per_row if all rows share it."
                )

    @classmethod
    def of(
        cls, theta: ArrayLike, coords: Mapping[str, ArrayLike], per_row: Collection[str]
    ) -> CallRows:
        """Return rows that own their arrays, theta and floating coordinates in float64."""
        arrays = {name: _native(name, value) for name, value in coords.items()}
        return cls(_native("theta", theta).astype(float), arrays, frozenset(per_row))

    def __len__(self) -> int:
        return len(self.theta)

    def take(self, index: Array) -> CallRows:
        """Return the rows at ``index``, in that order."""
        picked = {
            name: value[index] if name in self.per_row else value
            for name, value in self.coords.items()
        }
        return CallRows(self.theta[index], picked, self.per_row)

    def paired(self) -> CallRows:
        """Return at least two rows: vectorised code that squeezes one row away never sees one."""
        if len(self) != 1:
            return self
        twice = {k: _twice(v) if k in self.per_row else v for k, v in self.coords.items()}
        return CallRows(_twice(self.theta), twice, self.per_row)

    def tensors(self) -> CallRows:
        """Return the same rows as CPU tensors; unsigned integers become int64."""
        coords = {
            name: torch.from_numpy(value.astype(np.int64) if value.dtype.kind == "u" else value)
            for name, value in self.coords.items()
        }
        return CallRows(torch.from_numpy(self.theta), coords, self.per_row)

    def at_home(self, f: Callable[..., Any]) -> CallRows:
        """Return the rows on the device and in the precision of ``f`` when that is a network."""
        weights = [*f.parameters(), *f.buffers()] if isinstance(f, nn.Module) else []
        home = next((w for w in weights if w.is_floating_point()), None)
        if home is None:
            return self
        coords = {
            name: value.to(home.device, home.dtype if value.is_floating_point() else value.dtype)
            for name, value in self.coords.items()
        }
        return CallRows(self.theta.to(home.device, home.dtype), coords, self.per_row)


@dataclass(frozen=True)
class Call:
    """One way to call a user's function.

    Attributes
    ----------
    f : callable
    arguments : tuple of str
        What follows theta, by name among the coordinates.
    n_positional : int
        How many of them are passed by position.
    backend : {"numpy", "torch"}
    vectorized : bool
        All rows at once, f(theta (n, P)), or one row at a time, f(theta (P,)).
    unit : str or None
        That of the data: answers in another are converted.
    """

    f: Callable[..., Any]
    arguments: tuple[str, ...]
    n_positional: int
    backend: str
    vectorized: bool
    unit: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}, {'all rows at once' if self.vectorized else 'row by row'}"

    def prepared(self, rows: CallRows) -> CallRows:
        """Return rows as this backend's arrays, with the wanted coordinates only."""
        missing = [name for name in self.arguments if name not in rows.coords]
        if missing:
            raise TypeError(
                f"simulator argument {missing[0]!r} must be among the coordinates, but these are "
                f"{tuple(rows.coords)}. Pass {missing[0]}=... as when the simulator was bound."
            )
        rows = CallRows(
            rows.theta, {name: rows.coords[name] for name in self.arguments}, rows.per_row
        )
        if self.backend == "torch":
            rows = (rows if isinstance(rows.theta, Tensor) else rows.tensors()).at_home(self.f)
        return rows

    def all_rows(self, rows: CallRows) -> Any:  # noqa: ANN401  whatever user code returns
        """Return f(theta (n, P), ...); one number per row goes in as (n, 1), to broadcast."""
        values = []
        for name in self.arguments:
            value = _fresh(rows.coords[name])
            values.append(value[:, None] if name in rows.per_row and value.ndim == 1 else value)
        return self._call(_fresh(rows.theta), values)

    def one_row(self, rows: CallRows, i: int) -> Any:  # noqa: ANN401
        """Return f(theta (P,), ...) of row ``i``; one number per row goes in as a number."""
        values = [
            _fresh(rows.coords[name][i] if name in rows.per_row else rows.coords[name][()])
            for name in self.arguments
        ]
        return self._call(_fresh(rows.theta[i]), values)

    def traced(
        self, theta: Tensor, coords: Mapping[str, Tensor], per_row: frozenset[str]
    ) -> Tensor:
        """Return the answers (n, C, L) to rows of tensors, for code that is being compiled."""
        if not (self.vectorized and self.backend == "torch"):
            raise TypeError("simulator must take all rows at once, as tensors, to be compiled.")
        rows = self.prepared(CallRows(theta, coords, per_row))
        return as_block(self.all_rows(rows), len(theta)).to(theta)

    def _call(self, theta: Array, values: list[Array]) -> Any:  # noqa: ANN401
        named = dict(zip(self.arguments, values, strict=True))
        for name in self.arguments[: self.n_positional]:
            del named[name]
        return self._in_unit(self.f(theta, *values[: self.n_positional], **named))

    def _in_unit(self, output: Any) -> Any:  # noqa: ANN401
        """Return an answer with a unit as bare numbers in that of the data."""
        came = unit_of(output)
        if came is None:
            return output
        if self.unit is None and came != "":
            raise OutputError(
                f"simulator must return bare numbers where the data have no unit, but returned "
                f"{came!r}. Give the data a unit, or return numbers in theirs"
            )
        return ingest("simulator output", output, self.unit)[0]


def channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (C, L) of one object's output: a number, (L,) or (C, L)."""
    if len(shape) > 2 or 0 in shape:
        raise OutputError(
            "simulator must return a number, (L,) or (C, L) for each row of theta, but returned "
            f"shape {tuple(shape)} for one"
        )
    c, length = (1, 1)[len(shape) :] + tuple(shape)
    return c, length


def as_block(output: Array, n: int) -> Array:
    """Return a vectorised output, (n,), (n, L) or (n, C, L), as (n, C, L)."""
    shape = tuple(output.shape)
    if shape[:1] != (n,):
        raise OutputError(
            f"simulator must return one entry for each row of theta, ({n}, ...) here, but "
            f"returned shape {shape}"
        )
    return output.reshape(n, *channels(shape[1:]))


def as_row(output: Array) -> Array:
    """Return the output of one row, a number, (L,) or (C, L), as (C, L)."""
    return output.reshape(channels(tuple(output.shape)))


def as_bound(output: Array, shape: tuple[int, int]) -> Array:
    """Return an output (..., C, L) that has the shape of all others."""
    if tuple(output.shape[-2:]) != shape:
        raise OutputError(
            f"simulator must return {shape} for each row as when it was bound, but returned "
            f"{tuple(output.shape[-2:])}"
        )
    return output


def as_tensor(output: Any) -> Tensor:  # noqa: ANN401
    """Return an output as a real tensor, with its gradient; see `real_numbers`."""
    if not isinstance(output, Tensor):
        return torch.from_numpy(real_numbers(output))
    if output.is_complex():
        return torch.where(output.imag == 0, output.real, torch.nan)
    return output


def real_numbers(output: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Return an output as float64; complex and masked values are NaN, anything else an error."""
    if output is None or isinstance(output, Mapping):
        came = "nothing" if output is None else f"a dict of {list(output)}"
        raise OutputError(
            f"simulator must return one array, but returned {came}. Return the array that the "
            "data are compared with"
        )
    if isinstance(output, Tensor):
        output = output.detach().cpu().numpy()
    try:
        kind = getattr(getattr(output, "dtype", None), "kind", None)
        array, _ = (output, None) if kind == "O" else ingest("simulator output", output)
        if isinstance(array, np.ma.MaskedArray):
            array = array.astype(np.result_type(array.dtype, float)).filled(np.nan)
        array = np.asarray(array)
    except (ValueError, TypeError, RuntimeError) as error:
        raise OutputError(f"simulator must return an array, but returned {error!r}") from error
    if array.dtype.kind not in "biufc":
        raise OutputError(
            f"simulator must return real numbers, but returned dtype {array.dtype}: {output!r:.80}"
        )
    if array.dtype.kind == "c":
        array = np.where(array.imag == 0, array.real, np.nan)
    return array.astype(float)
