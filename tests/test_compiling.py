"""Laws of compiled gradients: the numbers of plain ones, or plain ones."""

from __future__ import annotations

import math
import os
import shutil

import numpy as np
import pytest
import torch
from densities import normals
from scipy.stats import norm, uniform
from torch._dynamo.utils import counters

import nbi_plus as nbi
from nbi_plus import launch
from nbi_plus.infer.samplers import compiling, hmc
from nbi_plus.infer.samplers.compiling import Compiler, differentiate
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.whitening import Whitening
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.noise.points import GaussianNoise
from nbi_plus.problem.target import Target


def wave(theta, t):
    return theta[:, :1] * torch.sin(6 * t + theta[:, 1:2]) + theta[:, 2:3]


def masked_waves(n):
    """Return the target of n objects with gaps, of a model with an angle and a jitter."""
    rng = np.random.default_rng(1)
    t = np.sort(rng.uniform(size=(n, 20)), 1)
    mask = rng.random((n, 20)) < 0.8
    prior = nbi.Prior({
        "a": uniform(0.5, 2), "phase": nbi.Circular(2 * math.pi), "c": norm(0, 1),
        "jitter": uniform(0.0, 0.5),
    })  # fmt: skip
    x, err = rng.normal(size=(n, 20)), rng.uniform(0.1, 0.3, (n, 20))
    batch = nbi.Observations.from_arrays(x, err, t=t, mask=mask).batch()
    noise = GaussianNoise(jitter="jitter").bind(True, prior.names)
    return Target(prior, bind_simulator(wave, prior, batch), noise, batch)


needs_a_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def compiled():
    target = masked_waves(7)
    return target, Compiler(target.log_prob, 0)


@needs_a_compiler
def test_compiled_gradients_are_those_of_plain_code(compiled):
    target, compiler = compiled
    index, z = torch.tensor([6, 0, 3, 2, 5]), 0.7 * normals(3, 5, 16, 4)
    z[0, 0, 0], z[1, 1, 2] = 9.0, math.nan  # beyond the latent space, and nowhere
    first = compiler(z, index)
    again = compiler(z.flip(0), index.flip(0))
    plain = differentiate(target.log_prob, z, index)
    inside = plain[0].isfinite()
    assert (~inside).sum() == 2
    assert torch.equal(first[0].isfinite(), inside)
    for own, other, flipped in zip(first, plain, again, strict=True):
        torch.testing.assert_close(own[inside], other[inside], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(flipped.flip(0)[inside], own[inside], rtol=1e-12, atol=1e-12)
    own = Whitening.none(z)
    quick, slow = (Gradients(target.log_prob, 64, c)(z, index, own) for c in (compiler, None))
    for one, other in zip(quick, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_compiled_code_takes_several_launches_at_once():
    class Ready(Compiler):
        is_ready = True

        def __call__(self, z, index):
            calls.append(len(z))
            return differentiate(self._log_prob, z, index)

    def log_prob(z, index):  # noqa: ARG001
        return -0.5 * z.square().sum(-1)

    calls, n_launches = [], launch.of(torch.device("cpu")).compiled_launches
    z, index = normals(1, 2 * n_launches + 1, 8, 2), torch.arange(2 * n_launches + 1)
    whitening = Whitening.none(z)
    quick = Gradients(log_prob, 8, Ready(log_prob, 0))(z, index, whitening)
    assert calls == [n_launches, n_launches, 1]
    slow = Gradients(log_prob, 8, Compiler(log_prob, math.inf))(z, index, whitening)
    assert all(torch.equal(one, other) for one, other in zip(quick, slow, strict=True))


def test_compiling_waits_until_it_pays(monkeypatch):
    monkeypatch.setattr(compiling.torch, "compile", lambda *_, **__: pytest.fail("too early"))
    z0 = normals(0, 2, 8, 3).repeat_interleave(4, 1)

    def log_prob(z, index):  # noqa: ARG001
        return -0.5 * z.square().sum(-1)

    assert hmc.sample(log_prob, z0, 8, seed=1).n_gradients.sum() < hmc.HmcConfig().compile_after
    never = Compiler(log_prob, math.inf)
    assert never(z0, torch.arange(2)) is None


@pytest.mark.parametrize("trouble", ["branch", "other numbers"])
def test_what_cannot_be_compiled_runs_as_before(monkeypatch, trouble):
    def log_prob(z, index):  # noqa: ARG001
        height = -0.5 * z.square().sum(-1)
        return 2 * height if bool((z.sum() > 0) & (z.sum() < 1e-9)) else height

    if trouble == "other numbers":
        monkeypatch.setattr(
            compiling,
            "_in_one_pass",
            lambda *given: tuple(1.001 * t for t in differentiate(*given)),
        )
    compiler, z, index = Compiler(log_prob, 0), normals(1, 3, 8, 2), torch.arange(3)
    for _ in range(2):
        assert compiler(z, index) is None
    values, grads = Gradients(log_prob, 64, compiler)(z, index, Whitening.none(z))
    torch.testing.assert_close(values, log_prob(z, index))
    torch.testing.assert_close(grads, -z)


@needs_a_compiler
def test_one_code_serves_objects_and_chains_of_any_number():
    """Other data of the same problem, and launches of any shape, cost no compilation."""
    for n in (7, 4, 5):  # what differs once is compiled again, to be free
        target = masked_waves(n)
        compiler, index = Compiler(target.log_prob, 0), torch.arange(n)
        if n == 5:
            before = len(counters["stats"]), counters["stats"]["unique_graphs"]
        for shape in ((n, 16), (2, 4), (1, 6), (3, 1), (1, 1)):
            z = 0.7 * normals(n, *shape, 4)
            found = compiler(z, index[: len(z)])
            for own, other in zip(
                found, differentiate(target.log_prob, z, index[: len(z)]), strict=True
            ):
                torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    assert before == (len(counters["stats"]), counters["stats"]["unique_graphs"])


@needs_a_compiler
def test_densities_that_look_at_arrays_are_compiled(monkeypatch):
    monkeypatch.setattr(Compiler, "_seconds", lambda _, way, *__: float(way is differentiate))
    scale = np.linspace(1, 2, 5)

    def log_prob(z, _):
        return -(z * torch.as_tensor(scale)).square().sum(-1)

    z = normals(0, 2, 8, 5)
    value, grad = Compiler(log_prob, 0)(z, torch.arange(2))
    torch.testing.assert_close(value, -(z * torch.tensor(scale)).square().sum(-1))
    torch.testing.assert_close(grad, -2 * z * torch.tensor(scale) ** 2)


@needs_a_compiler
def test_each_density_is_compiled_however_many_were_before(monkeypatch):
    """torch gives up after so many functions of one code."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    monkeypatch.setattr(Compiler, "_seconds", lambda _, way, *__: float(way is differentiate))
    z = normals(0, 2, 8, 2)
    for power in (2, 3, 4, 5):
        compiler = Compiler(lambda z, _, power=power: -(z**power).sum(-1), 0)
        value, grad = compiler(z, torch.arange(2))
        torch.testing.assert_close(value, -(z**power).sum(-1))
        torch.testing.assert_close(grad, -power * z ** (power - 1))
