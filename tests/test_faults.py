"""Every fault of a file ends in the right answer or in a named error, soon and in little memory."""

from __future__ import annotations

import copy
import math
import resource
import shutil
import time
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from answers import PRIOR, answers
from mutations import mutations
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus import files
from nbi_plus.fitted import Fitted
from nbi_plus.infer.posterior.agreeing import contradictions
from nbi_plus.infer.posterior.columns import WEIGHT_NUMBERS
from nbi_plus.infer.proposals.base import Blend, PriorProposal, free_flow
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.sequential import archive as sequential_archive
from nbi_plus.infer.sequential.fit import SequentialFit
from nbi_plus.infer.sequential.journal import Journal, Step
from nbi_plus.infer.sequential.rounds import Round, Rounds, Stop
from nbi_plus.io.archive import read_archive, write_archive
from nbi_plus.learn import checkpoint
from nbi_plus.learn.flows import Flow
from nbi_plus.learn.optimizer import FlatOptimizer
from nbi_plus.trust.calibration import figures_of

CPU = torch.device("cpu")
ANSWERS = answers()
_SECONDS, _MEMORY = 10.0, 400 * 2**10  # KiB
N = 150  # of all answers together; half or a quarter of it for each other kind
often = pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.faults)])


def check(source, kind, load, content, forged, n, seed, refusal=nbi.ArchiveError):
    """Load n changed copies of a file: what comes back is what was written, or a named error.

    Parameters
    ----------
    source : Path
    kind : str or None
        See `mutations`.
    load : callable
        Of the path of a copy.
    content : callable
        Of what was loaded: what damage must not change.
    forged : callable
        Of what was loaded from a forged file: asserts what must be true of it.
    n, seed : int
    refusal : type of exception
    """
    sound, refused, before = content(load(source)), 0, _peak()
    target = source.with_name("changed")
    for mutation in mutations(source, kind, target, n, seed):
        began, told = time.process_time(), None
        try:
            found = load(target)
        except refusal as error:
            told = str(error)
        except Exception as error:
            raise AssertionError(f"{mutation} ended in {error!r}") from error
        if told is not None:
            refused += 1
            assert " must " in told, (mutation, told)
        elif mutation.forged:
            forged(found, mutation)
        else:
            assert content(found) == sound, mutation
        assert time.process_time() - began < _SECONDS, mutation
    assert _peak() - before < _MEMORY
    assert refused >= n // 4


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bytes_of(archive):
    own = {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in archive.arrays.items()}
    return repr(archive.meta), own


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_that_the_package_gives_agrees_with_itself_and_survives_its_file(
    name, tmp_path
):
    answer = ANSWERS[name]
    assert list(contradictions(answer)) == []
    answer.save(tmp_path / "p.h5")
    again = nbi.Posterior.load(tmp_path / "p.h5")
    assert bytes_of(again.to_archive()) == bytes_of(answer.to_archive())


def figures(p):
    """Return what a file cannot change: all that follows from the weights."""
    names = [k for k in WEIGHT_NUMBERS if not k.startswith(("log_evidence", "ess_low"))]
    return {"weights": p.weights, "certified": p.certified, **{k: getattr(p, k) for k in names}}


@often
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_right_or_refused(name, times, tmp_path):
    answer, n = ANSWERS[name], max(N // len(ANSWERS), 4) * times
    answer.save(tmp_path / "p.h5")

    def forged(found, mutation):
        own, sound = figures(found), figures(answer)
        for key, value in sound.items():
            told = f"{mutation}: {key}"
            np.testing.assert_allclose(own[key], value, rtol=1e-5, atol=1e-9, err_msg=told)
        if math.isfinite(answer.log_evidence):
            assert abs(found.log_evidence - answer.log_evidence) < 2.0, mutation

    def content(found):
        return bytes_of(found.to_archive())

    check(tmp_path / "p.h5", "posterior", nbi.Posterior.load, content, forged, n, len(name))


# --- engines, checkpoints, journals --------------------------------------------------------------


def mixture():
    factors = torch.tensor([[[[0.2, 0.0], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.1]]]]).double()
    means = torch.tensor([[[0.4, -0.3], [0.0, 0.0]]]).double()
    return StudentMixture(torch.tensor([[0.7, 0.3]]).double().log(), means, factors)


