"""Doors of surveys: the numbers that arrive are those that went in, and nothing else arrives."""

from __future__ import annotations

import gzip
import pickle
import sys

import numpy as np
import pytest
import survey_files as files
from scipy.stats import norm
from survey_files import ZERO

import nbi_plus as nbi
from nbi_plus import Observations

pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
KINDS = {
    "ztf-alert": ("ztf-alert", lambda points, _: files.ztf_packets(points), {}),
    "ztf-forced": ("ztf-alert", lambda points, _: files.ztf_forced(points), {"nested": "fp_hists"}),
    "rubin-alert": ("rubin-alert", lambda points, _: files.rubin_packets(points), {}),
    "rubin-forced": ("rubin-alert", lambda points, _: files.rubin_forced(points),
                     {"nested": "prvDiaForcedSources"}),
    "elasticc": ("elasticc", lambda points, _: files.elasticc_packets(points), {}),
    "ztf-dr": ("ztf-dr", lambda points, _: files.release_rows(points), {"zero_point": 23.9}),
    "snana": ("snana", files.snana_fits, {}),
    "snana-text": ("snana", files.snana_text, {}),
    "snana-table": ("snana", lambda points, _: files.snana_table(points), {}),
    "sncosmo": ("sncosmo", lambda points, _: files.sncosmo_tables(points), {"zero_point": 25.0}),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", KINDS)


def points_of(name, seed=0, n=40, bad=()):
    """Return points of some objects, of which a fifth is bad in one of the ways."""
    rng = np.random.default_rng(seed)
    points = []
    for i in range(n):
        own = str(int(rng.integers(1, 5)))
        band = "g" if name == "ztf-dr" and int(own) % 2 else str(rng.choice(["g", "r"]))
        band = "r" if name == "ztf-dr" and not int(own) % 2 else band
        sign = 1 if name == "ztf-dr" else rng.choice([1, 1, 1, -1])
        way = str(rng.choice(list(bad))) if bad and rng.uniform() < 0.2 else None
        points.append({"id": own, "t": 59000 + i / 8 + float(rng.integers(0, 8)) / 64,
                       "band": band, "x": float(sign * rng.uniform(20, 200)),
                       "err": float(rng.uniform(1, 9)), "bad": way})  # fmt: skip
    for own in {p["id"] for p in points}:
        points.append({"id": own, "t": 59100.0, "band": "g" if int(own) % 2 else "r", "x": 50.0,
                       "err": 2.0, "bad": None})  # fmt: skip
    return points


def read(name, points, folder, **keywords):
    kind, write, usual = KINDS[name]
    return Observations.from_survey(kind, write(points, folder), **{**usual, **keywords})


def arrived(obs, name):
    """Return the points that count, sorted: id, time, band, flux, error."""
    flat = obs.laid_out()
    seen = flat.valid[0]
    t = flat.points["t"] - (files.JD if name.startswith("ztf") and name != "ztf-dr" else 0)
    bands = np.array(flat.categories["band"])[flat.points["band"]]
    ids = obs.ids[flat.owner]
    rows = zip(ids[seen], t[seen], bands[seen], flat.values[0][seen], flat.errors[0][seen],
               strict=True)  # fmt: skip
    short = [(int(str(i).removeprefix("ZTF")) % 2**60, round(float(t), 6), str(b)[-1], x, e)
             for i, t, b, x, e in rows]  # fmt: skip
    return sorted(short)


def expected(points):
    return sorted((int(p["id"]), round(p["t"], 6), p["band"], p["x"], p["err"])
                  for p in points if not p["bad"])  # fmt: skip


def assert_same(found, wanted):
    assert [row[:3] for row in found] == [row[:3] for row in wanted]
    np.testing.assert_allclose([row[3:] for row in found], [row[3:] for row in wanted], rtol=1e-9)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_numbers_that_arrive_are_those_that_went_in(name, seed, tmp_path):
    points = points_of(name, seed)
    obs = read(name, points, tmp_path)
    assert_same(arrived(obs, name), expected(points))
    assert obs.ingest["kept"] == len(points)
    assert obs.ingest["masked"] == obs.ingest["duplicates"] == 0
    for own in obs:  # by time, as networks read them
        assert (np.diff(own.points["t"]) >= 0).all()


@EVERY
def test_the_order_of_rows_does_not_matter(name, tmp_path):
    points = points_of(name, 1, bad=("null", "nan", "sentinel"))
    for p in points[:6]:  # several points at one time
        p["t"] = 59000.0
    first = read(name, points, tmp_path)
    rng = np.random.default_rng(2)
    for _ in range(3):
        rng.shuffle(points)
        again = read(name, points, tmp_path)
        order = np.argsort(first.ids.astype(str)), np.argsort(again.ids.astype(str))
        assert (first[order[0]].hashes == again[order[1]].hashes).all()


@EVERY
def test_points_seen_twice_count_once(name, tmp_path):
    points = points_of(name, 2)
    again = [points[i] for i in (0, 3, 3, 7)]
    obs = read(name, [*again, *points], tmp_path)
    assert_same(arrived(obs, name), expected(points))
    assert obs.ingest["duplicates"] == obs.n_duplicates.sum() == len(again)
    kept = read(name, [*again, *points], tmp_path, duplicates="keep")
    assert len(arrived(kept, name)) == len(points) + len(again)
    with pytest.raises(ValueError, match="4 have the time, band, data and errors of another"):
        read(name, [*again, *points], tmp_path, duplicates="refuse")


@EVERY
@pytest.mark.parametrize("way", ["null", "nan", "sentinel"])
def test_what_is_no_measurement_never_arrives_as_data(name, way, tmp_path):
    points = points_of(name, 3, bad=(way,))
    n_bad = sum(p["bad"] is not None for p in points)
    obs = read(name, points, tmp_path)
    assert n_bad > 2
    assert_same(arrived(obs, name), expected(points))
    assert obs.ingest["masked"] == obs.n_masked.sum() == n_bad
    assert obs.ingest["kept"] == len(points) - n_bad


@EVERY
def test_fluxes_are_brought_to_the_zero_point_that_is_asked_for(name, tmp_path):
    points = points_of(name, 4)
    obs = read(name, points, tmp_path, zero_point=ZERO[name] + 2.5)
    tenfold = [p | {"x": 10 * p["x"], "err": 10 * p["err"]} for p in points]
    assert_same(arrived(obs, name), expected(tenfold))
    assert "x" not in obs.units  # those of the survey hold at its own zero point
    assert f"fluxes are at {ZERO[name] + 2.5:g}" in str(obs.ingest)


@EVERY
def test_limits_of_n_sigma_are_made_of_what_lies_below(name, tmp_path):
    points = points_of(name, 5)
    faint = [i for i, p in enumerate(points) if p["x"] < 8 * p["err"]]
    obs = read(name, points, tmp_path, limits=8)
    flat = obs.laid_out()
    limits = flat.points["upper_limit"]
    assert limits.sum() == len(faint) == obs.ingest["upper limits"] > 0
    np.testing.assert_allclose(flat.values[0][limits], 8 * flat.errors[0][limits], rtol=1e-12)
    wanted = [p | {"x": 8 * p["err"]} if i in faint else p for i, p in enumerate(points)]
    assert_same(arrived(obs, name), expected(wanted))


@EVERY
def test_what_was_done_prints_pickles_and_adds_up(name, tmp_path):
    obs = read(name, points_of(name, 6), tmp_path)
    text = str(obs.ingest)
    assert text.splitlines()[0].split() == ["act", "n", "of", "note"]
    assert len(text.splitlines()) == len(obs.ingest) + 2
    assert max(map(len, text.splitlines())) < 120
    assert obs.ingest.to_table()["n"].sum() == sum(act.n for act in obs.ingest)
    assert pickle.loads(pickle.dumps(obs)).ingest == obs[:1].ingest == obs.ingest  # noqa: S301
    halves = Observations.concatenate([obs[:1], obs[1:]])
    assert halves.ingest == obs.ingest
    other = read(name, [p | {"id": f"9{p['id']}"} for p in points_of(name, 7)], tmp_path)
    both = Observations.concatenate([obs, other])
    assert both.ingest["kept"] == obs.ingest["kept"] + other.ingest["kept"]


@EVERY
def test_the_wrong_kind_says_what_must_be_and_what_came(name, tmp_path):
    kind, write, usual = KINDS[name]
    source = write(points_of(name), tmp_path)
    for other in {k for k, _, _ in KINDS.values()} - {kind}:
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match="must"):
            Observations.from_survey(other, source)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match="must"):
        Observations.from_survey("desi", source)
    with pytest.raises(ValueError, match="scalars must name"):
        Observations.from_survey(kind, source, **usual, scalars=["nobody"])
    with pytest.raises(ValueError, match="quality must name flags"):
        Observations.from_survey(kind, source, **usual, quality={"nobody": 1})
    with pytest.raises(TypeError, match=r"got \['colour'\]"):
        Observations.from_survey(kind, source, **usual, colour="red")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of .*'desi'.*, but is 'lsst'"):
        Observations.from_survey("lsst", {})


