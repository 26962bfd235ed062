"""Small writers of what surveys hand out, in their public schemas, from one list of points.

A point is a dict of ``id``, ``t`` (MJD), ``band`` ("g" or "r"), ``x`` and ``err`` (at the zero
point of the kind), and ``bad``: how it is no measurement, or None.
"""

from __future__ import annotations

import json

import numpy as np
from astropy.io import fits
from astropy.table import Table

ZERO = {"ztf-alert": 23.9, "ztf-forced": 23.9, "rubin-alert": 31.4, "rubin-forced": 31.4,
        "elasticc": 27.5, "ztf-dr": 23.9, "snana": 27.5, "snana-text": 27.5, "snana-table": 27.5,
        "sncosmo": 25.0}  # fmt: skip
JD = 2400000.5
IMAGE = 26.25  # the zero point of an image of ZTF


def by_object(points):
    found = {}
    for point in points:
        found.setdefault(point["id"], []).append(point)
    return found


def magnitude(x, zero):
    return float(zero - 2.5 * np.log10(abs(x)))


def of_error(x, err):
    return float(2.5 / np.log(10) * err / abs(x))


def ztf_detection(p):
    bad = {"null": None, "nan": np.nan, "sentinel": -999.0}
    mag = bad[p["bad"]] if p["bad"] else magnitude(p["x"], 23.9)
    return {"jd": p["t"] + JD, "fid": {"g": 1, "r": 2}[p["band"]], "magpsf": mag,
            "sigmapsf": None if mag is None else of_error(p["x"], p["err"]),
            "diffmaglim": None if p["bad"] else 20.5,
            "isdiffpos": "f" if p["x"] < 0 else "t", "rb": 0.9, "candid": 10}  # fmt: skip


def ztf_packets(points):
    """Return one packet an object: the last good point is the trigger."""
    packets = []
    for name, own in by_object(points).items():
        good = [i for i, p in enumerate(own) if not p["bad"]]
        trigger = own[good[-1]]
        rest = [p for i, p in enumerate(own) if i != good[-1]]
        packets.append({"objectId": f"ZTF{name}", "candid": 10, "candidate": ztf_detection(trigger),
                        "prv_candidates": [ztf_detection(p) for p in rest] or None,
                        "fp_hists": None, "cutoutScience": {"stampData": b"image"}})  # fmt: skip
    return packets


def ztf_forced(points):
    scale = 10 ** (0.4 * (IMAGE - 23.9))
    bad = {"null": None, "nan": np.nan, "sentinel": -99999.0}
    packets = []
    for name, own in by_object(points).items():
        rows = [{"jd": p["t"] + JD, "fid": {"g": 1, "r": 2}[p["band"]], "magzpsci": IMAGE,
                 "forcediffimflux": bad[p["bad"]] if p["bad"] else p["x"] * scale,
                 "forcediffimfluxunc": p["err"] * scale, "procstatus": "0", "diffmaglim": 20.0}
                for p in own]  # fmt: skip
        packets.append({"objectId": f"ZTF{name}", "candid": 10, "fp_hists": rows,
                        "candidate": None, "prv_candidates": None})  # fmt: skip
    return packets


def rubin_source(p, i, names=("midpointMjdTai", "band", "psfFlux", "psfFluxErr")):
    bad = {"null": None, "nan": np.nan, "sentinel": None}
    t, band, flux, err = names
    return {"diaSourceId": 2**60 + i, t: p["t"], band: p["band"],
            flux: bad[p["bad"]] if p["bad"] else p["x"], err: p["err"]}  # fmt: skip


def rubin_packets(points, names=("midpointMjdTai", "band", "psfFlux", "psfFluxErr"), about=()):
    packets = []
    for name, own in by_object(points).items():
        good = [i for i, p in enumerate(own) if not p["bad"]][-1]
        rows = [rubin_source(p, i, names) for i, p in enumerate(own)]
        trigger = rows.pop(good)
        packets.append({"diaSourceId": trigger["diaSourceId"], "diaSource": trigger,
                        "prvDiaSources": rows or None, "prvDiaForcedSources": None,
                        "diaObject": {"diaObjectId": 2**60 + int(name), "ra": 10.0, **dict(about)},
                        "cutoutScience": b"image"})  # fmt: skip
    return packets


