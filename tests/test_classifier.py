"""Which model made the data, learned from simulations: exact evidences, files, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import halfnorm, norm

import nbi_plus as nbi
from nbi_plus.estimators.distortions import distortions, rms
from nbi_plus.estimators.mixed import MixedModels
from nbi_plus.inspecting import told
from nbi_plus.problem.noise.custom import as_noise
from nbi_plus.problem.setup import FitInputs
from nbi_plus.trust.reliability import Reliability

T, SIGMA = np.linspace(-1, 1, 8), 0.3
BASES = {name: np.stack([T**i for i in range(n)]) for name, n in
         {"level": 1, "line": 2, "parabola": 3}.items()}  # fmt: skip


def engine_of(basis):
    prior = {f"p{i}": norm(0, 1) for i in range(len(basis))}
    return nbi.Engine(lambda theta: theta @ basis, prior, noise=SIGMA)


def made(names, n, seed=0):
    """Return data of n objects of each model, and their exact log evidences (n M, M)."""
    rng = np.random.default_rng(seed)
    curves = [rng.normal(size=(n, len(BASES[k]))) @ BASES[k] for k in names]
    x = np.concatenate(curves) + SIGMA * rng.normal(size=(n * len(names), 8))
    log_z = []
    for name in names:
        cov = SIGMA**2 * np.eye(8) + BASES[name].T @ BASES[name]
        chi2 = np.einsum("ni,ij,nj->n", x, np.linalg.inv(cov), x)
        log_z.append(-0.5 * (chi2 + np.linalg.slogdet(2 * np.pi * cov)[1]))
    return x, np.stack(log_z, 1)


def shares(log_z):
    odds = np.exp(log_z - log_z.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


TWO = ("level", "line")


@pytest.fixture(scope="module")
def classifier():
    return nbi.ModelClassifier({k: engine_of(BASES[k]) for k in TWO}).fit(8000, n_epochs=20)


def test_probabilities_are_near_the_exact_ones(classifier):
    x, log_z = made(TWO, 200)
    found = classifier.predict_proba(nbi.Observations.from_arrays(x))
    assert np.abs(found - shares(log_z)).mean() < 0.03
    assert classifier.models_ == TWO


def test_held_out_objects_say_that_probabilities_are_reliable(classifier):
    r = classifier.reliability_
    off = (r.share - r.probability) / r.error
    assert np.abs(off[r.count >= 50]).max() < 4
    assert nbi.plots.reliability(r).axes


def test_an_object_of_none_of_them_is_flagged(classifier):
    x, _ = made(TWO, 150, seed=1)
    p = classifier.unlike_any(nbi.Observations.from_arrays(x))
    assert p.min() > 0.0
    assert (p < 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    for odd in (3 * np.sin(9 * T), 3 * (np.arange(8) == 3), 2 * (-1.0) ** np.arange(8)):
        assert np.median(classifier.unlike_any(nbi.Observations.from_arrays(x + odd))) < 0.01


def test_weights_of_models_add_to_log_odds(classifier):
    some = nbi.Observations.from_arrays(made(TWO, 5)[0])
    plain = classifier.predict_log_odds(some)
    p = classifier.predict_proba(some)
    np.testing.assert_allclose(plain[:, 1], np.log(p[:, 1] / p[:, 0]), rtol=1e-9)
    against = classifier.predict_log_odds(some, against="line")
    np.testing.assert_allclose(against, plain - plain[:, [1]])
    other = nbi.ModelClassifier(model_prior={"level": 1, "line": 3})._keep(classifier.fit_)
    np.testing.assert_allclose(other.predict_log_odds(some)[:, 1], plain[:, 1] + np.log(3))


def test_a_classifier_goes_through_a_file_without_its_engines(classifier, tmp_path):
    classifier.save(tmp_path / "which.nbi")
    again = nbi.ModelClassifier.load(tmp_path / "which.nbi")
    some = nbi.Observations.from_arrays(made(TWO, 20)[0])
    for verb in ("predict_proba", "unlike_any"):
        np.testing.assert_array_equal(getattr(again, verb)(some), getattr(classifier, verb)(some))
    assert again.models_ == TWO
    assert again.reliability_.log_score == classifier.reliability_.log_score
    said = told(tmp_path / "which.nbi")
    assert (said["file"], said["models"]) == ("model classifier", list(TWO))


def sine(theta, t, gain):
    return gain * torch.sin(theta[:, :1] * t)


def ramp(theta, t):
    return theta[0] * np.asarray(t)


def night(n=6):
    rng = np.random.default_rng(4)
    t = [np.sort(rng.uniform(0, 5, 4 + i)) for i in range(n)]
    gain = np.arange(1.0, n + 1)
    x = [g * np.sin(own) + 0.1 * rng.normal(size=len(own)) for g, own in zip(gain, t, strict=True)]
    return nbi.Observations.from_arrays(x, t=t, scalars={"gain": gain})


def mixed():
    """Return models of torch and numpy, of all rows and of one, and their engines."""
    engines = {
        "sine": nbi.Engine(sine, {"a": norm(1, 0.1)}, noise=0.1),
        "ramp": nbi.Engine(
            ramp, {"b": norm(0, 1), "s": halfnorm(0, 1)}, noise=nbi.GaussianNoise(0.05, jitter="s")
        ),
    }
    given = FitInputs(night())
    believed = {k: (e._prior(), e.simulator, as_noise(e.noise)) for k, e in engines.items()}
    return MixedModels.of(believed, given, 1), given


def test_models_are_simulated_as_they_are():
    models, given = mixed()
    problem = models.problem(given, 1)
    theta = problem.prior.sample(40, 0)
    batch = problem.conditions.select(torch.arange(40) % 6)
    coords = {k: v.numpy() for k, v in batch.arguments().items()}
    found = problem.simulator.run(theta, coords, batch.per_object()).x
    which = models.which(torch.as_tensor(theta))
    assert 0 < int((which == 1).sum()) < 40
    for i, own in enumerate(models.problems):
        rows = (which == i).numpy()
        z = theta[rows][:, 2 : 2 + own.prior.n_dim]
        there = {k: v[rows] for k, v in coords.items() if k in own.simulator.arguments}
        wanted = own.simulator.run(own.prior.from_latent(z), there, frozenset(there)).x
        np.testing.assert_allclose(found[rows], wanted)


def test_each_model_has_its_own_noise_and_none_has_more():
    models, given = mixed()
    problem, n = models.problem(given, 1), 4000
    theta = torch.zeros(n, 4, dtype=torch.float64)
    obs, clean = problem.conditions.select(torch.zeros(n).long()), torch.zeros(n, 1, 9).double()
    rng = torch.Generator()
    spread = []
    for which in (0.5, 1.5, 2.5):  # of none of them: that of the first, and more
        theta[:, 0] = which
        x = models.noisy(clean, obs, theta, rng.manual_seed(0))
        spread.append((x * obs.mask).square().sum() / obs.mask.sum())
    jitter = float(halfnorm(0, 1).median())
    assert float(spread[0]) == pytest.approx(0.01, rel=0.05)
    assert float(spread[1]) == pytest.approx(0.05**2 + jitter**2, rel=0.05)
    assert float(spread[2]) > 0.03


def test_light_curves_are_classified():
    engines = {"sine": nbi.Engine(sine, {"a": norm(1, 0.1)}, noise=0.1),
               "ramp": nbi.Engine(ramp, {"b": norm(0, 1)}, noise=0.1)}  # fmt: skip
    found = nbi.ModelClassifier(engines, featurizer="set")
    found.fit(1500, n_epochs=10, observations=night())
    assert found.predict_proba(night())[:, 0].min() > 0.8


def scattered(basis):
    """Return a simulator that draws the noise itself."""

    def simulate(theta):
        x = theta @ torch.as_tensor(basis)
        return x + SIGMA * torch.randn(x.shape, dtype=x.dtype)

    return simulate


NOTHING_ADDED = nbi.CustomNoise(lambda model, obs, theta, rng: model)  # noqa: ARG005
LEVELS = nbi.Observations.from_arrays(made(("level",), 60, seed=3)[0])


def test_noise_may_be_drawn_by_simulators():
    found = nbi.ModelClassifier({k: nbi.Engine(scattered(BASES[k]), engine_of(BASES[k]).prior,
                                               noise=NOTHING_ADDED) for k in TWO})  # fmt: skip
    found.fit(16_000, n_epochs=20)
    x, log_z = made(TWO, 200)
    objects = nbi.Observations.from_arrays(x)
    assert np.abs(found.predict_proba(objects) - shares(log_z)).mean() < 0.03
    p = found.unlike_any(objects)
    assert (p < 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    for odd in (3 * np.sin(9 * T), 3 * (np.arange(8) == 3), 2 * (-1.0) ** np.arange(8)):
        assert np.median(found.unlike_any(nbi.Observations.from_arrays(x + odd))) < 0.01


def test_a_simulator_that_scatters_tells_how_much():
    prior = nbi.Prior({"p0": norm(0, 1)})
    two = [lambda theta: theta @ np.ones((1, 400)), scattered(np.ones((1, 400)))]
    for simulator, x_err, scatter, known in (
        (two[0], None, 0.0, False), (two[0], 0.2, 0.0, True), (two[1], None, SIGMA, True),
    ):  # fmt: skip
        given = FitInputs(x_err=x_err)
        models = MixedModels.of({"one": (prior, simulator, NOTHING_ADDED)}, given, 1)
        assert float(models.scatter[0]) == pytest.approx(scatter, rel=4 / np.sqrt(2 * 400))
        assert models.scaled is known
    models = MixedModels.of({"one": (prior, two[0], as_noise(0.3))}, FitInputs(), 1)
    assert models.scaled


def test_without_scatter_and_errors_nothing_is_called_unlike(tmp_path):
    engines = {k: nbi.Engine(e.simulator, e.prior, noise=NOTHING_ADDED)
               for k, e in ((k, engine_of(BASES[k])) for k in TWO)}  # fmt: skip
    found = nbi.ModelClassifier(engines).fit(400, n_epochs=1)
    found.save(tmp_path / "c.nbi")
    for one in (found, nbi.ModelClassifier.load(tmp_path / "c.nbi")):
        with pytest.raises(ValueError, match="unlike_any must know how much data scatter"):
            one.unlike_any(LEVELS)
    found = nbi.ModelClassifier(engines).fit(400, n_epochs=1, x_err=0.2)
    assert found.unlike_any(nbi.Observations.from_arrays(np.ones((1, 8)), 0.2)).shape == (1,)


def test_distortions_have_the_scale_of_each_channel_and_no_row_is_left_out():
    rng, n = torch.Generator().manual_seed(0), 2000
    scale = torch.tensor([1e-3, 1.0])[:, None].expand(n, 2, 1)
    mask = torch.ones(1, 2, 20, dtype=torch.bool)
    mask[:, 1, 10:] = False
    added = distortions(scale, mask, rng)
    assert not added[:, 1, 10:].any()
    assert bool((added != 0).any(2).any(1).all())
    size = (rms(added, mask) / scale)[..., 0]
    there = size > 0
    assert 0.9 < float(there.double().mean()) <= 1
    assert float(size[there].min()) > 0.99
    assert float(size.max()) < 30.1


def build(path, sigma=(0.1, 0.1), centre=0.0, stochastic=False):
    bases = [BASES["level"], BASES["line"][1:]]
    engines = {
        name: nbi.Engine(
            scattered(basis) if stochastic else (lambda theta, basis=basis: theta @ basis),
            {"p": norm(0 if name == "level" else centre, 1)},
            noise=NOTHING_ADDED if stochastic else s,
        )
        for name, basis, s in zip(TWO, bases, sigma, strict=True)
    }
    return nbi.ModelClassifier(engines, path=path)


@pytest.mark.parametrize(
    "other", [{"sigma": (0.1, 2.0)}, {"centre": 30.0}, {"centre": 30.0, "stochastic": True}]
)
def test_nothing_of_other_models_is_used_again(tmp_path, other):
    def stop(history):
        if len(history) == 2:
            raise KeyboardInterrupt

    before = {"stochastic": other.get("stochastic", False)}
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, **before).fit(400, n_epochs=3, callback=stop)
    found, fresh = (build(path, **other).fit(400, n_epochs=3) for path in (tmp_path, None))
    np.testing.assert_array_equal(found.predict_proba(LEVELS), fresh.predict_proba(LEVELS))


def test_simulations_of_the_same_models_are_used_again(tmp_path):
    build(tmp_path).fit(400, n_epochs=1)
    build(tmp_path, sigma=(0.5, 0.1)).fit(400, n_epochs=1)
    assert len(list(tmp_path.rglob("simulations-*.h5"))) == 1


def test_engines_of_learned_likelihoods_are_classified():
    learned = nbi.LikelihoodEngine(
        lambda theta: theta + torch.randn(theta.shape, dtype=theta.dtype), {"p0": norm(0, 1)}
    ).fit(n_sims=300, n_epochs=1, progress=False)
    engines = {k: nbi.Engine(scattered(basis), {"p0": norm(0, 1)}, likelihood=learned)
               for k, basis in (("flat", np.ones((1, 8))), ("bent", T[None]))}  # fmt: skip
    found = nbi.ModelClassifier(engines).fit(2000, n_epochs=10)
    strong = nbi.Observations.from_arrays(2 * np.stack([np.ones(8), T]))
    assert (found.predict_proba(strong).argmax(1) == [0, 1]).all()


def test_what_cannot_be_classified_is_refused(classifier):
    one = engine_of(BASES["level"])
    for engines, error, said in [
        ({"a": one}, ValueError, "two at least"),
        ({"a": one, "b": 3}, TypeError, "engine 'b' must be"),
        ({"a": one, "b": nbi.Engine(prior={"c": norm()})}, ValueError, "must have a simulator"),
        ({"a": one, "b": nbi.Engine(lambda theta: theta, {"c": norm()}, noise=1)},
         ValueError, "must have one shape"),
        ({"a": one, "b": nbi.Engine(one.simulator, {"c": norm()})}, ValueError, "model 'b': "),
    ]:  # fmt: skip
        with pytest.raises(error, match=said):
            nbi.ModelClassifier(engines).fit(100)
    for misspelt in ({"n_round": 3}, {"noise": 5.0}, {"perturb": True}, {"grid": T}):
        with pytest.raises(TypeError, match=f"unexpected keywords .*{[*misspelt][0]}"):
            nbi.ModelClassifier({"a": one, "b": one}).fit(100, **misspelt)
    for n_sims in (None, 1, 2.5):
        with pytest.raises(ValueError, match="n_sims must be a whole number"):
            nbi.ModelClassifier({"a": one, "b": one}).fit(n_sims)
    with pytest.raises(ValueError, match="one positive weight for each"):
        nbi.ModelClassifier({"a": one, "b": one}, [1.0]).fit(100)
    with pytest.raises(ValueError, match="not fitted yet. Call fit before predict_proba"):
        nbi.ModelClassifier({"a": one, "b": one}).predict_proba(night())
    with pytest.raises(ValueError, match="must have shape"):
        classifier.predict_proba(nbi.Observations.from_arrays(np.ones((2, 5))))
    with pytest.raises(ValueError, match="object 1 has none"):
        classifier.predict_proba(nbi.Observations.from_arrays([np.ones(8), np.full(8, np.nan)]))


def test_errors_of_reliability_are_those_of_many_trials():
    """Models of one object that share a bin are not chances of their own: one is right."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([5.0, 5.0, 5.0, 5.0], 300)
    right = (rng.random((2000, 300, 1)) > p.cumsum(1)[:, :-1]).sum(2)
    found = [Reliability.of(np.log(p), labels) for labels in right]
    scatter = np.std([one.share for one in found], axis=0)
    full = found[0].count > 50
    assert full.sum() >= 3
    np.testing.assert_allclose(found[0].error[full], scatter[full], rtol=0.1)  # 5 errors: 0.08


@pytest.mark.statistics
def test_three_nested_models_are_near_the_exact_ones(capsys):
    found = nbi.ModelClassifier({k: engine_of(b) for k, b in BASES.items()})
    found.fit(60_000, n_epochs=30)
    x, log_z = made(tuple(BASES), 200, seed=2)
    p = found.predict_proba(nbi.Observations.from_arrays(x))
    r = found.reliability_
    off = (r.share - r.probability) / r.error
    mean = np.abs(p - shares(log_z)).mean()
    with capsys.disabled():
        print(f"\noff by {mean:.3f} on average, reliability within {np.abs(off).max():.1f} errors")
    assert mean < 0.03
    assert np.abs(off).max() < 4
