"""Inspecting: what a file of ours is, read without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbi_plus.estimators import class_fit, fits
from nbi_plus.io.archive import Archive, ArchiveError, fitting_parts, read_archive
from nbi_plus.io.header import OtherKindError
from nbi_plus.io.parts import split
from nbi_plus.io.sealed import is_sealed
from nbi_plus.survey.parts import SurveyError, read_manifest
from nbi_plus.survey.run import counted
from nbi_plus.survey.writing import SUFFIXES, manifest_of, rows_of
from nbi_plus.trust.calibration import Calibration


def told(path: Path) -> dict[str, Any]:
    """Return what an engine, a posterior, a calibration or a catalogue says of itself."""
    if not path.exists():
        raise FileNotFoundError(f"FILE must exist, but there is no file {path}.")
    manifest = read_manifest(path) if path.is_dir() else _manifest(path)
    if manifest is not None:
        return _of_catalogue(path, manifest)
    for kind, say in _KINDS.items():
        try:
            archive = read_archive(path, kind)
        except OtherKindError:
            continue
        with fitting_parts(path, kind):
            return {"file": kind, **say(archive)}
    raise ArchiveError(
        f"{path.name} must be an engine, a posterior, a calibration or a catalogue of "
        "nbi-plus, but is something else."
    )


def _manifest(path: Path) -> dict[str, Any] | None:
    sealed = path.suffix in SUFFIXES and is_sealed(path, SurveyError)
    return manifest_of(path) if sealed else None


def _of_catalogue(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    summary = counted(path, rows_of(path))
    nights = manifest["nights"]
    return {
        "file": "catalogue", "objects": summary.n_objects, "status": summary.status,
        "flags": summary.flags, "nights": len(nights),
        "finished": all(night["finished"] for night in nights), **manifest["survey"],
    }  # fmt: skip


def _of_engine(archive: Archive) -> dict[str, Any]:
    meta = archive.meta
    return {
        "parameters": list(meta["labels"]), "network": meta["model"] is not None,
        "fitted in rounds": meta["sequential"] is not None, "seed": meta["seed"],
        "likelihood": "learned" if split(archive.arrays).get("likelihood") else "known",
        "numbers": sum(array.size for array in archive.arrays.values()),
    }  # fmt: skip


def _of_ensemble(archive: Archive) -> dict[str, Any]:
    members = archive.meta["members"]
    shares = archive.arrays["shares"].tolist()
    return {
        "parameters": list(members[0]["labels"]),
        "members": {own["name"]: share for own, share in zip(members, shares, strict=True)},
        "numbers": sum(array.size for array in archive.arrays.values()),
    }  # fmt: skip


def _of_trials(archive: Archive) -> dict[str, Any]:
    meta = archive.meta
    return {
        "parameters": list(meta["labels"]), **meta["chosen"],
        "numbers": sum(array.size for array in archive.arrays.values()),
    }  # fmt: skip


def _of_classes(archive: Archive) -> dict[str, Any]:
    meta = archive.meta
    return {
        "models": meta["models"], **meta["chosen"], "temperature": meta["temperature"],
        "numbers": sum(array.size for array in archive.arrays.values()),
    }  # fmt: skip


def _of_posterior(archive: Archive) -> dict[str, Any]:
    meta = archive.meta
    return {
        "id": meta["id"], "status": meta["status"], "flags": meta["flags"],
        "parameters": meta["parameters"]["names"], "draws": len(archive.arrays["samples"]),
    }  # fmt: skip


def _of_calibration(archive: Archive) -> dict[str, Any]:
    c = Calibration.from_archive(archive, "the file")
    return {
        "objects": len(c), "excluded": c.n_excluded, "scope": c.scope,
        "p-values": dict(zip(c.names, c.p_values.tolist(), strict=True)),
    }  # fmt: skip


_KINDS = {
    "engine": _of_engine,
    "ensemble": _of_ensemble,
    "point engine": _of_engine,
    **dict.fromkeys(fits.KINDS, _of_trials),
    class_fit.KIND: _of_classes,
    "posterior": _of_posterior,
    "calibration": _of_calibration,
}
