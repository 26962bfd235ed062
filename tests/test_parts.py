"""Laws of parts and fingerprints: names that go into files and come back, and do not change."""

from __future__ import annotations

import ast
import json
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from nbi_plus.io import fingerprint as module
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.io.fingerprint import content, digest, fingerprint
from nbi_plus.io.parts import joined, split

PARTS = {"network": {"flow/0.weight": [1.0], "a": [2.0]}, "coords": {"t": [3.0, 4.0]}}
OTHERS = [p for p in Path(module.__file__).parents[1].rglob("*.py") if p != Path(module.__file__)]


def test_what_is_joined_can_be_split():
    assert split(joined(PARTS)) == PARTS
    assert split({"outer/" + k: v for k, v in joined(PARTS).items()}) == {"outer": joined(PARTS)}


def test_parts_survive_a_file(tmp_path):
    write_archive(tmp_path / "parts.h5", "test", {}, joined(PARTS))
    found = split(read_archive(tmp_path / "parts.h5", "test").arrays)
    assert {part: {k: v.tolist() for k, v in own.items()} for part, own in found.items()} == PARTS


def test_what_has_no_part_is_left_out():
    assert split({"z": 1} | joined(PARTS)) == PARTS


def test_expected_parts_are_there_and_others_are_refused():
    parts = ("network", "coords", "scalars")
    assert split(joined(PARTS), parts) == PARTS | {"scalars": {}}
    with pytest.raises(KeyError, match="coords"):
        split(joined(PARTS), ("network",))


def test_a_fingerprint_is_that_of_the_folders_there_are():
    described = {"prior": [1, None, {"b": 2.5}], "a": {3}}
    tensor = torch.arange(6.0).reshape(2, 3)
    text = json.dumps(described, sort_keys=True, default=repr).encode()
    made = sha256(text + tensor.T.contiguous().numpy().tobytes()).hexdigest()[:16]
    assert fingerprint(described, [content(tensor.T), content(None)]) == made
    assert fingerprint({}) == digest([b"{}"]) == "44136fa355b3678a"


def test_a_fingerprint_changes_with_each_part():
    one = fingerprint({"seed": 1}, [b"x"])
    assert one == fingerprint({"seed": 1}, iter([b"x"]))
    assert len({one, fingerprint({"seed": 2}, [b"x"]), fingerprint({"seed": 1}, [b"y"])}) == 3


def test_no_other_module_makes_names_with_sha():
    for path in OTHERS:
        names = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert "sha256" not in names, path
