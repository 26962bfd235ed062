"""Tables as surveys and libraries make them: guessed columns, and one answer for all kinds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import nbi_plus as nbi
from nbi_plus import Observations
from nbi_plus.data.tables.surveys import find_roles

SURVEYS = {
    "ZTF release": ("oid expid hjd mjd mag magerr catflags filtercode ra dec chi sharp",
                    "oid mjd mag magerr filtercode"),
    "ZTF alerts": ("objectId candid jd magpsf sigmapsf fid diffmaglim isdiffpos",
                   "objectId jd magpsf sigmapsf fid"),
    "ZTF forced": ("index field ccdid filter jd forcediffimflux forcediffimfluxunc zpdiff",
                   "- jd forcediffimflux forcediffimfluxunc filter"),
    "ZTF light curves": ("ztfid mjd flux fluxerr filter", "ztfid mjd flux fluxerr filter"),
    "Rubin": ("diaSourceId diaObjectId ssObjectId midpointMjdTai ra dec psfFlux psfFluxErr apFlux "
              "apFluxErr snr band", "diaObjectId midpointMjdTai psfFlux psfFluxErr band"),
    "OGLE": ("HJD I err", "- HJD I err -"),
    "OGLE joined": ("star_id jd mag e_mag band", "star_id jd mag e_mag band"),
    "TESS file": ("TIME TIMECORR CADENCENO SAP_FLUX SAP_FLUX_ERR SAP_BKG PDCSAP_FLUX "
                  "PDCSAP_FLUX_ERR QUALITY", "- TIME PDCSAP_FLUX PDCSAP_FLUX_ERR -"),
    "TESS table": ("time flux flux_err quality", "- time flux flux_err -"),
    "radial velocities": ("name time mnvel errvel tel", "name time mnvel errvel tel"),
    "radvel example": ("errvel t vel", "- t vel errvel -"),
    "generic": ("Object BJD Y E_Y Passband", "Object BJD Y E_Y Passband"),
    "bare": ("t f", "- t f - -"),
    "PLAsTiCC": ("object_id mjd passband flux flux_err detected",
                 "object_id mjd flux flux_err passband"),
}  # fmt: skip


@pytest.mark.parametrize("survey", SURVEYS)
def test_columns_of_surveys_are_guessed(survey):
    names, expected = (text.split() for text in SURVEYS[survey])
    roles = find_roles(names, {})
    found = [roles.id, roles.coords["t"], *roles.x, (roles.x_err or [None])[0],
             roles.coords.get("band")]  # fmt: skip
    assert [name or "-" for name in found] == expected + ["-"] * (5 - len(expected))


def test_keywords_win_over_guesses():
    names = ["id", "t", "flux", "flux_err", "ap", "ap_err", "band", "wavelength", "airmass"]
    roles = find_roles(names, {"x": "ap", "t": False, "band": False, "id": None, "z": "airmass"})
    assert (roles.x, roles.x_err, roles.id) == (("ap",), ("ap_err",), "id")
    assert roles.coords == {"wavelength": "wavelength", "z": "airmass"}
    assert find_roles(names, {"x_err": False}).x_err == ()
    channels = find_roles(["t", "x_0", "x_1", "x_err_0", "x_err_1"], {})
    assert (channels.x, channels.x_err) == (("x_0", "x_1"), ("x_err_0", "x_err_1"))


@pytest.mark.parametrize(("names", "message"), [
    ("t time flux", r"t must be one column, but may be any of \['t', 'time'\]. Say which: t='t'"),
    ("t flux mag", "x must be one column"),
    ("t g r i z", r"x must be one column, but may be any of \['g', 'r', 'i'\]"),
    ("t flux flux_err fluxerr", r"x_err must be one column.*\['flux_err', 'fluxerr'\]"),
    ("object name t flux", "id must be one column"),
    ("filter passband t flux", "band must be one column"),
])  # fmt: skip
def test_ambiguous_columns_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        find_roles(names.split(), {})


COLUMNS = {
    "objectId": np.array([2**60 + 1, 5, 2**60 + 1, 7]),
    "mjd": np.array([3.0, 1.0, 2.0, np.nan]),
    "flux": np.array([1.0, 2.0, np.nan, 4.0]),
    "flux_err": np.array([0.1, 0.0, 0.3, 0.4]),
    "filter": np.array(["r", "g", "g", "r"]),
    "uplim": np.array([True, False, False, False]),
}


def check_known(obs):
    """Check that Observations hold what is in COLUMNS."""
    assert obs.ids.tolist() == [2**60 + 1, 5, 7]
    assert obs.lengths.tolist() == [2, 1, 0]
    assert obs.points["t"].tolist() == [2.0, 3.0, 1.0]
    assert obs.values[0].tolist() == [0.0, 1.0, 0.0]
    assert obs.errors[0].tolist() == [1.0, 0.1, 1.0]
    assert obs.valid[0].tolist() == [False, True, False]
    assert obs.points["band"].tolist() == [0, 1, 0]
    assert obs.categories == {"band": ("g", "r")}
    assert obs.points["upper_limit"].tolist() == [False, True, False]
    assert obs.n_masked.tolist() == [1, 1, 1]


def test_arrays_and_records_give_the_same():
    check_known(Observations.from_table(COLUMNS))
    record = np.zeros(4, [(k, v.dtype) for k, v in COLUMNS.items()])
    for name, values in COLUMNS.items():
        record[name] = values
    check_known(Observations.from_table(record))
    check_known(Observations.from_table(record.astype(record.dtype.newbyteorder(">"))))
    objects = {k: v.astype(object) for k, v in COLUMNS.items() if k != "objectId"}
    check_known(Observations.from_table(COLUMNS | objects))
    check_known(Observations.from_table(COLUMNS | {"filter": COLUMNS["filter"].astype("S")}))


def test_astropy_tables_give_the_same():
    table = pytest.importorskip("astropy.table")
    series = pytest.importorskip("astropy.timeseries")
    time = pytest.importorskip("astropy.time")
    check_known(Observations.from_table(table.Table(COLUMNS)))
    masked = table.Table(COLUMNS, masked=True)
    masked["flux"] = np.ma.array([1.0, 2.0, 9.0, 4.0], mask=[0, 0, 1, 0])
    check_known(Observations.from_table(masked))
    rest = {k: v[:3] for k, v in COLUMNS.items() if k != "mjd"}
    timed = series.TimeSeries(rest, time=time.Time(COLUMNS["mjd"][:3], format="mjd"))
    obs = Observations.from_table(timed)
    assert obs.points["t"].tolist() == [2.0, 3.0, 1.0]
    assert obs.units == {"t": "d"}


def test_pandas_frames_give_the_same():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(COLUMNS)
    check_known(Observations.from_table(frame))
    check_known(Observations.from_table(frame.astype({"filter": "category"})))
    check_known(Observations.from_table(frame.astype({"filter": "string", "uplim": "boolean"})))
    check_known(Observations.from_table(frame.convert_dtypes()))
    check_known(Observations.from_table(frame.set_index("objectId")))
    check_known(Observations.from_table(frame.sample(frac=1, random_state=1).sort_index()))
    gaps = frame.assign(filter=["r", "g", None, "r"])
    assert Observations.from_table(gaps).lengths.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"one column for each name, but has \['mjd'\]"):
        Observations.from_table(pd.concat([frame, frame[["mjd"]]], axis=1))


def test_dates_of_pandas_become_days():
    pd = pytest.importorskip("pandas")
    dates = pd.to_datetime(["2000-01-01 00:00", "2000-01-02 12:00", None])
    frame = pd.DataFrame({"time": dates, "flux": [1.0, 2.0, 3.0]})
    obs = Observations.from_table(frame, id=False)
    assert obs.points["t"].tolist() == [51544.0, 51545.5]
    assert obs.units == {"t": "d"}
    zoned = frame.assign(time=dates.tz_localize("UTC"))
    assert Observations.from_table(zoned, id=False).points["t"].tolist() == [51544.0, 51545.5]


def test_arrow_tables_give_the_same():
    pa = pytest.importorskip("pyarrow")
    table = pa.table(COLUMNS)
    check_known(Observations.from_table(table))
    halves = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    check_known(Observations.from_table(halves))
    coded = halves.set_column(4, "filter", halves["filter"].dictionary_encode())
    check_known(Observations.from_table(coded))
    gap = table.set_column(2, "flux", pa.array([1.0, 2.0, None, 4.0]))
    check_known(Observations.from_table(gap))


def test_parquet_of_pandas_gives_the_same(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(COLUMNS).assign(ra=1.0, objects=[[1]] * 4)
    frame.drop(columns="objects").set_index("objectId").to_parquet(tmp_path / "a.parquet")
    check_known(Observations.read(tmp_path / "a.parquet"))
    frame.iloc[:, :6].to_csv(tmp_path / "a.csv", index=False)
    check_known(Observations.read(tmp_path / "a.csv"))


def nested_columns(pa):
    """Return light curves of COLUMNS as lists, one row an object, in three layouts."""
    names = ["mjd", "flux", "flux_err", "filter", "uplim"]
    rows = [[0, 2], [1], [3]]
    lists = {k: pa.array([COLUMNS[k][own].tolist() for own in rows]) for k in names}
    inner = pa.StructArray.from_arrays(
        [pa.array(COLUMNS[k][[0, 2, 1, 3]].tolist()) for k in names], names
    )
    return {
        "lists": lists,
        "struct of lists": {"lc": pa.StructArray.from_arrays(list(lists.values()), names)},
        "list of structs": {"lc": pa.ListArray.from_arrays([0, 2, 3, 4], inner)},
    }


def test_nested_tables_are_unfolded(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    base = {"objectId": pa.array([2**60 + 1, 5, 7]), "z": pa.array([0.1, 0.2, 0.3])}
    for nested in nested_columns(pa).values():
        table = pa.table(base | nested)
        obs = Observations.from_table(table, scalars=["z"])
        check_known(obs)
        assert obs.scalars["z"].tolist() == [0.1, 0.2, 0.3]
        assert Observations.from_table(table.drop_columns("objectId")).ids.tolist() == [0, 1, 2]
        parquet.write_table(table, tmp_path / "a.parquet")
        check_known(Observations.read(tmp_path / "a.parquet"))


def test_lists_beside_a_light_curve_are_no_points():
    pa = pytest.importorskip("pyarrow")
    check_known(Observations.from_table(pa.table(COLUMNS | {"history": [[], [1, 2], [], [3]]})))


def test_objects_without_points_are_left_out_aloud(caplog):
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"id": [1, 2], "t": [[], [1.0]], "flux": [[], [2.0]]})
    assert Observations.from_table(table).ids.tolist() == [2]
    assert "1 objects without points are left out" in caplog.text


def test_lists_in_pandas_are_refused_with_a_reason():
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"column 'flux' must hold .* Unfold lists with DataFrame"):
        Observations.from_table(pd.DataFrame({"id": [1], "t": [[1.0]], "flux": [[1.0]]}))


def test_nested_frames_give_the_same():
    nested_pandas = pytest.importorskip("nested_pandas")
    pd = pytest.importorskip("pandas")
    base = pd.DataFrame({"z": [0.1, 0.2, 0.3]}, index=[2**60 + 1, 5, 7])
    points = pd.DataFrame(COLUMNS).set_index("objectId")
    frame = nested_pandas.NestedFrame(base).join_nested(points, "lc")
    frame.index.name = "objectId"
    obs = Observations.from_table(frame, scalars=["z"])
    check_known(obs)
    assert obs.scalars["z"].tolist() == [0.1, 0.2, 0.3]


def test_numbers_of_bands_may_be_missing():
    table = {"t": [1.0, 2.0, 3.0], "flux": [1.0, 2.0, 3.0], "band": [2.0, np.nan, 0.0]}
    obs = Observations.from_table(table, id=False)
    assert obs.categories == {"band": ("0", "2")}
    assert (obs.points["t"].tolist(), obs.n_masked.tolist()) == ([1.0, 3.0], [1])


def test_numbered_bands_are_named_by_their_numbers():
    obs = Observations.from_table(
        {"objectId": [1, 1, 2], "jd": [1.0, 2.0, 3.0], "magpsf": [18.0, 19.0, 20.0],
         "fid": [2, 1, 2]}, categories={"band": ["1", "2", "3"]}
    )  # fmt: skip
    assert obs.points["band"].tolist() == [1, 0, 1]
    assert obs.categories == {"band": ("1", "2", "3")}


@pytest.fixture
def lightkurve():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import, of optional dependencies
        return pytest.importorskip("lightkurve")


def test_light_curves_of_lightkurve_become_objects(lightkurve):
    from astropy.time import Time

    t = Time(59000 + np.arange(5.0), format="mjd", scale="tdb")
    flux = np.array([1.0, np.nan, 3.0, 4.0, 5.0])
    one = lightkurve.LightCurve(time=t[::-1], flux=flux, flux_err=flux / 10,
                                meta={"LABEL": "TIC 1"})  # fmt: skip
    obs = Observations.from_lightkurve(one)
    assert (obs.ids.tolist(), obs.n_masked.tolist()) == (["TIC 1"], [1])
    assert obs.points["t"].tolist() == [59000, 59001, 59002, 59003, 59004]
    assert obs.values[0].tolist() == [5.0, 4.0, 3.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="ids must be different in all parts"):
        Observations.from_lightkurve([one, one])
    both = Observations.from_lightkurve(
        lightkurve.LightCurveCollection([one, one[:2]]), ids=["a", "b"]
    )
    assert both.lengths.tolist() == [5, 2]
    bare = lightkurve.LightCurve(time=t, flux=flux)
    assert Observations.from_lightkurve([bare]).errors is None
    check = Observations.from_table(one, id=False)
    assert np.array_equal(check.values, obs.values)


def test_spectra_of_specutils_become_objects():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import, of optional dependencies
        specutils = pytest.importorskip("specutils")
    from astropy import units
    from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

    error = np.array([0.1, 0.2, 0.5, 1.0])
    made = [
        specutils.Spectrum(
            flux=np.arange(1.0, 5.0) * units.Jy,
            spectral_axis=np.arange(1, 5) * 500 * units.nm,
            uncertainty=kind(error**power),
            mask=np.array([False, True, False, False]),
        )
        for kind, power in ((StdDevUncertainty, 1), (VarianceUncertainty, 2), (InverseVariance, -2))
    ]
    obs = Observations.from_spectrum1d(made, units={"x": "mJy", "wavelength": "um"})
    assert obs.shared_grid
    assert obs.points["wavelength"] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert obs.valid.reshape(3, 4).tolist() == [[True, False, True, True]] * 3
    assert obs.x_err[:, 0] == pytest.approx(np.tile([100, 1, 500, 1000], (3, 1)))
    assert obs.units == {"x": "mJy", "wavelength": "um"}
    many = specutils.Spectrum(flux=np.ones((2, 4)) * units.Jy,
                              spectral_axis=np.arange(1, 5) * 500 * units.THz)  # fmt: skip
    obs = Observations.from_spectrum1d(many, ids=["p", "q"], units={"wavelength": "um"})
    assert obs.ids.tolist() == ["p", "q"]
    assert obs.points["wavelength"] == pytest.approx(299.792458 / (np.arange(4, 0, -1) * 500))


def test_a_column_with_a_role_is_not_guessed_for_another():
    table = {"time": [1.0, 2.0], "mnvel": [3.0, 4.0], "errvel": [1.0, 1.0], "tel": ["k", "j"]}
    obs = nbi.Observations.from_table(table, id=False, instrument="tel")
    assert obs.categories == {"instrument": ("j", "k")}
    assert nbi.Observations.from_table(table, id=False).categories == {"band": ("j", "k")}
