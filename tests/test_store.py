"""A store keeps each row once, whatever the order, the growth, the kills and the crafted files."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbi_plus
from nbi_plus import StoreError
from nbi_plus.io import store_files
from nbi_plus.io.checksums import row_checksums
from nbi_plus.io.header import encode_header
from nbi_plus.io.store import SimulationStore, read_columns

COLUMNS = {"theta": (2,), "x": (1, 5), "weight": ()}
DTYPES = {"x": "float32", "weight": "int64"}
MANIFEST = {"parameters": ["a", "b"], "prior": {"a": {"scale": 1.5}}, "seed": 0}


def open_store(path=None, capacity=40, **changes):
    options = {"manifest": MANIFEST, "columns": COLUMNS, "dtypes": DTYPES} | changes
    return SimulationStore.open(path, capacity=capacity, **options)


def expected(rows):
    """Return what the tests store in these rows: every value tells its row."""
    rows = np.asarray(rows, np.int64)
    return {
        "theta": rows[:, None] + np.array([0.25, 0.5]),
        "x": (rows[:, None, None] * np.ones((1, 5))).astype(np.float32),
        "weight": rows**2,
    }


def states(rows):
    """Return the states of these rows: every third fails."""
    return (np.asarray(rows) % 3 == 2).astype(np.uint8)


def fill(store, start, stop):
    rows = np.arange(start, stop)
    store.write(start, states(rows), **expected(rows))


def check(store, rows):
    """Check that these rows, and no wrong ones, are in the store."""
    for name, value in expected(rows).items():
        found = store.read(rows)[name]
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(store.read(rows, ["state"])["state"], states(rows))


@st.composite
def partitions(draw, n=40):
    """Draw contiguous blocks of n rows, in any order."""
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=8)))
    return draw(st.permutations(list(zip([0, *cuts], [*cuts, n], strict=True))))


# --- rows ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(blocks=partitions(), n_blocks=st.integers(0, 9), rows=st.lists(st.integers(0, 39)))
def test_store_gives_back_blocks_written_in_any_order(blocks, n_blocks, rows):
    with open_store() as store:
        done = np.zeros(40, bool)
        for start, stop in blocks[:n_blocks]:
            fill(store, start, stop)
            done[start:stop] = True
        assert store.n_done == done.sum()
        assert store.missing(40).tolist() == np.flatnonzero(~done).tolist()
        assert (
            store.good_rows(40).tolist() == np.flatnonzero(done & (states(range(40)) == 0)).tolist()
        )
        check(store, np.array(rows, np.int64)[done[np.array(rows, np.int64)]])


@settings(max_examples=20, deadline=None)
@given(blocks=partitions(), sizes=st.lists(st.integers(1, 90), max_size=9), memory=st.booleans())
def test_store_keeps_its_rows_when_it_grows(blocks, sizes, memory):
    with tempfile.TemporaryDirectory() as folder:
        path = None if memory else Path(folder) / "sims.h5"
        with open_store(path) as store:
            done = []
            for (start, stop), size in zip(blocks, sizes, strict=False):
                fill(store, start, stop)
                done += range(start, stop)
                capacity = store.capacity
                store.grow(size)
                assert store.capacity == max(capacity, size)
                check(store, done)
            assert store.missing(store.capacity).tolist() == sorted(
                set(range(store.capacity)) - set(done)
            )
        assert os.listdir(folder) == ([] if memory else ["sims.h5"])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 199), unique=True),
    buffer_bytes=st.integers(1, 20_000),
    seed=st.integers(0, 2**63 - 1),
)
def test_store_stream_is_a_permutation_within_its_buffer(rows, buffer_bytes, seed):
    with open_store(capacity=200) as store:
        fill(store, 0, 200)
        for names in (["theta", "x"], None):
            pools = list(store.stream(rows, names, buffer_bytes=buffer_bytes, seed=seed))
            found = [row for pool in pools for row in pool["x"][:, 0, 0].astype(int).tolist()]
            assert sorted(found) == sorted(rows)
            for pool in pools:
                if len(pool["x"]) > 1:
                    assert 2 * sum(value.nbytes for value in pool.values()) <= buffer_bytes
                for name, value in pool.items():
                    rows_here = pool["x"][:, 0, 0].astype(int)
                    np.testing.assert_array_equal(value, expected(rows_here)[name])


def test_store_stream_is_decided_by_its_seed_and_leaves_numpy_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    with open_store(capacity=500) as store:
        fill(store, 0, 500)
        first, again, other = (
            np.concatenate(
                [p["weight"] for p in store.stream(slice(None), buffer_bytes=9000, seed=seed)]
            )
            for seed in (3, 3, 4)
        )
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_store_stream_mixes_rows_from_everywhere():
    with open_store(None, 6400, columns={"x": ()}, dtypes={}) as store:
        store.write(0, np.zeros(6400, np.uint8), x=np.arange(6400.0))
        means = [
            pool["x"].mean() for pool in store.stream(slice(None), buffer_bytes=6400 * 2, seed=1)
        ]
    # a pool of 800 rows: 66 blocks of 12 from all over, so its mean has the error of 66 draws
    error = 6400 / np.sqrt(12 * 66)
    assert len(means) == 9
    assert np.abs(np.array(means[:-1]) - 3200).max() < 4 * error


def test_store_read_takes_slices_and_large_gaps():
    with open_store(None, 100_000, columns={"x": (40,)}, dtypes={}) as store:
        values = np.arange(100_000.0)[:, None] * np.ones(40)
        store.write(0, np.zeros(100_000, np.uint8), x=values)
        for rows in (
            slice(None),
            slice(5, 90_000, 7),
            slice(99_999, None, -1000),
            np.random.default_rng(0).integers(100_000, size=3000),
            np.array([99_999, 0, 50_000, 0], np.int32),
            [],
        ):
            wanted = values[rows] if not isinstance(rows, list) else values[:0]
            np.testing.assert_array_equal(store.read(rows)["x"], wanted)


def test_store_says_what_it_holds(tmp_path):
    with open_store(tmp_path / "sims.h5") as store:
        assert (store.path, store.capacity, store.n_done) == (tmp_path / "sims.h5", 40, 0)
        assert store.columns == COLUMNS
        assert store.manifest == MANIFEST
        store.manifest["prior"]["a"]["scale"] = 2.0
        assert store.manifest == MANIFEST
        fill(store, 3, 10)
        assert store.n_done == 7
        assert store.nbytes == 7 * (2 * 8 + 5 * 4 + 8 + 1 + 4 * 4)


def test_stores_in_memory_are_apart():
    with open_store() as one, open_store() as two:
        fill(one, 0, 5)
        assert (one.n_done, two.n_done) == (5, 0)
        assert one.path is None


@pytest.mark.parametrize(
    ("start", "n", "changes", "message"),
    [
        (38, 4, {}, r"rows must lie in 0\.\.39, but are 38\.\.41\. Call grow"),
        (-1, 4, {}, r"rows must lie in 0\.\.39, but are -1\.\.2"),
        (8, 4, {}, r"rows 8\.\.11 must be new, but 2 are done\. Write the rows that missing"),
        (0, 4, {"x": np.zeros((4, 5), "f4")}, r"x must have shape \(4, 1, 5\), but has \(4, 5\)"),
        (0, 4, {"x": np.zeros((4, 1, 5))}, "x must fit into float32 without loss, but is float64"),
        (0, 4, {"weight": np.zeros(3, int)}, r"weight must have shape \(4,\), but has \(3,\)"),
        (0, 4, {"theta": np.array([["a", "b"]] * 4)}, "theta must fit into float64"),
        (0, 4, {"y": np.zeros(4)}, r"columns must be \['state', 'theta', 'weight', 'x'\], but are"),
    ],
)
def test_store_write_refuses_what_does_not_fit(start, n, changes, message):
    with open_store() as store:
        fill(store, 10, 20)
        rows = np.arange(start, start + n)
        with pytest.raises(ValueError, match=message):
            store.write(start, states(rows), **(expected(rows) | changes))
        assert store.n_done == 10
        check(store, np.arange(10, 20))


def test_store_write_of_no_rows_changes_nothing():
    with open_store() as store:
        fill(store, 4, 4)
        assert store.n_done == 0


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0, 12], ValueError, "rows must be done, but 12 is not. Take them of good_rows"),
        (slice(None), ValueError, "rows must be done, but 10 is not"),
        ([40], IndexError, r"rows must lie in 0\.\.39, but span 40\.\.40"),
        ([-1], IndexError, r"rows must lie in 0\.\.39, but span -1\.\.-1"),
        (np.ones(40, bool), ValueError, "rows must be integers .* Use numpy.flatnonzero"),
        ([[0, 1]], ValueError, r"but are int64 of shape \(1, 2\)"),
    ],
)
def test_store_read_refuses_rows_that_are_not_there(rows, error, message):
    with open_store() as store:
        fill(store, 0, 10)
        with pytest.raises(error, match=message):
            store.read(rows)
        with pytest.raises(error, match=message):
            store.stream(rows, buffer_bytes=100, seed=0)
        with pytest.raises(ValueError, match=r"names must be of .* but has \['y'\]"):
            store.read([0], ["y"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"done": ()}, "dtypes": {}}, "columns must be named by identifiers .* 'done'"),
        ({"columns": {"a/b": ()}, "dtypes": {}}, "but one is 'a/b'"),
        ({"columns": {"x": (0,)}, "dtypes": {}}, "shape of x must be positive, but is 0"),
        (
            {"columns": {"x": ()}, "dtypes": {"x": "O"}},
            "x must have a dtype of .* but has 'object'",
        ),
        ({"columns": {"x": ()}, "dtypes": {"y": "f4"}}, r"dtypes must be those of \('x',\)"),
        ({"capacity": 0}, "capacity must be positive, but is 0"),
        ({"manifest": {"a": np.nan}}, r"manifest\['a'\] must be finite"),
        ({"manifest": {"a": np.ones(3)}}, r"manifest\['a'\] must be None, bool, .* a ndarray"),
    ],
)
def test_store_open_refuses_columns_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        open_store(tmp_path / "sims.h5", **changes)
    assert os.listdir(tmp_path) == []


# --- files ---------------------------------------------------------------------------------------


def test_store_is_found_again_and_never_shrinks(tmp_path):
    path = tmp_path / "new" / "sims.h5"
    with open_store(path) as store:
        fill(store, 0, 30)
    with open_store(str(path), capacity=10) as store:
        assert store.capacity == 40
        check(store, range(30))
    with open_store(path, capacity=100) as store:
        assert store.capacity == 100
        check(store, range(30))
        fill(store, 30, 100)
        check(store, range(100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"manifest": MANIFEST | {"parameters": ("a", "c")}},
            r"sims.h5 was written for parameters \('a', 'b'\), but this run has \('a', 'c'\)\. "
            "Use another path, or delete it",
        ),
        (
            {"manifest": MANIFEST | {"prior": {"a": {"scale": 2.5}}}},
            r"was written for prior\.a\.scale 1\.5, but this run has 2\.5",
        ),
        ({"manifest": MANIFEST | {"new": 1}}, "was written for new 'nothing', but this run has 1"),
        (
            {"columns": COLUMNS | {"x": (1, 6)}},
            r"was written for row shape\.x \(1, 5\), but this run has \(1, 6\)",
        ),
        ({"dtypes": {"weight": "int64"}}, "was written for dtype.x 'float32', but this run has"),
    ],
)
def test_store_of_another_run_is_refused_and_kept(tmp_path, changes, message):
    with open_store(tmp_path / "sims.h5") as store:
        fill(store, 0, 5)
    before = (tmp_path / "sims.h5").read_bytes()
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path / "sims.h5", capacity=99, **changes)
    assert (tmp_path / "sims.h5").read_bytes() == before


def test_store_metadata_never_change(tmp_path):
    """Only the bytes of the rows change: no kill can hurt."""
    path = tmp_path / "sims.h5"
    with open_store(path):
        pass
    with h5py.File(path) as file:
        extents = {name: (d.id.get_offset(), d.id.get_storage_size()) for name, d in file.items()}
    made = path.read_bytes()

    def changed(names):
        now = np.frombuffer(path.read_bytes(), np.uint8)
        assert len(now) == len(made)
        places = np.flatnonzero(now != np.frombuffer(made, np.uint8))
        inside = [(places >= extents[name][0]) & (places < sum(extents[name])) for name in names]
        return set(places[~np.any(inside, axis=0)])

    with open_store(path) as store:
        for start in range(0, 40, 10):
            fill(store, start, start + 10)
            assert not changed([*COLUMNS, "state", "checksums"])
    assert not changed([*COLUMNS, "state", "checksums"])
    assert made[8] == 0  # the first version of the format


def test_store_copied_at_any_write_is_whole(tmp_path, monkeypatch):
    """What a kill would leave at each step of the protocol has no row that is done and wrong."""
    path, copy = tmp_path / "sims.h5", tmp_path / "copy.h5"
    pwrite, seen = os.pwrite, []

    def look(handle, data, offset):
        half = len(data) // 2
        pwrite(handle, data[:half], offset)
        shutil.copyfile(path, copy)
        with open_store(copy) as found:
            done = np.setdiff1d(np.arange(40), found.missing(40))
            check(found, done)
            seen.append(len(done))
        return half + pwrite(handle, data[half:], offset + half)

    with open_store(path) as store:
        monkeypatch.setattr(os, "pwrite", look)
        for start in range(0, 40, 8):
            fill(store, start, start + 8)
        monkeypatch.undo()
    assert seen == sorted(seen)
    assert {0, 4, 8, 12, 16, 20, 24, 28, 32, 36} == set(seen)


def test_store_closes_with_its_owner(tmp_path):
    store = open_store(tmp_path / "sims.h5")
    fill(store, 0, 5)
    del store
    gc.collect()
    with open_store(tmp_path / "sims.h5") as store:
        check(store, range(5))
    with pytest.raises(StoreError, match=r"sims\.h5 must be open, but is closed"):
        store.read([0])
    store.close()


@pytest.mark.parametrize("renames", [True, False])
def test_store_grows_where_open_files_cannot_be_renamed(tmp_path, monkeypatch, renames):
    monkeypatch.setattr(store_files, "_RENAMES_OPEN_FILES", renames)
    with open_store(tmp_path / "sims.h5") as store:
        fill(store, 0, 40)
        store.grow(60)
        fill(store, 40, 60)
    with open_store(tmp_path / "sims.h5", 60) as store:
        check(store, range(60))
    assert os.listdir(tmp_path) == ["sims.h5"]


@pytest.mark.parametrize("takes_our_file_for_a_leftover", [True, False])
def test_store_that_another_made_meanwhile_is_not_replaced(
    tmp_path, monkeypatch, takes_our_file_for_a_leftover
):
    path = tmp_path / "sims.h5"
    if not takes_our_file_for_a_leftover:
        monkeypatch.setattr(store_files, "remove_leftovers", lambda *_, **__: None)
    place_new = store_files.place_new

    def too_late(temporary, final):
        monkeypatch.setattr(store_files, "place_new", place_new)
        with open_store(path) as quicker:
            fill(quicker, 0, 5)
        place_new(temporary, final)

    monkeypatch.setattr(store_files, "place_new", too_late)
    with pytest.raises(StoreError, match="sims.h5 must be free, but another process has it open"):
        open_store(path)
    assert os.listdir(tmp_path) == ["sims.h5"]
    with open_store(path) as store:
        check(store, range(5))


def test_store_without_hard_links_is_made(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with open_store(tmp_path / "sims.h5") as store:
        fill(store, 0, 40)
    assert os.listdir(tmp_path) == ["sims.h5"]


def test_store_that_left_its_place_is_not_written(tmp_path):
    with open_store(tmp_path / "sims.h5") as store:
        (tmp_path / "sims.h5").rename(tmp_path / "moved.h5")
        for act in (lambda: fill(store, 0, 5), lambda: store.grow(99)):
            with pytest.raises(StoreError, match=r"sims\.h5 must stay in its place"):
                act()
        assert store.n_done == 0


def test_store_removes_the_leftovers_of_killed_writers(tmp_path):
    with open_store(tmp_path / "sims.h5") as store:
        fill(store, 0, 5)
    (tmp_path / ".sims.h5.77-0123abcd.tmp").write_bytes(b"half a file")
    (tmp_path / ".other.h5.77-0123abcd.tmp").write_bytes(b"of another store")
    with open_store(tmp_path / "sims.h5") as store:
        check(store, range(5))
    assert sorted(os.listdir(tmp_path)) == [".other.h5.77-0123abcd.tmp", "sims.h5"]


# --- other processes -----------------------------------------------------------------------------

# the package itself is left out, because its import would take longer than the tests
PRELUDE = f"""
import os, signal, sys, types
package = types.ModuleType("nbi_plus")
package.__path__ = {list(nbi_plus.__path__)!r}
sys.modules["nbi_plus"] = package
import numpy as np
from nbi_plus.io.store import SimulationStore, StoreError, read_columns
path = sys.argv[1]
def open_store(capacity):
    return SimulationStore.open(path, {{"seed": 0}}, {{"x": (64,)}}, capacity)
