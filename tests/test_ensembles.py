"""Ensembles: mixtures of networks as proposals, shared simulations, and where members disagree."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from problems import LinearGaussian
from scipy.special import logsumexp
from scipy.stats import norm, uniform
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score

import nbi_plus as nbi
from nbi_plus.estimators.members import shares_of, stacked
from nbi_plus.infer.proposals.several import MemberProposals, owners, proposal_of
from nbi_plus.learn.run import Shared, shared_out

PROBLEM = LinearGaussian(2, 6, sigma=0.5)
SMALL = {"n_blocks": 2, "hidden": 16, "n_mog": 2}
ONLY_NETWORK = nbi.Ladder(escalate="never", audit=None, top_up_draws=0)
SHORT = {"n_sims": 600, "n_epochs": 8, "truth_test": False, "progress": False}


def engine(**changed):
    chosen = {"noise": PROBLEM.sigma, "flow": SMALL, "ladder": ONLY_NETWORK} | changed
    return nbi.Engine(SIMULATOR, PRIOR, **chosen)


SIMULATOR, PRIOR = PROBLEM.simulator, PROBLEM.prior
THETA, X = PROBLEM.observe(200, 9)


@pytest.fixture(scope="module")
def ensemble():
    return nbi.Ensemble(engine(), n=3).fit(data_reuse=0.5, **SHORT)


@pytest.fixture(scope="module")
def mixed():
    """Return one of engines that differ, in a dictionary."""
    engines = {"maf": engine(), "nsf": engine(flow=SMALL | {"kind": "nsf"}, featurizer="set")}
    return nbi.Ensemble(engines).fit(**SHORT | {"n_epochs": 2})


def of_each(dictionary):
    return np.stack(list(dictionary.values()))


# --- the mixture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_the_density_is_the_mixture_of_those_of_the_members(ensemble, weights):
    each = of_each(ensemble.log_prob(THETA, X, merge_members=False))
    shares = np.array(weights or list(ensemble.member_weights_.values()))
    with np.errstate(divide="ignore"):
        mixture = logsumexp(each + np.log(shares / shares.sum())[:, None], axis=0)
    found = ensemble.log_prob(THETA, X, member_weights=weights)
    np.testing.assert_allclose(found, mixture, rtol=0, atol=1e-9)


def test_the_density_integrates_to_one(ensemble):
    axis = np.linspace(-5, 5, 201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    total = np.exp(ensemble.log_prob(grid, X[0])).sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-3


def test_the_weights_of_the_members_sum_to_one_and_are_those_of_the_best_held_out_score(ensemble):
    weights = np.array(list(ensemble.member_weights_.values()))
    assert abs(weights.sum() - 1) < 1e-12
    assert (weights > 0).all()
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 20_000))
    best = np.array(stacked(torch.as_tensor(scores)))
    total = logsumexp(scores + np.log(best)[:, None], axis=0).mean()
    for other in rng.dirichlet(np.ones(3), 50):
        assert logsumexp(scores + np.log(other)[:, None], axis=0).mean() < total + 1e-6


def test_any_part_of_the_draws_has_each_member_at_its_share():
    shares = (0.5, 0.3, 0.2)
    which = owners(shares, 4096).numpy()
    for start, stop in ((0, 4096), (0, 100), (1000, 1300)):
        counts = np.bincount(which[start:stop], minlength=3)
        assert np.abs(counts - (stop - start) * np.array(shares)).max() < 4


def test_draws_and_their_density_agree(ensemble):
    """The mean of p / q over draws of q is one for any density p: here the exact posterior."""
    fitted = ensemble.fitted_
    objects = fitted.like_training(nbi.Observations.from_arrays(X[:50]))
    amortized = fitted.amortized(ensemble._how(), "test")
    features = amortized.features(objects)[1]
    proposal = proposal_of(fitted.model, 0.2, 2.0)
    assert isinstance(proposal, MemberProposals)
    made = proposal.draw(features, torch.as_tensor(objects.keys), 2048, 0, "test")
    mean, cov = PROBLEM.posterior(X[:50])
    away = made.z.numpy() - mean[:, None]
    log_p = -0.5 * np.einsum("nsi,ij,nsj->ns", away, np.linalg.inv(cov), away)
    ratio = np.exp(log_p - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1] - made.log_q.numpy())
    error = ratio.std(1) / np.sqrt(2048)
    off = (ratio.mean(1) - 1) / error
    assert np.abs(off).max() < 4.5
    assert abs(off.mean()) < 4 / np.sqrt(50)


def test_answers_are_exact_whatever_the_members_are(ensemble):
    """They are weighted against the likelihood: moments and evidences are known in closed form."""
    found = ensemble.predict_many(nbi.Observations.from_arrays(X), n_samples=4096, keep=0,
                                  progress=False)  # fmt: skip
    good = found.certified
    assert good.mean() > 0.8
    off = (found.log_evidence - PROBLEM.log_evidence(X))[good] / found.log_evidence_err[good]
    assert np.abs(off).max() < 4.5
    mean, cov = PROBLEM.posterior(X)
    error = np.sqrt(cov.diagonal() / found.ess[good, None])
    assert (np.abs(found.mean - mean)[good] / error).max() < 5


def test_members_answer_one_by_one_or_together(ensemble):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        each = ensemble.predict(X[0], merge_members=False)
        assert list(each) == list(ensemble.members_) == ["member_0", "member_1", "member_2"]
        assert ensemble.predict(X[0]).names == each["member_1"].names
    draws = ensemble.sample(X[0], merge_members=False, n_samples=50)
    assert {name: d.shape for name, d in draws.items()} == dict.fromkeys(each, (50, 2))
    assert ensemble.sample(X[0], n_samples=77).shape == (77, 2)
    only = ensemble.sample(X[0], n_samples=4000, member_weights={
        "member_0": 0, "member_1": 5, "member_2": 0})  # fmt: skip
    alone = ensemble.sample(X[0], n_samples=4000, merge_members=False)["member_1"]
    error = np.sqrt(2) * alone.std(0) / np.sqrt(4000)
    assert (np.abs(only.mean(0) - alone.mean(0)) < 4 * error).all()
    assert np.isclose(ensemble.score(THETA, X), ensemble.log_prob(THETA, X).mean())


def test_other_flows_and_featurizers_stand_beside_each_other(mixed):
    kinds = [m.model_.network.flow.config.kind for m in mixed.members_.values()]
    assert kinds == ["maf", "nsf"]
    assert mixed.members_["nsf"].model_.featurizer.name == "set"
    assert np.isfinite(mixed.log_prob(THETA, X)).all()


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reuse", "shared"), [(1.0, 100), (0.3, 30), (0.0, 0)])
def test_members_share_as_many_simulations_as_asked_and_none_trains_on_what_another_holds_out(
    reuse, shared
):
    recipe = engine_recipe()
    rows = np.arange(shared + 3 * (100 - shared))
    parts = shared_out(rows, rows, Shared.of_each(100, 3, reuse), recipe)
    seen = [set(np.concatenate(both).tolist()) for both in parts]
    assert [len(own) for own in seen] == [100, 100, 100]
    assert len(seen[0] & seen[1]) == len(set.intersection(*seen)) == shared
    held_out = set().union(*(part[1].tolist() for part in parts))
    assert all(not held_out & set(training.tolist()) for training, _ in parts)
    assert set().union(*seen) == set(rows.tolist())


def test_given_simulations_are_shared_out_whatever_their_order():
    """Sorted by theta, a member that took them as they come would know one end of the prior."""
    theta = np.sort(PRIOR.sample(600, 4), axis=0)
    made = engine(noise=PROBLEM.sigma)
    ensemble = nbi.Ensemble(made, n=2)
    ensemble.fit(theta, SIMULATOR(theta), n_epochs=1, data_reuse=0.0, truth_test=False)
    means = [m.model_.network.flow.mean.numpy() for m in ensemble.members_.values()]
    assert np.abs(means[0] - means[1]).max() < 5 * (2 / 270) ** 0.5  # of standard normals


def engine_recipe():
    from nbi_plus.estimators.prepared import prepare

    made = engine()
    return prepare(made, 100, None).recipe(made)


def test_as_many_simulations_are_made_as_are_not_shared():
    n_rows = []

    def counted(theta):
        n_rows.append(len(theta))
        return SIMULATOR(theta)

    def calls(reuse):
        n_rows.clear()
        made = nbi.Engine(counted, PRIOR, noise=0.5, flow=SMALL, n_jobs=1)
        quick = {"n_epochs": 1, "truth_test": False, "progress": False}
        found = nbi.Ensemble(made, n=2).fit(n_sims=600, data_reuse=reuse, **quick)
        assert [m.model_.n_sims for m in found.members_.values()] == [600, 600]
        return sum(n_rows)

    assert calls(0.0) - calls(1.0) == 600


def test_simulations_made_elsewhere_are_laid_out_so_that_all_are_used():
    theta = PRIOR.sample(330, 3)
    found = nbi.Ensemble(engine(), n=2).fit(theta, SIMULATOR(theta), data_reuse=0.9, n_epochs=1,
                                            truth_test=False, progress=False)  # fmt: skip
    assert [m.model_.n_sims for m in found.members_.values()] == [300, 300]


def test_seeds_are_the_members_own_and_a_fit_is_a_function_of_them(ensemble):
    assert [m.seed for m in ensemble.members_.values()] == [0, 1, 2]
    each = of_each(ensemble.log_prob(THETA, X, merge_members=False))
    assert np.abs(np.diff(each, axis=0)).max(1).min() > 1e-3
    again = nbi.Ensemble(engine(), n=3).fit(data_reuse=0.5, **SHORT)
    np.testing.assert_array_equal(again.log_prob(THETA, X), ensemble.log_prob(THETA, X))


def test_a_member_that_is_trained_is_not_trained_again(tmp_path):
    made = nbi.Ensemble(engine(path=tmp_path), n=2)
    lengths = []

    def until_the_second(history):
        lengths.append(len(history))
        if lengths == [1, 2, 3, 1]:
            raise KeyboardInterrupt

    short = SHORT | {"n_epochs": 3}
    with pytest.raises(KeyboardInterrupt):
        made.fit(callback=until_the_second, **short)
    lengths.clear()
    resumed = made.fit(callback=lambda history: lengths.append(len(history)), **short)
    assert lengths == [2, 3]
    assert not list(tmp_path.rglob("training-*"))
    whole = nbi.Ensemble(engine(), n=2).fit(**short)
    np.testing.assert_allclose(resumed.log_prob(THETA, X), whole.log_prob(THETA, X), atol=1e-9)


# --- disagreement --------------------------------------------------------------------------------


def test_members_disagree_where_none_was_trained(ensemble):
    known = ensemble.fitted_.model.divergences
    assert (known >= 0).double().mean() > 0.95  # but for the error of 64 draws
    beyond = np.linalg.svd(PROBLEM.design)[2][2:].sum(0)  # what no parameter makes
    observations = nbi.Observations.from_arrays(np.concatenate([X, X + 4 * beyond]))
    apart = ensemble.disagreement(observations)
    strange = np.arange(2 * len(X)) >= len(X)
    assert roc_auc_score(strange, apart) > 0.7  # of networks that were hardly trained
    found = ensemble.predict_many(observations, keep=0, progress=False)
    flagged = np.array([nbi.Flag.DISAGREE in flags for flags in found.flags])
    assert flagged[~strange].mean() < 0.05
    cut = torch.quantile(known, 0.99)
    assert (flagged == (apart > float(cut))).all()


def test_nobody_says_how_far_members_lie_apart_for_an_object_without_points(ensemble):
    mask = np.ones_like(X[:3], bool)
    mask[1] = False
    apart = ensemble.disagreement(nbi.Observations.from_arrays(X[:3], mask=mask))
    assert np.isfinite(apart).tolist() == [True, False, True]


def test_weights_of_members_are_whatever_numbers_hold_and_survive_what_nobody_explains():
    assert shares_of([1e308, 1e308], ["a", "b"]) == (0.5, 0.5)
    scores = torch.tensor([[0.0, 0.0], [-50.0, -50.0]])
    beside = torch.cat([scores, torch.full((2, 1), -torch.inf)], 1)
    assert stacked(beside) == stacked(scores)


@pytest.mark.statistics
def test_disagreement_tells_whose_weights_fail():
    """A survey with a fifth of objects that no simulation is like, of three kinds."""
    t, n = np.linspace(0, 1, 20), 600

    def sine(theta):
        return theta[:, :1] * np.sin(2 * np.pi * theta[:, 1:2] * t + theta[:, 2:])

    prior = nbi.Prior({"a": uniform(0.5, 1.5), "f": uniform(1, 1), "p": uniform(0, 3)})
    made = nbi.Engine(sine, prior, noise=0.3, flow=SMALL | {"hidden": 32}, ladder=ONLY_NETWORK)
    ensemble = nbi.Ensemble(made, n=4).fit(n_sims=4000, n_epochs=30, truth_test=False)
    rng = np.random.default_rng(5)
    theta = prior.sample(n, 1)
    x, faster = sine(theta), sine(theta + [0, 1.5, 0])
    out, kind = np.arange(n) % 5 == 0, np.arange(n) // 5 % 3
    x[out & (kind == 0)] *= 2.5
    x[out & (kind == 1)] += 3 * t
    x[out & (kind == 2)] = faster[out & (kind == 2)]
    observations = nbi.Observations.from_arrays(x + 0.3 * rng.normal(size=x.shape))
    found = ensemble.predict_many(observations, keep=0)
    failed = np.array([not lines[0].passed for lines in found.rungs])
    area = roc_auc_score(failed, ensemble.disagreement(observations))
    flagged = np.array([nbi.Flag.DISAGREE in flags for flags in found.flags])
    print(
        f"\n{failed.mean():.3f} fail the first gate; AUC of disagreement {area:.3f}; flagged "
        f"{flagged[out].mean():.3f} of the strange, {flagged[~out].mean():.3f} of the others"
    )
    assert area > 0.9
    theta = prior.sample(4000, 7)
    x = sine(theta) + 0.3 * rng.normal(size=(4000, len(t)))
    each = of_each(ensemble.log_prob(theta, x, merge_members=False))
    gain = ensemble.log_prob(theta, x) - each[each.mean(1).argmax()]
    error = gain.std() / np.sqrt(len(gain))
    print(
        f"held-out log-score of the mixture less that of the best member: {gain.mean():.4f} "
        f"+- {error:.4f}"
    )
    assert gain.mean() > 4 * error


# --- files, doors --------------------------------------------------------------------------------


def test_an_ensemble_survives_its_file(ensemble, mixed, tmp_path):
    for made in (ensemble, mixed):
        made.save(tmp_path / "e.nbi")
        again = nbi.Ensemble.load(tmp_path / "e.nbi", SIMULATOR, ladder=ONLY_NETWORK)
        assert again.member_weights_ == made.member_weights_
        assert again.get_params(deep=False).keys() == made.get_params(deep=False).keys()
        np.testing.assert_array_equal(again.log_prob(THETA, X), made.log_prob(THETA, X))
        some = nbi.Observations.from_arrays(X[:5])
        one, two = (m.predict_many(some, progress=False) for m in (made, again))
        np.testing.assert_array_equal(one.mean, two.mean)
        assert [m.seed for m in again.members_.values()] == [m.seed for m in made.members_.values()]


def test_what_a_file_of_an_ensemble_is_asked_for_must_be_something(ensemble, tmp_path):
    ensemble.save(tmp_path / "e.nbi")
    with pytest.raises(TypeError, match="keywords must be among .* but are .'ladderr'."):
        nbi.Ensemble.load(tmp_path / "e.nbi", SIMULATOR, ladderr=ONLY_NETWORK)
    with pytest.raises(TypeError, match="names of featurizer must be among .'member_0'"):
        nbi.Ensemble.load(tmp_path / "e.nbi", SIMULATOR, featurizer={"member_7": None})


def test_surveys_calibration_and_retries_go_through_the_mixture(ensemble, tmp_path):
    some = nbi.Observations.from_arrays(X[:20])
    summary = ensemble.predict_survey(some, tmp_path / "out.h5", progress=False)
    assert summary.n_objects == 20
    direct = ensemble.predict_many(some, n_samples=500, keep=0, progress=False)
    assert summary.status == {"REWEIGHTED": int(direct.certified.sum())} | (
        {} if direct.certified.all() else {"UNCERTIFIED": int((~direct.certified).sum())}
    )
    with pytest.warns(nbi.UntrustedWarning, match="MISFIT"):  # they have nothing in common
        assert ensemble.predict_shared(some).names == ("p0", "p1")
    one = next(iter(ensemble.members_.values()))
    for verb in ("log_likelihood", "log_posterior"):
        ours, theirs = (getattr(e, verb)(THETA[:5], X[0]) for e in (ensemble, one))
        np.testing.assert_array_equal(ours, theirs)
    calibrated = ensemble.calibrate(n=50, progress=False)
    assert len(calibrated) + calibrated.n_excluded == 50
    kept = ensemble.predict_many(some, progress=False)
    assert len(ensemble.retry(kept, some)) == 20
    assert "Ensemble" in ensemble._repr_html_()


def test_what_cannot_be_an_ensemble_is_refused(ensemble, tmp_path):
    other = nbi.Engine(lambda theta: SIMULATOR(theta), PRIOR, noise=0.5)
    wrong = {"a": norm(0, 1), "b": norm(0, 2)}
    for given, message in (
        ({"a": engine()}, "at least two"),
        ({"a": engine(), "b": other}, "the simulator of 'b' is another"),
        ({"a": engine(), "b": engine(noise=0.6)}, "the noise of 'b' is another"),
        ({"a": engine(), "b": nbi.Engine(SIMULATOR, wrong, noise=0.5)}, "the prior of 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            nbi.Ensemble(given).fit(n_sims=50)
    with pytest.raises(TypeError, match="names of members must be a str"):
        nbi.Ensemble({1: engine(), "1": engine()}).fit(n_sims=50)
    with pytest.raises(TypeError, match="engine must be a Mapping"):
        nbi.Ensemble(SIMULATOR).fit(n_sims=50)
    with pytest.raises(ValueError, match="n must be a whole number of at least 2"):
        nbi.Ensemble(engine(), n=1).fit(n_sims=50)
    for reuse in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"data_reuse must lie in \[0, 1\]"):
            nbi.Ensemble(engine()).fit(n_sims=50, data_reuse=reuse)
    with pytest.raises(ValueError, match="to train on and to hold out"):
        nbi.Ensemble(engine(), n=2).fit(n_sims=2, data_reuse=0.5, truth_test=False)
    with pytest.raises(ValueError, match="either n_sims, or theta and x"):
        nbi.Ensemble(engine()).fit()
    with pytest.raises(NotFittedError, match="not fitted yet. Call fit before sample"):
        nbi.Ensemble(engine()).sample(X[0])
    for weights, message in (
        ([1.0, 2.0], "member_weights must be finite and at least 0"),
        ([1.0, -1.0, 1.0], "member_weights must be finite and at least 0"),
        ([0.0, 0.0, 0.0], "must not all be 0"),
        ({"member_0": 1.0}, "must be of .'member_0', 'member_1', 'member_2'."),
    ):
        with pytest.raises(ValueError, match=message):
            ensemble.sample(X[0], member_weights=weights)
    with pytest.raises(ValueError, match="must be None where members are not merged"):
        ensemble.sample(X[0], merge_members=False, member_weights=[1, 1, 1])
    with pytest.raises(TypeError, match="merge_members must be a bool"):
        ensemble.sample(X[0], merge_members="no")
    engine().fit(n_sims=50, n_epochs=1, truth_test=False, progress=False).save(tmp_path / "e.nbi")
    with pytest.raises(nbi.ArchiveError, match="must have the kind 'ensemble'"):
        nbi.Ensemble.load(tmp_path / "e.nbi")
