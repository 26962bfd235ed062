"""Wrong values at every public door: our own error that names the argument, or a right answer."""

from __future__ import annotations

import linecache
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform
from sklearn.exceptions import NotFittedError

import nbi_plus as nbi
from nbi_plus.infer import hmc, peaks
from nbi_plus.infer.samplers import ensemble

PACKAGE = str(Path(nbi.__file__).parent)
N_CASES = int(os.environ.get("NBI_PLUS_FUZZ_CASES", "200"))  # more than there are: all of them
OURS = (ValueError, TypeError, NotFittedError, nbi.SimulationError, nbi.TrainingError,
        nbi.ArchiveError, nbi.StoreError, OSError, KeyError)  # fmt: skip
X = np.linspace(-0.5, 0.5, 6)
DESIGN = np.stack([np.ones(6), np.linspace(-1, 1, 6)])
PRIOR = {"a": norm(0, 1), "b": uniform(-1, 2)}


class Strange:
    """An object of no kind that anybody expects."""

    def __repr__(self):
        return "<strange>"


COUNTS = [True, 1.5, "a", -1, 2**70, [3, 4], np.nan, Strange(), np.array(["x"]), 0]
SEEDS = [True, 1.5, "a", -1, 2**70, [1.5], {}, Strange(), np.array([[1]])]
POSITIVE = ["a", np.nan, -1.0, 0.0, [1.0, 2.0], Strange(), 1j, {}, True, np.inf]
FLAGS = ["a", 2.5, Strange(), [1, 2]]
DEVICES = ["cuda:99", "gpu", 3, "", True, Strange(), "meta", "cpu:99"]
PATHS = ["", "no/such/folder/file", ".", 3, True, Strange(), "a\0b"]
DATA = [
    [], np.zeros(0), np.zeros((2, 2, 2, 2)), "abc", None, {}, [[1.0, 2.0], [3.0]], 1j * X, 5.0,
    np.array([Strange()] * 6), X[:3], np.array([["a"] * 6]), Strange(), np.full(6, np.nan),
    1e308 * X,
]  # fmt: skip
SIGMAS = ["", np.zeros(0), -1.0, np.nan, np.inf, 0.0, [1.0] * 4, "sigma", Strange(), {}, 1j,
          np.ones((2, 3, 4)), 1e-320, 1e308]  # fmt: skip
THETAS = [[], np.zeros((3, 5)), "abc", None, {}, np.zeros((2, 2, 2)), [[np.nan, 0]], Strange(),
          [[9.0, 9.0]], 3.0, [["a", "b"]]]  # fmt: skip
WORDS = ["", "no such word", 3, Strange(), ["a"], {}]
STARTS = [np.zeros((1, 8, 2)), torch.zeros(7, 2), torch.zeros(1, 8, 2, dtype=torch.int64),
          torch.full((1, 8, 2), torch.nan), torch.zeros(0, 8, 2), "a", None]  # fmt: skip


def line(theta):
    return theta @ DESIGN


def engine(**options):
    small = {"flow": {"n_blocks": 2, "hidden": 16}, "featurizer": "mlp", "noise": 0.5}
    return nbi.Engine(line, PRIOR, **(small | options))


def many(n=2, **options):
    return nbi.Observations.from_arrays(np.tile(X, (n, 1)), **options)


def normal(z, index=None):
    return -0.5 * z.square().sum(-1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    made = engine(ladder=nbi.Ladder(escalate="never")).fit(n_sims=400, n_epochs=3)
    made.file = tmp_path_factory.mktemp("fitted") / "engine.nbi"
    made.save(made.file)
    made.answer = quiet(made.predict, X)
    return made


def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **kwargs)


def fit(**options):
    return engine(ladder=nbi.Ladder(escalate="never")).fit(
        **({"n_sims": 64, "n_epochs": 1} | options)
    )


def in_rounds(**options):
    chosen = {"n_sims": 200, "n_rounds": 2, "x_obs": X, "ess_target": 50, "n_epochs": 1}
    return engine(ladder=nbi.Ladder(escalate="never", audit=None)).fit(**(chosen | options))