def rubin_forced(points):
    packets = rubin_packets(points)
    for packet, own in zip(packets, by_object(points).values(), strict=True):
        packet["prvDiaForcedSources"] = [
            rubin_source(p, i) | {"scienceFlux": 1e6} for i, p in enumerate(own)
        ]
        packet["prvDiaSources"] = None
    return packets


def elasticc_packets(points):
    names = ("midPointTai", "filterName", "psFlux", "psFluxErr")
    return rubin_packets(points, names, {"z_final": 0.3, "mwebv": 0.02, "hostgal_ra": -9.0})


def release_rows(points):
    """Return one row an object, which has one band."""
    bad = {"null": None, "nan": np.nan, "sentinel": 99.0}
    rows = []
    for name, own in by_object(points).items():
        rows.append({
            "objectid": int(name), "filterid": {"g": 1, "r": 2}[own[0]["band"]],
            "objra": 10.0, "hmjd": [p["t"] for p in own],
            "mag": [bad[p["bad"]] if p["bad"] else magnitude(p["x"], 23.9) for p in own],
            "magerr": [of_error(p["x"], p["err"]) for p in own],
            "clrcoeff": [0.0] * len(own), "catflags": [0] * len(own),
        })  # fmt: skip
    return rows


def snana_values(p):
    flux = {"null": -9.0, "nan": np.nan, "sentinel": -999.0}[p["bad"]] if p["bad"] else p["x"]
    return flux, -9.0 if p["bad"] == "null" else p["err"]


def snana_fits(points, folder):
    """Write a pair of HEAD and PHOT files; return the HEAD file."""
    head, rows = [], []
    for name, own in by_object(points).items():
        first = len(rows) + 1
        rows += [(p["t"], p["band"], *snana_values(p), 4096) for p in own]
        head.append((f"{name}  ", 10.0, -9.0, 0.25, first, len(rows), len(own)))
        rows.append((-777.0, "- ", -777.0, -777.0, 0))
    names = ("SNID", "RA", "HOSTGAL_MASS", "REDSHIFT_FINAL", "PTROBS_MIN", "PTROBS_MAX", "NOBS")
    primary = fits.PrimaryHDU()
    primary.header["PHOTFILE"] = "SIM_PHOT.FITS"
    table = Table(rows=head, names=names)
    fits.HDUList([primary, fits.BinTableHDU(table, name="Header")]).writeto(
        folder / "SIM_HEAD.FITS", overwrite=True)  # fmt: skip
    photometry = Table(rows=rows, names=("MJD", "BAND", "FLUXCAL", "FLUXCALERR", "PHOTFLAG"))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(photometry)]).writeto(
        folder / "SIM_PHOT.FITS", overwrite=True)  # fmt: skip
    return folder / "SIM_HEAD.FITS"


def snana_text(points, folder):
    """Write one text file an object; return the folder."""
    inside = folder / "text"
    inside.mkdir(exist_ok=True)
    for old in inside.glob("*"):
        old.unlink()
    for name, own in by_object(points).items():
        lines = [f"SNID: {name}", "SURVEY: LSST", "REDSHIFT_FINAL: 0.25 +- 0.01 (CMB)",
                 "NVAR: 5", "VARLIST: MJD FLT FIELD FLUXCAL FLUXCALERR"]  # fmt: skip
        for p in own:
            flux, err = snana_values(p)
            lines.append(f"OBS: {p['t']!r} {p['band']} F1 {flux!r} {err!r}")
        lines.append("END:")
        (inside / f"SN_{name}.DAT").write_text("\n".join(lines) + "\n")
    return inside


def snana_table(points):
    values = [snana_values(p) for p in points]
    return {"SNID": [f"{p['id']}" for p in points], "MJD": [p["t"] for p in points],
            "FLT": [p["band"] for p in points], "FLUXCAL": [v[0] for v in values],
            "FLUXCALERR": [v[1] for v in values]}  # fmt: skip


