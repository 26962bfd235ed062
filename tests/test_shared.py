"""One theta behind several objects, and parameters of which some are shared: closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from scipy.special import logsumexp
from scipy.stats import halfnorm, norm, uniform

import nbi_plus as nbi
from nbi_plus.infer.posterior.predictive import _mean_tails, _together
from nbi_plus.infer.shared.layout import SharedLayout
from nbi_plus.infer.shared.product import product
from nbi_plus.models.radial_velocity import Orbits
from nbi_plus.problem.binding import bind_simulator
from nbi_plus.problem.target import DataSets, Target

SIGMA = 0.3
PROBLEM = LinearGaussian(n_dim=3, n_points=8, sigma=SIGMA)
pytestmark = pytest.mark.filterwarnings("ignore::nbi_plus.UntrustedWarning")


@dataclass(frozen=True)
class Joint:
    """Mean, covariance and log evidence of all parameters of a linear problem."""

    mean: np.ndarray
    sd: np.ndarray
    log_z: float

    @classmethod
    def of(cls, design, y):
        """Return those of y (n,) = design.T (n, J) @ theta (J,), theta ~ N(0, 1), and noise."""
        cov = np.linalg.inv(np.eye(len(design)) + design @ design.T / SIGMA**2)
        whole = SIGMA**2 * np.eye(len(y)) + design.T @ design
        log_z = -0.5 * (y @ np.linalg.solve(whole, y) + np.linalg.slogdet(2 * np.pi * whole)[1])
        return cls(cov @ design @ y / SIGMA**2, np.sqrt(np.diag(cov)), log_z)

    def check(self, found, errors=3.0, wide=0.04):
        """Compare within so many standard errors; sd within a share."""
        off = (found.mean() - self.mean) / self.sd * np.sqrt(found.ess)
        assert np.abs(off).max() < errors
        np.testing.assert_allclose(found.std(), self.sd, rtol=wide)
        assert abs(found.log_evidence - self.log_z) < 3 * found.log_evidence_err


def in_torch(theta):
    return theta @ torch.as_tensor(PROBLEM.design, dtype=theta.dtype)


@pytest.fixture(scope="module")
def engine():
    """Return an engine of a black box."""
    engine = nbi.Engine(PROBLEM.simulator, PROBLEM.prior, noise=SIGMA, featurizer="mlp")
    return engine.fit(2000, n_epochs=15)


@pytest.fixture(scope="module")
def with_gradients(engine):
    """Return the same with a simulator in torch."""
    own = nbi.Engine(in_torch, PROBLEM.prior, noise=SIGMA)
    return own._keep(engine.fitted_.with_simulator(in_torch))


def repeats(n, seed=5):
    """Return data (n, L) of one theta."""
    rng = np.random.default_rng(seed)
    return np.array([0.7, -0.4, 1.2]) @ PROBLEM.design + SIGMA * rng.normal(size=(n, 8))


def test_fifty_objects_are_the_closed_form(engine):
    x = repeats(50)
    found = engine.predict_shared(nbi.Observations.from_arrays(x), 14_000)
    assert found.trusted
    assert found.ess >= 4000
    Joint.of(np.tile(PROBLEM.design, 50), x.ravel()).check(found)
    np.testing.assert_allclose(
        found.log_likelihood[:20],
        sum(engine.log_likelihood(found.samples[:20], own) for own in x),
    )


def test_order_is_irrelevant(engine):
    some = nbi.Observations.from_arrays(repeats(5))
    there, back = (engine.predict_shared(own, 500) for own in (some, some[::-1]))
    np.testing.assert_array_equal(there.samples, back.samples)
    assert there.data_hash == back.data_hash != engine.predict_shared(some[:4], 500).data_hash


def test_one_object_is_that_of_predict(engine):
    x = repeats(1)
    alone = engine.predict(x[0], n_samples=500)
    together = engine.predict_shared(nbi.Observations.from_arrays(x), 500)
    np.testing.assert_array_equal(together.samples, alone.samples)
    assert together.data_hash == alone.data_hash


def nested(n, seed=1):
    """Return data (n, L) of objects that share the second parameter, and what is known of all."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(n, 3))
    theta[:, 1] = 0.5
    x = theta @ PROBLEM.design + SIGMA * rng.normal(size=(n, 8))
    design = np.zeros((1 + 2 * n, n, 8))
    design[0] = PROBLEM.design[1]
    for i in range(n):
        design[1 + 2 * i, i], design[2 + 2 * i, i] = PROBLEM.design[0], PROBLEM.design[2]
    return x, Joint.of(design.reshape(1 + 2 * n, -1), x.ravel())