"""
WRITE = """
with open_store(50_000) as store:
    print("ready", flush=True)
    blocks = np.unique(store.missing(50_000) // 8)
    for block in np.random.default_rng(os.getpid()).permutation(blocks):
        rows = 8 * block + np.arange(8)
        store.write(rows[0], (rows % 7 == 0).astype(np.uint8), x=rows[:, None] * np.ones(64))
        print("block", flush=True)
    signal.pause()
"""
GROW = """
with open_store(1) as store:
    while True:
        store.grow(store.capacity + 100)
        print("ready", flush=True)
"""
MAKE = """
print("ready", flush=True)
while True:
    open_store(5000).close()
    os.unlink(path)
"""


def wide_store(path, capacity=1):
    return SimulationStore.open(path, {"seed": 0}, {"x": (64,)}, capacity)


def write_wide(store, start, stop):
    rows = np.arange(start, stop)
    store.write(start, (rows % 7 == 0).astype(np.uint8), x=rows[:, None] * np.ones(64))


def check_wide(store, rows):
    found = store.read(rows, ["x", "state"])
    np.testing.assert_array_equal(found["x"], rows[:, None] * np.ones(64))
    np.testing.assert_array_equal(found["state"], rows % 7 == 0)


def killed_after(seconds, code, path, n_blocks=0):
    """Run code that never ends in another process and kill it, blocks and seconds after a start."""
    command = [sys.executable, "-c", PRELUDE + code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        for _ in range(n_blocks):
            assert process.stdout.readline() == b"block\n"
        time.sleep(seconds)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def test_store_survives_kills_while_it_writes(tmp_path):
    path = tmp_path / "sims.h5"
    rng = np.random.default_rng(0)
    counts = [0]
    for _ in range(12):
        killed_after(rng.uniform(0.0, 0.002), WRITE, path, rng.integers(300))
        if path.exists():
            with wide_store(path) as store:
                done = np.setdiff1d(np.arange(store.capacity), store.missing(store.capacity))
                check_wide(store, done)
                counts.append(len(done))
            assert os.listdir(tmp_path) == ["sims.h5"]
    assert counts == sorted(counts)
    assert len(set(counts)) > 4
    with wide_store(path, 50_000) as store:
        missing = store.missing(50_000)
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            write_wide(store, run[0], run[-1] + 1)
        assert store.n_done == 50_000
        check_wide(store, np.arange(50_000))


def test_store_survives_kills_while_it_grows(tmp_path):
    path = tmp_path / "sims.h5"
    with wide_store(path, 20_000) as store:
        write_wide(store, 0, 20_000)
    rng = np.random.default_rng(1)
    capacity, n_leftovers = 20_000, 0
    for _ in range(6):
        killed_after(rng.uniform(0.02, 0.15), GROW, path)
        n_leftovers += len(os.listdir(tmp_path)) - 1
        with wide_store(path) as store:
            assert store.capacity >= capacity
            capacity = store.capacity
            check_wide(store, np.arange(20_000))
            assert store.n_done == 20_000
        assert os.listdir(tmp_path) == ["sims.h5"]
    assert n_leftovers > 0
    assert capacity > 20_000


def test_store_survives_kills_while_it_is_made(tmp_path):
    path = tmp_path / "sims.h5"
    rng = np.random.default_rng(2)
    for _ in range(4):
        killed_after(rng.uniform(0.0, 0.05), MAKE, path)
        with wide_store(path, 5000) as store:
            assert store.n_done == 0
            write_wide(store, 0, 5000)
        assert os.listdir(tmp_path) == ["sims.h5"]
        path.unlink()


def test_store_in_use_is_refused_to_another_process(tmp_path):
    code = """
for act in (lambda: open_store(9), lambda: open_store(99), lambda: read_columns(path, ["x"])):
    try:
        act()
        print("opened", flush=True)
    except StoreError as error:
        print(error, flush=True)
"""
    path = tmp_path / "sims.h5"
    command = [sys.executable, "-c", PRELUDE + code, str(path)]
    with wide_store(path, 50) as store:
        write_wide(store, 0, 20)
        answers = subprocess.check_output(command, text=True).splitlines()
        assert len(answers) == 3
        for answer in answers:
            assert answer.startswith("sims.h5 must be free, but another process has it open.")
        write_wide(store, 20, 50)
        store.grow(60)
        assert "opened" not in subprocess.check_output(command, text=True)
        check_wide(store, np.arange(50))
    assert subprocess.check_output(command, text=True).count("opened") == 3


# --- crafted files -------------------------------------------------------------------------------


def crafted(path, change=None, header=None, **datasets):
    """Write what looks like a store of three rows."""
    plan = {"manifest": {}, "columns": {"x": {"shape": [2], "dtype": "float64"}}}
    raw = encode_header("simulations", plan) if header is None else header
    rows = {"x": np.ones((3, 2)), "state": np.zeros(3, np.uint8)}
    rows["checksums"] = row_checksums(rows, np.arange(3))
    with h5py.File(path, "w", libver="earliest") as file:
        file["header"] = np.frombuffer(raw, np.uint8)
        for name, value in (rows | datasets).items():
            if value is not None:
                file[name] = value
        if change is not None:
            change(file)


def with_x(**options):
    return lambda path: crafted(path, lambda file: file.create_dataset("x", **options), x=None)


def with_columns(columns):
    header = encode_header("simulations", {"manifest": {}, "columns": columns})
    return lambda path: crafted(path, header=header)


def with_link(link):
    return lambda path: crafted(path, lambda file: file.__setitem__("x", link), x=None)


def external_link(path):
    with h5py.File(path.parent / "nearby.h5", "w") as file:
        file["x"] = np.ones((3, 2))
    with_link(h5py.ExternalLink("nearby.h5", "/x"))(path)


def external_data(path):
    (path.parent / "nearby").write_bytes(bytes(48))
    with_x(shape=(3, 2), dtype="f8", external=[("nearby", 0, 48)])(path)


def virtual(path):
    layout = h5py.VirtualLayout((3, 2), "f8")
    layout[:] = h5py.VirtualSource("nowhere.h5", "x", shape=(3, 2))
    crafted(path, lambda file: file.create_virtual_dataset("x", layout), x=None)


def truncated(path):
    with wide_store(path, 500) as store:
        write_wide(store, 0, 500)
    os.truncate(path, path.stat().st_size - 1)


def many_rows(path):
    """Let all datasets declare 10^9 rows that are nowhere."""
    n = 10**9

    def fill(file):
        file.create_dataset("x", (n, 2), "f8")
        file.create_dataset("state", (n,), "u1")
        file.create_dataset("checksums", (n, 2), "u4")

    crafted(path, fill, x=None, state=None, checksums=None)


SOUND = {"x": {"shape": [2], "dtype": "float64"}}
CRAFTED = {
    "text": (lambda path: path.write_text("a,b\n1,2\n"), "must be an HDF5 file"),
    "pickle": (lambda path: path.write_bytes(b"\x80\x04."), "but is a pickle file"),
    "foreign": (lambda path: h5py.File(path, "w").close(), "but has no header"),
    "archive": (
        lambda path: crafted(path, header=encode_header("model", {})),
        "must have the kind 'simulations', but has 'model'",
    ),
    "no columns": (
        lambda path: crafted(path, header=encode_header("simulations", {})),
        "must be a sound HDF5 file",
    ),
    "columns list": (with_columns([1]), "must be a sound HDF5 file"),
    "column dtype": (with_columns({"x": {"shape": [2], "dtype": "O"}}), "x must have a dtype of"),
    "column shape": (with_columns({"x": {"shape": [-2], "dtype": "float64"}}), "must be positive"),
    "column float": (with_columns({"x": {"shape": [2.5], "dtype": "float64"}}), "sound HDF5"),
    "column name": (with_columns({"../x": SOUND["x"]}), "named by identifiers"),
    "one column more": (with_columns({**SOUND, "y": SOUND["x"]}), "must hold .* but holds"),
    "one dataset more": (lambda path: crafted(path, y=np.ones(3)), "must hold .* but holds"),
    "truncated": (truncated, "must be a sound HDF5 file"),
    "many rows": (many_rows, "must hold the data that it declares"),
    "many chunks": (with_x(shape=(10**9, 2), dtype="f8", chunks=(9, 2)), "must hold the data"),
    "rows differ": (
        lambda path: crafted(path, x=np.ones((4, 2))),
        r"of shape \(3, 2\), in one piece, but has",
    ),
    "shape": (
        lambda path: crafted(path, x=np.ones((3, 3))),
        r"of shape \(3, 2\), in one piece, but has",
    ),
    "dtype": (lambda path: crafted(path, x=np.ones((3, 2), "f4")), "as float64 of .* has float32"),
    "byte order": (lambda path: crafted(path, x=np.ones((3, 2), ">f8")), "has >f8"),
    "state": (lambda path: crafted(path, state=np.zeros(3)), "must have state as uint8"),
    "no rows": (
        lambda path: crafted(
            path, x=np.ones((0, 2)), state=np.ones(0, "u1"), checksums=np.ones((0, 2), "u4")
        ),
        r"of shape \(0, 2\), in one piece, but has",
    ),
    "scalar": (lambda path: crafted(path, state=np.uint8(1)), "must be a sound HDF5 file"),
    "chunked": (with_x(data=np.ones((3, 2)), chunks=(3, 2)), "as float64 of shape .* in one piece"),
    "objects": (with_x(shape=(3, 2), dtype=h5py.string_dtype()), "bool, integer or float"),
    "references": (with_x(shape=(3, 2), dtype=h5py.ref_dtype), "bool, integer or float"),
    "group": (lambda path: crafted(path, lambda f: f.create_group("x"), x=None), "plain datasets"),
    "soft link": (with_link(h5py.SoftLink("/state")), "must hold plain datasets"),
    "external link": (external_link, "must hold plain datasets"),
    "external data": (external_data, "must store its own data"),
    "virtual": (virtual, "must store its own data"),
}


@pytest.mark.parametrize(("write", "message"), CRAFTED.values(), ids=CRAFTED.keys())
def test_store_refuses_a_crafted_file_and_leaves_it(tmp_path, write, message):
    path = tmp_path / "sims.h5"
    write(path)
    before, names = path.read_bytes(), set(os.listdir(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=message) as caught:
            SimulationStore.open(path, {}, {"x": (2,)}, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert str(caught.value).startswith("sims.h5 must ")
    assert path.read_bytes() == before
    assert set(os.listdir(tmp_path)) == names


def test_store_crafted_soundly_is_opened(tmp_path):
    """The crafted files are refused for what is wrong with each, not for what they share."""
    crafted(tmp_path / "sims.h5")
    with SimulationStore.open(tmp_path / "sims.h5", {}, {"x": (2,)}, 3) as store:
        assert store.read(slice(None))["x"].tolist() == [[1.0, 1.0]] * 3


# --- simulations from elsewhere ------------------------------------------------------------------


def test_read_columns_returns_the_good_rows_of_a_store(tmp_path):
    with open_store(tmp_path / "sims.h5") as store:
        fill(store, 5, 20)
        good = store.good_rows(40)
    found = read_columns(tmp_path / "sims.h5", ["theta", "x"])
    assert list(found) == ["theta", "x"]
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected(good)[name])
    with pytest.raises(StoreError, match=r"must have columns \['y'\], but has \('theta', 'x', "):
        read_columns(tmp_path / "sims.h5", ["theta", "y"])


def test_read_columns_reads_the_files_of_others(tmp_path):
    x = np.arange(60.0).reshape(6, 10)
    with h5py.File(tmp_path / "x.h5", "w", userblock_size=512, libver="latest") as file:
        file.create_dataset("x", data=x.astype(">f4"), compression="gzip", shuffle=True)
        file.create_dataset("theta", data=np.arange(6), maxshape=(None,), chunks=(4,))
        file["names"] = ["a", "b"]
        file["theta"].attrs["unit"] = "days"
    found = read_columns(str(tmp_path / "x.h5"), ["theta", "x"])
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(found["theta"], np.arange(6))
    assert found["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("a,b"), "must be an HDF5 file, but starts with b'a,b'"),
        (lambda path: crafted(path, state=None, x=None), r"must have a dataset 'x', but has \['ch"),
        (lambda path: crafted(path, state=None, theta=np.ones(4)), "as many rows in each dataset"),
        (lambda path: crafted(path, state=None, theta=1.0), "as many rows in each dataset"),
        (lambda path: crafted(path, state=None, theta=["a"] * 3), "bool, integer or float"),
        (external_link, "must hold plain datasets"),
        (external_data, "must store its own data"),
        (with_x(shape=(10**9, 2), dtype="f8"), "must hold the data that it declares"),
        (with_x(shape=(10**9, 2), dtype="f8", compression="gzip"), "must hold its data within"),
        (truncated, "must be a sound HDF5 file"),
    ],
)
def test_read_columns_refuses_what_is_no_plain_data(tmp_path, write, message):
    path = tmp_path / "user.h5"
    write(path)
    with pytest.raises(StoreError, match=message):
        read_columns(path, ["x", "theta"])


def test_read_columns_of_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="user.h5"):
        read_columns(tmp_path / "user.h5", ["x"])
