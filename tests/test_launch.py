"""Laws of launches: every device has every bound, and no other module has one of its own."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from nbi_plus import launch

PACKAGE = Path(launch.__file__).parent
OTHERS = [path for path in sorted(PACKAGE.rglob("*.py")) if path != Path(launch.__file__)]


def tables_of_devices(text):
    """Return the lines where a dict is written down that has a key "cpu"."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value == "cpu" for key in node.keys)
    ]


@pytest.mark.parametrize("kind", launch.KINDS)
def test_every_device_has_every_bound(kind):
    own = launch.of(torch.device(kind))
    for field in fields(launch.Launch):
        value = getattr(own, field.name)
        assert isinstance(value, int), field.name
        assert value >= 1, field.name


def test_a_gpu_does_at_least_as_much_at_once_as_a_cpu():
    cpu, cuda = (launch.KINDS[kind] for kind in ("cpu", "cuda"))
    for field in fields(launch.Launch):
        assert getattr(cuda, field.name) >= getattr(cpu, field.name), field.name


def test_an_unknown_device_does_as_much_as_a_cpu():
    assert launch.of(torch.device("meta")) is launch.of(torch.device("cpu"))


def test_every_bound_says_what_it_is():
    described = launch.Launch.__doc__
    assert all(f"{field.name} : int\n" in described for field in fields(launch.Launch))


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_has_bounds_of_devices(path):
    assert not tables_of_devices(path.read_text())


def test_the_law_sees_a_table_of_devices():
    assert tables_of_devices(Path(launch.__file__).read_text())
    assert tables_of_devices('_ROWS = {"cuda": 2, "cpu": 1}') == [1]