@pytest.mark.parametrize(("wish", "message"), [
    ({"limits": "3"}, "limits must be a positive number of sigma, or True or False, but is '3'"),
    ({"limits": -1}, "limits must be a positive number"),
    ({"zero_point": np.nan}, "zero_point must be a finite magnitude, but is nan"),
    ({"zero_point": True}, "zero_point must be a finite magnitude, but is True"),
    ({"quality": "isDipole"}, "quality must give the bits of flags .* but is 'isDipole'"),
    ({"quality": {"isDipole": "any"}}, "quality must give the bits of flags"),
    ({"duplicates": "drop"}, "duplicates must be one of .* but is 'drop'"),
    ({"time": "lunar"}, r"time must be one of \['jd', 'mjd'"),
])  # fmt: skip
def test_wishes_that_mean_nothing_are_refused(wish, message):
    packets = files.rubin_packets(points_of("rubin-alert"))
    with pytest.raises((ValueError, TypeError), match=message):
        Observations.from_survey("rubin-alert", packets, **wish)
    one = Observations.from_survey("rubin-alert", packets, scalars="ra")
    assert (one.scalars["ra"] == 10.0).all()


# --- alerts --------------------------------------------------------------------------------------

PACKETS = {"ztf-alert": files.ztf_packets, "rubin-alert": files.rubin_packets,
           "elasticc": files.elasticc_packets}  # fmt: skip


