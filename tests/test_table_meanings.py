"""Laws of what tables mean: times, zero points, repeats, redshifts, masks and units."""

from __future__ import annotations

import logging
import warnings
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import Flag, Observations

laws = settings(max_examples=25, deadline=None, derandomize=True, database=None)
OFFSETS = {"jd": 0.0, "mjd": 2400000.5, "bkjd": 2454833.0, "btjd": 2457000.0}
FLUX = np.array([3.0, 1.0, 2.0])


def imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import, of optional dependencies
        return pytest.importorskip(name)


def curve(t, form, **meta):
    time = pytest.importorskip("astropy.time").Time(t, format=form, scale="tdb")
    return imported("lightkurve").LightCurve(time=time, flux=FLUX[: len(t)], meta=meta)


@pytest.mark.parametrize(("form", "t"), [
    ("jd", [-0.3, 0.0, 0.3]), ("btjd", [1325.25, 1326.5, 1327.0]), ("mjd", [58324.5, 58325, 58326]),
])  # fmt: skip
def test_light_curves_keep_the_numbers_of_their_times(form, t, caplog):
    imported("lightkurve")  # which knows btjd
    with caplog.at_level(logging.INFO, "nbi_plus"):
        obs = Observations.from_lightkurve(curve(t, form))
    assert obs.points["t"].tolist() == t
    told = [r.getMessage() for r in caplog.records if "times from" in r.getMessage()]
    assert len(told) == 1
    assert f"times from {t[0]:.10g} to {t[2]:.10g} ({form})" in told[0]
    table = Observations.from_table(curve(t, form), id=False)
    assert table.points["t"].tolist() == t


@pytest.mark.parametrize("wanted", OFFSETS)
@pytest.mark.parametrize("form", OFFSETS)
def test_times_are_converted_on_request_by_constants(form, wanted):
    imported("lightkurve")
    t = 2458325.25 - OFFSETS[form] + np.arange(3.0)
    expected = (t + (OFFSETS[form] - OFFSETS[wanted])).tolist()
    obs = Observations.from_lightkurve([curve(t, form, LABEL="a")], time=wanted)
    assert obs.points["t"].tolist() == expected
    bare = {form: t, "flux": FLUX}
    assert Observations.from_table(bare, id=False, time=wanted).points["t"].tolist() == expected
    hours = Observations.from_table(bare, id=False, time=wanted, units={"t": "h"})
    assert hours.points["t"] == pytest.approx(24 * np.array(expected), rel=1e-15)


def test_names_and_units_of_columns_say_what_their_times_count_from():
    kepler = pytest.importorskip("astropy.table").Table(
        {"TIME": [1000.0, 1001.0], "FLUX": [1, 2.0]}
    )
    kepler["TIME"].unit = pytest.importorskip("astropy.units").Unit(
        "BJD - 2454833, days", parse_strict="silent"
    )
    assert Observations.from_table(kepler, id=False).units["t"] == "d"
    obs = Observations.from_table(kepler, id=False, time="btjd")
    assert obs.points["t"].tolist() == [1000.0 - 2167.0, 1001.0 - 2167.0]
    for name in ("HJD", "bjd_tdb", "obsjd"):
        table = {name: [2450000.5, 2450001.5], "flux": [1.0, 2.0]}
        obs = Observations.from_table(table, id=False, t=name, time="mjd")
        assert obs.points["t"].tolist() == [50000.0, 50001.0]


def test_dates_are_mjd_and_convert(tmp_path):
    dates = np.array(["2000-01-01T00:00", "2000-01-02T12:00"], "datetime64[ms]")
    pd = pytest.importorskip("pandas")
    for table in ({"time": dates, "flux": [1.0, 2.0]},
                  pd.DataFrame({"time": dates, "flux": [1.0, 2.0]}),
                  {"time": dates.astype(object), "flux": [1.0, 2.0]}):  # fmt: skip
        obs = Observations.from_table(table, id=False)
        assert obs.points["t"].tolist() == [51544.0, 51545.5]
        jd = Observations.from_table(table, id=False, time="jd")
        assert jd.points["t"].tolist() == [2451544.5, 2451546.0]
    jd.write(tmp_path / "a.fits")
    back = Observations.read(tmp_path / "a.fits")
    assert back.points["t"].tolist() == jd.points["t"].tolist()


