"""Full and broken disks, rot, and kills: a named error or a repair, and never another answer."""

from __future__ import annotations

import errno
import gc
import logging
import os

import h5py
import numpy as np
import pytest
from full_disk import (
    FAULTS,
    calls_watched,
    counted,
    failing_from,
    killed,
    rotten,
    small_disk,
    with_limited_files,
)
from scipy import stats

import nbi_plus as nbi
from nbi_plus import ArchiveError, Observations, StoreError
from nbi_plus.io import disk
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.io.checksums import row_checksums, whole_rows
from nbi_plus.io.header import encode_header
from nbi_plus.io.store import SimulationStore, read_columns
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.simulator.campaign import Campaign

N = 60
BLOCKS = ((0, 10), (20, 40), (10, 20), (40, N))


def open_store(path, capacity=40):
    return SimulationStore.open(path, {"seed": 0}, {"x": (7,), "on": ()}, capacity, {"on": "bool"})


def rows_of(start, stop):
    rows = np.arange(start, stop)
    x = np.sqrt(rows[:, None] + np.arange(7.0))
    return {"state": (rows % 5 == 0).astype(np.uint8), "x": x, "on": rows % 3 == 0}


def run(path, on_written=lambda rows: None):
    """Write all rows that are missing, growing when need be; return all of them."""
    with open_store(path) as store:
        for start, stop in BLOCKS:
            store.grow(stop)
            missing = np.intersect1d(store.missing(stop), np.arange(start, stop))
            for run_of in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
                if len(run_of):
                    store.write(run_of[0], **rows_of(run_of[0], run_of[-1] + 1))
                    on_written(run_of)
        return store.read(np.arange(N), ["state", "x", "on"])


def done_and_right(path):
    """Return the rows that are done, every one of which is as it was written."""
    with open_store(path) as store:
        done = np.setdiff1d(np.arange(store.capacity), store.missing(store.capacity))
        found, wanted = store.read(done, ["state", "x", "on"]), rows_of(0, N)
        for name, value in found.items():
            np.testing.assert_array_equal(value, wanted[name][done])
        return done


def assert_unbroken(found):
    for name, value in rows_of(0, N).items():
        np.testing.assert_array_equal(found[name], value)


# --- disks that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_store_on_a_failing_disk_keeps_what_was_done_and_goes_on(tmp_path, code):
    n_calls = counted(lambda: run(tmp_path / "whole.h5"))
    assert n_calls > 25
    for k in range(n_calls):
        path, written = tmp_path / f"sims-{k}.h5", []
        with (
            failing_from(k, code),
            pytest.raises(StoreError, match=f"{path.name} {FAULTS[code]}, but: .*[.] "),
        ):
            run(path, written.extend)
        assert {name for name in os.listdir(tmp_path) if "tmp" in name} == set()
        assert path.exists() or not written
        if path.exists():
            assert set(written) <= set(done_and_right(path))
        assert_unbroken(run(path))
    gc.collect()


@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_store_whose_disk_failed_goes_on_while_it_is_open(tmp_path, code):
    with open_store(tmp_path / "sims.h5", N) as store:
        store.write(0, **rows_of(0, 10))
        for k in range(counted(lambda: store.write(50, **rows_of(50, 60)))):
            with failing_from(k, code), pytest.raises(StoreError, match=FAULTS[code]):
                store.write(10, **rows_of(10, 50))
            with failing_from(k, code), pytest.raises(StoreError, match=FAULTS[code]):
                store.grow(100)
            assert store.n_done == 20
            assert store.capacity == N
        store.write(10, **rows_of(10, 50))
        assert_unbroken(store.read(np.arange(N), ["state", "x", "on"]))


