"""Archives give back what was written, and refuse every other file without running any of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nbi_plus import ArchiveError
from nbi_plus.io import archive
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.io.placing import temporary_beside

CODES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f8", ">i4")
HEADER = {"format": "nbi-plus", "kind": "model", "schema": 2, "meta": {}}  # without checksums

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
numeric = st.sampled_from(CODES).flatmap(
    lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


# --- laws ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    meta=st.dictionaries(st.text(), json_values, max_size=4),
    arrays=st.dictionaries(st.text(min_size=1, max_size=20), numeric, max_size=4),
)
def test_archive_gives_back_meta_and_arrays(meta, arrays):
    with tempfile.TemporaryDirectory() as folder:
        write_archive(f"{folder}/a.nbi", "model", meta, arrays)
        back = read_archive(f"{folder}/a.nbi", "model")
    assert back.meta == meta
    assert back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        found = back.arrays[name]
        assert found.dtype == array.dtype.newbyteorder("=")
        assert found.dtype.isnative
        assert found.flags.writeable
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "name", ["a.b/c", ".", "..", "/", "%2F", "a b\0", "η", "\ud800", "x" * 500]
)
def test_archive_keeps_any_name(tmp_path, name):
    write_archive(tmp_path / "a.nbi", "model", {}, {name: np.arange(3)})
    assert list(read_archive(tmp_path / "a.nbi", "model").arrays) == [name]


def test_archive_keeps_nan_and_infinity_in_arrays(tmp_path):
    values = np.array([np.nan, np.inf, -np.inf, -0.0])
    write_archive(tmp_path / "a.nbi", "model", {}, {"v": values})
    assert read_archive(tmp_path / "a.nbi", "model").arrays["v"].tobytes() == values.tobytes()


def test_archive_of_the_same_content_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_archive(tmp_path / name, "model", {"n": 1}, {"w": np.ones((4, 4))})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_archive_may_be_compressed_by_gzip_and_shuffle(tmp_path):
    values = np.arange(5000.0).reshape(50, 100)
    craft(
        tmp_path / "a.nbi",
        lambda group: [
            group.create_dataset("gzip", data=values, compression="gzip", chunks=(7, 30)),
            group.create_dataset(
                "both", data=values, compression="gzip", shuffle=True, chunks=(50, 100)
            ),
            group.create_dataset("chunks", data=values, chunks=(9, 9)),
            group.create_dataset(
                "empty", data=values[:0], compression="gzip", maxshape=(None, 100)
            ),
        ],
    )
    with pytest.warns(UserWarning, match=r"is of schema 2: .* Save it again"):
        back = read_archive(tmp_path / "a.nbi", "model").arrays
    for name in ("gzip", "both", "chunks"):
        np.testing.assert_array_equal(back[name], values)
    assert back["empty"].shape == (0, 100)


def test_archive_reads_a_crafted_bool_as_zero_or_one(tmp_path):
    write_archive(tmp_path / "a.nbi", "model", {}, {"b": np.array([True, False] * 40)})
    raw = bytearray((tmp_path / "a.nbi").read_bytes())
    raw[raw.index(b"\x01\x00" * 40)] = 7
    (tmp_path / "a.nbi").write_bytes(raw)
    back = read_archive(tmp_path / "a.nbi", "model").arrays["b"]
    assert back.view(np.uint8).tolist() == [1, 0] * 40


def test_archive_in_place_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "a.nbi"
    write_archive(path, "model", {"old": True}, {"w": np.ones(3)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "place", full)
    with pytest.raises(ArchiveError, match="a.nbi must have room on its disk, but: No space left"):
        write_archive(path, "model", {"old": False}, {"w": np.zeros(3)})
    assert read_archive(path, "model").meta == {"old": True}
    assert os.listdir(tmp_path) == ["a.nbi"]


def test_archive_write_removes_what_a_killed_writer_left_long_ago(tmp_path):
    path = tmp_path / "a.nbi"
    old, young, other = (
        tmp_path / name
        for name in (".a.nbi.1-0123abcd.tmp", ".a.nbi.2-0123abcd.tmp", ".b.a.nbi.3-0123abcd.tmp")
    )
    for leftover in (old, young, other):
        leftover.write_bytes(b"")
    for leftover in (old, other):
        os.utime(leftover, (0, 0))
    write_archive(path, "model", {}, {})
    assert not old.exists()
    assert young.exists()
    assert other.exists()


def test_archive_write_removes_what_a_dead_writer_left_a_moment_ago(tmp_path):
    path = tmp_path / "a.nbi"
    alive, dead = temporary_beside(path), os.fork()
    if not dead:
        temporary_beside(path).touch()
        os._exit(0)
    os.waitpid(dead, 0)
    alive.touch()
    (tmp_path / f"{alive.name[:-4].replace(str(os.getpid()), '9' * 30)}.tmp").touch()
    assert len(os.listdir(tmp_path)) == 3
    write_archive(path, "model", {}, {})
    left = os.listdir(tmp_path)
    assert len(left) == 3, "its own, and those of writers that may be alive"
    assert not [name for name in left if f".{dead}-" in name]


def test_archive_write_makes_the_folder(tmp_path):
    write_archive(tmp_path / "new" / "folder" / "a.nbi", "model", {}, {})
    assert read_archive(str(tmp_path / "new" / "folder" / "a.nbi"), "model").arrays == {}


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.array([b"bytes"]),
        np.array([1j]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.zeros(2, dtype=[("a", "f8")]),
        None,
    ],
)
def test_archive_write_refuses_arrays_that_are_no_numbers(tmp_path, array):
    with pytest.raises(ArchiveError, match=r"arrays\['w'\] must be bool, integer or float"):
        write_archive(tmp_path / "a.nbi", "model", {}, {"w": array})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"meta\['a'\]\['b'\]\[1\] must be finite, but is nan"),
        ({"a": float("-inf")}, r"meta\['a'\] must be finite, but is -inf"),
        ({"a": {1: 2}}, r"meta\['a'\] must have str keys, but has 1\. Use '1'"),
        ({"a": np.ones(2)}, r"meta\['a'\] must be None, .* but is a ndarray"),
        ({"a": b"x"}, "but is a bytes"),
        ({"a": "x" * (2**24 + 1)}, "must take at most 16777216 bytes"),
    ],
)
def test_archive_write_refuses_meta_that_json_would_change(tmp_path, meta, message):
    with pytest.raises(ArchiveError, match=message):
        write_archive(tmp_path / "a.nbi", "model", meta, {})


def test_archive_missing_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.nbi"):
        read_archive(tmp_path / "a.nbi", "model")


# --- broken files --------------------------------------------------------------------------------


def test_archive_truncated_at_any_byte_is_refused(tmp_path):
    path = tmp_path / "a.nbi"
    write_archive(path, "model", {"n": 1}, {"w": np.ones(20), "v": np.zeros((2, 3), np.int8)})
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 19), *range(100), *range(len(whole) - 100, len(whole))}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            read_archive(path, "model")


def test_archive_with_damaged_bytes_gives_what_was_written_or_is_refused(tmp_path):
    path = tmp_path / "a.nbi"
    arrays = {"w": np.ones(20), "v": np.zeros((2, 3), np.int8)}
    write_archive(path, "model", {"n": 1}, arrays)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(5)
    n_refused = 0
    for _ in range(200):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            back = read_archive(path, "model")
        except ArchiveError:
            n_refused += 1
            continue
        assert back.meta == {"n": 1}
        assert {k: v.tolist() for k, v in back.arrays.items()} == {
            k: v.tolist() for k, v in arrays.items()
        }
    assert 20 < n_refused < 200


def changed(path, change):
    with h5py.File(path, "r+") as file:
        change(file["arrays"])


def swapped(group):
    group.move("v", "other")
    group.move("w", "v")
    group.move("other", "w")


FAULTS = {
    "a number": (lambda group: group["w"].write_direct(np.full(4, 2.0)), "the checksum of 'w'"),
    "a bit": (lambda group: group["w"].write_direct(np.nextafter(np.ones(4), 2)), "of 'w'"),
    "the sign of zero": (lambda group: group["v"].write_direct(np.full(4, -0.0)), "of 'v'"),
    "swapped": (swapped, "the checksum of '[vw]'"),
    "missing": (lambda group: group.pop("w"), r"lacks \['w'\]"),
    "one more": (lambda group: group.create_dataset("x", data=1.0), r"holds \['x'\], too"),
    "renamed": (lambda group: group.move("w", "x"), r"lacks \['w'\]"),
    "another shape": (
        lambda group: (group.pop("w"), group.create_dataset("w", data=np.ones((2, 2)))),
        "the checksum of 'w'",
    ),
    "another type": (
        lambda group: (group.pop("w"), group.create_dataset("w", data=np.ones(4, ">f4"))),
        "the checksum of 'w'",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_archive_names_the_array_that_differs_from_what_was_written(case, tmp_path):
    path = tmp_path / "a.nbi"
    write_archive(path, "model", {}, {"w": np.ones(4), "v": np.zeros(4)})
    change, message = FAULTS[case]
    changed(path, change)
    with pytest.raises(ArchiveError, match=f"must hold the arrays that were written, .*{message}"):
        read_archive(path, "model")


def test_archive_refuses_a_header_with_any_byte_changed(tmp_path):
    path = tmp_path / "a.nbi"
    write_archive(path, "model", {"name": "é", "n": [1, 2.5, None]}, {"w": np.ones(3)})
    with h5py.File(path) as file:
        sound = file["header"][:]
    for at in range(len(sound)):
        raw = sound.copy()
        raw[at] ^= 1 << at % 8
        with h5py.File(path, "r+") as file:
            file["header"][:] = raw
        with pytest.raises(ArchiveError):
            read_archive(path, "model")


# --- crafted files -------------------------------------------------------------------------------


def nothing(_):
    """Add nothing to a crafted file."""


def craft(path, fill=nothing, header=HEADER, root=nothing):
    """Write what looks like an archive."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    with h5py.File(path, "w") as file:
        file.create_dataset("header", data=np.frombuffer(raw, np.uint8))
        fill(file.create_group("arrays"))
        root(file)


