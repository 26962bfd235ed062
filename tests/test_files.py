"""Engine and posterior files: what is not what it says is refused, and nothing is executed."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import LinearGaussian

import nbi_plus as nbi
from nbi_plus.io.archive import read_archive, write_archive

PROBLEM = LinearGaussian(n_dim=2, n_points=8)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def engine():
    made = nbi.Engine(PROBLEM.simulator, PROBLEM.prior, noise=1.0, featurizer="resnet")
    return made.fit(n_sims=300, n_epochs=2)


@pytest.fixture(scope="module")
def saved(engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "engine.nbi"
    engine.save(path)
    return path


def edited(saved, path, change):
    """Write the saved engine again after ``change(meta, arrays)``."""
    archive = read_archive(saved, "engine")
    meta, arrays = archive.meta, dict(archive.arrays)
    change(meta, arrays)
    write_archive(path, "engine", meta, arrays)
    return path


def first_weight(arrays):
    return next(k for k in arrays if k.endswith("first.weight"))


CRAFTED = {
    "huge hidden": lambda m, a: m["model"]["flow"].update(hidden=10**9),
    "huge n_blocks": lambda m, a: m["model"]["flow"].update(n_blocks=10**9),
    "huge n_dims": lambda m, a: m["model"].update(n_dims=10**9),
    "huge featurizer": lambda m, a: m["model"]["featurizer"].update(length=10**9),
    "huge option": lambda m, a: m["model"]["featurizer"]["options"].update(width=10**9),
    "infinite size": lambda m, a: m["model"]["flow"].update(n_bins=1e308),
    "no model": lambda m, a: m.pop("model"),
    "model is text": lambda m, a: m.update(model="lambda: 0"),
    "no prior": lambda m, a: m.pop("prior"),
    "prior of unknown family": lambda m, a: m["prior"]["transport"]["families"][0].update(
        {k: "__import__('os').system" for k in m["prior"]["transport"]["families"][0]}
    ),
    "noise is code": lambda m, a: m.update(noise={"type": "lambda x: x"}),
    "noise of unknown option": lambda m, a: m["noise"].update(code="lambda: 0"),
    "featurizer is a lambda": lambda m, a: m["model"]["featurizer"].update(name="lambda: 0"),
    "featurizer of unknown option": lambda m, a: m["model"]["featurizer"]["options"].update(q=1),
    "flow of unknown kind": lambda m, a: m["model"]["flow"].update(kind="os.system"),
    "flow of unknown option": lambda m, a: m["model"]["flow"].update(code="lambda: 0"),
    "weights are missing": lambda m, a: a.pop(first_weight(a)),
    "weights of another shape": lambda m, a: a.update({first_weight(a): np.zeros((3, 3))}),
    "weights of another name": lambda m, a: a.update({"network/other": np.zeros(3)}),
    "no reference": lambda m, a: a.pop("reference/mean"),
    "slow family": lambda m, a: m["prior"]["transport"]["families"][0].update(
        family="levy_stable", args={"alpha": 1.8, "beta": 0.0, "loc": 0.0, "scale": 1.0}
    ),
    "negative scale": lambda m, a: m["prior"]["transport"]["families"][0]["args"].update(scale=-1),
    "many parameters": lambda m, a: m["prior"].update(full_names=[str(i) for i in range(501)]),
    "one name twice": lambda m, a: m["prior"].update(full_names=["theta_0", "theta_0"]),
    "another order": lambda m, a: m["prior"]["names"].reverse(),
    "negative sigma": lambda m, a: m["noise"].update(sigma=-1.0),
    "empty arrays": lambda m, a: (
        a.update({"network/x": np.zeros((10**9, 0))}),
        m["model"]["flow"].update(hidden=10**6),
    ),
    "wider than its arrays": lambda m, a: m["model"]["flow"].update(hidden=65, n_layers=60),
    "weights that are not finite": lambda m, a: a[first_weight(a)].__setitem__((0, 0), np.nan),
    "reference that is not finite": lambda m, a: a["reference/mean"].__setitem__(0, np.nan),
    "reference of another size": lambda m, a: a.update({"reference/mean": np.zeros(3)}),
    "features that cannot be": lambda m, a: a.update({"conditions/x": np.zeros((1, 9, 8))}),
    "no history": lambda m, a: [a.pop(k) for k in list(a) if k.startswith("history/")],
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_engine_is_refused(case, saved, tmp_path):
    path = edited(saved, tmp_path / "crafted.nbi", CRAFTED[case])
    with pytest.raises(ValueError, match="must|unknown|known"):
        nbi.Engine.load(path, simulator=PROBLEM.simulator)


@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_pickles_are_refused_and_not_run(kind, tmp_path):
    bomb, path = Bomb(tmp_path / "exploded"), tmp_path / "engine.nbi"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif kind == "torch":
        buffer = io.BytesIO()
        torch.save(bomb, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        np.save(tmp_path / "a.npy", np.array([bomb], dtype=object), allow_pickle=True)
        path.write_bytes((tmp_path / "a.npy").read_bytes())
    for load in (nbi.Engine.load, nbi.Posterior.load):
        with pytest.raises(nbi.ArchiveError):
            load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_engine_is_refused(share, saved, tmp_path):
    data = saved.read_bytes()
    path = tmp_path / "short.nbi"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(nbi.ArchiveError):
        nbi.Engine.load(path)


def test_engine_file_is_no_posterior(saved):
    with pytest.raises(nbi.ArchiveError, match="posterior"):
        nbi.Posterior.load(saved)


def test_user_code_must_be_passed_again(tmp_path):
    noise = nbi.CustomNoise(lambda model, obs, theta, rng: model)
    engine = nbi.Engine(PROBLEM.simulator, PROBLEM.prior, noise=noise, featurizer="resnet")
    engine.fit(n_sims=100, n_epochs=1).save(tmp_path / "custom.nbi")
    with pytest.raises(ValueError, match="noise must be passed again"):
        nbi.Engine.load(tmp_path / "custom.nbi")
    assert nbi.Engine.load(tmp_path / "custom.nbi", noise=noise).history_ == engine.history_


def test_own_featurizer_must_be_passed_again(tmp_path):
    def network():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 12))

    engine = nbi.Engine(PROBLEM.simulator, PROBLEM.prior, noise=1.0, featurizer=network())
    engine.fit(n_sims=100, n_epochs=1).save(tmp_path / "own.nbi")
    with pytest.raises(ValueError, match="featurizer must be passed again"):
        nbi.Engine.load(tmp_path / "own.nbi")
    again = nbi.Engine.load(tmp_path / "own.nbi", featurizer=network())
    x = np.zeros(8)
    np.testing.assert_array_equal(again.sample(x), engine.sample(x))


@pytest.mark.parametrize("case", ["levy_stable", "studentized_range", "no such family"])
def test_a_family_with_slow_quantiles_must_be_passed_again(case, saved, tmp_path):
    def change(meta, arrays):  # noqa: ARG001
        shapes = {"levy_stable": ("alpha", "beta"), "studentized_range": ("k", "df")}
        args = {**dict.fromkeys(shapes.get(case, ()), 1.5), "loc": 0.0, "scale": 1.0}
        meta["prior"]["transport"]["families"][0] = {"family": case, "args": args}

    path = edited(saved, tmp_path / "slow.nbi", change)
    with pytest.raises(nbi.ArchiveError, match="quick quantiles .* Pass the prior again"):
        nbi.Engine.load(path)
    assert nbi.Engine.load(path, prior=PROBLEM.prior).prior_ == PROBLEM.prior


MIXTURE = nbi.EmpiricalPrior(np.random.default_rng(0).normal(size=(200, 2))).manifest()


@pytest.mark.parametrize("part", ["shift", "whitening", "log_weights", "means", "factors"])
@pytest.mark.parametrize("how", ["missing", "short", "zero", "negative", "infinite"])
def test_a_prior_of_a_file_is_a_sound_mixture(part, how):
    assert nbi.Prior.from_manifest(MIXTURE).n_dim == 2
    transport = dict(MIXTURE["transport"])
    own = np.array(transport.pop(part))
    changed = {"short": own[:-1], "zero": 0 * own, "negative": -own}
    changed["infinite"] = np.full_like(own, np.inf)
    if how != "missing":
        transport[part] = changed[how].tolist()
    manifest = {**MIXTURE, "transport": transport}
    if part in ("shift", "means") and how in ("zero", "negative"):
        assert nbi.Prior.from_manifest(manifest).n_dim == 2  # any place will do
        return
    if part == "log_weights" and how in ("zero", "negative"):
        assert nbi.Prior.from_manifest(manifest).n_dim == 2  # the weight of its one component
        return
    with pytest.raises((ValueError, KeyError)):
        nbi.Prior.from_manifest(manifest)


@pytest.mark.parametrize("field", ["samples", "weights", "log_q"])
def test_crafted_posterior_is_refused(field, engine, tmp_path):
    posterior = engine.predict_many(nbi.Observations.from_arrays(np.zeros((1, 8))))[0]
    short = replace(posterior, **{field: getattr(posterior, field)[:-1]})
    short.save(tmp_path / "p.h5")
    with pytest.raises(nbi.ArchiveError, match="agrees with itself, but .* must be float64"):
        nbi.Posterior.load(tmp_path / "p.h5")


def test_numbers_of_numpy_are_numbers(tmp_path):
    """Wherever they come from: a loop over ``np.arange`` is ordinary code."""
    problem = LinearGaussian(2, 4, sigma=0.3)
    engine = nbi.Engine(
        problem.simulator, problem.prior, noise=nbi.GaussianNoise(0.3, jitter=np.float32(0.25)),
        flow={"n_blocks": np.int64(2), "hidden": np.int32(16)}, seed=np.int64(3),
    )  # fmt: skip
    engine.fit(np.int64(200), n_epochs=np.int64(1), batch_size=np.int64(64), truth_test=False)
    engine.save(tmp_path / "e.nbi")
    again = nbi.Engine.load(tmp_path / "e.nbi", problem.simulator)
    assert again.seed == 3
    objects = nbi.Observations.from_arrays(problem.observe(3)[1])
    out = tmp_path / "out.parquet"
    assert again.predict_survey(objects, out, n_samples=np.int64(100)).n_objects == 3
    calibration = again.calibrate(np.int64(8), n_samples=np.int64(100))
    calibration.save(tmp_path / "c.h5")
    with pytest.raises(nbi.ArchiveError, match="finite"):
        write_archive(tmp_path / "a.nbi", "model", {"number": np.float32(np.inf)}, {})


def test_posteriors_are_joined_with_draws_or_without(engine):
    objects = nbi.Observations.from_arrays(PROBLEM.observe(2)[1])
    kept, bare = (engine.predict_many(objects, keep=k, n_samples=100) for k in (5, 0))
    for parts in ([kept, bare], [bare, kept]):
        with pytest.raises(ValueError, match="must all have kept draws, or none"):
            nbi.Posteriors.concatenate(parts)
    with pytest.raises(ValueError, match="at least one"):
        nbi.Posteriors.concatenate([])
