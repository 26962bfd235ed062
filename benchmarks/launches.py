"""What a target costs in launches of different size: ``python -m benchmarks.launches``.

Log-densities of 2048 draws for 8 point-lens events, in one process by turns on one core, medians of
CPU milliseconds an object; the size is ``target_bytes`` of `nbi_plus.launch`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import median
from unittest import mock

import torch

from benchmarks.snippets import clock, lens
from nbi_plus import launch

MIB = (4, 8, 16, 32, 64, 256)
TURNS = 7


def cost(target, z, mib):
    """Return the CPU seconds of one evaluation in launches of so many MiB."""
    own = replace(launch.KINDS["cpu"], target_bytes=2**20 * mib, target_rows=sys.maxsize)
    began = clock()
    with mock.patch.dict(launch.KINDS, cpu=own), torch.no_grad():
        target.log_prob(z, torch.arange(len(z)))
    return clock() - began


def main():
    torch.set_num_threads(1)
    z = torch.randn(8, 2048, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    print("| points | " + " | ".join(f"{mib} MiB" for mib in MIB) + " |")
    print("|---" * (1 + len(MIB)) + "|")
    for n_points in (117, 1000):
        target = lens(n_points)
        target.log_prob(z, torch.arange(8))
        turns = [[cost(target, z, mib) for mib in MIB] for _ in range(TURNS)]
        each = (f"{1e3 * median(column) / 8:.2f}" for column in zip(*turns, strict=True))
        print(f"| {n_points} | " + " | ".join(each) + " |", flush=True)


if __name__ == "__main__":
    main()