def fit_of(**options):
    return engine(**options).fit(n_sims=64, n_epochs=1)


def gaussian(**options):
    return nbi.GaussianNoise(**({"sigma": 0.5} | options))


def with_noise(noise):
    """Return what a noise gives for two models, after it was drawn once: it is used, not made."""
    data, theta, model = many(), np.zeros((2, 2)), line(np.zeros((2, 2)))[:, None]
    return noise.bind(False, ("a", "b")).log_likelihood(theta, model, data)


# name: (what is called with the fitted engine and one wrong argument, that argument's values)
DOORS = {
    **{f"fit {k}": (lambda e, a, v, k=k: fit(**{k: v}), k + "|theta", COUNTS)
       for k in ("n_sims", "n_epochs", "batch_size", "n_rounds")},
    **{f"fit {k}": (lambda e, a, v, k=k: fit(**{k: v}), k, POSITIVE)
       for k in ("lr", "max_failed")},
    "fit x_obs": (lambda e, a, v: fit(x_obs=v), "x_obs|observations|table", DATA),
    "fit x_err": (lambda e, a, v: fit(x_err=v), "x_err|noise", SIGMAS),
    "fit mask": (lambda e, a, v: fit(x_obs=X, mask=v), "mask", DATA),
    "fit observations": (lambda e, a, v: fit(observations=v), "observations", WORDS),
    "fit theta": (lambda e, a, v: fit(n_sims=None, theta=v, x=np.zeros((3, 6))),
                  "theta|table", THETAS),
    "fit x": (lambda e, a, v: fit(n_sims=None, theta=np.zeros((3, 2)), x=v), "x", DATA),
    "fit noise": (lambda e, a, v: fit(noise=v), "sigma|noise", SIGMAS),
    "fit method": (lambda e, a, v: in_rounds(method=v), "method", WORDS),
    "fit locate": (lambda e, a, v: in_rounds(locate=v), "locate", WORDS),
    "fit train": (lambda e, a, v: fit(train=v), "train", WORDS),
    "fit perturb": (lambda e, a, v: fit(perturb=v), "perturb", WORDS),
    "fit modes": (lambda e, a, v: in_rounds(modes=v), "modes", WORDS),
    "fit truth_test": (lambda e, a, v: fit(truth_test=v), "truth_test", COUNTS[1:9]),
    **{f"rounds {k}": (lambda e, a, v, k=k: in_rounds(**{k: v}), k, POSITIVE)
       for k in ("ess_target", "max_seconds")},
    "rounds max_sims": (lambda e, a, v: in_rounds(max_sims=v), "max_sims", COUNTS),
    "engine seed": (lambda e, a, v: fit_of(seed=v), "seed", SEEDS),
    "engine device": (lambda e, a, v: fit_of(device=v), "device", DEVICES),
    "engine n_jobs": (lambda e, a, v: fit_of(n_jobs=v), "n_jobs", [1.5, "a", 0, -5, Strange()]),
    "engine path": (lambda e, a, v: fit_of(path=v), "path", [3, True, Strange(), "a\0b", __file__]),
    "engine memory": (lambda e, a, v: fit_of(memory=v), "memory", POSITIVE),
    "engine flow": (lambda e, a, v: fit_of(flow=v), "flow", WORDS),
    "engine featurizer": (lambda e, a, v: fit_of(featurizer=v), "featurizer", WORDS),
    "engine ladder": (lambda e, a, v: fit_of(ladder=v), "ladder", WORDS[1:5]),
    "engine prior": (lambda e, a, v: nbi.Engine(line, v, noise=1.0).fit(n_sims=9),
                     "prior|parameters", WORDS),
    "engine simulator": (lambda e, a, v: nbi.Engine(v, PRIOR, noise=1.0).fit(n_sims=9), "simulator",
                         WORDS),
    **{f"flow {k}": (lambda e, a, v, k=k: nbi.FlowConfig(**{k: v}), k, COUNTS)
       for k in ("n_blocks", "hidden", "n_layers", "n_mog", "n_bins")},
    "flow perm_seed": (lambda e, a, v: fit_of(flow={"perm_seed": v}), "perm_seed", SEEDS),
    "predict x_obs": (lambda e, a, v: e.predict(v), "x_obs|x|table", DATA),
    "predict x_err": (lambda e, a, v: e.predict(X, v), "x_err", SIGMAS),
    "predict mask": (lambda e, a, v: e.predict(X, mask=v), "mask", DATA),
    "predict bad": (lambda e, a, v: e.predict(X, bad=v), "bad|mask", DATA),
    "predict n_samples": (lambda e, a, v: e.predict(X, n_samples=v), "n_samples", COUNTS),
    "predict seed": (lambda e, a, v: e.predict(X, seed=v), "seed", SEEDS),
    "predict modes": (lambda e, a, v: e.predict(X, modes=v), "modes", THETAS),
    "predict prior": (lambda e, a, v: e.predict(X, prior=v), "prior|parameters", WORDS),
    "predict_many observations": (lambda e, a, v: e.predict_many(v), "observations", DATA),
    "predict_many n_samples": (lambda e, a, v: e.predict_many(many(), n_samples=v), "n_samples",
                               COUNTS),
    "predict_many keep": (lambda e, a, v: e.predict_many(many(), keep=v), "keep", COUNTS),
    "predict_many seed": (lambda e, a, v: e.predict_many(many(), seed=v), "seed", SEEDS),
    "retry posteriors": (lambda e, a, v: e.retry(v, many()), "posteriors", WORDS),
    "sample n_samples": (lambda e, a, v: e.sample(X, n_samples=v), "n_samples", COUNTS),
    "sample seed": (lambda e, a, v: e.sample(X, seed=v), "seed", SEEDS),
    "log_prob theta": (lambda e, a, v: e.log_prob(v, X), "theta|table", THETAS),
    "log_prob x": (lambda e, a, v: e.log_prob(np.zeros((2, 2)), v), "x|x_obs|table", DATA),
    "log_likelihood theta": (lambda e, a, v: e.log_likelihood(v, X), "theta", THETAS),
    "log_posterior theta": (lambda e, a, v: e.log_posterior(v, X), "theta", THETAS),
    "simulate theta": (lambda e, a, v: e.simulate(v), "theta", THETAS),
    "save path": (lambda e, a, v: e.save(v), "path", PATHS),
    "load path": (lambda e, a, v: nbi.Engine.load(v), "path|file", PATHS),
    "load device": (lambda e, a, v: nbi.Engine.load(e.file, device=v), "device", DEVICES),
    "ids": (lambda e, a, v: many(ids=v), "ids", [["a", "a"], ["a"], 3, [], Strange(), {}]),
    "from_arrays x": (lambda e, a, v: nbi.Observations.from_arrays(v), "x", DATA),
    "from_arrays x_err": (lambda e, a, v: many(x_err=v), "x_err", SIGMAS),
    "from_arrays mask": (lambda e, a, v: many(mask=v), "mask", DATA),
    "read path": (lambda e, a, v: nbi.Observations.read(v), "path|file", PATHS),
    "write path": (lambda e, a, v: many().write(v), "path|file", PATHS),
    "posterior save": (lambda e, a, v: e.answer.save(v), "path", PATHS),
    "posterior load": (lambda e, a, v: nbi.Posterior.load(v), "path|file", PATHS),
    "posterior resample": (lambda e, a, v: e.answer.resample(v), "n", COUNTS),
    "posterior resample rng": (lambda e, a, v: e.answer.resample(5, v), "rng", SEEDS),
    "posterior quantile": (lambda e, a, v: e.answer.quantile(v), "q", ["a", np.nan, -1.0, 2.0, [],
                           Strange(), {}]),
    "posterior reweight": (lambda e, a, v: e.answer.reweight(v), "new_prior|prior", WORDS),
    "posterior name": (lambda e, a, v: e.answer[v], "names|name|parameter", ["c", 3, Strange()]),
    "prior sample": (lambda e, a, v: nbi.Prior(PRIOR).sample(v), "n", COUNTS),
    "prior rng": (lambda e, a, v: nbi.Prior(PRIOR).sample(3, v), "rng", SEEDS),
    "prior log_prob": (lambda e, a, v: nbi.Prior(PRIOR).log_prob(v), "theta|table", THETAS),
    "prior transform": (lambda e, a, v: nbi.Prior(PRIOR).transform(v), "u|table", THETAS),
    "empirical samples": (lambda e, a, v: nbi.EmpiricalPrior(v, ["a", "b"]), "samples", THETAS),
    "empirical components": (lambda e, a, v: nbi.EmpiricalPrior(
        np.random.default_rng(0).normal(size=(90, 2)), ["a", "b"], max_components=v),
        "max_components", COUNTS),
    "empirical seed": (lambda e, a, v: nbi.EmpiricalPrior(
        np.random.default_rng(0).normal(size=(90, 2)), ["a", "b"], seed=v), "seed", SEEDS),
    "circular period": (lambda e, a, v: nbi.Circular(v), "period", POSITIVE),
    "gaussian sigma": (lambda e, a, v: with_noise(nbi.GaussianNoise(v)), "sigma", SIGMAS),
    "gaussian jitter": (lambda e, a, v: with_noise(gaussian(jitter=v)), "jitter", SIGMAS),
    "gaussian fractional": (lambda e, a, v: with_noise(gaussian(fractional=v)), "fractional",
                            POSITIVE),
    "student df": (lambda e, a, v: with_noise(nbi.StudentTNoise(v, sigma=0.5)), "df", POSITIVE),
    "poisson exposure": (lambda e, a, v: with_noise(nbi.PoissonNoise(v)), "exposure", SIGMAS),
    "poisson background": (lambda e, a, v: with_noise(nbi.PoissonNoise(1.0, v)), "background",
                           SIGMAS),
    "outlier fraction": (lambda e, a, v: with_noise(nbi.OutlierNoise(v, 2.0, 0.5)), "fraction",
                         SIGMAS),
    "outlier width": (lambda e, a, v: with_noise(nbi.OutlierNoise(0.1, v, 0.5)), "width", SIGMAS),
    "poisson fit": (lambda e, a, v: engine(noise=nbi.PoissonNoise(v)).fit(n_sims=64, n_epochs=1),
                    "exposure|noise|training|validation", [1e308, 1e-308]),
    "check_noise seed": (lambda e, a, v: nbi.check_noise(0.5, line, PRIOR, many(), seed=v), "seed",
                         SEEDS),
    "check_noise observations": (lambda e, a, v: nbi.check_noise(0.5, line, PRIOR, v),
                                 "observations", WORDS),
    "check_noise noise": (lambda e, a, v: nbi.check_noise(v, line, PRIOR, many()),
                          "sigma|noise|x_err", SIGMAS),
    "sbc n_ranks": (lambda e, a, v: nbi.sbc([e.answer] * 2, np.zeros((2, 2)), n_ranks=v), "n_ranks",
                    COUNTS),
    "sbc seed": (lambda e, a, v: nbi.sbc([e.answer] * 2, np.zeros((2, 2)), seed=v), "seed", SEEDS),
    "sbc theta_true": (lambda e, a, v: nbi.sbc([e.answer] * 2, v), "theta_true|theta", THETAS),
    "sbc posteriors": (lambda e, a, v: nbi.sbc(v, np.zeros((1, 2))), "posteriors", WORDS),
    "hmc z0": (lambda e, a, v: hmc.sample(normal, v), "z0", STARTS),
    "hmc seed": (lambda e, a, v: hmc.sample(normal, START, seed=v, config=SHORT), "seed", SEEDS),
    "hmc n_super": (lambda e, a, v: hmc.sample(normal, START, v, config=SHORT), "n_super", COUNTS),
    "peaks starts": (lambda e, a, v: peaks.find(normal, v), "starts", STARTS),
    "peaks seed": (lambda e, a, v: peaks.find(normal, START, seed=v), "seed", SEEDS),
    "ensemble z0": (lambda e, a, v: ensemble.sample(normal, v), "z0", STARTS),
    "ensemble seed": (lambda e, a, v: ensemble.sample(normal, WALKERS, seed=v, max_calls=200),
                      "seed", SEEDS),
    **{f"ladder {k}": (lambda e, a, v, k=k: nbi.Ladder(**{k: v}), k, COUNTS)
       for k in ("n_draws", "top_up_draws")},
    "ladder escalate": (lambda e, a, v: nbi.Ladder(escalate=v), "escalate", WORDS),
    "ladder rungs": (lambda e, a, v: nbi.Ladder(rungs=v), "rungs", ["a", 3, (3,), Strange()]),
    **{f"budget {k}": (lambda e, a, v, k=k: nbi.Budget(**{k: v}), k, ["a", -1, np.nan, Strange(),
                                                                     [1, 2]])
       for k in ("calls", "gradients", "seconds")},
    **{f"simulator {k}": (lambda e, a, v, k=k: nbi.Simulator(line, **{k: v}), k, FLAGS)
       for k in ("vectorized", "differentiable")},
    "simulator timeout": (lambda e, a, v: nbi.Simulator(line, timeout=v), "timeout", POSITIVE),
}  # fmt: skip
START = torch.randn(1, 16, 2, generator=torch.Generator().manual_seed(0)).double()
WALKERS = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).double()
SHORT = hmc.HmcConfig(max_steps=40)