def forms(packets, folder):
    """Yield the same packets as people hold them."""
    bare = [{k: v for k, v in p.items() if not k.startswith("cutout")} for p in packets]
    yield "dicts", packets
    yield "iterator", iter(packets)
    yield "arrow", arrow.Table.from_pylist(packets)
    yield "pandas", pandas.DataFrame(bare)
    path = folder / "night.parquet"
    arrow.parquet.write_table(arrow.Table.from_pylist(packets), path)
    yield "parquet", path
    yield "frame of parquet", pandas.read_parquet(path)
    yield "frame of arrow", pandas.read_parquet(path, dtype_backend="pyarrow")
    (folder / "json").mkdir(exist_ok=True)
    files.write_json(packets[:1], folder / "json/a.json")
    (folder / "json/b.json.gz").write_bytes(gzip.compress(b"[]"))
    files.write_json(packets[1:], folder / "json/c.json")
    yield "folder of json", folder / "json"
    yield "glob and list", [str(folder / "json/a*.json"), folder / "json/c.json"]


@pytest.mark.parametrize("kind", PACKETS)
def test_packets_give_the_same_however_they_come(kind, tmp_path):
    import pyarrow.parquet as _  # noqa: F401 - arrow.parquet below

    points = points_of(kind, 7, bad=("null",))
    packets = PACKETS[kind](points)
    for form, source in forms(packets, tmp_path):
        obs = Observations.from_survey(kind, source)
        assert_same(arrived(obs, kind), expected(points))
        assert obs.ingest["read"] == len(packets), form


def test_nested_frames_give_the_same():
    nested = pytest.importorskip("nested_pandas")
    points = points_of("rubin-alert", 8)
    flat = pandas.DataFrame(
        [{"diaObjectId": int(p["id"]), "midpointMjdTai": p["t"], "band": p["band"],
          "psfFlux": p["x"], "psfFluxErr": p["err"]} for p in points])  # fmt: skip
    objects = pandas.DataFrame({"ra": 1.0}, index=pandas.Index(sorted(set(flat.diaObjectId)),
                                                               name="diaObjectId"))  # fmt: skip
    frame = nested.NestedFrame(objects).join_nested(flat.set_index("diaObjectId"), "diaForced")
    few = flat.iloc[::3].set_index("diaObjectId")
    frame = frame.join_nested(few, "diaSource")  # a list here, of other lengths
    obs = Observations.from_survey("rubin-alert", frame, nested="diaForced", scalars=["ra"])
    assert_same(arrived(obs, "rubin-alert"), expected(points))
    assert obs.ingest["not read"] == len(few)
    assert (obs.scalars["ra"] == 1.0).all()