@pytest.mark.parametrize(("n", "name"), [(4, "engine"), (20, "with_gradients")])
def test_parameters_of_two_levels_are_the_closed_form(n, name, request):
    x, known = nested(n)
    observations = nbi.Observations.from_arrays(x, ids=[f"o{i}" for i in range(n)])
    found = request.getfixturevalue(name).predict_shared(observations, 4000, shared=["p1"])
    assert found.trusted
    assert found.names[:4] == ("p1", "p0[o0]", "p2[o0]", "p0[o1]")
    known.check(found, errors=3.5, wide=0.12)


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("n", "name"),
    [(6, "with_gradients"), (16, "with_gradients"), (30, "with_gradients"),
     (49, "with_gradients"), (6, "engine"), (16, "engine")],
)  # fmt: skip
def test_many_parameters_of_two_levels_are_the_closed_form(n, name, request, capsys):
    x, known = nested(n)
    own = request.getfixturevalue(name)
    found = own.predict_shared(nbi.Observations.from_arrays(x), 4000, shared=["p1"])
    seconds = sum(line.seconds for line in found.rungs)
    with capsys.disabled():
        print(f"\n{name}, {n} objects, {1 + 2 * n} parameters: {found.settled_by}, "
              f"ess {found.ess:.0f}, {seconds:.1f} s")  # fmt: skip
    assert found.trusted
    known.check(found, errors=4, wide=0.15)


def test_answers_of_two_levels_are_kept(engine, tmp_path):
    found = engine.predict_shared(nbi.Observations.from_arrays(nested(2)[0]), 500, shared="p1")
    found.save(tmp_path / "shared.h5")
    again = nbi.Posterior.load(tmp_path / "shared.h5")
    np.testing.assert_array_equal(again["p0[1]"], found["p0[1]"])
    assert again.report == found.report


def test_an_object_of_another_theta_is_a_misfit(engine):
    x = repeats(6)
    x[3] = -x[3]
    found = engine.predict_shared(nbi.Observations.from_arrays(x), 500)
    assert nbi.Flag.MISFIT in found.flags
    assert not found.trusted


def test_p_values_of_several_sets_are_below_a_level_no_more_often():
    each = np.random.default_rng(0).uniform(size=(4000 * 7, 1)).repeat(2, 1)
    owner = torch.arange(4000).repeat_interleave(7)
    found = _together(torch.as_tensor(each), owner, 4000)[:, 0].numpy()
    for level in (0.2, 0.05, 0.01):
        error = np.sqrt(level * (1 - level) / 4000)
        assert 0.7 * level - 3 * error < (found < level).mean() < level + 3 * error


