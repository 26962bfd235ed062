"""Point-lens events whose exact posteriors `benchmarks.exact` knows: ordinary, odd and bad ones.

A set is a network of the package, trained for ordinary events, asked about some of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import loguniform, uniform

import nbi_plus as nbi
from benchmarks import exact
from benchmarks.exact import Exact, Reference
from benchmarks.verdicts import Answer, adversarial_bounds, judge, plain_bounds, told
from nbi_plus.models.microlensing import point_lens

BUMP_CHI2 = 60.0  # the best lens misses an event with a bump by more than this
NARROW = 1e-4  # the smallest sd of a narrow posterior, in sd of the prior
SOFT = 0.05  # a mirrored lens comes no closer
T = np.sort(np.random.default_rng(117).uniform(0.0, 120.0, 117))
LENS = {"t0": uniform(30.0, 60.0), "u0": uniform(0.05, 0.95), "tE": loguniform(3.0, 40.0)}
COUNTS = {
    "ordinary": 100, "precise": 50, "noisy": 50, "missing": 50, "bump": 100, "narrow": 75,
    "gap": 35, "mirrored": 40,
}  # fmt: skip


# --- problems ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A simulator for the package, the same curves for `Exact`, and the prior of both."""

    name: str
    priors: dict
    simulator: Callable
    curves: Callable


def curves(theta):
    """Return the light curves (n, 117) of t0, u0, tE (n, 3), from the textbook formula."""
    t0, u0, te = (theta[:, i, None] for i in range(3))
    u2 = ((T - t0) / te) ** 2 + u0**2
    return (u2 + 2) / np.sqrt(u2 * (u2 + 4))


def mirrored_curves(theta):
    """Return the curves of a lens that passes on either side: u0 and -u0 look the same."""
    u0 = np.hypot(theta[:, 1], SOFT)
    return curves(np.column_stack([theta[:, 0], u0, theta[:, 2]]))


def mirrored_lens(theta, t):
    """Return the same in torch, with a gradient."""
    u0 = (theta[:, 1] ** 2 + SOFT**2).sqrt()
    return point_lens(torch.stack([theta[:, 0], u0, theta[:, 2]], 1), t)


def black_box(theta, t):
    """Return the light curves in numpy, whatever comes in: there is no gradient."""
    return point_lens(np.asarray(theta, float), np.asarray(t, float))


PROBLEMS = {
    "lens": Problem("lens", LENS, point_lens, curves),
    "black box": Problem("black box", LENS, black_box, curves),
    "mirrored": Problem(
        "mirrored", LENS | {"u0": uniform(-1.0, 2.0)}, mirrored_lens, mirrored_curves
    ),
}


def problem_of(kind):
    """Return the name of the problem that objects of a kind belong to."""
    return "mirrored" if kind == "mirrored" else "lens"


# --- objects -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """Data with known truths: kind (N,), truth (N, D), x, err and mask (N, 117)."""

    kind: np.ndarray
    truth: np.ndarray
    x: np.ndarray
    err: np.ndarray
    mask: np.ndarray

    def __len__(self):
        return len(self.kind)

    def observations(self):
        """Return them for the package."""
        ids = [f"{kind} {i:03d}" for i, kind in enumerate(self.kind)]
        return nbi.Observations.from_arrays(self.x, self.err, mask=self.mask, ids=ids, t=T)

    def digest(self):
        """Return a text that changes with the data, and with the code that answers them."""
        whole = hashlib.blake2b(Path(exact.__file__).read_bytes(), digest_size=8)
        for name in ("truth", "x", "err", "mask"):
            whole.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return whole.hexdigest()


def usual_errors(n, rng):
    """Return the errors (n, 117) that networks are trained for."""
    level = loguniform(0.03, 0.1).rvs((n, 1), random_state=rng)
    return level * rng.lognormal(0.0, 0.25, (n, len(T)))


def make(kind, n, solver, seed):
    """Return n objects of one kind."""
    rng = np.random.default_rng([seed, sorted(COUNTS).index(kind)])
    made = [MAKERS[kind](solver, rng) for _ in range(n)]
    truth, x, err, mask = (np.stack(column) for column in zip(*made, strict=True))
    return Objects(np.full(n, kind), truth, x, err, mask)


def _plain(solver, rng, scale=1.0):
    truth = solver.theta(rng.standard_normal((1, len(solver.priors))))[0]
    err = scale * usual_errors(1, rng)[0]
    return _seen(solver, truth, err, np.ones(len(T), bool), rng)


def _seen(solver, truth, err, mask, rng):
    return truth, solver.simulate(truth[None])[0] + err * rng.standard_normal(len(T)), err, mask


def _missing(solver, rng):
    truth, x, err, _ = _plain(solver, rng)
    return truth, x, err, rng.random(len(T)) > 0.2


def _bump(solver, rng):
    """Return an event with a second peak that no single lens explains."""
    while True:
        truth, x, err, mask = _plain(solver, rng)
        t0, u0, te = rng.uniform(10.0, 110.0), rng.uniform(0.3, 1.0), rng.uniform(1.0, 5.0)
        x = x + curves(np.array([[t0, u0, te]]))[0] - 1.0
        if solver.best_chi2(x, err, mask, truth) > len(T) + BUMP_CHI2:
            return truth, x, err, mask