def test_the_trigger_is_there_once_among_overlapping_histories():
    night = [{"id": "1", "t": 59000.0 + i, "band": "g", "x": 10.0 + i, "err": 1.0, "bad": None}
             for i in range(4)]  # fmt: skip
    for make, kind in ((files.ztf_packets, "ztf-alert"), (files.rubin_packets, "rubin-alert")):
        packets = [make(night[:n])[0] for n in (1, 2, 3, 4)]
        obs = Observations.from_survey(kind, packets)
        assert_same(arrived(obs, kind), expected(night))
        assert (obs.ingest["trigger"], obs.ingest["history"]) == (4, 6)
        assert obs.ingest["duplicates"] == 6


def test_forced_photometry_counts_before_the_trigger_of_the_same_image():
    night = [{"id": "1", "t": 59000.0 + i, "band": "g", "x": 10.0 + i, "err": 1.0, "bad": None}
             for i in range(4)]  # fmt: skip
    packet = files.rubin_forced(night)[0]
    packet["diaSource"] |= {"psfFlux": 99.0}  # of the last image, measured another way
    obs = Observations.from_survey("rubin-alert", packet, nested="prvDiaForcedSources")
    assert obs.x.ravel().tolist() == [10.0, 11.0, 12.0, 13.0]
    assert obs.ingest["left out"] == 1
    packet["prvDiaForcedSources"].pop()  # as it is when the alert is sent
    obs = Observations.from_survey("rubin-alert", packet, nested="prvDiaForcedSources")
    assert obs.x.ravel().tolist() == [10.0, 11.0, 12.0, 99.0]
    packet["prvDiaForcedSources"].append(packet["diaSource"] | {"psfFlux": None})
    obs = Observations.from_survey("rubin-alert", packet, nested="prvDiaForcedSources")
    assert obs.x[obs.mask].tolist() == [10.0, 11.0, 12.0, 99.0]  # an empty row hides nothing


def test_non_detections_are_upper_limits():
    faint = {"jd": 2459000.5, "fid": 2, "magpsf": None, "sigmapsf": None, "diffmaglim": 20.0,
             "isdiffpos": None}  # fmt: skip
    seen = faint | {"jd": 2459001.5, "magpsf": 18.9, "sigmapsf": 0.1, "isdiffpos": "1"}
    gone = seen | {"jd": 2459002.5, "isdiffpos": "f"}
    packet = {"objectId": "ZTF1", "candidate": seen, "prv_candidates": [faint, gone, faint]}
    obs = Observations.from_survey("ztf-alert", packet)
    deep = 10 ** (-0.4 * (20.0 - 23.9))
    np.testing.assert_allclose(obs.x.ravel(), [deep, 100.0, -100.0])
    np.testing.assert_allclose(obs.x_err.ravel()[:2], [deep / 5, 100 * 0.1 * np.log(10) / 2.5])
    assert obs.points["upper_limit"].tolist() == [True, False, False]
    assert (obs.ingest["upper limits"], obs.ingest["negative"]) == (1, 1)
    three = Observations.from_survey("ztf-alert", packet, limits=3)
    np.testing.assert_allclose(three.x.ravel()[0], 0.6 * deep)
    assert three.points["upper_limit"].tolist() == [True, False, True]
    none = Observations.from_survey("ztf-alert", packet, limits=False)
    assert none.x.size == 2
    assert "upper_limit" not in none.points
    old = files.rubin_packets(points_of("rubin-alert"))[:1]
    old[0]["prvDiaNondetectionLimits"] = [
        {"ccdVisitId": 1, "midpointMjdTai": 58000.0, "band": "z", "diaNoise": 40.0}
    ]
    obs = Observations.from_survey("rubin-alert", old)
    assert (obs.x.ravel()[0], obs.x_err.ravel()[0]) == (200.0, 40.0)
    assert obs.points["upper_limit"].sum() == 1


