"""Laws of a small survey of sines with errors that differ from point to point, and are known.

What of it is exact: given frequency and phase the model is linear in the amplitude, so that one
integral has a closed form and two are sums over a grid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import kstest, uniform

import nbi_plus as nbi
from nbi_plus.infer import answer
from nbi_plus.infer.ensemble_rung import EnsembleRung
from nbi_plus.infer.hmc_rung import HmcRung
from nbi_plus.infer.meter import Budget
from nbi_plus.infer.refine import FlowRung, RefineConfig
from nbi_plus.trust.calibration import sbc

T = np.linspace(0, 1, 50)
LOW, HIGH = (1.0, 5.0), (2 * np.pi, 12 * np.pi)  # ranges of amplitude and frequency
PRIOR = nbi.Prior(
    {
        "amplitude": uniform(LOW[0], LOW[1] - LOW[0]),
        "frequency": uniform(HIGH[0], HIGH[1] - HIGH[0]),
        "phase": nbi.Circular(2 * np.pi),
    }
)
BEFORE_CHAINS = {"reweight", "top up", "refine"}
OWN_DRAWS = {"reweight", "top up"}


def wave(theta, t):
    amplitude, frequency, phase = (theta[:, i : i + 1] for i in range(3))
    return amplitude * torch.sin(frequency * t + phase)


def observe(n, seed, shrink=1.0, offset=0.0):
    """Return arrays x (n, L), x_err (n, L) and truths (n, 3): a level of each object, and scatter."""
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(n, rng)
    level = np.exp(rng.uniform(np.log(0.2), np.log(1.5), (n, 1)))
    error = shrink * level * rng.lognormal(0.0, 0.2, (n, len(T)))
    model = wave(torch.as_tensor(theta), torch.as_tensor(T)).numpy()
    return model + error * rng.normal(size=error.shape) + offset, error, theta


def survey(n, seed, **options):
    x, error, theta = observe(n, seed, **options)
    return nbi.Observations.from_arrays(x, error, t=T), theta


def train(n_sims, n_epochs):
    engine = nbi.Engine(wave, PRIOR, featurizer="resnet")
    conditions = survey(2000, seed=99)[0]
    return engine.fit(n_sims=n_sims, n_epochs=n_epochs, batch_size=256, observations=conditions)


def last_rungs(posteriors):
    """Return the rung that each object's answer came from."""
    return [next((r.name for r in reversed(rungs) if r.passed), "") for rungs in posteriors.rungs]


def exact(x, error, n_frequencies=3000, n_phases=1000):
    """Return mean (3,), sd (3,) and log Z of one object: a sum over midpoints of two parameters."""
    frequency = HIGH[0] + (HIGH[1] - HIGH[0]) * (np.arange(n_frequencies) + 0.5) / n_frequencies
    phase = 2 * np.pi * (np.arange(n_phases) + 0.5) / n_phases
    sine, cosine = np.sin(frequency[:, None] * T), np.cos(frequency[:, None] * T)
    ivar = error**-2.0
    s, c = np.sin(phase), np.cos(phase)
    # A sin(f t + p): the scalar products of data and model with the model, (n_f, n_p)
    xm = np.outer(sine @ (x * ivar), c) + np.outer(cosine @ (x * ivar), s)
    mm = np.outer(sine**2 @ ivar, c**2) + np.outer(cosine**2 @ ivar, s**2)
    mm += 2 * np.outer((sine * cosine) @ ivar, s * c)
    best, width = xm / mm, mm**-0.5
    a, b = (LOW[0] - best) / width, (LOW[1] - best) / width
    share = np.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))  # of the normal in the range
    with np.errstate(divide="ignore"):
        log_mass = 0.5 * xm**2 / mm + np.log(width) + np.log(share)
    top = log_mass.max()
    weight = np.exp(log_mass - top)
    const = -0.5 * (x**2 @ ivar) - np.log(error).sum() - 0.5 * (len(T) - 1) * np.log(2 * np.pi)
    log_z = top + np.log(weight.mean() / (LOW[1] - LOW[0])) + const
    weight /= weight.sum()
    # moments of a truncated normal
    pdf = [np.exp(-0.5 * e * e) / np.sqrt(2 * np.pi) for e in (a, b)]
    safe = np.where(share > 0, share, 1.0)
    first = best + width * (pdf[0] - pdf[1]) / safe
    second = best**2 + width**2 * (1 + (a * pdf[0] - b * pdf[1]) / safe)
    second += 2 * best * width * (pdf[0] - pdf[1]) / safe
    per_f, per_p = weight.sum(1), weight.sum(0)
    moments = [
        (np.sum(weight * first), np.sum(weight * second)),
        (per_f @ frequency, per_f @ frequency**2),
        (per_p @ phase, per_p @ phase**2),
    ]
    mean = np.array([m[0] for m in moments])
    return mean, np.sqrt(np.array([m[1] for m in moments]) - mean**2), log_z


def deviations(posterior, mean, sd):
    """Return (mean, sd) of a weighted answer less the exact ones, in their own delta errors."""
    centred = posterior.samples - posterior.mean()
    square, variance = posterior.weights[:, None] ** 2, posterior.std() ** 2
    error = np.sqrt((square * centred**2).sum(0))
    sd_error = np.sqrt((square * (centred**2 - variance) ** 2).sum(0) / (4 * variance))
    return (posterior.mean() - mean) / error, (posterior.std() - sd) / sd_error


def check_against_exact(posteriors, x, error, n):
    """Judge the first n answers that are not the network's own draws."""
    refined = [i for i, name in enumerate(last_rungs(posteriors)) if name not in OWN_DRAWS]
    rows = [i for i in refined if posteriors.evidence_reliable[i]][:n]
    assert len(rows) == n
    means, sds, evidences = [], [], []
    for i in rows:
        mean, sd, log_z = exact(x[i], error[i])
        for box, off in zip((means, sds), deviations(posteriors[i], mean, sd), strict=True):
            box.append(off)
        off = abs(posteriors.log_evidence[i] - log_z)
        evidences.append((off - 0.02) / posteriors.log_evidence_err[i])
    print(
        f"{n} exact: largest deviations of means {np.abs(means).max():.2f}, sds "
        f"{np.abs(sds).max():.2f}, log Z {max(evidences):.2f}; rms {np.sqrt(np.mean(np.square(means))):.2f}"
        f", {np.sqrt(np.mean(np.square(sds))):.2f}"
    )
    assert np.abs(means).max() < 4.5
    assert np.abs(sds).max() < 4.5
    assert max(evidences) < 4.5


def without(ladder, *rungs):
    """Return a ladder without some rungs."""
    options = {
        "top up": {"top_up_draws": ladder.n_draws},
        "refine": {"refine": RefineConfig(n_rounds=0)},
        "hmc": {"hmc": HmcRung(n_super=0)},
        "flow": {"flow": FlowRung(n_rounds=0)},
        "ensemble": {"ensemble": replace(EnsembleRung(), sampler=None)},
    }
    return replace(ladder, **{k: v for rung in rungs for k, v in options[rung].items()})


def misfits(posteriors):
    return np.array([nbi.Flag.MISFIT in flags for flags in posteriors.flags])
