"""Laws of launches: every device has every bound, and no other module has one of its own."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from scipy.stats import norm

from nbi_plus import GaussianNoise, Observations, Prior, launch
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.target import Target

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


def rows_of_launches(n_points, n_objects, n_draws):
    """Return the target of so many points, and how many rows each simulator call of it has."""
    calls = []

    def constant(theta):
        calls.append(len(theta))
        return theta.expand(-1, n_points)

    prior = Prior({"level": norm(0, 1)})
    batch = Observations.from_arrays(torch.zeros(n_objects, n_points).numpy()).batch()
    noise = GaussianNoise(1.0).bind(False, prior.names)
    target = Target(prior, bind_simulator(constant, prior, batch), noise, batch)
    z, index = torch.zeros(n_objects, n_draws, 1, dtype=torch.float64), torch.arange(n_objects)
    target.log_prob(z, index)  # a first call of many rows is compared with one of a few
    calls.clear()
    target.log_prob(z, index)
    return target, calls


@pytest.mark.parametrize("n_points", [50, 500, 5000])
def test_launches_of_a_target_fit_into_memory_and_are_no_more_than_that_takes(n_points):
    n_objects, n_draws = 3, 4000
    target, rows = rows_of_launches(n_points, n_objects, n_draws)
    most = launch.KINDS["cpu"]
    bytes_of_a_row = 8 * n_points * (most.target_copies + target.noise.n_copies)
    assert sum(rows) == n_objects * n_draws  # each once
    assert max(rows) * bytes_of_a_row <= most.target_bytes
    of_an_object = math.ceil(n_draws / (most.target_bytes // bytes_of_a_row))
    assert len(rows) <= n_objects * of_an_object
