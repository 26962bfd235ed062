"""Answers about the objects of a family, judged one by one, and the figures of a whole set."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, fields

import numpy as np

import nbi_plus as nbi
from benchmarks.families import FAMILIES
from benchmarks.verdicts import Answer, Bound, judge, told
from nbi_plus import Flag, Status

WAYS = ("mean", "sd", "evidence", "mode")


@dataclass(frozen=True)
class Answered:
    """What came of one set.

    Attributes
    ----------
    rows : list of dict
        One plain record for each object.
    training, answering : float
        CPU seconds, of all objects together.
    """

    rows: list
    training: float
    answering: float


def family_of(name, **chosen):
    """Return a family of this name with these options; those that are None are its own.

    Raises
    ------
    ValueError
        Where the family has no such option.
    """
    chosen = {k: v for k, v in chosen.items() if v is not None}
    known = {field.name for field in fields(FAMILIES[name])}
    if unknown := set(chosen) - known:
        raise ValueError(
            f"options of {name} must be among {sorted(known)}, but hold {sorted(unknown)}."
        )
    return FAMILIES[name](**chosen)


def ladder_without(features):
    """Return a `Ladder` with these fields None, or None where it has none of them.

    A feature that this version of the package does not have is off as it is: what was measured
    without it can be compared with later versions.
    """
    known = {field.name for field in fields(nbi.Ladder)}
    off = dict.fromkeys(known & set(features))
    return nbi.Ladder(**off) if off else None


def trained(family, n_sims, n_epochs, seed, ladder=None, cache=None, truths=None):
    """Return a fitted engine, read from the folder ``cache`` when it was fitted before."""
    path = None
    if cache is not None:
        options = "-".join(f"{k}{v:g}" for k, v in asdict(family).items())
        tried = "" if truths is None else f"-truths{truths}"
        name = f"engine-{family.name}-{options}-{n_sims}x{n_epochs}-seed{seed}{tried}.nbi"
        path = cache / name
        if path.exists():
            engine = nbi.Engine.load(path, family.simulator, noise=family.noise())
            return engine.set_params(ladder=ladder)
    engine = family.engine(seed, ladder)
    engine.fit(n_sims, n_epochs=n_epochs, progress=False, truth_test=truths)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine.save(path)
    return engine


def run(family, n_objects, options):
    """Return what a network comes to, asked about fresh objects of a family.

    Parameters
    ----------
    family : Family
    n_objects : int
    options : namespace
        ``n_sims``, ``epochs``, ``seed``, ``ladder``, ``cache`` and ``truths``.
    """
    began = time.process_time()
    engine = trained(
        family, options.n_sims, options.epochs, options.seed, options.ladder, options.cache,
        options.truths,
    )  # fmt: skip
    after = time.process_time()
    # the network has seen simulations of its own seed, never these objects
    theta, x, err = family.make(n_objects, options.seed + 1)
    ids = [f"{family.name} {i:03d}" for i in range(n_objects)]
    posteriors = engine.predict_many(nbi.Observations.from_arrays(x, ids=ids))
    answering = time.process_time() - after
    rows = [record(family, posteriors, i, theta[i], x[i], err) for i in range(n_objects)]
    return Answered(rows, after - began, answering)


def record(family, posteriors, i, truth, x, err):
    """Return the plain record of answer i, about data x (L,)."""
    reference = family.exact(x, err)
    return {
        **told(posteriors, i),
        "kind": family.name,
        "mode_missed": Flag.MODE_MISSED in posteriors.flags[i],
        "truth": truth.tolist(),
        "exact": {k: np.asarray(v).tolist() for k, v in asdict(reference).items() if k != "modes"}
        | {"modes": reference.modes},
        **judge(answer_of(family, posteriors, i, x), reference),
    }


def answer_of(family, posteriors, i, x):
    """Return what is judged of answer i, with the mass that it gives to each mode."""
    one, moments = posteriors[i], (posteriors.mean[i], posteriors.std[i], posteriors.ess[i])
    evidence = posteriors.log_evidence[i], posteriors.log_evidence_err[i]
    if one.status is Status.FAILED:
        return Answer(*moments, *evidence)
    label = family.label(one.samples, x)
    given = {int(k): float(one.weights[label == k].sum()) for k in np.unique(label)}
    return Answer(*moments, *evidence, given)


# --- figures -------------------------------------------------------------------------------------


def figures(answered):
    """Return the numbers of a set: counts of objects, and means of what one of them cost."""
    rows = answered.rows
    bad = [r for r in rows if r["certified"] and r["wrong"]]
    right = [r for r in rows if not r["wrong"]]
    return {
        "objects": len(rows),
        "certified": sum(r["certified"] for r in rows),
        "trusted": sum(r["trusted"] for r in rows),
        "wrong_and_certified": len(bad),
        "wrong_in": {way: sum(way in r["wrong_in"] for r in bad) for way in WAYS},
        "wrong_and_trusted": sum(r["trusted"] for r in bad),
        "mode_missed": sum(r["mode_missed"] for r in rows),
        "mode_missed_and_wrong": sum(r["mode_missed"] and r["wrong"] for r in rows),
        "false_alarms": sum(not r["certified"] or r["mode_missed"] for r in right),
        "statuses": dict(Counter(r["status"] for r in rows).most_common()),
        "calls": float(np.mean([r["n_simulated"] for r in rows])),
        "gradients": float(np.mean([r["n_gradients"] for r in rows])),
        "audit_calls": float(np.mean([sum(g["n_apart"] for g in r["rungs"]) for r in rows])),
        "cpu_seconds": answered.answering / len(rows),
        "training_cpu_seconds": answered.training,
    }


def report(name, found):
    """Return the figures of a set in words."""
    ways = ", ".join(f"{way} {n}" for way, n in found["wrong_in"].items())
    statuses = ", ".join(f"{status} {n}" for status, n in found["statuses"].items())
    return (
        f"{name}: {found['objects']} objects, certified {found['certified']}, trusted "
        f"{found['trusted']}, wrong and certified {found['wrong_and_certified']} ({ways}), wrong "
        f"and trusted {found['wrong_and_trusted']}, flagged MODE_MISSED {found['mode_missed']} "
        f"({found['mode_missed_and_wrong']} of them wrong), false alarms {found['false_alarms']}\n"
        f"statuses: {statuses}\n"
        f"an object: {found['calls']:.0f} calls, {found['gradients']:.0f} gradients, and "
        f"{found['audit_calls']:.0f} of the audit; {found['cpu_seconds']:.2f} CPU s; training: "
        f"{found['training_cpu_seconds']:.0f} CPU s"
    )


def bounds(family, found):
    """Return the bounds of a set."""
    wrong = found["wrong_and_trusted"] / found["objects"]
    return [Bound("wrong and trusted, of all", wrong, family.wrong_at_most, at_most=True)]