POOL = [
    *COUNTS,
    *SEEDS,
    *POSITIVE,
    *FLAGS,
    *DEVICES,
    *PATHS,
    *DATA,
    *SIGMAS,
    *THETAS,
    *WORDS,
    *STARTS,
]
CASES = [(door, value) for door, (_, _, values) in DOORS.items() for value in values]
TRIED = sorted(np.random.default_rng(0).permutation(len(CASES))[:N_CASES])


def raised_by_us(error):
    """Say whether a statement ``raise`` of the package raised an error."""
    trail = error.__traceback__
    while trail.tb_next is not None:
        trail = trail.tb_next
    where, line = trail.tb_frame.f_code.co_filename, trail.tb_lineno
    return where.startswith(PACKAGE) and linecache.getline(where, line).lstrip().startswith("raise")


def complaint(door, value, fitted):
    """Return what is wrong with what a door makes of a value; None where nothing is."""
    call, argument, _ = DOORS[door]
    try:
        found = quiet(call, fitted, argument, value)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is tried here
        told = str(error)
        if not (isinstance(error, OURS) and raised_by_us(error)):
            trail = error.__traceback__
            own = []
            while trail is not None:
                if trail.tb_frame.f_code.co_filename.startswith(PACKAGE):
                    own.append(
                        f"{trail.tb_frame.f_code.co_filename[len(PACKAGE) :]}:{trail.tb_lineno}"
                    )
                trail = trail.tb_next
            return f"raw {error!r:.200} {own[-3:]}"
        if not re.search(rf"\b({argument})\b", told):
            return f"does not name {argument}: {told:.200}"
        if not re.search(r"\b(must|cannot)\b", told):
            return f"does not say what must be: {told:.200}"
        return None
    if getattr(found, "certified", None) is True and not np.isfinite(found.log_evidence):
        return "certified, and not finite"
    return None


@pytest.mark.parametrize("which", TRIED, ids=lambda i: f"{CASES[i][0]}: {CASES[i][1]!r:.20}")
def test_wrong_value_gives_an_error_of_ours_or_a_right_answer(which, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(*CASES[which], fitted) is None


@pytest.mark.parametrize("n_calls", [100, pytest.param(2000, marks=pytest.mark.faults)])
def test_any_value_gives_an_error_of_ours_or_a_right_answer(n_calls, fitted, tmp_path, monkeypatch):
    """Values of other arguments, too: a path for a number, a network's input for a word."""
    monkeypatch.chdir(tmp_path)
    rng, doors = np.random.default_rng(n_calls), list(DOORS)
    for _ in range(n_calls):
        door, value = doors[rng.integers(len(doors))], POOL[rng.integers(len(POOL))]
        assert complaint(door, value, fitted) is None, (door, value)