@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
def test_archive_on_a_failing_disk_leaves_the_old_one(tmp_path, code):
    path = tmp_path / "a.nbi"

    def write(n):
        arrays = {"w": np.full((40, 30), float(n)), "none": np.zeros((0, 3)), "one": np.array(n)}
        write_archive(path, "model", {"n": n}, arrays)

    n_calls = counted(lambda: write(0))
    assert n_calls > 4
    for k in range(n_calls):
        with (
            failing_from(k, code),
            pytest.raises(ArchiveError, match=f"a.nbi {FAULTS[code]}, but: .*[.] "),
        ):
            write(1)
        found = read_archive(path, "model")
        assert found.meta == {"n": 0}
        assert not found.arrays["w"].any()
        assert os.listdir(tmp_path) == ["a.nbi"]
    write(1)
    found = read_archive(path, "model").arrays
    assert (found["w"] == 1).all()
    assert found["none"].shape == (0, 3)
    assert found["one"] == 1


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_system_without_sync_or_allocation_gives_a_warning(tmp_path, code):
    def on_call(k, name, call, *args):
        if name in ("fsync", "posix_fallocate"):
            raise OSError(code, os.strerror(code))
        return call(*args)

    with calls_watched(on_call):
        with pytest.warns(RuntimeWarning, match="does not say when files are on its disk"):
            assert_unbroken(run(tmp_path / "sims.h5"))
        with pytest.warns(RuntimeWarning, match="does not say when files are on its disk"):
            write_archive(tmp_path / "a.nbi", "model", {"n": 1}, {})
    assert_unbroken(run(tmp_path / "sims.h5"))
    assert read_archive(tmp_path / "a.nbi", "model").meta == {"n": 1}


def test_store_without_positioned_calls_or_locks_is_the_same(tmp_path, monkeypatch):
    run(tmp_path / "here.h5")
    monkeypatch.setattr(disk, "_POSITIONED", False)
    monkeypatch.setattr(disk, "fcntl", None)
    monkeypatch.delattr(os, "posix_fallocate")
    assert_unbroken(run(tmp_path / "there.h5"))
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()


@pytest.mark.parametrize("pretended", [False, True])
def test_small_disk_is_full_in_words(tmp_path, pretended):
    with small_disk(tmp_path / "disk", 300_000, pretended=pretended) as folder:
        with pytest.raises(StoreError, match=r"big.h5 must have room on its disk, but"):
            open_store(folder / "big.h5", 100_000)
        with pytest.raises(ArchiveError, match=r"a.nbi must have room on its disk, but"):
            write_archive(folder / "a.nbi", "model", {}, {"w": np.zeros(10**5)})
        assert os.listdir(folder) == []
        with open_store(folder / "sims.h5", 1000) as store:
            store.write(0, **rows_of(0, 10))
            with pytest.raises(StoreError, match=r"sims.h5 must have room on its disk, but"):
                store.grow(4000)
            store.write(10, **rows_of(10, 20))
        assert os.listdir(folder) == ["sims.h5"]
        assert done_and_right(folder / "sims.h5").tolist() == list(range(20))
        assert_unbroken(run(folder / "sims.h5"))


def test_store_takes_its_room_when_it_is_made(tmp_path):
    with open_store(tmp_path / "sims.h5", 10_000) as store:
        assert 512 * (tmp_path / "sims.h5").stat().st_blocks >= 10_000 * 7 * 8
        assert store.n_done == 0


@pytest.mark.parametrize("n_bytes", [1000, 5000, 100_000])
def test_limit_of_file_sizes_is_a_full_disk(tmp_path, n_bytes):
    def act():
        with pytest.raises(StoreError, match=r"sims.h5 must have room on its disk, but: File too"):
            open_store(tmp_path / "sims.h5", 10_000)
        with pytest.raises(ArchiveError, match=r"a.nbi must have room on its disk, but: File too"):
            write_archive(tmp_path / "a.nbi", "model", {}, {"w": np.zeros(10**5)})

    assert with_limited_files(n_bytes, act) == 0
    assert os.listdir(tmp_path) == []


def test_store_that_cannot_be_closed_says_so_once(tmp_path, monkeypatch):
    close = os.close

    def failing(handle):
        close(handle)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for collected in (False, True):
        store = open_store(tmp_path / f"{collected}.h5", N)
        store.write(0, **rows_of(0, 10))
        monkeypatch.setattr(os, "close", failing)
        if not collected:
            with pytest.raises(StoreError, match="False.h5 must lie on a sound disk"):
                store.close()
            store.close()
        del store
        gc.collect()  # what a finalizer raises would be an error of this test
        monkeypatch.undo()
        assert done_and_right(tmp_path / f"{collected}.h5").tolist() == list(range(10))