@pytest.mark.parametrize(("table", "keywords", "message"), [
    ({"t": [1.0], "flux": [1.0]}, {"time": "mjd"}, "'t' holds bare numbers. Call the column by"),
    ({"mjd": [1.0], "flux": [1.0]}, {"time": "utc"}, "time must be one of .*, but is 'utc'"),
    ({"wavelength": [1.0], "flux": [1.0]}, {"time": "jd"}, "must be asked of times, but there are"),
])  # fmt: skip
def test_times_that_do_not_say_what_they_are_are_not_converted(table, keywords, message):
    with pytest.raises(ValueError, match=message):
        Observations.from_table(table, id=False, **keywords)


def test_curves_of_different_clocks_are_not_mixed():
    imported("lightkurve")
    both = [curve([1000.0, 1001], "bkjd", LABEL="a"), curve([1300.0, 1301], "btjd", LABEL="b")]
    with pytest.raises(ValueError, match=r"alike, but are of the formats \['bkjd', 'btjd'\]"):
        Observations.from_lightkurve(both)
    obs = Observations.from_lightkurve(both, time="btjd", scalars={"radius": [1.0, 2.0]})
    assert obs.points["t"].tolist() == [-1167.0, -1166.0, 1300.0, 1301.0]
    assert obs.scalars["radius"].tolist() == [1.0, 2.0]


def test_times_that_are_no_dates_are_told(caplog):
    Observations.from_table({"jd": [1.0, 2.0], "flux": [1.0, 2.0]}, id=False, time="mjd")
    assert "are no dates that people observe at" in caplog.text


MIXED = {
    "id": ["a", "a", "b", "b", "b"],
    "time": [1.0, 2.0, 1.0, 2.0, 3.0],
    "flux": [10.0, 20.0, 100.0, 200.0, 300.0],
    "fluxerr": [1.0, 2.0, 10.0, 20.0, 30.0],
    "band": ["g", "r", "g", "r", "g"],
    "zp": [25.0, 25.0, 27.5, 27.5, 27.5],
    "zpsys": ["ab"] * 5,
}


def forms_of(table, folder):
    """Yield a table as a dict, as files, and as a nested table."""
    yield Observations.from_table, table
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(table), folder / "a.parquet")
    yield Observations.read, folder / "a.parquet"
    pytest.importorskip("astropy.table").Table(table).write(folder / "a.fits")
    yield Observations.read, folder / "a.fits"
    rows = {"a": slice(0, 2), "b": slice(2, 5)}
    lists = {k: [v[own] for own in rows.values()] for k, v in table.items() if k != "id"}
    yield Observations.from_table, pa.table({"id": list(rows)} | lists)


def test_fluxes_of_different_zero_points_are_scaled_to_one(tmp_path, caplog):
    scale = 10 ** (-0.4 * (25 - 27.5))
    for read, table in forms_of(MIXED, tmp_path):
        caplog.clear()
        obs = read(table)  # the most common, 27.5
        assert obs.values[0] == pytest.approx([10 * scale, 20 * scale, 100, 200, 300], rel=1e-14)
        assert obs.errors[0] == pytest.approx(obs.values[0] / 10, rel=1e-14)
        assert "Fluxes with zero points from 25 to 27.5 ('zp') are scaled to 27.5" in caplog.text
        wanted = read(table, zero_point=25)
        assert wanted.values[0] == pytest.approx(obs.values[0] / scale, rel=1e-14)
        assert read(table, zp=False).values[0].tolist() == MIXED["flux"]


def test_equal_zero_points_leave_fluxes_as_they_are(caplog):
    same = MIXED | {"zp": [25.0] * 5}
    assert Observations.from_table(same).values[0].tolist() == MIXED["flux"]
    assert not caplog.text
    scaled = Observations.from_table(same, zero_point=27.5)
    assert scaled.values[0] == pytest.approx(10 * np.array(MIXED["flux"]), rel=1e-14)


def test_points_without_a_zero_point_are_masked_and_counted(caplog):
    obs = Observations.from_table(MIXED | {"zp": [25.0, np.nan, 25.0, 25.0, 25.0]})
    assert obs.valid[0].tolist() == [True, False, True, True, True]
    assert obs.n_masked.tolist() == [1, 0]
    assert "1 points are masked, as 'zp' misses their zero point" in caplog.text


def test_zero_points_of_two_systems_in_a_band_are_refused(caplog):
    mixed = MIXED | {"zpsys": ["ab", "ab", "Vega", "AB", "ab"]}
    with pytest.raises(ValueError, match=r"one system in each band, but g has \['ab', 'vega'\]"):
        Observations.from_table(mixed)
    assert Observations.from_table(mixed, zp=False).values[0].tolist() == MIXED["flux"]
    with caplog.at_level(logging.INFO, "nbi_plus"):
        Observations.from_table(MIXED | {"zpsys": ["vega", "ab", "vega", "ab", "vega"]})
    assert "systems ['ab', 'vega'], one in each band" in caplog.text