def _narrow(solver, rng):
    """Return an event whose errors make the best-known parameter known to `NARROW`."""
    truth, _, err, mask = _plain(solver, rng)
    sd = fisher_sd(solver, truth, err) / [p.std() for p in solver.priors.values()]
    return _seen(solver, truth, err * NARROW / sd.min(), mask, rng)


def _gap(solver, rng):
    """Return an event without points about its peak, or with none from before it on."""
    while True:
        truth, x, err, _ = _plain(solver, rng)
        phase = (T - truth[0]) / truth[2]
        mask = np.abs(phase) > 0.8 if rng.random() < 0.5 else phase < rng.uniform(-0.6, 0.0)
        if mask.sum() >= 20:
            return truth, x, err, mask


MAKERS = {
    "ordinary": _plain,
    "precise": lambda solver, rng: _plain(solver, rng, 0.2),
    "noisy": lambda solver, rng: _plain(solver, rng, 5.0),
    "missing": _missing,
    "bump": _bump,
    "narrow": _narrow,
    "gap": _gap,
    "mirrored": _plain,
}


def fisher_sd(solver, truth, err):
    """Return the standard deviations (D,) that the data of these errors allow."""
    step = 1e-5 * np.abs(truth) * np.eye(len(truth))
    slopes = (solver.simulate(truth + step) - solver.simulate(truth - step)) / 2
    slopes = slopes / np.diag(step)[:, None] / err
    return np.sqrt(np.diag(np.linalg.inv(slopes @ slopes.T)))


# --- answers ------------------------------------------------------------------------------------


def records(objects, posteriors, references):
    """Return one plain record for each object."""
    found = []
    for i, reference in enumerate(references):
        answer = Answer(posteriors.mean[i], posteriors.std[i], posteriors.ess[i])
        found.append(
            {
                **told(posteriors, i),
                "kind": str(objects.kind[i]),
                "truth": objects.truth[i].tolist(),
                "exact": {k: np.asarray(v).tolist() for k, v in asdict(reference).items()},
                "exact_is_sound": reference.sound,
                **judge(answer, reference),
            }
        )
    return found


def references(solver, objects, cache):
    """Return the exact answers, read from the folder ``cache`` when it knows these data."""
    path = None if cache is None else Path(cache) / f"exact-{objects.digest()}.json"
    if path is not None and path.exists():
        return [_reference(stored) for stored in json.loads(path.read_text())]
    columns = zip(objects.x, objects.err, objects.mask, objects.truth, strict=True)
    found = [solver(*column) for column in columns]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = [{k: np.asarray(v).tolist() for k, v in asdict(r).items()} for r in found]
        path.write_text(json.dumps(stored))
    return found


def _reference(stored):
    return Reference(**{k: np.array(v) if isinstance(v, list) else v for k, v in stored.items()})


# --- sets ----------------------------------------------------------------------------------------


def trained(problem, n_sims, n_epochs, options):
    """Return an engine trained for events of usual errors, read from the cache if it is there."""
    name = f"engine-{problem.name.replace(' ', '-')}-{n_sims}x{n_epochs}-seed{options.seed}.nbi"
    path = None if options.cache is None else Path(options.cache) / name
    if path is not None and path.exists():
        engine = nbi.Engine.load(path, simulator=problem.simulator)
        return engine.set_params(ladder=options.ladder)
    rng = np.random.default_rng([options.seed, 99])
    err = usual_errors(300, rng)
    survey = nbi.Observations.from_arrays(np.ones(err.shape), err, t=T)
    prior = nbi.Prior(problem.priors)
    engine = nbi.Engine(problem.simulator, prior, seed=options.seed, ladder=options.ladder)
    engine.fit(n_sims, n_epochs=n_epochs, observations=survey, progress=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine.save(path)
    return engine


def answered(problem, objects, network, options):
    """Return the records of objects of one problem, and how long their answers took."""
    engine = trained(problem, *network, options)
    began = time.perf_counter()
    posteriors = engine.predict_many(objects.observations(), keep=0)
    seconds = time.perf_counter() - began
    solver = Exact(problem.priors, problem.curves, options.seed)
    return records(objects, posteriors, references(solver, objects, options.cache)), seconds


def plain_set(problem, network, n, options):
    """Return records of events of the prior."""
    solver = Exact(problem.priors, problem.curves, options.seed)
    return answered(problem, make("ordinary", n, solver, options.seed), network, options)


def adversarial_set(options):
    """Return records of all kinds of events."""
    found, seconds = [], 0.0
    for name in ("lens", "mirrored"):
        problem = PROBLEMS[name]
        solver = Exact(problem.priors, problem.curves, options.seed)
        kinds = {k: scaled(n, options.scale) for k, n in COUNTS.items() if problem_of(k) == name}
        parts = [make(kind, n, solver, options.seed) for kind, n in kinds.items()]
        objects = Objects(
            *(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Objects))
        )
        rows, spent = answered(problem, objects, (20_000, 20), options)
        found, seconds = found + rows, seconds + spent
    return found, seconds


def scaled(n, scale):
    """Return a smaller number of objects, for a quick look."""
    return max(1, round(n * scale))


def run(name, options):
    """Return the records of a set, the seconds of its answers, and its bounds."""
    if name == "adversarial":
        rows, seconds = adversarial_set(options)
        return rows, seconds, adversarial_bounds(rows)
    problem = PROBLEMS["lens" if name == "under-trained" else "black box"]
    n = scaled(200 if name == "under-trained" else 50, options.scale)
    rows, seconds = plain_set(problem, (5000, 2), n, options)
    return rows, seconds, plain_bounds(rows)
