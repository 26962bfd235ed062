"""A real microlensing event, OGLE-2008-BLG-092, against its published MultiNest posterior."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import emcee
import numpy as np
import pytest
import torch
from scipy.stats import uniform

import nbi_plus as nbi
from nbi_plus.models.microlensing import point_lens

pytestmark = pytest.mark.reference
ZERO = 2_455_379.0  # subtracted from all times: days of seven digits leave float32 quarters of one


def fluxes(model, data, error):
    """Return the least-squares fluxes of source and blend, and their chi2.

    Parameters
    ----------
    model : Tensor, shape (..., L)
        Magnification.
    data, error : Tensor, shape (..., L)
    """
    weight = error**-2
    total = weight.sum(-1, keepdim=True)
    mean = [(weight * v).sum(-1, keepdim=True) / total for v in (model, data)]
    rise, signal = model - mean[0], data - mean[1]  # about their means: nothing cancels
    source = (weight * rise * signal).sum(-1, keepdim=True) / (weight * rise**2).sum(
        -1, keepdim=True
    )
    blend = mean[1] - source * mean[0]
    return source[..., 0], blend[..., 0], (weight * (signal - source * rise) ** 2).sum(-1)


def profiled(theta, model, obs):
    """Return -chi2 / 2 at the best fluxes, as the published evidence has it: not normalised."""
    return -0.5 * fluxes(model[..., 0, :], obs.x[..., 0, :], obs.x_err[..., 0, :])[2]


def scattered(model, obs, theta, rng):
    """Return noisy curves at the best fluxes of the data."""
    source, blend, _ = fluxes(model[:, 0], obs.x[:, 0].to(model), obs.x_err[:, 0].to(model))
    curve = source[:, None, None] * model + blend[:, None, None]
    noise = torch.randn(model.shape, generator=rng, dtype=model.dtype, device=model.device)
    return curve + noise * obs.x_err.to(model)


class Event:
    """Photometry of the event, and the draws (4127, 6) published of its posterior."""

    def __init__(self, folder):
        folder = folder / "microlensing" / "OB08092"
        time, magnitude, error = np.loadtxt(folder / "phot_ob08092_O4.dat").T
        self.t = time + 2_450_000.0 - ZERO
        self.flux = 10 ** (0.4 * (22.0 - magnitude))
        self.error = self.flux * error * 0.4 * math.log(10)
        name = "out_ob08092_O4_MN-post_equal_weights.dat"
        self.published = np.loadtxt(folder / "peer_multinest" / name) - [ZERO, 0, 0, 0, 0, 0]

    def fluxes(self, theta):
        """Return the best fluxes of source and blend (n,) for theta (n, 3), and their chi2."""
        model = torch.from_numpy(point_lens(theta, self.t))
        return [v.numpy() for v in fluxes(model, *map(torch.from_numpy, (self.flux, self.error)))]


@pytest.fixture(scope="module")
def event(reference_folder):
    return Event(reference_folder)


@pytest.fixture(scope="module")
def engine(event):
    """Return the engine of a sequential fit."""
    prior = nbi.Prior(
        {
            "t_0": uniform(0.40, 0.36),
            "u_0": uniform(0.30, 0.35),
            "t_E": uniform(16.0, 3.6),
        },
        derived={"f_s": lambda p: event.fluxes(p)[0], "f_b": lambda p: event.fluxes(p)[1]},
    )
    engine = nbi.Engine(
        point_lens, prior, noise=nbi.CustomNoise(scattered, profiled), featurizer="resnet"
    )
    engine.fit(
        n_sims=1000,
        n_rounds=20,
        x_obs=event.flux,
        x_err=event.error,
        t=event.t,
        ess_target=4000,
        n_epochs=8,
    )
    print(engine.rounds_, engine.posterior_)
    return engine


@pytest.fixture(scope="module")
def posterior(engine):
    return engine.posterior_


@pytest.fixture(scope="module")
def example():
    """Return the example, which marginalises the fluxes."""
    return runpy.run_path(str(Path(__file__).parents[1] / "examples" / "real_microlensing.py"))


def moments(samples, weights=None):
    """Return means and sds of samples (n, D)."""
    mean = np.average(samples, 0, weights)
    return mean, np.sqrt(np.average((samples - mean) ** 2, 0, weights))


def check_moments(found, expected, share):
    """Require means within ``share`` of a sd, and sds as close."""
    off, ratio = (found[0] - expected[0]) / expected[1], found[1] / expected[1]
    print("off / sd", off.round(3), "sd ratio", ratio.round(3))
    assert np.abs(off).max() < share
    assert np.abs(ratio - 1).max() < share


def test_likelihood_is_the_published_one(event):
    source, blend, chi2 = event.fluxes(event.published[:, :3])
    np.testing.assert_allclose(-0.5 * chi2, event.published[:, 5], rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.c_[source, blend], event.published[:, 3:5], rtol=0, atol=1e-8)


def test_evidence_is_the_published_one(posterior):
    """MultiNest has -219.501 +- 0.066, dynesty -219.51 +- 0.07."""
    assert posterior.certified
    assert posterior.log_evidence_err < 0.03
    assert abs(posterior.log_evidence - -219.50) < 0.1


def test_parameters_and_fluxes_are_the_published_ones(event, posterior):
    samples = np.c_[posterior.samples, posterior.derived["f_s"], posterior.derived["f_b"]]
    check_moments(moments(samples, posterior.weights), moments(event.published[:, :5]), 0.1)


@pytest.mark.statistics
def test_parameters_are_those_of_emcee(event, engine, posterior):
    def log_density(theta):
        return engine.log_posterior(theta, event.flux, event.error, t=event.t)

    sampler = emcee.EnsembleSampler(32, 3, log_density, vectorize=True)
    sampler.random_state = np.random.RandomState(1).get_state()
    low, high = np.array([0.40, 0.30, 16.0]), np.array([0.76, 0.65, 19.6])
    start = np.random.default_rng(1).uniform(
        0.7 * low + 0.3 * high, 0.3 * low + 0.7 * high, (32, 3)
    )
    sampler.run_mcmc(start, 5000)
    length = sampler.get_autocorr_time(discard=500).max()
    assert 4500 * 32 / length > 2000  # effective draws: means to 0.022 sd
    chains = sampler.get_chain(discard=500, flat=True)
    check_moments(moments(posterior.samples, posterior.weights), moments(chains), 0.1)


@pytest.mark.statistics
def test_marginal_fluxes_shift_the_posterior_as_their_covariance_says(
    event, posterior, example, reference_folder
):
    """Integrated over, fluxes weigh each theta with the volume of their posterior.

    At a theta the likelihood is Gaussian in the two fluxes, so that its integral over them is its
    height, the profiled likelihood, times the root of the determinant of their covariance. That
    moves u0 and tE by 0.07 of their sd; what is found differs from it by Monte Carlo errors alone.
    """
    data = example["read"](reference_folder / "microlensing/OB08092/phot_ob08092_O4.dat")
    np.testing.assert_allclose(data.x[0, 0], event.flux, rtol=1e-12)
    marginal = example["fit"](data)
    assert marginal.posterior_.certified
    covariance = example["fluxes"](marginal, data, posterior.samples)[1]
    weights = posterior.weights * np.linalg.det(covariance) ** 0.5
    expected = moments(posterior.samples, weights)
    shift = (expected[0] - moments(posterior.samples, posterior.weights)[0]) / expected[1]
    print("shift / sd", shift.round(3))
    assert np.abs(shift[1:]).min() > 0.05
    found = marginal.posterior_
    check_moments(moments(found.samples, found.weights), expected, 0.05)
