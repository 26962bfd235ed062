"""Laws of reading and writing tables in the long format."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbi_plus import Observations

laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
FORMATS = ["parquet", "fits", "fits.gz", "h5", "csv", "csv.gz", "ecsv"]
reals = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


slope = np.log(10) / 2.5  # of -log(flux), by magnitude


@st.composite
def long_tables(draw):
    """Return columns of a table of up to three objects, in any order."""
    n = draw(st.integers(1, 12))
    column = lambda values: np.array(draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    return {
        "id": column(st.sampled_from(["a", "bc", "d"])),
        "t": column(st.floats(0, 9, width=16) | st.just(np.nan)),
        "x": column(reals),
        "x_err": column(st.sampled_from([0.0, -1.0, 0.5, 2.0, np.nan])),
        "band": column(st.sampled_from(["g", "r", "zz"])),
    }


def survey(suffix=None):
    """Return objects with all that Observations can hold, one of them without points."""
    rng = np.random.default_rng(0)
    obs = Observations.from_table(
        {
            "id": np.repeat(["b", "a", "ü c" if suffix == "h5" else "c"], [4, 2, 3]),
            "t": rng.uniform(6e4, 6.1e4, 9),
            "x": np.where(np.arange(9) == 2, np.nan, rng.normal(size=9)),
            "x_err": rng.uniform(0.1, 1, 9),
            "band": rng.choice(["g", "r"], 9),
            "upper_limit": rng.random(9) < 0.3,
            "airmass": rng.uniform(1, 2, 9),
            "redshift": np.repeat([0.1, 0.2, 0.3], [4, 2, 3]),
        },
        airmass="airmass",
        scalars=["redshift"],
        categories={"band": ["r", "g", "i"]},
        units={"t": "d", "x": "mJy"},
    )  # fmt: skip
    return obs.select_points(obs.owner != 1)


def same(one, other, *, but=()):
    """Say in which fields two Observations differ."""
    differs = []
    for name in ("values", "errors", "valid", "offsets", "ids", "origins"):
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            differs.append(name)
    for name in ("points", "scalars"):
        mine, its = getattr(one, name), getattr(other, name)
        if mine.keys() != its.keys() or any(
            not np.array_equal(v, its[k]) or v.dtype != its[k].dtype for k, v in mine.items()
        ):
            differs.append(name)
    for name in ("categories", "units", "shared_grid"):
        if name not in but and getattr(one, name) != getattr(other, name):
            differs.append(name)
    return differs


@laws
@given(long_tables())
def test_table_agrees_with_a_loop_over_its_rows(table):
    obs = Observations.from_table(table, duplicates="keep")
    names = list(dict.fromkeys(table["id"].tolist()))
    assert obs.ids.tolist() == names
    for i, name in enumerate(names):
        rows = [r for r in range(len(table["id"])) if table["id"][r] == name]
        timed = sorted((r for r in rows if np.isfinite(table["t"][r])), key=lambda r: table["t"][r])
        own = slice(obs.offsets[i], obs.offsets[i + 1])
        good = [np.isfinite(table["x"][r]) and table["x_err"][r] > 0 for r in timed]
        assert obs.points["t"][own].tolist() == [table["t"][r] for r in timed]
        assert obs.valid[0, own].tolist() == good
        assert obs.values[0, own].tolist() == [
            table["x"][r] if g else 0.0 for r, g in zip(timed, good, strict=True)
        ]
        bands = np.array(obs.categories["band"])[obs.points["band"][own]] if timed else []
        assert list(bands) == [table["band"][r] for r in timed]
        assert obs.n_masked[i] == len(rows) - sum(good)


@laws
@given(long_tables(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_the_order_of_objects_alone(table, random):
    """Points of equal times keep the order of their rows, so times are made different here."""
    n = len(table["id"])
    table["t"] = np.arange(float(n))
    rows = list(range(n))
    random.shuffle(rows)
    one = Observations.from_table(table)
    other = Observations.from_table({k: v[rows] for k, v in table.items()})
    place = [other.ids.tolist().index(name) for name in one.ids]
    assert same(other[place], one) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_restores_what_was_written(suffix, tmp_path):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    obs = survey(suffix)
    path = tmp_path / f"lightcurves.{suffix}"
    obs.write(path)
    plain = "csv" in suffix and suffix != "ecsv"
    named = {"scalars": ["redshift"], "airmass": "airmass",
             "categories": {"band": ["r", "g", "i"]}} if plain else {}  # fmt: skip
    back = Observations.read(str(path), **named)
    assert same(back, obs, but=("units",) if plain else ()) == []
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(FileExistsError, match="Give overwrite=True"):
        obs.write(path)
    obs[:1].write(path, overwrite=True)
    assert Observations.read(path, **named).ids.tolist() == ["b"]


@pytest.mark.parametrize("suffix", ["fits", "h5", "ecsv"])
def test_file_restores_channels_grids_and_origins(suffix, tmp_path):
    x = np.arange(12.0).reshape(2, 2, 3)
    x[0, 1, 2] = np.nan
    grid = Observations.from_arrays(x, 0.5, t=[2.0, 1.0, 3.0], ids=[10**18 + 1, 7])
    for i, obs in enumerate((grid, grid.relative_to("median"), survey().relative_to([5.0, 6, 7]))):
        path = tmp_path / f"{i}.{suffix}"
        obs.write(path)
        assert same(Observations.read(path), obs) == []


def test_fields_that_would_be_one_column_are_refused(tmp_path):
    obs = Observations.from_arrays(np.ones((1, 3)), t=np.arange(3), scalars={"x": [1.0]})
    with pytest.raises(ValueError, match=r"must have names other than \['x'\]"):
        obs.write(tmp_path / "a.csv")


@pytest.mark.filterwarnings("ignore:Error validating header|File may have been truncated")
@pytest.mark.parametrize("suffix", ["parquet", "fits", "h5", "ecsv"])
def test_damaged_and_missing_files_are_named(suffix, tmp_path):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Observations.read(path)
    survey().write(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-3000], b"", b"nothing of the kind" * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a.{suffix} must be"):
            Observations.read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.dat", "a", "a.pkl", "a.gz"])
def test_unknown_suffix_lists_the_known(name, tmp_path):
    with pytest.raises(ValueError, match=r"path must end in one of .parquet, .fits"):
        Observations.read(tmp_path / name)
    with pytest.raises(ValueError, match=r"path must end in one of .parquet, .fits"):
        survey().write(tmp_path / name)


def test_file_of_one_object_is_called_as_the_file(tmp_path):
    path = tmp_path / "ob08092.csv"
    path.write_text("hjd,mag,err\n3.0,15.5,0.01\n1.0,15.0,0.02\n")
    obs = Observations.read(path)
    assert obs.ids.tolist() == ["ob08092"]
    assert obs.points["t"].tolist() == [1.0, 3.0]


def test_hdf5_tables_of_other_makers_are_read(tmp_path):
    astropy_table = pytest.importorskip("astropy.table")
    table = astropy_table.Table({"id": ["a", "b"], "time": [1.0, 2.0], "flux": [3.0, 4.0]})
    table["flux"].unit = "Jy"
    table.write(tmp_path / "a.h5", path="data/lc", serialize_meta=True)
    obs = Observations.read(tmp_path / "a.h5")
    assert (obs.ids.tolist(), obs.values.tolist()) == (["a", "b"], [[3.0, 4.0]])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for use in (Observations.read, survey().write):
        with pytest.raises(ImportError, match=r'needs pyarrow. Install it .*"nbi-plus\[survey\]"'):
            use(tmp_path / ("a.parquet" if use == Observations.read else "b.parquet"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_note_in_a_file_that_is_no_layout_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    survey().write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["nbi_plus"] = "[1, 2]"
    with pytest.raises(ValueError, match="its note 'nbi_plus' must be an object of JSON"):
        Observations.read(path)


GOOD = {"id": ["a", "a", "b"], "t": [1.0, 2.0, 3.0], "flux": [1.0, 2.0, 3.0], "flux_err": [0.1] * 3}


@pytest.mark.parametrize(("changes", "keywords", "message"), [
    ({"flux": None}, {}, r"x must name the column of the data.*columns are \['id', 't', 'flux_e"),
    ({"t": None}, {}, r"t must name the column of the times.*Give t=False"),
    ({"mag": [1.0] * 3}, {}, r"x must be one column, but may be any of \['flux', 'mag'\]"),
    ({}, {"x": "fluks"}, "x must name a column, but 'fluks' is none. The columns are"),
    ({}, {"flux_err": "flux_err"}, "Give x_err='flux_err' instead"),
    ({"flux": ["1.0", "2.0", "bad"]}, {}, r"x must be a column of numbers.*row 2 holds .*'bad'"),
    ({"flux": ["1.0", "2.0", "3.0"]}, {}, r"row 0 holds the text '1.0'.*astype\(float\)"),
    ({"t": ["a", "b", "c"]}, {}, r"t must be a column of numbers, but in 't' row 0"),
    ({"flux": np.array([1.0, "x", 2.0], object)}, {}, "row 0 holds the text '1.0'|row 1 holds"),
    ({"flux": np.array([1.0, {}, 2.0], object)}, {}, "'flux' must hold numbers, flags or texts"),
    ({"flux": [1j] * 3}, {}, "has type complex128"),
    ({"flux": np.ones((3, 2))}, {}, r"'flux' must hold one value a row, but has shape \(3, 2\)"),
    ({"flux": [1.0, 2.0]}, {}, "table must have columns of one length"),
    ({"id": ["a", None, "b"]}, {}, r"id must be given in every row, but 'id' has none in 1 of 3"),
    ({"id": [1.5, 1.0, 2.0]}, {}, "id must hold texts or whole numbers"),
    ({"z": [1.0, 2.0, 3.0]}, {"scalars": ["z"]}, r"z must be one finite number.* 2 beside 1 .* a"),
    ({"z": [1.0, 1.0, np.nan]}, {"scalars": ["z"]}, "z must be one finite number for each object"),
    ({}, {"scalars": ["z"]}, r"scalars must name columns, but \['z'\] are none"),
    ({"upper_limit": [0, 1, 7]}, {}, "upper_limit must be a column of flags, but row 2"),
    ({"band": ["g", "r", "g"]}, {"categories": {"band": ["g"]}}, r"band must be one of \('g',\)"),
    ({}, {"units": {"flux": "mJy"}}, r"units must be of \['t', 'x'\], but \['flux'\] are none"),
    ({}, {"id": ["id", "t"]}, "id must be the name of one column"),
    ({}, {"t": True}, "t must be the name of one column, but is True"),
    ({}, {"zero_point": np.inf}, "zero_point must be a finite magnitude"),
    ({}, {"x": ["flux", "flux"], "x_err": ["flux_err"]}, "x_err must have a column for each of"),
    ({k: [] for k in GOOD}, {}, "table must have at least one row"),
])  # fmt: skip
def test_malformed_tables_are_refused_with_a_reason(changes, keywords, message):
    table = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    with pytest.raises((ValueError, TypeError), match=message):
        Observations.from_table(table, **keywords)


def test_no_table_is_refused():
    for wrong in ([1, 2], "a.csv", np.ones(3), None):
        with pytest.raises(TypeError, match="table must be an astropy, pandas"):
            Observations.from_table(wrong)


def test_units_are_converted_checked_and_noted():
    units = pytest.importorskip("astropy.units")
    table = pytest.importorskip("astropy.table").QTable(
        {"time": [24.0, 48.0] * units.h, "flux": [1.0, 2.0] * units.mJy,
         "flux_err": [100.0, 200.0] * units.uJy, "redshift": [0.5, 0.5]}
    )  # fmt: skip
    obs = Observations.from_table(table, id=False, units={"t": "d"})
    assert obs.units == {"t": "d", "x": "mJy"}
    assert obs.points["t"].tolist() == [1.0, 2.0]
    assert obs.values[0].tolist() == [1.0, 2.0]
    assert obs.errors[0] == pytest.approx([0.1, 0.2], rel=1e-15)
    jansky = Observations.from_table(table, id=False, units={"x": "Jy"})
    assert jansky.values[0] == pytest.approx([1e-3, 2e-3], rel=1e-15)
    assert jansky.errors[0] == pytest.approx([1e-4, 2e-4], rel=1e-15)
    with pytest.raises(ValueError, match="x must be in a unit that converts to 'd'"):
        Observations.from_table(table, id=False, units={"x": "d"})
    table["flux_err"] = [1.0, 2.0] * units.s
    with pytest.raises(ValueError, match="x_err must be in a unit that converts to 'mJy'"):
        Observations.from_table(table, id=False)
    table["flux"] = [1.0, 2.0]
    with pytest.raises(ValueError, match="x must be in the unit of its error 'flux_err', 's'"):
        Observations.from_table(table, id=False)


def test_magnitudes_become_the_fluxes_of_astropy():
    units = pytest.importorskip("astropy.units")
    mag, err = np.array([18.0, 20.5, 21.0]), np.array([0.01, 0.1, 0.3])
    table = {"mjd": [1.0, 2.0, 3.0], "mag": mag, "magerr": err, "uplim": [False, False, True]}
    obs = Observations.from_table(table, id=False, zero_point=8.9, units={"x": "Jy"})
    flux = (mag * units.ABmag).to_value("Jy")
    assert obs.values[0] == pytest.approx(flux, rel=1e-4)  # 8.9 is rounded: exactly 8.90007
    assert obs.errors[0] == pytest.approx(obs.values[0] * err * slope, rel=1e-12)
    assert obs.units["x"] == "Jy"
    assert obs.points["upper_limit"].tolist() == [False, False, True]
    plain = Observations.from_table(table, id=False)
    assert plain.values[0].tolist() == mag.tolist()


def test_magnitudes_of_a_system_have_errors_in_magnitudes():
    units = pytest.importorskip("astropy.units")
    table = pytest.importorskip("astropy.table").QTable(
        {"time": [1.0, 2.0] * units.d, "mag": [18.0, 20.0] * units.ABmag,
         "mag_err": [10.0, 20.0] * (units.mag / 1000)}
    )  # fmt: skip
    obs = Observations.from_table(table, id=False)
    assert (obs.values[0].tolist(), obs.units["x"]) == ([18.0, 20.0], "mag(AB)")
    assert obs.errors[0] == pytest.approx([0.01, 0.02])
    flux = Observations.from_table(table, id=False, zero_point=18.0)
    assert flux.values[0] == pytest.approx([1.0, 10**-0.8])
    assert flux.errors[0] / flux.values[0] == pytest.approx([0.01 * slope, 0.02 * slope])
    assert flux.units == {"t": "d"}


def test_infinite_magnitudes_are_masked_not_zero_flux():
    table = {"mjd": [1.0, 2.0, 3.0], "mag": [np.inf, -np.inf, 20.0], "magerr": [0.1] * 3}
    for zero_point in (None, 25.0):
        obs = Observations.from_table(table, id=False, zero_point=zero_point)
        assert obs.valid[0].tolist() == [False, False, True]
        assert obs.n_masked.tolist() == [2]


def test_objects_may_keep_one_point_or_none(caplog):
    table = {"id": ["a", "b", "b", "c"], "t": [1.0, 2.0, 3.0, np.nan],
             "flux": [1.0, np.nan, np.nan, 1.0], "band": ["g", "r", "r", "r"]}  # fmt: skip
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        obs = Observations.from_table(table)
    assert obs.lengths.tolist() == [1, 2, 0]
    assert obs.n_points.tolist() == [1, 0, 0]
    assert obs.n_masked.tolist() == [0, 2, 1]
    assert "Of 4 points, 2 are masked" in caplog.text
    assert "1 left out" in caplog.text


def test_guess_of_the_id_that_may_be_wrong_is_logged(caplog):
    table = {"thing": [1, 1, 2], "t": [1.0, 2.0, 3.0], "flux": [1.0, 2.0, 3.0]}
    Observations.from_table(table, id=False)
    assert not caplog.text
    Observations.from_table(table)
    assert "all rows are one object" in caplog.text
    caplog.clear()
    astropy_table = pytest.importorskip("astropy.table")
    named = astropy_table.Table(table, meta={"OBJECT": "TIC 7"})
    assert Observations.from_table(named).ids.tolist() == ["TIC 7"]
    assert not caplog.text
    Observations.from_table({**table, "id": [1, 2, 3]})
    assert "Each row of the column 'id', guessed as the id" in caplog.text


def test_rows_may_repeat_a_time_and_a_band():
    table = {"id": ["a", "b", "a", "a"], "t": [1.0, 1, 1, 1], "flux": [1.0, 2, 3, 4],
             "band": ["g"] * 4}  # fmt: skip
    obs = Observations.from_table(table)
    assert obs.values[0].tolist() == [1, 3, 4, 2]  # equal times stay in the order of their rows


def test_a_million_rows_agree_with_sorting_them():
    rng = np.random.default_rng(0)
    n = 1_000_000
    ids, t = rng.integers(0, 10_000, n), rng.uniform(0, 1e4, n)
    x = rng.normal(size=n)
    obs = Observations.from_table({"id": ids, "t": t, "flux": x, "flux_err": np.full(n, 0.1)})
    first = np.unique(ids, return_index=True)[1]
    assert np.array_equal(obs.ids, ids[np.sort(first)])
    assert np.array_equal(obs.lengths, np.bincount(ids)[obs.ids])
    assert all((np.diff(obs.points["t"]) >= 0) | (np.diff(obs.owner) > 0))
    assert obs.values.sum() == pytest.approx(x.sum(), abs=1e-6)


def test_the_callers_table_stays_as_it_was():
    table = {"id": np.array(["b", "a"]), "t": np.array([2.0, 1.0]), "flux": np.array([1.0, np.nan])}
    before = {k: v.copy() for k, v in table.items()}
    obs = Observations.from_table(table)
    obs.values[:] = 9
    obs.points["t"][:] = 9
    assert all(np.array_equal(v, before[k], equal_nan=k == "flux") for k, v in table.items())
