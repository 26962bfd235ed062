"""Storing: what the checksums of stored simulations cost, for narrow and wide rows.

Run ``python -m benchmarks.storing``. A store of half a gigabyte is written, opened again (which
checks every row), and read from the page cache. Figures are MB for each second of CPU, which other
work on the machine changes less than the clock.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from nbi_plus.io.checksums import row_checksums
from nbi_plus.io.store import SimulationStore

N_BYTES = 2**29
WIDTHS = (10, 100, 1000)  # numbers in a row
BLOCK = 2**22  # bytes that are moved at once


def measure(width: int, path: Path) -> list[float]:
    """Return the speeds of writing, opening, reading, and of checksums alone."""
    n, step = N_BYTES // (8 * width), BLOCK // (8 * width)
    x = np.random.default_rng(0).normal(size=(n, width))
    blocks = [np.arange(start, min(start + step, n)) for start in range(0, n, step)]
    make = partial(SimulationStore.open, path, {}, {"x": (width,)}, n)

    def write(store: SimulationStore) -> None:
        for rows in blocks:
            store.write(int(rows[0]), np.zeros(len(rows), np.uint8), x=x[rows[0] : rows[-1] + 1])

    with make() as store:
        speeds = [speed(lambda: write(store))]
    speeds.append(speed(lambda: make().close()))
    with make() as store:
        speeds.append(speed(lambda: [store.read(rows) for rows in blocks]))
    parts = [{"x": x[rows[0] : rows[-1] + 1]} for rows in blocks]
    return [*speeds, speed(lambda: list(map(row_checksums, parts, blocks)))]


def speed(act: Callable[[], object]) -> float:
    """Return the MB for each second of CPU of something that moves all of them."""
    start = time.process_time()
    act()
    return N_BYTES / 1e6 / (time.process_time() - start)


def main() -> None:
    """Print a table."""
    print("| numbers in a row | write | open | read | checksums alone |")
    print("|---|---|---|---|---|")
    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            speeds = measure(width, Path(folder) / "sims.h5")
        print(" | ".join([f"| {width}", *(f"{value:.0f}" for value in speeds)]) + " |")


if __name__ == "__main__":
    main()
