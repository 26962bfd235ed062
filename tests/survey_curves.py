"""Straight lines as a survey sees them: few points at times of their own, in the long format."""

from __future__ import annotations

import numpy as np
import pandas as pd


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
