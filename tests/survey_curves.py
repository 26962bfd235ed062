"""Straight lines as a survey sees them: few points at times of their own, in the long format."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus.infer.ladder import RefineRung
from nbi_plus.infer.proposals.mixture import MixtureConfig

COLUMNS = {"id": "oid"}
# what two runs have in common to the letter, however their work was shared out
EXACT = ["id", "status", "flags", "settled_by", "certified", "trusted", "n_points"]
# one quick rung, which certifies about half of those that climb
QUICK = MixtureConfig(n_components=3, n_points=1000, n_starts=1, dof=5, wide_share=0.1)
_RUNG = RefineRung(n_rounds=3, n_each=300, n_scouts=256, n_certify=1024, mixture=QUICK)
LADDER = nbi.Ladder(n_draws=1024, top_up_draws=1024, rungs=(_RUNG,), audit=None)


def line(theta, t):
    return theta[:, :1] + theta[:, 1:] * t


def lines(n, errors, seed=0):
    """Return n light curves as one frame; ``errors(own)`` are those of the points of objects."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 20, n)
    own = np.repeat(np.arange(n), lengths)
    t = np.concatenate([np.sort(rng.uniform(0, 2, k)) for k in lengths])
    theta, error = rng.normal(size=(n, 2)), errors(own)
    flux = line(theta[own], t[:, None])[:, 0] + error * rng.normal(size=len(t))
    return pd.DataFrame({"oid": own, "mjd": t, "flux": flux, "flux_err": error})


def lines_for_a_climb(n):
    """Return light curves of which a third have large errors."""
    return lines(n, lambda own: np.where(own % 3 == 0, 0.5, 0.05))


def badly_trained(curves):
    """Return an engine of which most answers about these curves must climb."""
    seen = nbi.Observations.from_table(curves, **COLUMNS)
    prior = {"a": norm(0, 1), "b": norm(0, 1)}
    one = nbi.Engine(line, prior, noise=nbi.GaussianNoise(), featurizer="resnet", ladder=LADDER)
    return one.fit(1000, n_epochs=6, observations=seen, progress=False, truth_test=False)
