"""Checksums: what it takes to write and to read an archive, and how much of that they are.

Run ``python -m benchmarks.checksums --megabytes 200``: MB of CPU time, one thread, and the memory
that reading takes beyond the arrays themselves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from nbi_plus.io.archive import checksum_of, read_archive, write_archive


def rate(megabytes, job):
    began = time.process_time()
    job()
    return round(megabytes / (time.process_time() - began))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    megabytes = parser.parse_args().megabytes
    numbers = np.random.default_rng(0).normal(size=(8, megabytes * 10**6 // 64))
    arrays = {str(i): row for i, row in enumerate(numbers)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nbi"
        found = {
            "checksums": rate(megabytes, lambda: [checksum_of(k, v) for k, v in arrays.items()]),
            "written": rate(megabytes, lambda: write_archive(path, "model", {}, arrays)),
            "read": rate(megabytes, lambda: read_archive(path, "model")),
        }
        tracemalloc.start()
        read_archive(path, "model")
        more = tracemalloc.get_traced_memory()[1] / 1e6 - megabytes
    print(json.dumps({"mb_per_s": found, "mb_beyond_the_arrays": round(more, 1)}))


if __name__ == "__main__":
    main()