def test_device_that_is_always_full_says_so():
    handle = os.open("/dev/full", os.O_RDWR)
    try:
        with pytest.raises(StoreError, match="x must have room"), disk.disk_errors("x", StoreError):
            disk.write_at(handle, b"bytes", 0)
    finally:
        os.close(handle)


@pytest.mark.parametrize("n_letters", [1, 196, 252])
def test_files_have_the_longest_names(tmp_path, n_letters):
    name = "n" * n_letters + ".h5"
    assert_unbroken(run(tmp_path / name))
    assert_unbroken(run(tmp_path / name))
    assert os.listdir(tmp_path) == [name]
    write_archive(tmp_path / name, "model", {"n": 1}, {})
    assert read_archive(tmp_path / name, "model").meta == {"n": 1}


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_kills", [12, pytest.param(200, marks=pytest.mark.faults)])
def test_store_survives_kills_at_any_call_and_moment(tmp_path, n_kills):
    rng = np.random.default_rng(n_kills)
    n_calls, path = counted(lambda: run(tmp_path / "whole.h5")), tmp_path / "sims.h5"
    n_done, n_runs = 0, 1
    for _ in range(n_kills):
        killed(lambda: run(path), rng, n_calls, 0.02)
        if path.exists():
            done = done_and_right(path)
            assert len(done) >= n_done
            n_done = len(done)
            assert {name for name in os.listdir(tmp_path) if "tmp" in name} == set()
            if n_done == N or rng.integers(6) == 0:
                assert_unbroken(run(path))
                path.unlink()
                n_done, n_runs = 0, n_runs + 1
    assert n_runs > 1
    assert_unbroken(run(path))


@pytest.mark.parametrize("n_kills", [10, pytest.param(200, marks=pytest.mark.faults)])
def test_archive_survives_kills(tmp_path, n_kills):
    rng, path = np.random.default_rng(n_kills), tmp_path / "a.nbi"

    def write(n):
        write_archive(path, "model", {"n": n}, {"w": np.full(5000, n)})

    write(-1)
    n_calls, last, seen = counted(lambda: write(-1)), -1, set()
    for n in range(n_kills):
        killed(lambda n=n: write(n), rng, n_calls, 0.01)
        found = read_archive(path, "model")
        assert found.meta["n"] in (last, n)
        last = found.meta["n"]
        assert (found.arrays["w"] == last).all()
        seen.add(last == n)
    write(n_kills)
    assert os.listdir(tmp_path) == ["a.nbi"]
    assert False in seen


# --- rot -----------------------------------------------------------------------------------------

PRIOR = nbi.Prior({"a": stats.norm(1, 2), "b": stats.uniform(-1, 2)})
T = np.linspace(0, 1, 4)


def line(theta, t):
    theta = np.asarray(theta)
    return np.where(theta[:, :1] < -2, np.nan, theta[:, :1] + theta[:, 1:] * np.asarray(t))


def campaign(simulator=line):
    obs = Observations.from_arrays(np.zeros((1, len(T))), t=T).batch()
    return Campaign(PRIOR, bind_simulator(simulator, PRIOR, obs), obs, 0)


def filled(c, folder, n=200):
    with c.open(folder, n) as store:
        c.fill(store, n, 0.5)
        return store.read(np.arange(n), ["z", "theta", "x", "owner", "shift", "state"])


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("n_cases", [80, pytest.param(2000, marks=pytest.mark.faults)])
def test_store_that_rotted_is_repaired_or_refused(tmp_path, n_cases):
    c, folder = campaign(), tmp_path / "runs"
    unbroken = filled(c, folder)
    path = folder / c.file_name()
    raw, n_repaired, refused = path.read_bytes(), 0, []
    for seed in range(n_cases):
        damaged, _ = rotten(raw, seed)
        path.write_bytes(damaged)
        try:
            found = filled(c, folder)
        except StoreError as error:
            refused.append(str(error))
        else:
            assert_same(found, unbroken)
            n_repaired += 1
    assert all(path.name in message for message in refused)
    assert n_cases / 3 < n_repaired < n_cases


