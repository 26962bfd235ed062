"""Laws of the registry: a shipped noise is public, and comes back from a file by its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus import files
from nbi_plus.problem import noise
from nbi_plus.problem.noise.custom import CallableNoise
from nbi_plus.problem.noise.kernels import Kernel, Sum

PRIOR = nbi.Prior({"a": uniform(2, 3), "s": uniform(0.1, 1)})
T = np.linspace(0, 1, 6)
INTERNAL = {CallableNoise, Sum}  # made of a function, of an addition: by no name of their own
EXAMPLES = [
    nbi.GaussianNoise(0.5, jitter="s", fractional=0.1),
    nbi.StudentTNoise(4.0, jitter="s"),
    nbi.PoissonNoise(2.0, 0.5),
    nbi.PoissonNoise("a"),
    nbi.BinomialNoise(3),
    nbi.BetaBinomialNoise([[1, 2, 3, 4, 5, 6]], "s"),
    nbi.OutlierNoise("s", 5.0, jitter=0.1),
    nbi.UpperLimits(nbi.OutlierNoise("s", 5.0), 3.0),
    nbi.CalibrationError(nbi.GaussianNoise(), {"g": 0.1, "r": 0.2}),
    nbi.LinearNuisance(nbi.GaussianNoise(), ("offset", "slope"), sd=1e3),
    nbi.GaussianProcessNoise(nbi.DampedRandomWalk("s", 2.0), jitter=0.1),
    nbi.GaussianProcessNoise(nbi.Harmonic("s", 2.0, 3.0) + nbi.DampedRandomWalk(1.0, 2.0)),
]


def name_of(made):
    return type(made).__name__


def concrete(base):
    """Return the classes of the room that can be made, kinds of a base class."""
    found = set()
    for info in pkgutil.iter_modules(noise.__path__, f"{noise.__name__}."):
        module = importlib.import_module(info.name)
        found |= {
            made
            for _, made in inspect.getmembers(module, inspect.isclass)
            if issubclass(made, base) and made.__module__ == info.name
        }
    return {made for made in found if not inspect.isabstract(made)}


@pytest.mark.parametrize("base", [nbi.Noise, Kernel])
def test_every_class_is_public(base):
    listed = {getattr(noise, name) for name in noise.__all__}
    assert concrete(base) - INTERNAL <= listed
    assert all(getattr(nbi, name) is getattr(noise, name) for name in noise.__all__)
    assert set(noise.__all__) <= set(nbi.__all__)


def test_every_class_that_describes_itself_is_registered():
    described = {made for made in concrete(nbi.Noise) if made.meta is not nbi.Noise.meta}
    assert described == set(noise.NOISES.values())
    assert concrete(Kernel) - INTERNAL == set(noise.KERNELS.values())


@pytest.mark.parametrize("registry", [noise.NOISES, noise.KERNELS])
def test_a_name_is_that_of_the_class(registry):
    assert all(name == made.__name__ for name, made in registry.items())


def test_every_registered_class_is_tried():
    kernels = [e.kernel for e in EXAMPLES if isinstance(e, nbi.GaussianProcessNoise)]
    tried = {name_of(e) for e in EXAMPLES}
    assert tried == set(noise.NOISES)
    assert {name_of(k) for k in [*kernels, kernels[1].first]} == {*noise.KERNELS, "Sum"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """What one small fit leaves in its file."""

    def line(theta, t):
        return theta[:, :1] + 0.0 * t

    small = {"type": "resnet", "depth": 1, "dim_conv_max": 8, "dim_out": 4}
    engine = nbi.Engine(line, PRIOR, featurizer=small, flow={"num_blocks": 1, "flow_hidden": 8})
    engine.fit(n_sims=100, n_epochs=1, x_err=np.full(6, 0.5), t=T)
    path = tmp_path_factory.mktemp("engine") / "engine.nbi"
    engine.save(path)
    return files.read(path, torch.device("cpu"))[0]


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_a_noise_comes_back_from_a_file(example, fitted, tmp_path):
    files.write(tmp_path / "engine.nbi", replace(fitted, noise=example), 0)
    again = files.read(tmp_path / "engine.nbi", torch.device("cpu"))[0].noise
    assert type(again) is type(example)
    assert again.meta() == example.meta()
    bound = example.bind(True, PRIOR.full_names)
    assert again.fingerprint() == bound.fingerprint()


def scale(x, t):
    return x * t


@pytest.mark.parametrize("made", EXAMPLES, ids=name_of)
def test_a_noise_says_its_arguments(made):
    told = made.meta()
    assert repr(made).startswith(f"{told['type']}(")
    for name, value in told.items():
        shown = f"{name}={value!r}" in repr(made)
        assert shown or name == "type" or value is None or isinstance(value, dict)


def test_a_noise_of_functions_says_their_names():
    assert repr(nbi.CustomNoise(scale)) == "CustomNoise(augment=scale)"
    assert repr(CallableNoise(scale)) == "CallableNoise(function=scale)"
    assert len(repr(nbi.GaussianNoise(np.linspace(1, 2, 5000)))) < 200