def test_limits_are_scored_as_limits():
    faint = {"jd": 2459000.5, "fid": 2, "magpsf": None, "sigmapsf": None, "diffmaglim": 20.0,
             "isdiffpos": None}  # fmt: skip
    packet = {"objectId": "ZTF1", "prv_candidates": [faint],
              "candidate": faint | {"jd": 2459001.5, "magpsf": 19.0, "sigmapsf": 0.1}}  # fmt: skip
    obs = Observations.from_survey("ztf-alert", packet)
    noise = nbi.UpperLimits(nbi.GaussianNoise()).bind(has_errors=True, names=())
    theta = np.zeros((1, 0))
    deep = 10 ** (-0.4 * (20.0 - 23.9))
    for f in (0.0, deep):  # the probability of lying below, and of the measurement
        model = np.full((1, 1, 2), f)
        seen, err = obs.x[0, 0, 1], obs.x_err[0, 0, 1]
        wanted = norm.logcdf((deep - f) / (deep / 5)) + norm.logpdf(seen, f, err)
        assert noise.log_likelihood(theta, model, obs) == pytest.approx(wanted)


def test_flags_of_quality_are_counted_and_cut_as_asked():
    points = points_of("rubin-alert", 9)
    packets = files.rubin_packets(points)
    packets[0]["diaSource"] |= {"psfFlux_flag": True, "isDipole": True}
    packets[1]["diaSource"] |= {"psfFlux_flag": False, "isDipole": True}
    packets[2]["diaSource"] |= {"timeWithdrawnMjdTai": 59101.0}
    counts = {
        ask: len(arrived(Observations.from_survey("rubin-alert", packets, quality=quality), ""))
        for ask, quality in (("usual", None), ("none", False), ("dipole", {"isDipole": True}),
                             ("kept", {"psfFlux_flag": False}))
    }  # fmt: skip
    n = len(points)
    assert counts == {"usual": n - 2, "none": n, "dipole": n - 3, "kept": n - 1}
    told = str(Observations.from_survey("rubin-alert", packets).ingest)
    assert "isDipole is set: kept; quality={'isDipole': True} cuts" in told
    forced = files.ztf_forced(points)
    forced[0]["fp_hists"][0]["procstatus"] = "56,61"
    obs = Observations.from_survey("ztf-alert", forced, nested="fp_hists",
                                   quality={"procstatus": True})  # fmt: skip
    assert obs.ingest["kept"] == n - 1


def test_the_last_alert_says_the_numbers_of_an_object():
    points = points_of("elasticc", 1)
    early, late = files.elasticc_packets(points[:20]), files.elasticc_packets(points)
    for packet in late:
        packet["diaObject"]["z_final"] = 0.5
    for packets in (early + late, late + early):
        obs = Observations.from_survey(
            "elasticc", packets, scalars={"redshift": "diaObject.z_final", "ebv": "mwebv"}
        )
        assert (obs.scalars["redshift"] == 0.5).all()
        assert (obs.scalars["ebv"] == 0.02).all()
    late[0]["diaObject"]["z_final"] = None
    with pytest.raises(ValueError, match="redshift must be known of each object, but is missing"):
        Observations.from_survey("elasticc", late, scalars={"redshift": "z_final"})


def test_objects_of_the_solar_system_are_left_out_aloud():
    packets = files.rubin_packets(points_of("rubin-alert"))
    packets[0]["diaObject"] = None
    obs = Observations.from_survey("rubin-alert", packets)
    assert len(obs) == len(packets) - 1
    assert obs.ingest["left out"] == 1


def test_ids_of_64_bits_stay_whole():
    packets = files.rubin_packets(points_of("rubin-alert"))
    assert sorted(Observations.from_survey("rubin-alert", packets).ids) == [
        2**60 + i for i in (1, 2, 3, 4)
    ]


def test_names_of_earlier_schemas_are_known():
    points = points_of("rubin-alert", 2)
    old = files.rubin_packets(points, ("midPointTai", "filterName", "psFlux", "psFluxErr"))
    obs = Observations.from_survey("rubin-alert", old)
    assert_same(arrived(obs, "rubin-alert"), expected(points))


def test_packets_of_elasticc_are_not_read_as_those_of_rubin():
    with pytest.raises(ValueError, match=r'has \[.*\], as packets of ELAsTiCC.*kind="elasticc"'):
        Observations.from_survey("rubin-alert", files.elasticc_packets(points_of("elasticc")))


