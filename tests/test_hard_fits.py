"""One hard object each, fitted in rounds with gradients, against nested sampling.

References are of nautilus 1.0.6 (``Sampler(n_live=2000, periodic=angles).run(n_eff=20000,
discard_exploration=True)``, seed 1) in the unit cube of the same priors, with the same likelihood;
for the two planets, of 60 000 draws of a proposal fitted with another seed (33 403 effective).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import loguniform, norm, uniform

import nbi_plus as nbi
from benchmarks.ours_sequential import fit
from benchmarks.sequential_gradients import in_torch
from benchmarks.single_problems import load
from nbi_plus.models import kepler
from nbi_plus.models.microlensing import PointLensParallax
from nbi_plus.models.radial_velocity import Orbits

pytestmark = pytest.mark.statistics
SEEDS = range(5)


def parallax_event():
    """Return 383 points of a long event whose lens passes on either side: two modes."""
    rng = np.random.default_rng(92)
    seasons = ((-300, -120, 60), (-90, 150, 263), (270, 400, 60))
    t = 5379.0 + np.sort(np.concatenate([rng.uniform(*season) for season in seasons]))
    model = PointLensParallax(ra=267.0, dec=-32.0, t0_par=5379.0, offset=2450000.0)
    flux = 10 * model(np.array([[5379.6, 0.25, 60.0, 0.15, 0.2]]), t)[0] + 2
    error = 0.02 * flux**0.5 * rng.uniform(0.8, 1.4, len(t)) * 3.5
    x = flux + error * rng.normal(size=len(t))
    prior = {
        "t0": uniform(5369, 20), "u0": uniform(-1, 2), "tE": loguniform(20, 200),
        "piEN": norm(0, 0.5), "piEE": norm(0, 0.5),
    }  # fmt: skip
    noise = nbi.LinearNuisance(nbi.GaussianNoise(), ("scale", "offset"), sd=1e3)
    return model, prior, noise, {"x_obs": x, "x_err": error, "t": t}


def two_planets():
    """Return 200 velocities of two eccentric planets like those of HD 164922: 12 parameters."""
    rng = np.random.default_rng(164922)
    t = np.sort(rng.uniform(-5000, 900, 200))
    star = Orbits(2, n_trend=1)
    shapes = [
        [math.sqrt(e) * f(w) for f in (math.cos, math.sin)] for e, w in ((0.3, 2.2), (0.25, 1))
    ]
    truth = [1201.0, 30.0, *shapes[0], 7.2, 75.76, -490.0, *shapes[1], 2.6, 0.5]
    error = rng.uniform(1.0, 2.5, len(t))
    x = star(np.array([truth]), t)[0] + np.hypot(error, 2.0) * rng.normal(size=len(t))
    prior = {}
    for i, (period, near, t_conj) in enumerate([(1200, 100, 0), (75.75, 1, -500)], 1):
        prior[f"period_{i}"] = uniform(period - near, 2 * near)
        prior[f"t_conj_{i}"] = uniform(t_conj - period / 2, period)
        prior |= {f"sqrt_e_{part}_w_{i}": uniform(-0.7, 1.4) for part in ("cos", "sin")}
        prior[f"K_{i}"] = loguniform(0.1, 100)
    prior |= {"gamma": norm(0, 10), "jitter": uniform(0, 10)}
    noise = nbi.GaussianNoise(jitter="jitter")
    return (
        lambda theta, t: star(theta[:, :11], t),
        prior,
        noise,
        {"x_obs": x, "x_err": error, "t": t},
    )


def near_circular():
    """Return 11 velocities of a nearly circular orbit: two angles of which the sum is known."""
    rng = np.random.default_rng(11)
    t = np.sort(rng.uniform(0, 25, 11))

    def velocity(theta, t):
        period, k, e, w, mean, gamma = theta.T[..., None]
        ex, ey = e * torch.cos(w), e * torch.sin(w)
        f = kepler.eccentric_longitude(mean + w + 2 * math.pi * t / period, ex, ey)
        ratio, sin, cos = kepler.axis_ratio(e), torch.sin(f), torch.cos(f)
        beta = 1 / (1 + ratio)
        rate = (1 - beta * ex * ex) * cos - beta * ex * ey * sin
        return gamma + k * ratio * rate / (1 - ex * cos - ey * sin)

    truth = torch.tensor([[3.52, 60.0, 0.03, 1.1, 2.4, 5.0]], dtype=torch.float64)
    error = np.full(11, 8.0)
    x = velocity(truth, torch.as_tensor(t))[0].numpy() + error * rng.normal(size=11)
    angle = nbi.Circular(2 * math.pi)
    prior = {
        "period": norm(3.52, 0.02), "K": loguniform(1, 500), "e": uniform(0, 0.6),
        "w": angle, "M0": angle, "gamma": norm(0, 50),
    }  # fmt: skip
    return velocity, prior, nbi.GaussianNoise(), {"x_obs": x, "x_err": error, "t": t}


def fitted(case, seed, n_rounds):
    simulator, prior, noise, data = case
    engine = nbi.Engine(simulator, prior, noise=noise, seed=seed)
    engine.fit(n_sims=1000, n_rounds=n_rounds, **data)
    posterior = engine.posterior_
    print(engine.rounds_, posterior, sep="\n")
    assert posterior.certified
    # draws too far out are in the table, but were not simulated
    simulated = np.isfinite(posterior.log_prior).sum() + engine.rounds_.n_gradients
    assert simulated <= 1000 * n_rounds
    assert any(row.phase == "peaks" for row in engine.rounds_)
    return posterior


def check_evidence(posterior, log_z, error):
    off = posterior.log_evidence - log_z
    assert abs(off) < 3 * math.hypot(posterior.log_evidence_err, error)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_sides_of_a_parallax_event_have_their_shares(seed):
    posterior = fitted(parallax_event(), seed, 10)
    check_evidence(posterior, -110.812, 0.007)
    share = posterior.weights[posterior.samples[:, 1] > 0].sum()
    error = math.sqrt(0.276 * 0.724 / posterior.ess)
    print("share", share)
    assert abs(share - 0.276) < 3 * math.hypot(error, 0.003)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bent_tail_of_a_blended_event_is_not_left_out(seed):
    """Normals around the peak end long before it; the weights of their draws say nothing of it."""
    problem = load("microlensing")
    engine = nbi.Engine(in_torch(problem), problem.priors, noise=problem.sigma, seed=seed)
    engine.fit(n_sims=1000, n_rounds=40, x_obs=problem.x_obs, ess_target=2000, max_sims=30_000)
    posterior = engine.posterior_
    print(engine.rounds_, posterior, posterior.std(), sep="\n")
    assert posterior.certified
    check_evidence(posterior, -137.237, 0.007)  # of 20 000 effective draws of nested sampling
    sd = np.array([0.0464, 0.0232, 2.0261, 1.301, 1.217])
    assert np.abs(posterior.std() / sd - 1).max() < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_nearly_circular_orbit_is_certified(seed):
    check_evidence(fitted(near_circular(), seed, 15), -47.609, 0.007)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_eccentric_planets_are_certified(seed):
    posterior = fitted(two_planets(), seed, 15)
    check_evidence(posterior, -492.344, 0.004)


@pytest.mark.parametrize("seed", [0, 1])
def test_an_orbit_gets_its_period_and_the_alias(seed):
    """Where the first fit finds nothing but the alias, the audit's many ways up meet the period."""
    problem = load("kepler")
    posterior = fit(problem, seed, 1000, 2000, 30_000, gradients=True).posterior_
    print(posterior.report)
    held = problem.masses(posterior.samples, posterior.weights)
    assert posterior.certified
    assert held["alias"] == pytest.approx(0.145, abs=4.5 * (0.145 * 0.855 / posterior.ess) ** 0.5)
    assert held["true_period"] == pytest.approx(1 - held["alias"], abs=1e-3)
