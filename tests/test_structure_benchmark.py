"""The figures of the package's structure, as its benchmark counts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks import structure
from nbi_plus import Observations
from nbi_plus.data import joining
from nbi_plus.infer.weights import psis


@dataclass(frozen=True)
class Held:
    data: object


@pytest.mark.parametrize("size", ["widest_folder", "longest_module", "longest_function"])
def test_sizes_are_of_something_that_is_there(size):
    found = getattr(structure, size)()
    assert found.n > 10
    name = found.name.split(":")[0].removeprefix("nbi_plus/")
    assert (structure.PACKAGE / name).exists()


def test_imports_follow_the_order_and_names_are_unique():
    n_imports, n_upwards = structure.import_counts()
    assert n_imports > 300
    assert n_upwards == 0
    assert structure.duplicate_classes() == []


def test_way_names_the_files_that_get_the_data_and_no_others():
    x = np.linspace(0, 1, 7)
    observations = Observations.from_arrays(x[None])

    def call(_):
        psis.check_log_weights(x.copy())  # other data, though equal
        joining.shared_again(observations)

    way = structure.files_on_the_way(x, call)
    assert "data/joining.py" in way
    assert "infer/weights/psis.py" not in way
    assert "infer/weights/psis.py" in structure.files_on_the_way(x, psis.check_log_weights)


def test_things_that_hold_the_data_directly_count():
    x = np.linspace(0, 1, 7)
    observations = Observations.from_arrays(x[None])
    other = Observations.from_arrays(x[None] + 0.1)
    for thing in (x, observations, observations.batch(), Held(x), Held(observations)):
        assert structure.holds(thing, x)
    for thing in (x.copy(), other, other.batch(), Held(Held(x)), [x]):
        assert not structure.holds(thing, x)
