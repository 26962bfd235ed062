"""Real radial velocities, K2-24 and HD 164922: evidences, moments of emcee and published values."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import emcee
import numpy as np
import pytest

pytestmark = pytest.mark.reference
EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "real_velocities.py"))
LOG_26 = math.log(2.6)  # m/s, what radvel's tutorial fixes the jitters to


def moments(samples, weights=None):
    """Return means and sds of samples (n, D)."""
    mean = np.average(samples, 0, weights)
    return mean, np.sqrt(np.average((samples - mean) ** 2, 0, weights))


def sd_errors(samples, weights, ess):
    """Return relative Monte-Carlo errors (D,) of sds: a small mode far away makes them large."""
    z = (samples - np.average(samples, 0, weights)) ** 2
    kurtosis = np.average(z**2, 0, weights) / np.average(z, 0, weights) ** 2
    return np.sqrt((kurtosis - 1) / (4 * ess))


def check_moments(found, expected, names, sd_error=0.0):
    """Require means within 0.1 sd, and sds within 10 %, or within three errors of their own."""
    off = (found[0] - expected[0]) / expected[1]
    ratio = found[1] / expected[1]
    for row in zip(names, off.round(3), ratio.round(3), strict=True):
        print(*row)
    assert np.abs(off).max() < 0.1
    assert (np.abs(ratio - 1) < np.maximum(0.1, 3 * sd_error)).all()


# --- K2-24: circular orbits, broad priors -------------------------------------------------------


@pytest.fixture(scope="module")
def published(reference_folder):
    """Return the exact draws of the two problems."""
    folder = reference_folder / "rv" / "K2-24"
    files = {False: "reference.npz", True: "reference_radvel_demo.npz"}
    return {tutorial: np.load(folder / name) for tutorial, name in files.items()}


@pytest.fixture(scope="module")
def k2_24(reference_folder):
    """Return both problems."""
    folder = reference_folder / "rv" / "K2-24"
    return {tutorial: EXAMPLE["k2_24"](folder, tutorial=tutorial) for tutorial in (False, True)}


def test_likelihood_of_k2_24_is_that_of_the_reference(k2_24, published):
    star, samples = k2_24[False], published[False]["samples"][:2000]
    zero_point = samples[:, 4]
    theta = samples[:, [0, 1, 2, 3, 5]]  # K1, K2, dvdt, curv, jitter
    full = star.engine().prior.complete(theta)
    model = star.velocity(full, star.t) + zero_point[:, None]
    noise = star.noise.noise.bind(True, tuple(star.prior))
    found = noise.log_likelihood(full, model[:, None], star.observations)
    np.testing.assert_allclose(found, published[False]["logl"][:2000], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def tutorial_posterior(k2_24):
    return EXAMPLE["fit_in_rounds"](k2_24[True])[1]


def check_evidence(star, posterior, expected, error):
    """Require ln Z within four standard errors, for a zero point of density 1 per m/s."""
    found, own = EXAMPLE["flat_evidence"](star, posterior), posterior.log_evidence_err
    print(f"ln Z {found:.3f} +- {own:.3f}, expected {expected:.3f} +- {error:.3f}")
    assert own < 0.02
    assert abs(found - expected) < 4 * math.hypot(own, error)


def test_k2_24_has_the_moments_and_the_evidence_of_the_reference(k2_24, published):
    """The zero point there is uniform in +-50 m/s, of density 1 / 100 per m/s, and known to 1."""
    posterior = EXAMPLE["fit_in_rounds"](k2_24[False], seed=1)[1]
    assert posterior.certified
    check_k2_24(posterior, k2_24, published)


@pytest.mark.statistics
def test_k2_24_is_right_in_five_seeds_and_certified_in_three(k2_24, published):
    """Seed 0 is not: the velocities allow that a planet is absent, a thousandth of the posterior.

    In latent coordinates that makes a spread, of a shape whose Pareto tail does not pass.
    """
    certified = 0
    for seed in range(5):
        posterior = EXAMPLE["fit_in_rounds"](k2_24[False], seed=seed)[1]
        print(seed, posterior)
        certified += posterior.certified
        check_k2_24(posterior, k2_24, published)
    assert certified >= 3


def check_k2_24(posterior, k2_24, published):
    there = moments(np.delete(published[False]["samples"], 4, axis=1))
    check_moments(moments(posterior.samples, posterior.weights), there, posterior.names)
    check_evidence(k2_24[False], posterior, -104.160 + math.log(100), 0.003)


@pytest.mark.statistics
def test_k2_24_of_the_tutorial_is_that_of_the_reference(k2_24, published, tutorial_posterior):
    assert tutorial_posterior.certified
    there = published[True]["samples"].copy()
    there[:, :2] = np.exp(there[:, :2])
    found = moments(tutorial_posterior.samples, tutorial_posterior.weights)
    check_moments(found, moments(there), tutorial_posterior.names)
    check_evidence(k2_24[True], tutorial_posterior, -103.342, 0.002)


@pytest.mark.statistics
@pytest.mark.xfail(strict=True, reason="0.05 % of the posterior, at K_2 = 0, is not visited")
def test_k2_24_of_the_tutorial_has_the_spread_of_ln_k(published, tutorial_posterior):
    """A share of 5e-4 of the posterior lies at ln K_2 < -1, down to -20: half of its variance."""
    k_2 = np.log(tutorial_posterior.samples[:, [1]])
    there = moments(published[True]["samples"][:, [1]])
    check_moments(moments(k_2, tutorial_posterior.weights), there, ["ln K_2"])


# --- HD 164922 ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, LOG_26], ids=["free jitters", "tutorial"])
def hd_164922(request, reference_folder):
    """Return the problem, its fitted engine and its posterior."""
    star = EXAMPLE["hd_164922"](reference_folder / "rv" / "HD164922", jitter=request.param)
    return star, *EXAMPLE["fit_by_chains"](star, EXAMPLE["PERIODS"])


def chains_of(star, engine, n_steps, seed):
    """Return draws (n, D) of emcee's walkers, which begin near a linear fit of circular orbits."""
    rng = np.random.default_rng(seed)
    place = EXAMPLE["circular_orbits"](star, EXAMPLE["PERIODS"])
    width = np.array([1.0, 5.0, 0.05, 0.05, 0.2, 0.01, 1.0, 0.05, 0.05, 0.2, *[0.2] * 3])
    start = place + width[: len(place)] * rng.normal(size=(4 * len(place), len(place)))
    prior, noise = engine.prior_, engine.noise_

    def log_density(theta):
        inside = prior.log_prob(theta)
        full = prior.complete(theta)
        with np.errstate(invalid="ignore"):  # orbits outside the prior may be open
            model = star.velocity(full, star.t)[:, None]
        value = inside + noise.log_likelihood(full, model, star.observations)
        return np.where(np.isfinite(inside) & ~np.isnan(value), value, -np.inf)

    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.DESnookerMove(), 0.2)]
    sampler = emcee.EnsembleSampler(*start.shape, log_density, moves=moves, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(start, n_steps)
    length = sampler.get_autocorr_time(discard=n_steps // 4, quiet=True).max()
    print(f"autocorrelation {length:.0f} steps of {n_steps}")
    assert n_steps * 0.75 * len(start) / length > 2000  # effective draws: means to 0.022 sd
    return sampler.get_chain(discard=n_steps // 4, thin=5, flat=True)


# nautilus 1.0.6 with n_live=2000, n_eff=10000, discard_exploration=True, seed 1; log Z -831.07. Of
# the second planet 0.7 % lie at K_2 > 3 m/s, where no walker goes that begins at a circular orbit.
TUTORIAL_MOMENTS = np.array([
    [1198.8753, -0.2304, -0.2353, 0.2409, 7.1710, 75.7747, -499.9386, 0.0074, 0.3833, 2.1623],
    [2.5711, 8.6341, 0.0449, 0.0602, 0.1447, 0.0319, 1.8247, 0.2090, 0.0910, 0.1807],
])  # fmt: skip


@pytest.mark.statistics
def test_hd_164922_has_the_moments_of_another_sampler(hd_164922):
    star, engine, posterior = hd_164922
    assert posterior.certified
    if len(posterior.names) == TUTORIAL_MOMENTS.shape[1]:
        expected = TUTORIAL_MOMENTS
    else:
        expected = moments(chains_of(star, engine, n_steps=8000, seed=1))
    own = posterior.samples, posterior.weights
    check_moments(moments(*own), expected, posterior.names, sd_errors(*own, posterior.ess))


@pytest.mark.statistics
def test_hd_164922_is_what_is_published(hd_164922):
    """Agree within half of the published errors.

    The data are binned alike but for the weights within a night. With free jitters the errors are
    the published ones, too, to a fifth. Those of the tutorial are of 200 steps of emcee, of which
    it prints that they are not converged: its error of the period is half that of long
    chains, see above.
    """
    star, _, posterior = hd_164922
    found = EXAMPLE["results"](star, posterior)
    rows = {k: (*found[k], *there) for k, there in star.published.items()}
    for name, row in rows.items():
        print(name, *np.round(row, 4))
    for value, error, expected, its_error in rows.values():
        assert abs(value - expected) < 0.5 * its_error
        assert "jitter_k" not in found or abs(error / its_error - 1) < 0.2


@pytest.mark.peers
@pytest.mark.filterwarnings("default")
def test_likelihood_of_hd_164922_is_that_of_radvel(reference_folder):
    pytest.importorskip("radvel")
    star = EXAMPLE["hd_164922"](reference_folder / "rv" / "HD164922")
    place = EXAMPLE["circular_orbits"](star, EXAMPLE["PERIODS"])
    near = np.random.default_rng(0).normal(1.0, [0.001] * 10 + [0.1] * 3, (5, 13)) * place
    near[:, [2, 3, 7, 8]] = np.random.default_rng(1).uniform(-0.6, 0.6, (5, 4))
    noise = star.noise.bind(True, tuple(star.prior))
    found = noise.log_likelihood(near, star.velocity(near, star.t)[:, None], star.observations)
    found += 3 * math.log(math.sqrt(2 * math.pi) * EXAMPLE["FLAT"])
    np.testing.assert_allclose(found, [radvels(star, row) for row in near], rtol=0, atol=1e-5)


def radvels(star, theta):
    """Return radvel's log-likelihood, its zero points marginalised."""
    import radvel

    batch = star.observations.batch()
    code, x, error = batch.coords["instrument"][0].numpy(), batch.x[0, 0].numpy(), batch.x_err[0, 0]
    parameters = radvel.Parameters(2, basis="per tc secosw sesinw k")
    names = [f"{name}{i}" for i in (1, 2) for name in ("per", "tc", "secosw", "sesinw", "k")]
    for name, value in zip(names, theta, strict=False):
        parameters[name] = radvel.Parameter(value=value)
    for name in ("dvdt", "curv"):
        parameters[name] = radvel.Parameter(value=0.0)
    model, parts = radvel.RVModel(parameters), []
    for i, name in enumerate(batch.categories["instrument"]):
        own = code == i
        data = (star.t[own], x[own], error.numpy()[own])
        part = radvel.likelihood.RVLikelihood(model, *data, suffix=f"_{name}")
        part.params[f"gamma_{name}"] = radvel.Parameter(value=0.0, vary=False, linear=True)
        part.params[f"jit_{name}"] = radvel.Parameter(value=theta[10 + i])
        parts.append(part)
    whole = radvel.likelihood.CompositeLikelihood(parts)
    whole.vector.dict_to_vector()
    return whole.logprob()