def test_zero_points_scale_fluxes_alone():
    magnitudes = {k: v for k, v in MIXED.items() if not k.startswith("flux")}
    magnitudes |= {"mag": [20.0, 21.0, 22.0, 23.0, 24.0]}
    assert Observations.from_table(magnitudes).values[0].tolist() == magnitudes["mag"]
    with pytest.raises(ValueError, match="zp must be the zero points of fluxes"):
        Observations.from_table(magnitudes, zp="zp")
    units = pytest.importorskip("astropy.units")
    table = pytest.importorskip("astropy.table").QTable(MIXED)
    table["flux"], table["fluxerr"] = table["flux"] * units.mJy, table["fluxerr"] * units.mJy
    with pytest.raises(ValueError, match=r"may be calibrated already.*zp=False"):
        Observations.from_table(table)
    assert Observations.from_table(table, zp="zp").values[0, 0] == pytest.approx(100)
    snana = {k.replace("flux", "FLUXCAL"): v for k, v in MIXED.items()}
    snana = {{"zp": "ZEROPT"}.get(k, k): v for k, v in snana.items()}
    obs = Observations.from_table(snana, x="FLUXCAL", x_err="FLUXCALerr")
    assert obs.values[0].tolist() == MIXED["flux"]


REPEATED = {
    "id": [1, 1, 1, 1, 2, 2, 2],
    "mjd": [5.0, 4.0, 5.0, 5.0, 5.0, 6.0, 6.0],
    "flux": [1.0, 2.0, 1.0, 3.0, 1.0, np.nan, np.nan],
    "flux_err": [0.1, 0.2, 0.1, 0.1, 0.1, 0.2, 0.2],
    "band": ["g", "g", "g", "g", "g", "r", "r"],
}


def test_points_seen_twice_are_used_once_and_counted(caplog):
    for table, seen in ((REPEATED, [1, 1]), ({k: v + v for k, v in REPEATED.items()}, [5, 5 - 1])):
        caplog.clear()
        obs = Observations.from_table(table)
        assert obs.values[0].tolist() == [2.0, 1.0, 3.0, 1.0, 0.0]
        assert obs.n_duplicates.tolist() == seen
        assert obs.n_masked.tolist() == [0, 1]
        assert f"{sum(seen)} points of 2 objects were seen twice" in caplog.text
    assert obs[1].n_duplicates.tolist() == [4]
    twice = Observations.concatenate([obs[[1]], obs[[0]]])
    assert twice.n_duplicates.tolist() == [4, 5]
    kept = Observations.from_table(REPEATED, duplicates="keep")
    assert (kept.lengths.tolist(), kept.n_duplicates.tolist()) == ([4, 3], [0, 0])
    with pytest.raises(ValueError, match="each point once, but 2 have the time.* of object 1"):
        Observations.from_table(REPEATED, duplicates="refuse")
    with pytest.raises(ValueError, match="duplicates must be one of"):
        Observations.from_table(REPEATED, duplicates="drop")


def test_points_that_differ_in_band_or_instrument_are_no_repeats():
    base = {"id": [1, 1], "mjd": [5.0, 5.0], "flux": [1.0, 1.0], "flux_err": [0.1, 0.1]}
    for name, keywords in (("band", {}), ("band", {"band": False}), ("telescope", {"band": False}),
                           ("wavelength", {}), ("site", {"instrument": "site"})):  # fmt: skip
        values = [4000.0, 5000.0] if name == "wavelength" else ["p", "q"]
        obs = Observations.from_table(base | {name: values}, **keywords)
        assert obs.lengths.tolist() == [2], name
    other = Observations.from_table(base | {"airmass": [1.0, 2.0]}, airmass="airmass")
    assert other.lengths.tolist() == [1]
    assert other.points["airmass"].tolist() == [1.0]  # the first row stays
    pixels = base | {"pixel": [1.0, 2.0]}
    assert Observations.from_table(pixels, t=False, pixel="pixel").lengths.tolist() == [2]


def test_files_of_ours_keep_the_points_they_were_given(tmp_path):
    obs = Observations.from_arrays([[1.0, 1.0, 2.0]], 0.1, t=[3.0, 3.0, 3.0])
    assert obs.lengths.tolist() == [3]
    obs.write(tmp_path / "a.fits")
    assert Observations.read(tmp_path / "a.fits").values.tolist() == obs.values.tolist()
    merged = Observations.read(tmp_path / "a.fits", duplicates="merge")
    assert merged.values.tolist() == [[1.0, 2.0]]


