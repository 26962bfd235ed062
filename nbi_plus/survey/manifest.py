"""Manifest: what is surveyed, and by what; a survey goes on only with the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nbi_plus.io.sealed import SEAL, is_sealed, sealed

MANIFEST = "_survey.json"
NAMELESS = {"kind": "iterator"}  # a source that nobody can tell from another of its kind


class SurveyError(ValueError):
    """A survey's output is in use, or was made of something else."""


def read_manifest(folder: Path) -> dict[str, object] | None:
    """Return what a folder of parts was made of; None where it is none yet."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    is_sealed(path, SurveyError)
    try:
        found = json.loads(path.read_text())
        del found["seal"]
        _ = found["survey"], found["nights"][-1]["source"], found["nights"][-1]["finished"]
    except (ValueError, LookupError, TypeError) as error:
        raise SurveyError(
            f"{path} must say what was surveyed, but is not sound ({error}). Delete the folder, or "
            "use another path."
        ) from error
    return found


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write what a folder of parts is made of."""
    with sealed(folder / MANIFEST, SurveyError) as file:
        file.write(json.dumps({"seal": SEAL, **manifest}, indent=1).encode())


def following(
    known: dict[str, object] | None, wanted: Mapping[str, object], name: str, *, append: bool
) -> dict[str, object]:
    """Return the manifest to go on with: what is known, or a further night, or refuse."""
    wanted = json.loads(json.dumps(wanted))  # as the known one was written: tuples are lists
    night = {"source": wanted["source"], "finished": False}
    if known is None:
        return {"survey": wanted["survey"], "nights": [night]}
    _check_same(known["survey"], wanted["survey"], name)
    nights = [dict(one) for one in known["nights"]]
    nameless = night["source"] == NAMELESS and nights[-1]["finished"]
    if nights[-1]["source"] == night["source"] and not nameless:
        return {"survey": known["survey"], "nights": nights}
    if append and nights[-1]["finished"]:
        return {"survey": known["survey"], "nights": [*nights, night]}
    advice = (
        "Finish that first, with the same source" if append
        else "Give append=True for a further night, or another path"
    )  # fmt: skip
    raise SurveyError(
        f"{name} must be of this source, but holds answers about another one: "
        f"{_short(nights[-1]['source'])}. {advice}."
    )


def _check_same(known: Mapping[str, object], wanted: Mapping[str, object], name: str) -> None:
    for key, value in wanted.items():
        if known.get(key) != value:
            raise SurveyError(
                f"{name} was made with {key} {_short(known.get(key))}, but this run has "
                f"{_short(value)}. Use another path, or resume=False to begin anew."
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