@pytest.mark.parametrize(("change", "message"), [
    ({"candidate": {"jd": 1.0, "magpsf": 18.0, "sigmapsf": 0.1}},
     r"'candidate' must have one of \['fid'\], but has \['jd', 'magpsf', 'sigmapsf'\]"),
    ({"candidate": {"jd": 1.0, "fid": 1}}, r"'candidate' must have one of \['magpsf'"),
    ({"candidate": {"jd": 1.0, "fid": 1, "magpsf": 18.0}}, r"must have one of \['sigmapsf'"),
    ({"candidate": {"jd": 1.0, "fid": 7, "magpsf": 18.0, "sigmapsf": 0.1}},
     r"band must be one of \('g', 'r', 'i'\), but has \['7'\]"),
    ({"candidate": 3.0}, "'candidate' must be a structure, or a list of structures, but is 3.0"),
    ({"objectId": None}, r"must say the id of objects in one of \['objectId'\]"),
])  # fmt: skip
def test_packets_that_lack_something_are_refused(change, message):
    packet = files.ztf_packets(points_of("ztf-alert", n=0) or [
        {"id": "1", "t": 59000.0, "band": "g", "x": 1.0, "err": 0.1, "bad": None}])[0]  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message):
        Observations.from_survey("ztf-alert", packet | change)


def test_lists_that_are_not_there_are_refused_and_shown():
    packets = files.rubin_packets(points_of("rubin-alert"))
    with pytest.raises(ValueError, match=r"nested must name lists.*\['fp_hists'\].*prvDiaSources"):
        Observations.from_survey("rubin-alert", packets, nested="fp_hists")
    with pytest.raises(FileNotFoundError, match="source must name at least one file"):
        Observations.from_survey("rubin-alert", "nowhere/*.avro")
    with pytest.raises(TypeError, match="source must be paths .* but is empty"):
        Observations.from_survey("rubin-alert", [])


def test_a_source_of_which_nothing_is_left_says_what_became_of_it():
    packets = files.rubin_packets(points_of("rubin-alert"))
    for packet in packets:
        packet["diaSource"]["psfFlux_flag"] = True
        packet["prvDiaSources"] = None
    with pytest.raises(ValueError, match=r"at least one point(.|\n)*psfFlux_flag is set: cut"):
        Observations.from_survey("rubin-alert", packets)


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_avro_files_give_the_same(codec, tmp_path):
    pytest.importorskip("fastavro", reason="Avro needs fastavro")
    points = points_of("rubin-alert", 7, bad=("null", "nan"))
    packets = files.rubin_packets(points)
    bare = [{k: v for k, v in p.items() if k != "prvDiaForcedSources"} for p in packets]
    files.write_avro(bare[:2], tmp_path / "a.avro", codec)
    files.write_avro(bare[2:], tmp_path / "b.avro", codec)
    (tmp_path / "b.avro.gz").write_bytes(gzip.compress((tmp_path / "b.avro").read_bytes()))
    (tmp_path / "b.avro").unlink()
    obs = Observations.from_survey("rubin-alert", tmp_path)
    assert_same(arrived(obs, "rubin-alert"), expected(points))
    (tmp_path / "c.avro").write_bytes((tmp_path / "a.avro").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"c\.avro must be a sound Avro file"):
        Observations.from_survey("rubin-alert", tmp_path / "c.avro")


def test_without_fastavro_an_avro_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.avro").write_bytes(b"Obj\x01")
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(ImportError, match="which needs fastavro. Install it with: pip install"):
        Observations.from_survey("ztf-alert", tmp_path / "a.avro")


# --- light curves --------------------------------------------------------------------------------


