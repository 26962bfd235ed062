"""Reading: seconds and memory for a survey of a million points in 10 000 light curves.

Run ``python -m benchmarks.reading``. Each format is read in a fresh process, and what the imports
alone take is subtracted from its memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_ROWS, N_OBJECTS = 1_000_000, 10_000
SUFFIXES = ("parquet", "fits", "h5", "csv")


def make(folder: str) -> None:
    """Write the same rows, in no order, in each format: as a survey would, without our notes."""
    import numpy as np

    from nbi_plus.data.tables.table_files import write_table

    rng = np.random.default_rng(0)
    columns = {
        "diaObjectId": 2**50 + rng.integers(0, N_OBJECTS, N_ROWS),
        "midpointMjdTai": rng.uniform(60_000, 63_650, N_ROWS),
        "psfFlux": rng.normal(1000, 100, N_ROWS),
        "psfFluxErr": rng.uniform(50, 150, N_ROWS),
        "band": rng.choice(list("ugrizy"), N_ROWS),
        "ra": rng.uniform(0, 360, N_ROWS),
        "dec": rng.uniform(-90, 90, N_ROWS),
    }
    for suffix in SUFFIXES:
        write_table(Path(folder) / f"survey.{suffix}", columns, {}, {}, overwrite=True)


def measure(path: str) -> None:
    """Read one file and print what it took; an empty path measures the imports alone."""
    import pyarrow.parquet  # noqa: F401  not part of the reading
    from astropy.io import ascii, fits  # noqa: F401
    from astropy.table import Table  # noqa: F401

    from nbi_plus.data.observations import Observations

    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    n = len(Observations.read(path)) if path else 0
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "objects": n}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(took | {"peak_mb": peak / 1024, "above_imports_mb": (peak - base) / 1024}))


def run(step: str, path: str) -> str:
    """Run a step in a process of its own; what this one holds would count as the peak of that."""
    command = [sys.executable, "-m", "benchmarks.reading", step, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run("make", folder)
        print("| format | MB on disk | wall / s | CPU / s | peak / MB | above imports / MB |")
        print("|---|---|---|---|---|---|")
        for suffix in SUFFIXES:
            path = Path(folder) / f"survey.{suffix}"
            found = json.loads(run("measure", str(path)))
            size = path.stat().st_size / 2**20
            print(f"| {suffix} | {size:.0f} | {found['wall']:.2f} | {found['cpu']:.2f} | "
                  f"{found['peak_mb']:.0f} | {found['above_imports_mb']:.0f} |")  # fmt: skip


if __name__ == "__main__":
    {"make": make, "measure": measure}[sys.argv[1]](sys.argv[2]) if sys.argv[1:] else main()