def counted(x, seed):
    """Return the p-values of one answer about sets of counts x (N, L) of mean 4, all in one."""
    n, prior = len(x), nbi.Prior({"a": norm(0, 1)})
    data = nbi.Observations.from_arrays(x.astype(float)).batch()
    bound = bind_simulator(lambda theta: 4 + 0 * theta * np.ones((1, x.shape[1])), prior, data)
    target = Target(prior, bound, nbi.PoissonNoise(), data)
    z = torch.zeros(n, 100, 1, dtype=torch.float64)
    behind = DataSets(target, z, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    tails = _mean_tails(behind, torch.tensor([seed]), seed)
    return tails, _together(tails, behind.owner, 1)[0]


def test_many_sets_of_counts_are_no_misfit_by_chance():
    """Of 4000 sets of data that are made none may be as unlikely: that is no p-value of zero."""
    for seed in range(6):
        x = np.random.default_rng(seed).poisson(4.0, (150, 5))
        each, found = counted(x, seed)
        assert (each > 0).all()
        assert (found > 1e-3).all()


def test_one_strange_set_of_counts_among_many_is_a_misfit():
    x = np.random.default_rng(0).poisson(4.0, (60, 5))
    x[7] = [14, 13, 15, 12, 16]
    each, found = counted(x, 0)
    assert found[0] < 1e-3
    assert (each > 0).all()  # none of those made was as unlikely: that is no proof of never


def test_sets_of_counts_are_compared_with_data_of_their_own():
    each, _ = counted(np.tile([4, 2, 7, 5, 3], (8, 1)), 0)
    assert len(each[:, 0].unique()) > 4  # what they had in common would not average out


def test_products_of_normals_are_exact():
    x, known = nested(3)
    mean, cov = PROBLEM.posterior(x)
    noise = torch.randn(3, 40_000, 3, generator=torch.Generator().manual_seed(0)).double()
    draws = torch.as_tensor(mean)[:, None] + noise @ torch.as_tensor(np.linalg.cholesky(cov)).mT
    layout = SharedLayout.of(PROBLEM.prior, ["p1"], [0, 1, 2], torch.device("cpu"))
    found = product(draws, layout)
    np.testing.assert_allclose(found.mean, known.mean, atol=5 * known.sd.max() / 200)
    np.testing.assert_allclose(found.factor.square().sum(1).sqrt(), known.sd, rtol=0.03)


# --- light curves ---------------------------------------------------------------------------------


def sine(theta, t, gain):
    period, amplitude, phase = (theta[:, i : i + 1] for i in range(3))
    return gain * amplitude * torch.sin(2 * torch.pi * t / period + phase)


SINES = nbi.Prior({
    "period": uniform(2, 2), "amplitude": halfnorm(0, 1), "phase": nbi.Circular(2 * np.pi),
})  # fmt: skip


def light_curves(amplitudes, phases):
    """Return light curves of different lengths, times, errors and gains, and one period."""
    rng = np.random.default_rng(3)
    lengths, gains = [12, 17, 9], np.array([1.0, 2.0, 0.5])
    t = [np.sort(rng.uniform(0, 12, n)) for n in lengths]
    err = [rng.uniform(0.2, 0.4, n) for n in lengths]
    x = [
        g * a * np.sin(2 * np.pi * own / 2.7 + p) + e * rng.normal(size=len(own))
        for own, e, g, a, p in zip(t, err, gains, amplitudes, phases, strict=True)
    ]
    return nbi.Observations.from_arrays(x, err, t=t, scalars={"gain": gains})


@dataclass(frozen=True)
class Grid:
    """The likelihood of single light curves on a grid of period, amplitude and phase."""

    period: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    log_like: np.ndarray

    @classmethod
    def of(cls, observations):
        period = 2 + 2 * (np.arange(500) + 0.5) / 500
        phase = 2 * np.pi * (np.arange(48) + 0.5) / 48
        amplitude = np.linspace(0.005, 2.5, 250)
        found = []
        for one in observations:
            data = one.batch()
            t, x, err = data.coords["t"][0].numpy(), data.x[0, 0].numpy(), data.x_err[0, 0].numpy()
            shape = np.sin(2 * np.pi * t / period[:, None, None] + phase[:, None])
            shape = shape * data.scalars["gain"].item() / err
            y = x / err
            own = amplitude * (shape @ y)[..., None]
            own = own - 0.5 * amplitude**2 * np.square(shape).sum(-1)[..., None]
            found.append(own - 0.5 * y @ y - np.log(np.sqrt(2 * np.pi) * err).sum())
        return cls(period, amplitude, phase, np.stack(found))

    @property
    def log_prior(self):
        """Log of the prior's share of each amplitude; periods and phases have equal ones."""
        step = self.amplitude[1] - self.amplitude[0]
        return halfnorm(0, 1).logpdf(self.amplitude) + np.log(step) - np.log(500 * 48)

    def of_periods(self, log_z):
        """Return mean and sd of the period, and log Z, where log_z (500,) is of each."""
        shares = np.exp(log_z - logsumexp(log_z))
        mean = shares @ self.period
        return mean, np.sqrt(shares @ (self.period - mean) ** 2), logsumexp(log_z)


@pytest.fixture(scope="module")
def curves():
    """Return an engine of light curves."""
    engine = nbi.Engine(sine, SINES, featurizer="set", flow={"n_blocks": 4, "hidden": 32})
    return engine.fit(3000, n_epochs=8, observations=light_curves([1, 1, 1], [0, 1, 2]))


def test_light_curves_of_one_sine_are_those_of_a_joint_fit(curves):
    observations = light_curves([0.8] * 3, [1.0] * 3)
    grid = Grid.of(observations)
    mean, sd, log_z = grid.of_periods(logsumexp(grid.log_like.sum(0) + grid.log_prior, axis=(1, 2)))
    found = curves.predict_shared(observations, 6000)
    assert found.trusted
    error = sd / np.sqrt(found.ess)
    assert abs(found.mean()[0] - mean) < 3.5 * error
    assert found.std()[0] == pytest.approx(sd, rel=0.06)
    assert abs(found.log_evidence - log_z) < 3 * np.hypot(found.log_evidence_err, 0.01)


def test_light_curves_of_one_period_are_those_of_a_joint_fit(curves):
    observations = light_curves([0.8, 0.5, 1.2], [1.0, 3.0, 6.2])[:2]
    grid = Grid.of(observations)
    each = logsumexp(grid.log_like + grid.log_prior + np.log(500), axis=(2, 3))
    mean, sd, log_z = grid.of_periods(each.sum(0) - np.log(500))
    found = curves.predict_shared(observations, 6000, shared=("period",))
    assert found.trusted
    own = [f"{name}[{i}]" for i in range(2) for name in ("amplitude", "phase")]
    assert found.names == ("period", *own)
    error = sd / np.sqrt(found.ess)
    assert abs(found.mean()[0] - mean) < 3.5 * error
    assert found.std()[0] == pytest.approx(sd, rel=0.08)
    assert abs(found.log_evidence - log_z) < 3 * np.hypot(found.log_evidence_err, 0.01)


# --- refusals -------------------------------------------------------------------------------------


def test_nothing_to_share_and_nobody_to_share_it_are_refused(engine):
    some = nbi.Observations.from_arrays(repeats(2))
    for shared in (5, [], "p9", ["p0", "p9"]):
        with pytest.raises(ValueError, match="shared must name some of the parameters"):
            engine.predict_shared(some, shared=shared)
    with pytest.raises(ValueError, match="at least one object"):
        engine.predict_shared(some[:0])


def test_what_cannot_be_answered_together_is_refused(engine, with_gradients):
    some = nbi.Observations.from_arrays(repeats(60))
    with pytest.raises(ValueError, match="must name some of the parameters"):
        engine.predict_shared(some, shared=["q"])
    with pytest.raises(ValueError, match="must name some of the parameters"):
        engine.predict_shared(some, shared=[])
    with pytest.raises(ValueError, match="at most 40 parameters together, 100 of a simulator"):
        engine.predict_shared(some[:20], shared=["p1"])
    with pytest.raises(ValueError, match="at most 100 parameters together, but 50"):
        with_gradients.predict_shared(some[:50], shared=["p1"])
    with pytest.raises(ValueError, match="n_samples must be"):
        engine.predict_shared(some, 0)
    empty = replace(some, valid=some.valid & (np.arange(480) >= 8))
    with pytest.raises(ValueError, match=r"1 cannot \(first: 0, FAIL_INPUT: no valid point"):
        engine.predict_shared(empty)


def test_without_a_likelihood_is_refused(engine):
    alone = nbi.Engine()._keep(replace(engine.fitted_, simulator=None))
    with pytest.raises(ValueError, match="no simulator was given.*RatioEngine or LikelihoodEngine"):
        alone.predict_shared(nbi.Observations.from_arrays(repeats(2)))


@pytest.mark.parametrize("shared", [None, ["mu"]])
def test_learned_likelihoods_add_up(shared):
    def pair(theta):
        return theta[:, :1] + theta[:, 1:] + torch.randn(len(theta), 1, dtype=theta.dtype)

    prior = nbi.Prior({"mu": norm(0, 2), "own": norm(0, 1)})
    likelihood = nbi.LikelihoodEngine(pair, prior).fit(n_sims=3000, n_epochs=10)

    def trials(theta):  # five of each
        return theta.sum(1, keepdim=True) + torch.randn(len(theta), 5, dtype=theta.dtype)

    engine = nbi.Engine(trials, prior, likelihood=likelihood, featurizer="mlp")
    engine.fit(n_sims=300, n_epochs=2)
    x = 0.5 + np.random.default_rng(0).normal(size=(4, 5))
    found = engine.predict_shared(nbi.Observations.from_arrays(x), 1000, shared=shared)
    assert found.status is nbi.Status.LEARNED
    assert nbi.Flag.EXTRAPOLATED not in found.flags
    mu, some = found["mu"][:20], range(4)
    own = [found["own"][:20] if shared is None else found[f"own[{i}]"][:20] for i in some]
    wanted = sum(engine.log_likelihood(np.stack([mu, own[i]], 1), x[i]) for i in some)
    np.testing.assert_allclose(found.log_likelihood[:20], wanted)
    far = nbi.Observations.from_arrays(np.concatenate([x, x[:1] + 30.0]))
    assert nbi.Flag.EXTRAPOLATED in engine.predict_shared(far, 500, shared=shared).flags


# --- three curves of one orbit -------------------------------------------------------------------

ORBIT = {
    "period": norm(10, 0.5), "t_conj": norm(3, 0.8), "sqrt_e_cos_w": uniform(-0.6, 1.2),
    "sqrt_e_sin_w": uniform(-0.6, 1.2), "K": uniform(5, 40), "gamma": norm(0, 10),
}  # fmt: skip


@pytest.mark.statistics
def test_three_curves_of_one_orbit_are_what_nested_sampling_says():
    """The reference is of nautilus 1.0.6, on the sum of the three log-likelihoods.

    ``Sampler(prior, likelihood, n_live=2000, vectorized=True, seed=1).run(n_eff=20000,
    discard_exploration=True)``: 83 700 calls; its own errors are 0.7 % of an sd, and 0.01 of log Z.
    """
    star, rng = Orbits(n_trend=1), np.random.default_rng(7)
    t = np.sort(rng.uniform(0, 25, (3, 12)), 1) + np.array([[0.0], [30.0], [61.0]])
    error = np.array([2.0, 4.0, 6.0])[:, None] * np.ones(12)
    truth = np.array([[10.1, 2.8, 0.35, 0.3, 20.0, 4.0]])
    v = star(np.tile(truth, (3, 1)), t) + error * rng.normal(size=t.shape)
    curves = nbi.Observations.from_arrays(v, error, t=t)
    engine = nbi.Engine(star, ORBIT, noise=nbi.GaussianNoise())
    engine.fit(20_000, n_epochs=15, observations=curves, progress=False)
    found = engine.predict_shared(curves, 24_000, progress=False)
    assert found.trusted
    assert found.ess >= 4000
    mean = np.array([10.110413, 2.927754, 0.347147, 0.199967, 19.041363, 4.300768])
    sd = np.array([0.035750, 0.194632, 0.074722, 0.084625, 0.714675, 0.610654])
    off = (found.mean() - mean) / sd
    assert np.abs(off).max() < 3.5 * (1 / found.ess + 1 / 20_000) ** 0.5
    # a standard deviation of normals is off by 1 / sqrt(2 n); these have tails
    np.testing.assert_allclose(found.std(), sd, rtol=3.5 * (0.75 / found.ess) ** 0.5)
    assert abs(found.log_evidence + 105.374) < 3 * np.hypot(found.log_evidence_err, 0.01)