def sequential(path):
    """Write an engine of one object, as if it had been fitted."""
    answer, noise = ANSWERS["refined"], nbi.GaussianNoise(0.1).bind(False, PRIOR.full_names)
    data = nbi.Observations.from_arrays(np.linspace(0, 1, 6)[None], t=np.arange(6.0))
    answer = replace(answer, data_hash=str(data.hashes[0]))
    rounds = Rounds((Round("prior", 10, 10, 5.0, 0.5, 0.2, -2.0, 0.1, 1.0),), Stop.ESS_REACHED)
    frozen = Blend((PriorProposal(2), mixture()), (0.2, 0.8))
    fit = SequentialFit(data, answer, rounds, frozen, "mixture", PRIOR, noise, None, CPU)
    defaults = {"t": np.arange(6.0)}
    files.write(path, Fitted(PRIOR, noise, None, defaults, None, fit, None), 3)
    return path


def of_engine(read):
    fitted, seed = read
    model, one = fitted.model, fitted.sequential
    arrays = dict(fitted.defaults) | ({} if model is None else model.arrays())
    return (
        seed, repr(fitted.prior), repr(fitted.noise.meta()), repr(fitted.truth),
        None if model is None else repr(model.meta()),
        None if one is None else bytes_of(sequential_archive.to_archive(one)),
        {k: np.asarray(v).tobytes() for k, v in arrays.items()},
    )  # fmt: skip


def read_engine(path):
    return files.read(path, CPU)


def sound_engine(read, mutation):
    fitted, _ = read
    if fitted.model is not None:
        state = fitted.model.network.state_dict().values()
        assert all(bool(v.isfinite().all()) for v in state), mutation
    if fitted.sequential is not None:
        sound = figures(ANSWERS["refined"])
        for key, value in figures(fitted.sequential.posterior).items():
            np.testing.assert_allclose(value, sound[key], rtol=1e-5, atol=1e-9, err_msg=key)