def test_campaign_on_a_failing_disk_ends_as_an_unbroken_one(tmp_path):
    c = campaign()
    unbroken = filled(c, tmp_path / "whole")
    n_calls = counted(lambda: filled(c, tmp_path / "counted"))
    for k in range(n_calls):
        folder = tmp_path / str(k)
        with failing_from(k, errno.ENOSPC), pytest.raises(StoreError, match="must have room"):
            filled(c, folder)
        assert_same(filled(c, folder), unbroken)


def test_rotten_rows_alone_are_simulated_again(tmp_path, caplog):
    calls = []

    def counting(theta, t):
        calls.append(len(theta))
        return line(theta, t)

    c = campaign(counting)
    unbroken = filled(c, tmp_path)
    path = tmp_path / c.file_name()
    with h5py.File(path, "r+") as file:
        file["x"][7, 0, 1] += 1e-9
        file["state"][50] ^= 1
        file["checksums"][60, 2] ^= 1
        file["z"][120:123] = 0.0
        file["theta"][140] = file["theta"][141]
    with pytest.warns(UserWarning, match=f"7 rows of {path.name} do not agree with their check"):
        left = read_columns(path, ["theta", "x"])
    bad = [7, 50, 60, 120, 121, 122, 140]
    good = np.setdiff1d(np.flatnonzero(unbroken["state"] == 0), bad)
    np.testing.assert_array_equal(left["x"], unbroken["x"][good])
    calls.clear()
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        assert_same(filled(c, tmp_path), unbroken)
    assert [r.getMessage() for r in caplog.records if "checksums" in r.getMessage()] == [
        f"7 of 200 rows of {path} do not agree with their checksums; they count as missing, and "
        "are simulated again"
    ]
    assert 7 <= sum(calls) <= 7 + 32
    caplog.clear()
    assert_same(filled(c, tmp_path), unbroken)
    assert not [r for r in caplog.records if "checksums" in r.getMessage()]


def test_store_that_rots_while_it_is_open_is_not_believed(tmp_path):
    path = tmp_path / "sims.h5"
    run(path)
    with h5py.File(path) as file:
        place = file["x"].id.get_offset() + 7 * 8 * 33 + 5
    with open_store(path) as store:
        handle = os.open(path, os.O_WRONLY)
        os.pwrite(handle, b"\x01", place)
        os.close(handle)
        for rows in ([33], np.arange(N)):
            with pytest.raises(StoreError, match=r"1 of \d+ have changed since .*first: row 33"):
                store.read(rows, ["x"])
            with pytest.raises(StoreError, match="first: row 33"):
                list(store.stream(rows, ["x"], buffer_bytes=10**6, seed=0))
        assert store.read([33], ["on", "state"])["on"] == rows_of(33, 34)["on"]
        assert (store.read([32, 34], ["x"])["x"] == rows_of(32, 35)["x"][::2]).all()
    with open_store(path) as store:
        assert store.missing(N).tolist() == [33]
    os.truncate(path, place)
    with pytest.raises(StoreError, match="sims.h5 must"):
        open_store(path)


def test_store_that_is_cut_while_it_is_open_is_an_error(tmp_path):
    path = tmp_path / "sims.h5"
    run(path)
    with open_store(path) as store:
        os.truncate(path, 2000)
        with pytest.raises(StoreError, match="must lie on a sound disk, but: the file ends early"):
            store.read(np.arange(N))


