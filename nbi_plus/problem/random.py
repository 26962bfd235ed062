"""Random numbers that depend on (seed, stage, row) alone, never on how rows are batched."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbi_plus import launch

_GOLDEN = -7046029254386353131  # 2**64 / golden ratio, as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # the two multipliers of the splitmix64 finaliser
_MIX_2 = -7723592293110705685


def stage_key(seed: int, stage: str) -> int:
    """Return a 63-bit key for one use of randomness; different stages are independent.

    All bits depend on both, for torch's generator on the CPU looks at the lowest 32 alone.
    """
    digest = hashlib.blake2b(f"{int(seed)} {stage}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, stage: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for one stage, for what no other batch layout must repeat."""
    return torch.Generator(device=device).manual_seed(stage_key(seed, stage))


def _shift(bits: Tensor, n: int) -> Tensor:
    """Shift right without copying the sign bit, which torch's int64 would do."""
    return (bits >> n).bitwise_and_((1 << (64 - n)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 64-bit counters: the splitmix64 finaliser of Steele, Lea and Flood (2014)."""
    bits = _shift(bits, 30).bitwise_xor_(bits).mul_(_MIX_1)
    bits = _shift(bits, 27).bitwise_xor_(bits).mul_(_MIX_2)
    return _shift(bits, 31).bitwise_xor_(bits)


def keyed_uniform(seed: int, stage: str, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw uniforms in (0, 1) for each row, whatever other rows are drawn beside it.

    Parameters
    ----------
    seed, stage : int, str
        What the numbers are for; another stage gives independent numbers.
    rows : Tensor of int64, shape (n,)
        Keys of the rows (simulation numbers or object keys). The device is theirs.
    shape : tuple of int
        Shape of the draws of one row.

    Returns
    -------
    Tensor of float64, shape (n, *shape)

    Examples
    --------
    >>> rows = torch.arange(10)
    >>> u = keyed_uniform(0, "demo", rows, (3,))
    >>> bool((u[4:6] == keyed_uniform(0, "demo", rows[4:6], (3,))).all())
    True
    """
    n_each = math.prod(shape)
    key = _mix(_mix(rows + stage_key(seed, stage)) * _GOLDEN)[:, None]
    counter = _GOLDEN * torch.arange(1, n_each + 1, device=rows.device, dtype=torch.int64)
    uniform = torch.empty(len(rows), n_each, dtype=torch.float64, device=rows.device)
    most = min(launch.of(rows.device).random_numbers, max(uniform.numel(), 1))
    n_columns = min(most, max(n_each, 1))
    n_rows = most // n_columns
    for own, some in zip(key.split(n_rows), uniform.split(n_rows), strict=True):
        for counts, made in zip(counter.split(n_columns), some.split(n_columns, 1), strict=True):
            bits = _mix(_mix(own + counts).bitwise_xor_(own))
            made.copy_(_shift(bits, 11)).add_(0.5).mul_(2.0**-53)
    return uniform.reshape(len(rows), *shape)


def keyed_normal(seed: int, stage: str, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normals for each row; see `keyed_uniform`."""
    uniform = keyed_uniform(seed, stage, rows, shape)
    return torch.special.ndtri(uniform, out=uniform)


def paired_keys(keys: Tensor, rows: Tensor) -> Tensor:
    """Return int64 keys (n,) of pairs of an object's key and the number of a row."""
    return _mix(keys ^ _mix(rows + _GOLDEN))


def content_keys(values: Tensor) -> Tensor:
    """Return int64 keys (n,) of float64 rows (n, ...): equal rows have equal keys.

    Examples
    --------
    >>> keys = content_keys(torch.tensor([[0.5, 1.0], [1.0, 0.5], [0.5, 1.0]]))
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    bits = values.to(torch.float64).flatten(1).contiguous().view(torch.int64)
    counter = torch.arange(1, bits.shape[1] + 1, device=values.device, dtype=torch.int64)
    return _mix(_mix(bits + counter * _GOLDEN).sum(1))


class _GlobalGenerators:
    """The global generators of Python, numpy and torch, which user code may draw from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._found: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if self._depth == 0:
                cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
                legacy = np.random.get_state(legacy=False)  # noqa: NPY002  that is the one to save
                self._found = random.getstate(), legacy, torch.get_rng_state(), cuda
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                python, legacy, cpu, cuda = self._found
                random.setstate(python)
                np.random.set_state(legacy)  # noqa: NPY002
                torch.set_rng_state(cpu)
                if cuda:
                    torch.cuda.set_rng_state_all(cuda)


_global_generators = _GlobalGenerators()


class _Alone:
    """The same generators, in one thread at a time: for who seeds them and then draws."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()
        _global_generators.__enter__()

    def __exit__(self, *_: object) -> None:
        _global_generators.__exit__()
        self._lock.release()


_alone = _Alone()


def preserved_random_state(*, alone: bool = False) -> _GlobalGenerators | _Alone:
    """Return a context that leaves the global generators as they were found.

    For calls of user code. Contexts may be nested and may overlap in several threads: what the
    first one found is put back when the last one ends. Those that are to be ``alone``, as who seeds
    the generators must be, wait for each other.

    Examples
    --------
    >>> before = random.getstate()
    >>> with preserved_random_state():
    ...     _ = random.random()
    >>> random.getstate() == before
    True
    """
    return _alone if alone else _global_generators


def reseed_global_generators(seed: int) -> None:
    """Seed the global generators for user code; only inside `preserved_random_state`, alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