@often
def test_a_sequential_engine_is_right_or_refused(times, tmp_path):
    path = sequential(tmp_path / "one.nbi")
    check(path, "engine", read_engine, of_engine, sound_engine, times * N // 2, 1)


@pytest.fixture(scope="module")
def engine():
    priors = {"a": norm(0, 1), "b": uniform(0, 1), "c": nbi.Circular(2.0)}
    made = nbi.Engine(line, priors, noise=nbi.StudentTNoise(0.1, 4.0), featurizer="mlp",
                      flow={"n_blocks": 2, "hidden": 16})  # fmt: skip
    return made.fit(n_sims=128, n_epochs=1, t=np.arange(5.0), truth_test=False)


def line(theta, t):
    return torch.as_tensor(theta)[:, :1] + torch.as_tensor(theta)[:, 1:2] * torch.as_tensor(t)


@often
def test_an_amortized_engine_is_right_or_refused(engine, times, tmp_path):
    engine.save(tmp_path / "many.nbi")
    check(tmp_path / "many.nbi", "engine", read_engine, of_engine, sound_engine, times * N // 2, 2)


@pytest.mark.parametrize("what", ["mask_in", "mask_hidden", "mask_out", "order", "restore"])
def test_what_follows_from_the_architecture_of_a_flow_is_not_for_a_file_to_say(
    what, engine, tmp_path
):
    path = tmp_path / "many.nbi"
    engine.save(path)
    archive = read_archive(path, "engine")
    name = next(k for k in archive.arrays if k.rpartition(".")[2] == what)
    changed = np.array(archive.arrays[name])
    changed.flat[0] = 1 - changed.flat[0] if what.startswith("mask") else changed.flat[1]
    write_archive(path, "engine", archive.meta, {**archive.arrays, name: changed})
    with pytest.raises(nbi.ArchiveError, match="must have the masks and a rearrangement"):
        read_engine(path)


def trial_and_sign(theta):
    x = theta + torch.randn(theta.shape, dtype=theta.dtype)
    return torch.cat([x, (x > 0).to(x.dtype)], 1)


@often
@pytest.mark.parametrize("kind", ["ratio engine", "likelihood engine"])
def test_an_engine_of_trials_is_right_or_refused(kind, times, tmp_path):
    made = {
        "ratio engine": nbi.RatioEngine(trial_and_sign, {"a": norm(0, 1)}),
        "likelihood engine": nbi.LikelihoodEngine(
            trial_and_sign, {"a": norm(0, 1)}, discrete={1: (0, 1)}
        ),
    }[kind]
    made.fit(n_sims=128, n_epochs=1).save(tmp_path / "many.nbi")

    def content(found):
        found.save(tmp_path / "again.nbi")
        return bytes_of(read_archive(tmp_path / "again.nbi", kind))

    def forged(found, mutation):
        learned = getattr(found, "log_ratio", None) or found.log_likelihood
        labels = dict(found.fitted_.trials.discrete).get(1, (0.0, 1.0))
        x = np.stack([[0.3, -0.2], labels[:2]], 1)
        assert np.isfinite(learned([[0.1], [-1.0]], x)).all(), mutation
        assert found.get_params().get("n_contrast", 1) >= 1, mutation

    check(tmp_path / "many.nbi", kind, type(made).load, content, forged, times * N // 4, 6)


@often
def test_an_ensemble_is_right_or_refused(times, tmp_path):
    simulator, prior = line, {"a": norm(0, 1), "b": norm(0, 1)}
    flow = {"n_blocks": 1, "hidden": 8, "n_mog": 1}
    made = nbi.Ensemble(nbi.Engine(simulator, prior, noise=0.3, flow=flow), n=2)
    made.fit(n_sims=64, n_epochs=1, truth_test=False, t=np.linspace(0, 1, 6))
    made.save(tmp_path / "several.nbi")

    def content(found):
        found.save(tmp_path / "again.nbi")
        return bytes_of(read_archive(tmp_path / "again.nbi", "ensemble"))

    def forged(found, mutation):
        theta, x = np.array([[0.1, -0.2], [1.0, 2.0]]), np.full((2, 6), 0.3)
        grid = found.fitted_.model.conditions.coords["t"]
        assert np.isfinite(found.log_prob(theta, x, t=grid.numpy().ravel())).all(), mutation
        assert np.isclose(sum(found.member_weights_.values()), 1.0), mutation

    load = nbi.Ensemble.load
    check(tmp_path / "several.nbi", "ensemble", load, content, forged, times * N // 4, 7)


@often
def test_a_point_engine_is_right_or_refused(times, tmp_path):
    rules = {"mean": nbi.MeanScore(), "q": nbi.QuantileScore([0.2, 0.8]), "e": nbi.EnergyScore(4)}
    made = nbi.PointEngine(line, {"a": norm(0, 1), "b": uniform(1, 99)}, 0.3, rules)
    made.fit(n_sims=64, n_epochs=1, t=np.linspace(0, 1, 6)).save(tmp_path / "point.nbi")

    def content(found):
        found.save(tmp_path / "again.nbi")
        return bytes_of(read_archive(tmp_path / "again.nbi", "point engine"))

    def forged(found, mutation):
        x = np.linspace(-1, 1, 18).reshape(3, 6)
        given = nbi.Observations.from_arrays(x, t=np.linspace(0, 1, 6))
        for name, by_kind in found.estimate(given).items():
            (values,) = by_kind.values()
            assert np.isfinite(values).all(), mutation
            assert name != "q" or (np.diff(values, axis=1) >= 0).all(), mutation

    load = nbi.PointEngine.load
    check(tmp_path / "point.nbi", "point engine", load, content, forged, times * N // 4, 8)


@often
def test_a_classifier_is_right_or_refused(times, tmp_path):
    engines = {
        name: nbi.Engine(lambda theta, k=k: theta * np.arange(1.0, 5.0) ** k, {"a": norm(0, 1)})
        for k, name in enumerate(["flat", "line"])
    }
    made = nbi.ModelClassifier(engines).fit(128, n_epochs=1, x_err=0.5)
    made.save(tmp_path / "which.nbi")
    some = nbi.Observations.from_arrays(np.ones((3, 4)), 0.5)

    def content(found):
        found.save(tmp_path / "again.nbi")
        return bytes_of(read_archive(tmp_path / "again.nbi", "model classifier"))

    def forged(found, mutation):
        p = found.predict_proba(some)
        assert p.shape == (3, 2), mutation
        np.testing.assert_allclose(p.sum(1), 1, err_msg=str(mutation))
        assert ((found.unlike_any(some) > 0) & (found.unlike_any(some) <= 1)).all(), mutation

    load = nbi.ModelClassifier.load
    check(tmp_path / "which.nbi", "model classifier", load, content, forged, times * N // 4, 7)


@often
def test_a_checkpoint_is_right_or_refused(engine, times, tmp_path):
    engine.save(tmp_path / "many.nbi")
    network = read_engine(tmp_path / "many.nbi")[0].model.network

    def run():
        own, average = copy.deepcopy(network), copy.deepcopy(network)
        best = copy.deepcopy(network.state_dict())
        history = [{"val_nll": 1.5, "train_nll": 1.0}]
        return checkpoint.TrainingState(
            own, average, FlatOptimizer(own, average, 0.01, 1.0), best, history
        )

    def load(path):
        made = run()
        checkpoint.restore(made, path)
        return made

    def content(made):
        checkpoint.save(made, tmp_path / "again")
        return bytes_of(read_archive(tmp_path / "again", "training"))

    def forged(made, mutation):
        state = made.network.state_dict()
        assert made.best.keys() == state.keys(), mutation
        assert all(made.best[k].shape == v.shape for k, v in state.items()), mutation

    checkpoint.save(run(), tmp_path / "run.h5")
    check(tmp_path / "run.h5", "training", load, content, forged, times * N // 4, 3)


@often
def test_a_calibration_is_right_or_refused(times, tmp_path):
    rng = np.random.default_rng(0)
    answers = [ANSWERS["reweighted"]] * 20
    nbi.sbc(answers, PRIOR.sample(20, rng), n_ranks=50).save(tmp_path / "c.h5")

    def content(found):
        return repr([(f.name, np.asarray(getattr(found, f.name)).tolist()) for f in fields(found)])

    def forged(found, mutation):
        again = figures_of(found.ranks)
        for key in ("p_values", "coverage", "ecdf_difference"):
            np.testing.assert_allclose(getattr(found, key), again[key], 1e-5, err_msg=str(mutation))

    load = nbi.Calibration.load
    check(tmp_path / "c.h5", "calibration", load, content, forged, times * N // 4, 5)


@often
def test_a_journal_is_right_or_refused(times, tmp_path):
    flow = free_flow(Flow(2, 1, nbi.FlowConfig(n_blocks=1, hidden=8)).eval(), 0.2, 2.0)
    z = torch.linspace(-1, 1, 20).double().reshape(1, 10, 2)
    step = Step((Blend((PriorProposal(2), mixture()), (0.2, 0.8)), flow), z, {"w": torch.ones(3)})
    (tmp_path / "own").mkdir()
    Journal(tmp_path / "own", CPU).step("adapt", lambda: step)
    (tmp_path / "changed").mkdir()

    def load(path):
        target = tmp_path / "changed" / "round-000.h5"
        shutil.copyfile(path, target)
        return Journal(target.parent, CPU).step("adapt", lambda: step)

    def content(found):
        numbers = [q.log_prob(z).detach() for q in found.proposals] + [found.z, found.state["w"]]
        return (
            [t.numpy().tobytes() for t in numbers],
            found.family,
            found.n_looked,
            list(found.state),
        )

    def forged(found, mutation):
        for proposal in found.proposals:
            value = proposal.log_prob(torch.zeros(1, 1, 2).double())
            assert not bool(value.isnan().any()), mutation

    path = tmp_path / "own" / "round-000.h5"
    check(path, "round", load, content, forged, times * N // 4, 4)