def test_every_bit_of_a_row_is_checked():
    rows = rows_of(0, 5)
    sums = row_checksums(rows, np.arange(5))
    assert sums.min() > 0
    for name in rows:
        raw = rows[name][3:4].view(np.uint8).ravel()
        for bit in range(8 * raw.size):
            raw[bit // 8] ^= 1 << bit % 8
            whole, n_bad = whole_rows(rows, tuple(rows), sums)
            assert whole.tolist() == [True, True, True, False, True]
            assert n_bad == 1
            raw[bit // 8] ^= 1 << bit % 8
    for bit in range(32):
        for column in range(len(rows)):
            wrong = sums.copy()
            wrong[3, column] ^= np.uint32(1 << bit)
            assert whole_rows(rows, tuple(rows), wrong)[0].tolist() == [True] * 3 + [False, True]
    assert whole_rows(rows, tuple(rows), sums)[0].all()


def test_checksums_tell_rows_and_columns_from_each_other():
    x = np.zeros((1000, 3))
    sums = row_checksums({"x": x, "y": x}, np.arange(1000))
    assert len(np.unique(sums)) == 2000
    x[:] = np.random.default_rng(0).normal(size=x.shape)
    sums = row_checksums({"x": x}, np.arange(1000))
    places = np.roll(np.arange(1000), 1)
    whole, n_bad = whole_rows({"x": x[places]}, ("x",), sums[places])
    assert n_bad == 1000
    assert not whole.any()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float16", "float32", "int64"])
def test_checksums_do_not_depend_on_how_rows_are_taken(dtype):
    x = np.random.default_rng(0).integers(0, 2, (50, 3, 5)).astype(dtype)
    sums = row_checksums({"x": x}, np.arange(50))
    some = np.array([7, 3, 3, 49])
    np.testing.assert_array_equal(row_checksums({"x": x[some]}, some), sums[some])
    np.testing.assert_array_equal(
        row_checksums({"x": np.asfortranarray(x)[4:9]}, np.arange(4, 9)), sums[4:9]
    )
    assert row_checksums({"x": x[:0]}, np.arange(0)).shape == (0, 1)


def test_pairs_of_changes_pass_unseen_no_more_than_by_chance():
    """Two equal flips must not cancel: the words of a row have keys of their own."""
    x = np.random.default_rng(0).normal(size=(1, 64))
    sums = row_checksums({"x": x}, np.zeros(1, int))
    flips = [(i, j, bit) for i in range(64) for j in range(i) for bit in (0, 31, 32, 51, 62, 63)]
    changed = np.repeat(x, len(flips), 0).view(np.uint64)
    for row, (i, j, bit) in enumerate(flips):
        changed[row, [i, j]] ^= np.uint64(1 << bit)
    found = row_checksums({"x": changed.view(float)}, np.zeros(len(flips), int))
    assert np.count_nonzero(found == sums) == 0


# --- files of earlier versions -------------------------------------------------------------------


def write_unchecked(path, done):
    """Write a store as versions without checksums did."""
    columns = {"x": {"shape": [7], "dtype": "float64"}, "on": {"shape": [], "dtype": "bool"}}
    header = encode_header("simulations", {"manifest": {"seed": 0}, "columns": columns})
    with h5py.File(path, "w", libver="earliest") as file:
        file["header"] = np.frombuffer(header, np.uint8)
        for name, value in (rows_of(0, N) | {"done": done.astype(np.uint8)}).items():
            file[name] = value


def test_store_without_checksums_gets_them(tmp_path):
    path, done = tmp_path / "sims.h5", np.arange(N) % 4 > 0
    write_unchecked(path, done)
    with pytest.warns(UserWarning, match="sims.h5 was written by an earlier version"):
        found = read_columns(path, ["x"])
    good = done & (rows_of(0, N)["state"] == 0)
    np.testing.assert_array_equal(found["x"], rows_of(0, N)["x"][good])
    with pytest.warns(UserWarning, match="sims.h5 was written by an earlier version"):
        open_store(path).close()
    assert done_and_right(path).tolist() == np.flatnonzero(done).tolist()
    assert_unbroken(run(path))
    assert os.listdir(tmp_path) == ["sims.h5"]


@pytest.mark.parametrize("k", [0, 1, 5])
@pytest.mark.filterwarnings("ignore:sims.h5 was written by an earlier version")
def test_store_without_checksums_stays_on_a_full_disk(tmp_path, k):
    path = tmp_path / "sims.h5"
    write_unchecked(path, np.ones(N))
    before = path.read_bytes()
    with failing_from(k, errno.ENOSPC), pytest.raises(StoreError, match="must have room"):
        open_store(path)
    assert path.read_bytes() == before
    assert_unbroken(run(path))
