"""A forward model as the user wrote it, bound to the one way in which it is called."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus.arguments import real
from nbi_plus.problem.guard import Guard, LateError, described
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators
from nbi_plus.problem.simulator.answers import FAILED, NONFINITE, OK, SimulationBlock
from nbi_plus.problem.simulator.calling import (
    Call,
    CallRows,
    SimulationError,
    arguments_of,
    as_block,
    as_bound,
    as_row,
    as_tensor,
    real_numbers,
)
from nbi_plus.problem.simulator.comparing import Compared, check_beside, few_of
from nbi_plus.problem.simulator.probing import Probe, RejectedError, WorkingCall, choose

_SLACK = 10  # times what rows took when tried: a vectorised call that takes longer hangs at some

_NO_COORDS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Simulator:
    """A forward model together with what is known about it.

    Parameters
    ----------
    f : callable
        ``f(theta)``, ``f(theta, t)``, ``f(theta, t, band)``: every argument after theta is looked
        up by name among the coordinates of the observations.

        Vectorised, it receives theta (n, P) and returns (n, L), (n, C, L) or (n,); one number per
        object, such as a redshift, arrives as (n, 1), so that it broadcasts. Row by row, it
        receives theta (P,) and returns (L,), (C, L) or a number; one number per object arrives as
        a number. Arrays are copies, in float64, of numpy or of torch.
    vectorized : bool, optional
        Whether all rows go in at once. Found out by trial if not given.
    differentiable : bool, optional
        Whether it is torch code that carries gradients. Found out by trial if not given.
    timeout : float, optional
        Seconds for each row, after which it counts as failed. A vectorised call gets these, and
        ten times what its rows took when it was tried; if it is late, its rows are tried alone.
        Enforced in worker processes; in this process of Python code alone, in the main thread,
        and not on Windows.

    Examples
    --------
    >>> line = Simulator(lambda theta, t: theta[:, :1] * t, vectorized=True)
    >>> line.vectorized
    True
    """

    f: Callable[..., Any]
    vectorized: bool | None = None
    differentiable: bool | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.timeout is not None and not real("timeout", self.timeout) > 0:
            raise ValueError(
                f"timeout must be positive seconds for each row, but is {self.timeout!r}. "
                "Leave it out for no limit."
            )


@dataclass(frozen=True)
class BoundSimulator:
    """A simulator whose way of being called is settled; made by `bind`.

    Attributes
    ----------
    call : Call
        The function, its arguments, backend and batching.
    differentiable : bool
        `torch` carries gradients.
    shape : tuple of int
        (C, L) of one row's output, for the coordinates it was bound with.
    length_from : str or None
        Coordinate argument whose length is that of the output, if there is one: with other
        coordinates ``L`` follows it.
    timeout : float or None
        Seconds for each row.
    seconds_per_row : float
        As measured when bound.
    stochastic : bool
        The same theta gives different answers. Within `run` the global generators are then seeded
        from theta, so that the answers at least do not depend on what ran before.
    seedable : bool
        Such a seed fixes the answer; if not, the simulator has randomness of its own.
    compared : Compared
        What was found about its answers in use.
    n_jobs : int
        Worker processes that were asked for when it was bound; 1 for none.
    on_call : callable or None
        Called with the limit of each call of `run` that has one, before it.
    """

    call: Call
    differentiable: bool
    shape: tuple[int, int]
    length_from: str | None
    timeout: float | None
    seconds_per_row: float
    stochastic: bool
    seedable: bool
    compared: Compared = field(compare=False, repr=False)
    n_jobs: int = 1
    on_call: Callable[[float], None] | None = field(default=None, compare=False, repr=False)

    @property
    def f(self) -> Callable[..., Any]:
        """The user's function."""
        return self.call.f

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the coordinates that are passed after theta."""
        return self.call.arguments

    @property
    def backend(self) -> str:
        """What goes in: ``"numpy"`` or ``"torch"``."""
        return self.call.backend

    @property
    def vectorized(self) -> bool:
        """All rows go in at once."""
        return self.call.vectorized

    @property
    def repeats(self) -> bool:
        """A row simulated again gives the same, whatever rows are beside it."""
        return not self.stochastic or (self.seedable and not self.vectorized)

    def shape_for(self, coords: Mapping[str, ArrayLike]) -> tuple[int, int]:
        """Return (C, L) of one row's output for these coordinates."""
        if self.length_from is None:
            return self.shape
        return self.shape[0], (1, *np.shape(coords[self.length_from]))[-1]

    def run(
        self,
        theta: ArrayLike,
        coords: Mapping[str, ArrayLike] = _NO_COORDS,
        per_row: Collection[str] = (),
    ) -> SimulationBlock:
        """Simulate rows; a bad row fails alone, after a second try, and never raises.

        Parameters
        ----------
        theta : array_like, shape (n, P)
        coords : mapping of str to array_like
            The arguments of the simulator; others are ignored.
        per_row : collection of str
            Those coordinates with a leading axis of ``n``; the others are shared.

        Returns
        -------
        SimulationBlock
        """
        rows = self.call.prepared(CallRows.of(theta, coords, per_row))
        n, shape = len(rows), self.shape_for(coords)
        x, state, errors = np.full((n, *shape), np.nan), np.full(n, FAILED, np.uint8), []
        todo = [np.arange(n)] if self.vectorized and n else [*np.arange(n)[:, None]]
        tried: set[int] = set()
        with (
            preserved_random_state(alone=self.stochastic),
            torch.no_grad(),
            Guard(self.on_call) as guard,
        ):
            while todo:
                part = todo.pop()
                row = int(part[0])
                try:
                    x[part] = self._answers(guard, rows, part, shape)
                    state[part] = OK
                except Exception as error:  # noqa: BLE001  user code, which costs its row
                    if len(part) > 1:
                        late = isinstance(error, LateError)
                        todo += np.array_split(part, len(part) if late else 2)
                    elif row in tried:
                        errors.append((row, described(error, self.timeout)))
                    else:
                        tried.add(row)
                        todo.append(part)
                else:
                    self._compare(guard, rows, part, x[part])
        state[(state == OK) & ~np.isfinite(x).all((1, 2))] = NONFINITE
        return SimulationBlock(x, state, sorted(errors))

    def torch(
        self,
        theta: Tensor,
        coords: Mapping[str, Tensor] = _NO_COORDS,
        per_row: Collection[str] = (),
    ) -> Tensor:
        """Simulate rows in torch, with gradients where they are enabled; a bad row raises.

        Parameters
        ----------
        theta : Tensor, shape (n, P)
        coords : mapping of str to Tensor
        per_row : collection of str

        Returns
        -------
        Tensor, shape (n, C, L)
            With the dtype and on the device of ``theta``.
        """
        if self.backend != "torch":
            raise TypeError(
                "simulator must be torch code to be called with tensors, but is numpy code. "
                "Write it with torch functions, or call run."
            )
        rows = self.call.prepared(CallRows(theta, dict(coords), frozenset(per_row)))
        n = len(rows)
        shape = self.shape_for(coords)
        if n == 0:
            return theta.new_zeros((0, *shape))

        def together() -> Tensor:
            output = as_block(as_tensor(self.call.all_rows(rows.paired())), max(n, 2))
            return self._kept(as_bound(output[:n], shape))

        def alone(i: int) -> Tensor:
            return self._kept(as_bound(as_row(as_tensor(self.call.one_row(rows, i))), shape))

        with preserved_random_state(alone=self.stochastic), Guard() as guard:
            self._seed(rows.theta)
            if self.vectorized:
                output = guard.call(together, self._seconds(n))
                if theta.dtype is torch.float64:
                    plain = replace(rows, theta=rows.theta.detach())
                    self._compare(guard, plain, np.arange(n), output)
            else:
                each = [guard.call(partial(alone, i), self.timeout) for i in range(n)]
                output = torch.stack(each)
        return output.to(theta)

    def _kept(self, output: Tensor) -> Tensor:
        """Return an answer that user code cannot edit later, with a gradient where that counts."""
        carries = self.differentiable and output.requires_grad and torch.is_grad_enabled()
        return (output if carries else output.detach()).clone()

    def _seconds(self, n: int) -> float | None:
        """Return the time that a call of ``n`` rows may take."""
        if self.timeout is None:
            return None
        return self.timeout + min((n - 1) * self.timeout, _SLACK * n * self.seconds_per_row)

    def _answers(
        self, guard: Guard, rows: CallRows, part: NDArray[np.int64], shape: tuple[int, int]
    ) -> NDArray[np.float64]:
        """Return the outputs (k, C, L) of a part of the rows, or raise what user code raised."""
        n = len(part)
        self._seed(rows.theta[part])
        if not self.vectorized:
            i = int(part[0])
            one = guard.call(lambda: as_row(real_numbers(self.call.one_row(rows, i))), self.timeout)
            return as_bound(one, shape)
        block = (rows if n == len(rows) else rows.take(part)).paired()
        return as_bound(guard.call(lambda: self._block(block), self._seconds(n))[:n], shape)

    def _block(self, rows: CallRows) -> NDArray[np.float64]:
        return as_block(real_numbers(self.call.all_rows(rows)), len(rows))

    def _compare(
        self, guard: Guard, rows: CallRows, part: NDArray[np.int64], x: NDArray | Tensor
    ) -> None:
        """Refuse answers of more rows at once than ever before that a few of them alone change."""
        n = len(part)
        if not self.vectorized or self.stochastic or n <= self.compared.rows:
            return
        few = few_of(n)
        block = rows.take(part[few])
        try:
            with torch.no_grad():
                alone = guard.call(lambda: self._block(block), self._seconds(len(few)))
        except Exception:  # noqa: BLE001  user code; these rows answered beside others
            return
        check_beside(part[few], real_numbers(block.theta), real_numbers(x[few]), alone, n)
        self.compared.rows = n

    def _seed(self, theta: Any) -> None:  # noqa: ANN401  ndarray or Tensor
        """Make a stochastic simulator draw other numbers for other theta, and the same for it."""
        if self.stochastic:
            reseed_global_generators(zlib.crc32(real_numbers(theta).tobytes()))