class Evil:
    """An object that makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def a_pickle(path):
    path.write_bytes(pickle.dumps(Evil(str(path.parent / "executed"))))


def a_zip_of_a_pickle(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Evil(str(path.parent / "executed"))))


def a_zip_before_hdf5(path):
    craft(path)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("a", "b" * 8)
    path.write_bytes(data.getvalue().ljust(512, b"\0")[:512] + path.read_bytes())


def a_numpy_file_of_objects(path):
    with path.open("wb") as file:
        np.save(file, np.array([Evil(str(path.parent / "executed"))]), allow_pickle=True)


def no_header(path):
    with h5py.File(path, "w") as file:
        file["arrays/w"] = np.ones(3)


def header_as(data=None, **options):
    def write(path):
        with h5py.File(path, "w") as file:
            file.create_dataset("header", data=data, **options)
            file.create_group("arrays")

    return write


def header(**changes):
    return lambda path: craft(path, header={**HEADER, **changes})


def raw_header(raw):
    return lambda path: craft(path, header=raw)


def nested(depth):
    """Return dicts in each other."""
    return {"in": nested(depth - 1)} if depth else {}


def array_as(data=None, **options):
    return lambda path: craft(path, lambda g: g.create_dataset("w", data=data, **options))


def a_file_nearby(path, name="w"):
    """Write a sound HDF5 file that links may lead to."""
    with h5py.File(path.parent / "nearby.h5", "w") as file:
        file[name] = np.ones(8)
    return "nearby.h5"


def a_soft_link(path):
    craft(path, lambda g: g.__setitem__("w", h5py.SoftLink("/header")))


def an_external_link(path):
    craft(path, lambda g: g.__setitem__("w", h5py.ExternalLink(a_file_nearby(path), "/w")))


def an_external_group(path):
    craft(path)
    with h5py.File(path, "a") as file:
        del file["arrays"]
        file["arrays"] = h5py.ExternalLink(a_file_nearby(path), "/")


def a_soft_header(path):
    craft(path)
    with h5py.File(path, "a") as file:
        file["arrays/w"] = file["header"]
        del file["header"]
        file["header"] = h5py.SoftLink("/arrays/w")


def external_storage(path):
    (path.parent / "secret").write_bytes(b"12345678" * 8)
    craft(path, lambda g: g.create_dataset("w", (8,), "f8", external=[("secret", 0, 64)]))


def a_virtual_dataset(path):
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(a_file_nearby(path), "w", shape=(8,))
    craft(path, lambda g: g.create_virtual_dataset("w", layout))


def rows_without_data(path):
    craft(path, lambda g: g.create_dataset("w", (10**9, 50), "f8"))


def chunks_without_data(path):
    craft(path, lambda g: g.create_dataset("w", (10**9, 50), "f8", chunks=(10**4, 50)))


def gzip_chunks_without_data(path):
    options = {"chunks": (10**4, 50), "compression": "gzip"}
    craft(path, lambda g: g.create_dataset("w", (10**9, 50), "f8", **options))


def rows_declared_in_the_file(path):
    """Let a dataset claim 10^9 rows, also in the size of its storage."""
    n, claimed = 12347, 10**9
    craft(path, lambda g: g.create_dataset("w", data=np.zeros(n)))
    raw = path.read_bytes()
    for old, new in ((n, claimed), (8 * n, 8 * claimed)):
        assert old.to_bytes(8, "little") in raw
        raw = raw.replace(old.to_bytes(8, "little"), new.to_bytes(8, "little"))
    path.write_bytes(raw)


def a_gzip_bomb(path):
    zeros = np.zeros(2**26, np.uint8)
    options = {"data": zeros, "compression": "gzip", "chunks": (2**20,)}
    craft(path, lambda g: [g.create_dataset(str(i), **options) for i in range(2)])


def a_huge_chunk(path):
    options = {"data": np.zeros(1, np.uint8), "maxshape": (None,), "compression": "gzip"}
    craft(path, lambda g: g.create_dataset("w", chunks=(2**27,), **options))


def a_chunk_that_inflates(path):
    def fill(group):
        data = group.create_dataset("w", (64,), "u1", chunks=(64,), compression="gzip")
        data.id.write_direct_chunk((0,), zlib.compress(bytes(2**26)))

    craft(path, fill)


def an_unfiltered_chunk_of_another_size(path):
    def fill(group):
        data = group.create_dataset("w", (64,), "u1", chunks=(64,), compression="gzip")
        data.id.write_direct_chunk((0,), bytes(16), filter_mask=1)

    craft(path, fill)


def a_chunk_of_no_gzip(path):
    def fill(group):
        data = group.create_dataset("w", (64,), "u1", chunks=(64,), compression="gzip")
        data.id.write_direct_chunk((0,), b"no gzip here")

    craft(path, fill)


def two_gzip_filters(path):
    def fill(group):
        plan = h5p.create(h5p.DATASET_CREATE)
        plan.set_chunk((64,))
        plan.set_deflate(4)
        plan.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (4,))
        h5py.Dataset(h5d.create(group.id, b"w", h5t.NATIVE_DOUBLE, h5s.create_simple((64,)), plan))[
            :
        ] = 1.0

    craft(path, fill)


def one_dataset_by_many_names(path):
    def fill(group):
        group["0"] = np.zeros(2**17)
        for i in range(1, 50):
            group[str(i)] = group["0"]

    craft(path, fill)


def a_group_that_holds_itself(path):
    craft(path, lambda g: g.__setitem__("w", g))


def a_name_that_is_not_encoded(path):
    craft(path, lambda g: g.create_dataset("a b", data=np.ones(3)))


def a_name_that_is_no_text(path):
    craft(path, lambda g: g.create_dataset(b"\xff\xfe", data=np.ones(3)))


def a_named_type(path):
    craft(path, lambda g: g.__setitem__("w", np.dtype("f8")))


def an_enumeration(path):
    array_as(np.zeros(3, "i1"), dtype=h5py.enum_dtype({"A": 0, "B": 1}, "i1"))(path)


def an_opaque_type(path):
    array_as(np.zeros(3, "V8"))(path)


def no_arrays(path):
    craft(path, root=lambda file: file.pop("arrays"))


def more_in_the_root(path):
    craft(path, root=lambda file: file.create_dataset("more", data=np.ones(3)))


CRAFTED = {
    "empty": (lambda path: path.write_bytes(b""), "must be an HDF5 file, but starts with b''"),
    "text": (lambda path: path.write_text("import os"), "starts with b'import o'"),
    "pickle": (a_pickle, "must be an HDF5 file, but is a pickle file"),
    "zip": (a_zip_of_a_pickle, "must be an HDF5 file, but is a zip file"),
    "zip and hdf5": (a_zip_before_hdf5, "but is a zip file"),
    "npy": (a_numpy_file_of_objects, "must be an HDF5 file, but starts with"),
    "folder": (lambda path: path.mkdir(), "must be a file"),
    "foreign": (no_header, "must be a file of nbi-plus, but has no header"),
    "header text": (raw_header(b"hello"), "strict JSON"),
    "header bytes": (raw_header(b"\xff\xfe{}"), "strict JSON"),
    "header nan": (raw_header(b'{"format": NaN}'), "NaN is not finite"),
    "header overflow": (raw_header(b'{"format": 1e999}'), "1e999 is not finite"),
    "header depth": (raw_header(b"[" * 10**5), "strict JSON"),
    "header list": (raw_header(b"[1]"), "must have a header of format 'nbi-plus'"),
    "header huge": (header_as(np.zeros(2**24 + 1, np.uint8)), "header of at most 16777216 bytes"),
    "header floats": (header_as(np.zeros(10)), "header of at most"),
    "header str": (header_as('{"format": "nbi-plus"}'), "must hold bool, integer or float"),
    "header null": (header_as(h5py.Empty("u1")), "must hold bool, integer or float"),
    "header link": (a_soft_header, "must hold plain datasets, but 'header' is none"),
    "format": (header(format="other"), "must have a header of format 'nbi-plus'"),
    "kind": (header(kind="posterior"), "must have the kind 'model', but has 'posterior'"),
    "kind text": (header(kind="\x1b[2J" * 999), r"but has '\\x1b"),
    "schema": (header(schema=4), "must have a schema of at most 3, but has 4. Update nbi-plus"),
    "schema bool": (header(schema=True), "must have a schema of at most 3, but has True"),
    "no seal": (header(schema=3, arrays={}), "must have the parts"),
    "older, with checksums": (header(schema=2, arrays={}), "must have the parts"),
    "header levels": (header(meta=nested(100)), "more than 64 levels"),
    "header values": (raw_header(b"[" + b"[]," * 10**6 + b"0]"), "at most 1000000 values"),
    "meta": (header(meta=[1]), "must have a dict as meta"),
    "no arrays": (no_arrays, "must hold header and arrays"),
    "more": (more_in_the_root, "must hold header and arrays"),
    "external group": (an_external_group, "must hold header and arrays"),
    "objects": (array_as(["a", "b"], dtype=h5py.string_dtype()), "bool, integer or float"),
    "vlen": (array_as(shape=(2,), dtype=h5py.vlen_dtype("f8")), "bool, integer or float"),
    "references": (array_as(shape=(2,), dtype=h5py.ref_dtype), "bool, integer or float"),
    "compound": (array_as(np.zeros(2, [("a", "f8")])), "bool, integer or float"),
    "complex": (array_as(np.zeros(2, "c16")), "bool, integer or float"),
    "strings": (array_as(np.array([b"a", b"b"])), "bool, integer or float"),
    "array type": (array_as(shape=(2,), dtype="(3,)f8"), "bool, integer or float"),
    "long double": (array_as(np.zeros(2, np.longdouble)), "bool, integer or float"),
    "enumeration": (an_enumeration, "bool, integer or float"),
    "opaque": (an_opaque_type, "bool, integer or float"),
    "null": (array_as(h5py.Empty("f8")), "bool, integer or float"),
    "named type": (a_named_type, "must hold plain datasets"),
    "soft link": (a_soft_link, "must hold plain datasets"),
    "external link": (an_external_link, "must hold plain datasets"),
    "group loop": (a_group_that_holds_itself, "must hold plain datasets"),
    "external storage": (external_storage, "must store its own data"),
    "virtual": (a_virtual_dataset, "must store its own data"),
    "lzf": (array_as(np.ones(99), compression="lzf"), "gzip"),
    "fletcher32": (array_as(np.ones(99), fletcher32=True), "gzip"),
    "scale-offset": (array_as(np.arange(99), scaleoffset=0), "gzip"),
    "two gzips": (two_gzip_filters, "gzip"),
    "no data": (rows_without_data, "must hold the data that it declares"),
    "no chunks": (chunks_without_data, "must hold the data that it declares"),
    "no gzip chunks": (gzip_chunks_without_data, "must hold its data within"),
    # newer versions of HDF5 see this themselves
    "more rows": (rows_declared_in_the_file, "must hold the data that it declares|sound HDF5"),
    "gzip bomb": (a_gzip_bomb, "must hold its data within"),
    "huge chunk": (a_huge_chunk, "must hold its data within"),
    "inflating chunk": (a_chunk_that_inflates, "a chunk of '/arrays/w' has another size"),
    "short chunk": (an_unfiltered_chunk_of_another_size, "has another size"),
    "no gzip": (a_chunk_of_no_gzip, "must be a sound HDF5 file"),
    "many names": (one_dataset_by_many_names, "must hold its data within"),
    "name": (a_name_that_is_not_encoded, "percent-encoded array names, but has 'a b'"),
    "name bytes": (a_name_that_is_no_text, "must be a sound HDF5 file"),
}


@pytest.mark.parametrize(("write", "message"), CRAFTED.values(), ids=CRAFTED.keys())
def test_archive_refuses_a_crafted_file_before_it_allocates(tmp_path, write, message):
    path = tmp_path / "a.nbi"
    write(path)
    before = set(os.listdir(tmp_path))
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match=message) as caught:
            read_archive(path, "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert str(caught.value).startswith("a.nbi must ")
    assert len(str(caught.value)) < 600
    assert set(os.listdir(tmp_path)) == before  # nothing of the file was executed


def test_archive_refuses_more_arrays_than_its_limit(tmp_path, monkeypatch):
    write_archive(tmp_path / "a.nbi", "model", {}, {str(i): 0.0 for i in range(6)})
    monkeypatch.setattr(archive, "MAX_ARRAYS", 5)
    with pytest.raises(ArchiveError, match="must hold at most 5 arrays, but holds 6"):
        read_archive(tmp_path / "a.nbi", "model")
    with pytest.raises(ArchiveError, match="arrays must be 5 at most, but are 6"):
        write_archive(tmp_path / "b.nbi", "model", {}, {str(i): 0.0 for i in range(6)})


def test_archive_of_another_kind_is_refused(tmp_path):
    write_archive(Path(tmp_path / "a.nbi"), "posterior", {}, {})
    with pytest.raises(ArchiveError, match="must have the kind 'model', but has 'posterior'"):
        read_archive(tmp_path / "a.nbi", "model")