def test_a_data_release_stays_in_magnitudes_and_leaves_out_what_is_unusable(tmp_path):
    row = {"objectid": 2**53 + 1, "filterid": 2, "objra": 10.0, "hmjd": [1.0, 2.0, 3.0],
           "mag": [18.0, 18.5, 19.0], "magerr": [0.1, 0.2, 0.3],
           "catflags": [0, 32768, 2]}  # fmt: skip
    table = arrow.Table.from_pylist([row, row | {"objectid": 7, "filterid": 1}])
    arrow.parquet.write_table(table, tmp_path / "lc.parquet")
    for source in (row, [row], table, table.to_pandas(), tmp_path / "lc.parquet"):
        obs = Observations.from_survey("ztf-dr", source, scalars={"ra": "objra"})
        own = obs[np.flatnonzero(obs.ids == 2**53 + 1)]
        assert own.x.ravel().tolist() == [18.0, 19.0]
        assert own.units["x"] == "mag"
        assert own.categories["band"] == ("g", "r", "i")
        assert own.points["band"].tolist() == [1, 1]
        assert (obs.scalars["ra"] == 10.0).all()
    assert obs.ingest["quality"] == 2
    clean = Observations.from_survey("ztf-dr", row, quality={"catflags": True})
    assert clean.x.ravel().tolist() == [18.0]
    assert Observations.from_survey("ztf-dr", row, quality=False).x.size == 3
    with pytest.raises(ValueError, match="limits=3 must be asked of fluxes, but x holds magnitude"):
        Observations.from_survey("ztf-dr", row, limits=3)
    with pytest.raises(ValueError, match=r"source must have one of \['filterid'.*, but has"):
        Observations.from_survey("ztf-dr", {k: v for k, v in row.items() if k != "filterid"})


def test_tables_of_sncosmo_come_from_files_and_keep_their_names(tmp_path):
    points = points_of("sncosmo", 3)
    tables = files.sncosmo_tables(points)
    for i, table in enumerate(tables):
        table.write(tmp_path / f"{i}.ecsv", format="ascii.ecsv")
        lines = [f"@{k} {v}" for k, v in table.meta.items()] + ["#" + " ".join(table.colnames)]
        lines += [" ".join(map(repr, row)).replace("'", "") for row in map(tuple, zip(
            *(table[c].tolist() for c in table.colnames), strict=True))]  # fmt: skip
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{i}.dat").write_text("\n".join(lines))
    for source in (tmp_path / "*.ecsv", tmp_path / "text"):
        obs = Observations.from_survey("sncosmo", source, scalars={"redshift": "z"}, zero_point=25)
        assert_same(arrived(obs, "sncosmo"), expected(points))
        assert (obs.scalars["redshift"] == 0.25).all()
    tables[1].meta = tables[0].meta
    with pytest.raises(ValueError, match="several are called"):
        Observations.from_survey("sncosmo", tables)
    tables[0]["zpsys"] = ["ab", *["vega"] * (len(tables[0]) - 1)]
    with pytest.raises(ValueError, match="zpsys must be one system in each band"):
        Observations.from_survey("sncosmo", tables[0])


def test_headers_and_pointers_of_snana(tmp_path):
    points = points_of("snana", 3)
    head = files.snana_fits(points, tmp_path)
    obs = Observations.from_survey("snana", head, scalars={"redshift": "REDSHIFT_FINAL"})
    assert (obs.scalars["redshift"] == 0.25).all()
    assert obs.ingest["left out"] == 0  # ends of light curves lie between the pointers
    assert sorted(obs.ids.tolist()) == ["1", "2", "3", "4"]
    phot = tmp_path / "SIM_PHOT.FITS"
    for source in (phot, [head, phot], tmp_path / "SIM_*.FITS", tmp_path):
        again = Observations.from_survey("snana", source)
        assert (again.hashes == Observations.from_survey("snana", head).hashes).all()
    with pytest.raises(ValueError, match="redshift must be known .* missing of 4 of 4"):
        Observations.from_survey("snana", head, scalars={"redshift": "HOSTGAL_MASS"})  # -9
    for path in (head, phot):
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = Observations.from_survey("snana", tmp_path / "SIM_HEAD.FITS.gz")
    assert_same(arrived(packed, "snana"), expected(points))
    (tmp_path / "SIM_PHOT.FITS.gz").unlink()
    with pytest.raises(FileNotFoundError, match="must stand beside its PHOTFILE"):
        Observations.from_survey("snana", tmp_path / "SIM_HEAD.FITS.gz")


def test_text_of_snana_that_is_cut_short_is_refused(tmp_path):
    inside = files.snana_text(points_of("snana"), tmp_path)
    one = sorted(inside.iterdir())[0]
    obs = Observations.from_survey("snana", one, scalars={"redshift": "REDSHIFT_FINAL"})
    assert obs.scalars["redshift"].tolist() == [0.25]
    one.write_text(one.read_text().replace("F1 ", "", 1))
    with pytest.raises(ValueError, match="must be a text file of SNANA.*one of them"):
        Observations.from_survey("snana", one)