def bind(
    simulator: Simulator | Callable[..., Any],
    theta: ArrayLike,
    coords: Mapping[str, ArrayLike] = _NO_COORDS,
    per_row: Collection[str] = (),
    unit: str | None = None,
    on_call: Callable[[float], None] | None = None,
) -> BoundSimulator:
    """Find out how a simulator is called, once, by trying it on probe rows.

    Parameters
    ----------
    simulator : Simulator or callable
    theta : array_like, shape (k, P)
        Probe rows, for instance 16 draws from the prior; some of them may fail.
    coords : mapping of str to array_like
        Coordinates of the observations, among which the arguments after theta are looked up.
    per_row : collection of str
        Those coordinates with a leading axis of ``k``; the others are shared.

    Returns
    -------
    BoundSimulator

    Raises
    ------
    TypeError
        When a required argument is not among the coordinates.
    SimulationError
        When no way of calling it works on any of the rows.

    Examples
    --------
    >>> bound = bind(lambda theta, t: theta[:, :1] * t, np.ones((16, 2)), {"t": np.arange(3.0)})
    >>> bound.vectorized, bound.backend, bound.differentiable, bound.shape
    (True, 'torch', True, (1, 3))
    >>> bound.run([[2.0, 0.0]], {"t": [1.0, 2.0]}).x
    array([[[2., 4.]]])
    """
    wish = simulator if isinstance(simulator, Simulator) else Simulator(simulator)
    rows = CallRows.of(theta, coords, per_row)
    if not len(rows):
        raise ValueError("theta must have at least one row to try a simulator on, but has none.")
    call = Call(wish.f, *arguments_of(wish.f, rows.coords), "numpy", vectorized=True, unit=unit)
    probe = Probe(rows, wish.timeout, wish.differentiable, on_call)
    try:
        # a wrong guess warns about what the right one never does
        with preserved_random_state(alone=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = choose(call, probe, wish.vectorized)
    except RejectedError as error:
        raise SimulationError(
            f"simulator must answer with real numbers, {_ways(wish)}, but no call of it worked "
            f"({error}). See err.failed.",
            [
                {"row": i, "theta": rows.theta[i], "error": text}
                for i, text in sorted(error.failed.items())
            ],
        ) from None
    return _bound(trial, wish.timeout)


def _bound(trial: WorkingCall, timeout: float | None) -> BoundSimulator:
    """Return the simulator of a trial."""
    rows, length = trial.rows, trial.x.shape[-1]
    return BoundSimulator(
        call=trial.call,
        differentiable=trial.differentiable,
        shape=(trial.x.shape[1], length),
        length_from=next((a for a in trial.call.arguments if _length(rows, a) == length), None),
        timeout=timeout,
        seconds_per_row=trial.seconds_per_row,
        stochastic=trial.stochastic,
        seedable=trial.seedable,
        compared=Compared(trial.most),
    )


def _length(rows: CallRows, name: str) -> int | None:
    """Return the length of a coordinate's last axis, None for one number per row or for all."""
    shape = rows.coords[name].shape[1 if name in rows.per_row else 0 :]
    return shape[-1] if shape else None


def _ways(wish: Simulator) -> str:
    """Return what the user declared about the simulator, in words."""
    batching = {None: "vectorised or row by row", True: "vectorised", False: "row by row"}
    gradient = " and with a gradient in torch" if wish.differentiable else ""
    return batching[wish.vectorized] + gradient