def sncosmo_tables(points):
    """Return one table an object; half of its rows have another zero point."""
    made = []
    for name, own in by_object(points).items():
        zp = [26.0 if p["band"] == "r" else 25.0 for p in own]
        table = Table({
            "time": [p["t"] for p in own], "band": [f"lsst{p['band']}" for p in own],
            "flux": [np.nan if p["bad"] else p["x"] * 10 ** (0.4 * (z - 25.0))
                     for p, z in zip(own, zp, strict=True)],
            "fluxerr": [p["err"] * 10 ** (0.4 * (z - 25.0)) for p, z in zip(own, zp, strict=True)],
            "zp": zp, "zpsys": ["ab"] * len(own),
        }, meta={"name": f"{name}", "z": 0.25})  # fmt: skip
        made.append(table)
    return made


def desi_coadd(folder, seed=0, n=3, name="coadd-main-dark-1.fits", ids=None, redrock=True):
    """Write spectra of three arms that overlap; return the path and what is in it."""
    rng = np.random.default_rng(seed)
    ids = 39627000000000 + np.arange(n) if ids is None else np.asarray(ids)
    grids = {"B": np.arange(3600.0, 3700, 10), "R": np.arange(3680.0, 3800, 10),
             "Z": np.arange(3790.0, 3900, 10)}  # fmt: skip
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU(Table({
        "TARGETID": ids, "COADD_FIBERSTATUS": np.array([0, 8, 0][:n], np.int32),
        "TARGET_RA": np.linspace(1, 2, n)}), name="FIBERMAP")]  # fmt: skip
    held = {}
    for arm, grid in grids.items():
        flux = rng.normal(2, 1, (n, len(grid))).astype(np.float32)
        ivar = rng.uniform(1, 4, flux.shape).astype(np.float32)
        mask = np.zeros(flux.shape, np.int32)
        ivar[0, 0], flux[1, 2], mask[1, 3] = 0, np.nan, 2
        held[arm] = grid, flux, ivar, mask
        hdus += [fits.ImageHDU(grid, name=f"{arm}_WAVELENGTH"),
                 fits.ImageHDU(flux, name=f"{arm}_FLUX"),
                 fits.ImageHDU(ivar, name=f"{arm}_IVAR"),
                 fits.ImageHDU(mask, name=f"{arm}_MASK"),
                 fits.ImageHDU(np.zeros((n, 3, len(grid))), name=f"{arm}_RESOLUTION")]  # fmt: skip
        hdus[-4].header["BUNIT"] = "10**-17 erg/(s cm2 Angstrom)"
    fits.HDUList(hdus).writeto(folder / name, overwrite=True)
    if redrock:
        table = Table({"TARGETID": ids[::-1], "Z": np.linspace(0.1, 0.3, n)[::-1],
                       "ZERR": np.full(n, 1e-5), "ZWARN": np.arange(n)[::-1]})  # fmt: skip
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name="REDSHIFTS")]).writeto(
            folder / name.replace("coadd", "redrock"), overwrite=True)  # fmt: skip
    return folder / name, ids, held


def write_avro(packets, path, codec="null"):
    """Write packets of Rubin as Avro, with the schema of the fields they have."""
    import fastavro

    source = {"type": "record", "name": "diaSource", "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "midpointMjdTai", "type": "double"},
        {"name": "band", "type": ["null", "string"]},
        {"name": "psfFlux", "type": ["null", "double"]},
        {"name": "psfFluxErr", "type": ["null", "double"]}]}  # fmt: skip
    schema = {"type": "record", "name": "alert", "fields": [
        {"name": "diaSourceId", "type": "long"}, {"name": "diaSource", "type": source},
        {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "diaSource"}]},
        {"name": "diaObject", "type": ["null", {"type": "record", "name": "diaObject", "fields": [
            {"name": "diaObjectId", "type": "long"}, {"name": "ra", "type": "double"}]}]},
        {"name": "cutoutScience", "type": ["null", "bytes"]}]}  # fmt: skip
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), packets, codec=codec)


def write_json(packets, path):
    bare = [{k: v for k, v in packet.items() if not k.startswith("cutout")} for packet in packets]
    path.write_text(json.dumps(bare))