# --- spectra -------------------------------------------------------------------------------------


def test_arms_of_desi_are_joined_by_wavelength_and_masked(tmp_path):
    path, ids, held = files.desi_coadd(tmp_path)
    obs = Observations.from_survey("desi", path)
    grid = np.concatenate([held[arm][0] for arm in "BRZ"])
    order = np.argsort(grid, kind="stable")
    flux, ivar, mask = (np.concatenate([held[arm][i] for arm in "BRZ"], 1)[:, order]
                        for i in (1, 2, 3))  # fmt: skip
    good = np.isfinite(flux) & (ivar > 0) & (mask == 0)
    assert obs.ids.tolist() == ids.tolist()
    assert (np.diff(obs.points["wavelength"]) >= 0).all()
    np.testing.assert_array_equal(obs.points["wavelength"], grid[order])
    np.testing.assert_array_equal(obs.mask[:, 0], good)
    np.testing.assert_allclose(obs.x[:, 0][good], flux[good])
    np.testing.assert_allclose(obs.x_err[:, 0][good], ivar[good].astype(float) ** -0.5)
    np.testing.assert_allclose(obs.scalars["redshift"], [0.1, 0.2, 0.3])
    assert obs.shared_grid
    assert obs.units["wavelength"] == "Angstrom"
    assert obs.ingest["kept"] == good.sum()
    kept = Observations.from_survey("desi", path, quality=False, scalars={"ra": "TARGET_RA"})
    np.testing.assert_array_equal(kept.mask[:, 0], np.isfinite(flux) & (ivar > 0))
    assert kept.scalars["ra"].tolist() == [1.0, 1.5, 2.0]
    fibres = Observations.from_survey("desi", path, quality={"COADD_FIBERSTATUS": True})
    assert fibres.ids.tolist() == ids[[0, 2]].tolist()


def test_spectra_of_desi_that_come_again_count_once(tmp_path):
    path, ids, _ = files.desi_coadd(tmp_path)
    files.desi_coadd(tmp_path, name="coadd-main-dark-2.fits")
    files.desi_coadd(tmp_path, seed=1, name="coadd-main-dark-3.fits", ids=[7, 8, 9])
    obs = Observations.from_survey("desi", tmp_path)
    assert sorted(obs.ids.tolist()) == [7, 8, 9, *ids.tolist()]
    assert obs.ingest["duplicates"] == 3
    with pytest.raises(ValueError, match="once, but 3 come again"):
        Observations.from_survey("desi", tmp_path, duplicates="refuse")
    files.desi_coadd(tmp_path, seed=5, name="coadd-main-dark-4.fits")
    with pytest.raises(ValueError, match="has two that differ"):
        Observations.from_survey("desi", tmp_path / "coadd-main-dark-[14].fits")
    with pytest.raises(ValueError, match="zero_point must be left out for spectra"):
        Observations.from_survey("desi", path, zero_point=25)


def test_records_of_spectra_give_the_same(tmp_path):
    path, ids, held = files.desi_coadd(tmp_path, redrock=False)
    grid, flux, ivar, mask = held["R"]
    records = [{"targetid": int(ids[i]), "wavelength": grid, "flux": flux[i], "ivar": ivar[i],
                "mask": mask[i], "redshift": 0.1 * i} for i in range(3)]  # fmt: skip
    obs = Observations.from_survey("desi", records)
    good = np.isfinite(flux) & (ivar > 0) & (mask == 0)
    np.testing.assert_array_equal(obs.mask[:, 0], good)
    np.testing.assert_allclose(obs.x[:, 0][good], flux[good])
    np.testing.assert_allclose(obs.scalars["redshift"], [0, 0.1, 0.2])
    back = Observations.from_survey("desi", pandas.DataFrame(records[::-1]))
    assert (back.hashes[::-1] == obs.hashes).all()
    with pytest.raises(ValueError, match=r"misses \['ivar'\]"):
        Observations.from_survey("desi", {k: v for k, v in records[0].items() if k != "ivar"})
    with pytest.raises(ValueError, match=r"scalars must name .*\['Z'\].*redrock-"):
        Observations.from_survey("desi", path, scalars={"redshift": "Z"})
