"""Published benchmark posteriors from 10,000 simulations: no classifier tells ours from theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sbibm import (
    GAUSSIAN_LINEAR_UNIFORM,
    GAUSSIAN_MIXTURE,
    HIDDEN,
    TWO_MOONS,
    Observation,
    c2st,
    posterior_c2st,
)

import nbi_plus as nbi

BUDGET = 10_000  # likelihoods: of learning, of the certificate and of the answer
# sbi's network from as many simulations: 0.606, 0.615 and 0.553
GOAL = 0.52


def solve(observation, seed=0, n_sims=1000, n_epochs=None):
    """Return the posterior of a sequential fit that spends the whole budget.

    One observation is asked for, and a sequential fit spends every simulation on it; of an
    amortized one, all but a few in a hundred would be of other data.
    """
    task = observation.task
    engine = nbi.Engine(
        task.simulator, task.prior, noise=task.noise, featurizer="resnet", seed=seed
    )
    engine.fit(
        n_sims=n_sims,
        n_rounds=40,
        n_epochs=n_epochs,
        x_obs=observation.x,
        max_sims=BUDGET,
        ess_target=BUDGET,
    )
    posterior = engine.posterior_
    simulated = np.isfinite(posterior.log_prior).sum()  # draws too far out are not
    assert simulated <= BUDGET
    return posterior


def check(observation, posterior):
    """Check one posterior against its reference, and say what it came to."""
    score, n_draws = posterior_c2st(posterior, observation.draws)
    exact = observation.task.log_evidence(observation.x)
    error = (posterior.log_evidence - exact) / posterior.log_evidence_err
    print(
        f"{observation.label}: C2ST {score:.4f} ({n_draws} draws), log Z {error:+.1f} errors "
        f"from {exact:.3f}, {posterior}"
    )
    assert n_draws >= (1000 if posterior.certified else 500)  # one heavy weight leaves few
    assert score + HIDDEN / 2 <= GOAL
    assert not abs(error) > 4  # a tail too heavy for an error has none: NaN


def test_classifier_tells_widths_and_places_apart_but_not_copies():
    rng = np.random.default_rng(0)
    reference, draws = rng.normal(size=(4000, 2)), rng.normal(size=(1500, 2))
    same = c2st(draws, reference)
    assert abs(same - 0.5) < 0.027  # three standard errors
    assert c2st(1.3 * draws, reference) > 0.55
    assert c2st(draws + 0.3, reference) > 0.55


@pytest.mark.parametrize("task", [TWO_MOONS, GAUSSIAN_MIXTURE], ids=lambda task: task.name)
def test_noise_density_has_mass_one_over_all_data(task):
    theta, half, n = torch.zeros(1, 2, dtype=torch.float64), 4.5, 900
    cell = 2 * half / n
    axis = -half + cell * (torch.arange(n, dtype=torch.float64) + 0.5)
    x = torch.cartesian_prod(axis, axis)[:, None]
    data = nbi.Observations.from_arrays(x.numpy()).batch()
    model = task.simulator(theta)[:, None].expand(len(x), 1, 2)
    mass = task.noise.log_likelihood(theta.expand(len(x), 2), model, data).exp().sum() * cell**2
    assert abs(float(mass) - 1) < 2e-3


@pytest.mark.reference
def test_reference_draws_of_two_moons_lie_on_the_crescent(reference_folder):
    """The exact density has a factor 1 / r, without which the mean radius would be 0.1010."""
    radii = []
    for number in (1, 2, 3, 4):  # the fifth is cut by the prior
        observation = Observation(TWO_MOONS, number, reference_folder)
        point = observation.x - TWO_MOONS.simulator(torch.from_numpy(observation.draws)).numpy()
        radii.append(np.hypot(point[:, 0] - 0.25, point[:, 1]))
    n = np.size(radii)
    assert abs(np.mean(radii) - 0.1) < 4 * 0.01 / math.sqrt(n)


@pytest.mark.reference
def test_gaussian_mixture_is_solved(reference_folder):
    observation = Observation(GAUSSIAN_MIXTURE, 1, reference_folder)
    posterior = solve(observation)
    check(observation, posterior)
    assert posterior.certified


@pytest.mark.reference
@pytest.mark.statistics
@pytest.mark.parametrize(
    ("task", "n_observations", "n_seeds", "least", "options"),
    [
        # right answers all, but at the crescent's sharp edge k-hat refuses four certificates in ten
        (TWO_MOONS, 5, 4, 0.55, {}),
        (GAUSSIAN_MIXTURE, 5, 1, 0.8, {}),
        # ten dimensions are found by one larger round, not by two
        (GAUSSIAN_LINEAR_UNIFORM, 3, 1, 0.6, {"n_sims": 2000, "n_epochs": 10}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_task_is_solved(reference_folder, task, n_observations, n_seeds, least, options):
    certified = []
    for number in range(1, n_observations + 1):
        observation = Observation(task, number, reference_folder)
        for seed in range(n_seeds):
            posterior = solve(observation, seed, **options)
            check(observation, posterior)
            certified.append(posterior.certified)
    assert np.mean(certified) >= least
