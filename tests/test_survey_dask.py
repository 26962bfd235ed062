"""Surveys on a cluster of Dask: a worker that is lost costs time, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from survey_curves import COLUMNS, EXACT, badly_trained, lines_for_a_climb

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")

# clusters open sockets that Python finds late, and say so of their own accord
pytestmark = [
    pytest.mark.faults,  # workers import the package, and once more after a kill
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
N = 60


@pytest.fixture(scope="module")
def curves():
    return lines_for_a_climb(N)


@pytest.fixture(scope="module")
def engine(curves):
    return badly_trained(curves)


def catalogue(engine, curves, out, **options):
    began = time.perf_counter()
    engine.predict_survey(curves, out, columns=COLUMNS, chunk_size=6, progress=False, **options)
    return pq.read_table(out).to_pandas(), time.perf_counter() - began


def test_a_survey_whose_worker_is_killed_is_that_of_one_process(engine, curves, tmp_path):
    whole, here = catalogue(engine, curves, tmp_path / "whole.parquet")
    out, killed = tmp_path / "out.parquet", []
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
    )
    with cluster, distributed.Client(cluster) as client:
        catalogue(engine, curves, tmp_path / "first.parquet", client=client)
        unbroken, warm = catalogue(engine, curves, tmp_path / "again.parquet", client=client)
        pids = list(client.run(os.getpid).values())

        def kill():
            parts = out.with_name("out.parquet.parts")
            while not any(parts.glob("part-*.parquet")):
                time.sleep(0.005)
            os.kill(pids[0], signal.SIGKILL)
            killed.append(len(list(parts.glob("part-*.parquet"))))

        threading.Thread(target=kill, daemon=True).start()
        found, there = catalogue(engine, curves, out, client=client)
    assert killed
    assert killed[0] < N // 6  # the survey was not over
    print(f"{N} objects: {here:.1f} s here, {warm:.1f} s on 2 workers that have answered before, "
          f"{there:.1f} s where one of them was killed")  # fmt: skip
    assert (whole.settled_by == "refine").any()
    for other in (unbroken, found):
        assert other[EXACT].equals(whole[EXACT])
        for name in ("a_mean", "a_std", "b_median", "ess", "k_hat", "log_evidence"):
            assert np.allclose(other[name], whole[name], rtol=1e-6, atol=1e-9, equal_nan=True), name