@laws
@given(st.lists(st.tuples(*[st.integers(0, 1)] * 5), min_size=1, max_size=14))
def test_merging_agrees_with_a_set_of_rows(rows):
    id, t, x, error, band = np.array(rows).T
    table = {"id": id, "t": t, "x": np.where(x, np.nan, 1.0), "x_err": 1.0 + error, "band": band}
    obs = Observations.from_table(table)
    names = list(dict.fromkeys(id.tolist()))
    assert obs.lengths.tolist() == [len({r for r in rows if r[0] == name}) for name in names]
    counts = [sum(r[0] == name for r in rows) for name in names]
    assert (obs.lengths + obs.n_duplicates).tolist() == counts


def test_a_million_repeats_are_found_among_rounded_dates():
    rng = np.random.default_rng(0)
    n = 500_000
    table = {"id": rng.integers(0, 1000, n), "t": rng.integers(0, 50, n).astype(float),
             "flux": rng.normal(size=n), "flux_err": rng.uniform(1, 2, n)}  # fmt: skip
    obs = Observations.from_table({k: np.tile(v, 2) for k, v in table.items()})
    assert obs.lengths.sum() == n
    assert obs.n_duplicates.tolist() == obs.lengths.tolist()


def test_answers_of_objects_with_merged_points_say_so():
    n = 8
    one = {"id": np.zeros(n), "t": np.arange(n), "flux": np.ones(n), "flux_err": np.full(n, 0.5)}
    twice = {k: np.concatenate([v, v]) for k, v in one.items()}
    other = one | {"id": np.ones(n)}
    survey = Observations.from_table({k: np.append(twice[k], other[k]) for k in one})
    engine = nbi.Engine(lambda theta, t: theta + 0 * t, nbi.Prior({"a": norm(0, 1)}),
                        featurizer="gru", seed=0)  # fmt: skip
    engine.fit(n_sims=300, n_epochs=2, observations=survey)
    found = engine.predict_many(survey)
    assert [Flag.DUPLICATES in flags for flags in found.flags] == [True, False]
    assert found.std[0, 0] == pytest.approx((1 + n / 0.25) ** -0.5, rel=0.1)
    assert Flag.DUPLICATES.sentence == "Points seen twice were merged."


def test_spectra_keep_their_redshift_and_take_scalars(caplog):
    specutils = imported("specutils")
    units = pytest.importorskip("astropy.units")

    def spectrum(flux, **more):
        axis = np.array([1.0, 2.0, 4.0]) * 100 * units.THz
        return specutils.Spectrum(flux=np.array(flux) * units.Jy, spectral_axis=axis, **more)

    plain, far = spectrum([1.0, 2.0, 3.0]), spectrum([4.0, 5.0, 6.0], redshift=0.5)
    assert Observations.from_spectrum1d(plain).scalars == {}
    obs = Observations.from_spectrum1d(far, scalars={"airmass": [1.5] * units.one})
    assert {k: v[0] for k, v in obs.scalars.items()} == pytest.approx(
        {"redshift": 0.5, "airmass": 1.5}
    )
    assert (np.diff(obs.points["wavelength"]) > 0).all()
    assert obs.values[0].tolist() == [6.0, 5.0, 4.0]  # as frequencies descend
    shape = {"redshift": 0.1, "spectral_axis_index": 0}  # one object a column
    many = spectrum(np.arange(6.0).reshape(3, 2), mask=np.arange(6).reshape(3, 2) == 0, **shape)
    obs = Observations.from_spectrum1d([many, far])
    assert obs.scalars["redshift"] == pytest.approx([0.1, 0.1, 0.5])
    assert obs.values[0].tolist() == [4.0, 2.0, 0.0, 5.0, 3.0, 1.0, 6.0, 5.0, 4.0]
    assert obs.valid[0].tolist() == [True, True, False] + [True] * 6
    assert not caplog.text
    mixed = Observations.from_spectrum1d([plain, far])
    assert mixed.scalars["redshift"] == pytest.approx([0.0, 0.5])
    assert "1 of 2 spectra have no redshift" in caplog.text
    told = Observations.from_spectrum1d([plain, far], scalars={"redshift": [0.3, 0.4]})
    assert told.scalars["redshift"].tolist() == [0.3, 0.4]


# one table, as every library holds it: gaps are masks, nulls or None, times and fluxes have units


def as_arrays(c, gap):
    return {k: np.ma.array(np.nan_to_num(v), mask=gap[k]) if k in gap else v for k, v in c.items()}


def as_lists(c, gap):
    return {k: [None if k in gap and gap[k][i] else one for i, one in enumerate(v.tolist())]
            for k, v in c.items()}  # fmt: skip


def as_astropy(c, gap):
    table = pytest.importorskip("astropy.table").Table(as_arrays(c, gap), masked=True)
    table["mjd"].unit, table["flux"].unit, table["flux_err"].unit = "d", "mJy", "mJy"
    return table


def as_quantities(c, gap):
    units = pytest.importorskip("astropy.units")
    masked = pytest.importorskip("astropy.utils.masked").Masked
    time = pytest.importorskip("astropy.time").Time(c["mjd"], format="mjd")
    plain = as_arrays(c, gap)
    table = pytest.importorskip("astropy.table").QTable(plain | {"mjd": time})
    table["flux"] = masked(np.nan_to_num(c["flux"]) * units.mJy, gap["flux"])
    table["flux_err"] = masked(np.nan_to_num(c["flux_err"]) * 1000 * units.uJy, gap["flux_err"])
    return table


def as_series(c, gap):
    table = as_quantities(c, gap)
    time = table["mjd"]
    table.remove_column("mjd")
    return pytest.importorskip("astropy.timeseries").TimeSeries(table, time=time)


def as_frame(c, gap):
    return pytest.importorskip("pandas").DataFrame({k: v for k, v in c.items()})


def as_nullable(c, gap):
    return as_frame(c, gap).astype({"fid": "Int64", "flux": "Float64", "mjd": "float64"})


def as_arrow_frame(c, gap):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    kinds = {"fid": pa.int64(), "flux": pa.float64(), "flux_err": pa.float64()}
    frame = as_nullable(c, gap)
    return frame.astype({k: pd.ArrowDtype(v) for k, v in kinds.items()})


def as_decimals(c, gap):
    frame = as_frame(c, gap).astype({"flux": object})
    frame["flux"] = [None if np.isnan(v) else Decimal(v) for v in c["flux"]]
    return frame


def as_arrow(c, gap):
    pa = pytest.importorskip("pyarrow")
    lists = as_lists(c, gap)
    lists["fid"] = [None if v is None else int(v) for v in lists["fid"]]
    table = pa.table(lists)
    place = table.column_names.index("flux_err")
    decimal = table["flux_err"].cast(pa.decimal128(20, 6))
    return table.set_column(place, "flux_err", decimal)


def as_nested(c, gap):
    nested = pytest.importorskip("nested_pandas")
    frame = as_frame(c, gap)
    return nested.NestedFrame.from_flat(frame, base_columns=[], on="id", name="lc")


def as_columns(c, gap):
    pa, frame = pytest.importorskip("pyarrow"), as_nullable(c, gap)
    whole = [None if bad else int(v) for v, bad in zip(c["fid"], gap["fid"], strict=True)]
    return {k: frame[k] for k in c} | {"fid": pa.array(whole), "flux_err": c["flux_err"].tolist()}


KINDS = [as_columns, as_arrays, as_lists, as_astropy, as_quantities, as_series, as_frame,
         as_nullable, as_arrow_frame, as_decimals, as_arrow, as_nested]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
@laws
@given(st.data())
def test_masks_and_units_of_any_table_are_nan_and_numbers(kind, data):
    n = data.draw(st.integers(2, 8))
    column = lambda values: np.array(data.draw(st.lists(values, min_size=n, max_size=n)))  # noqa: E731
    quarters = st.integers(-8, 8).map(lambda v: v / 4) | st.just(np.nan)
    c = {
        "id": np.sort(column(st.integers(1, 3))),
        "mjd": 58000 + np.arange(n) / 8,
        "flux": column(quarters),
        "flux_err": column(st.sampled_from([0.25, 1.5, np.nan])),
        "fid": column(st.sampled_from([1.0, 2.0, np.nan])),
    }
    c["fid"][-1] = 1.0
    if np.isnan(c["flux"]).all() or np.isnan(c["flux_err"]).all():
        c["flux"][0] = c["flux_err"][0] = 0.25
    gap = {k: np.isnan(c[k]) for k in ("flux", "flux_err", "fid")}
    one, other = Observations.from_table(c), Observations.from_table(kind(c, gap))
    for name in ("values", "errors", "valid", "offsets", "ids", "n_masked"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in one.points:
        np.testing.assert_array_equal(one.points[name], other.points[name], err_msg=name)
    assert one.categories == other.categories
    if kind in (as_astropy, as_quantities, as_series):
        assert other.units == {"t": "d", "x": "mJy"}
