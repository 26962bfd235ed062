"""What a device is asked for, counted in two states of the code: ``python - NAME < traffic.py``.

The device is that of ``tests/pretend_device.py``, whose folder ``NBI_PLUS_TESTS`` names. Each job
prints the transfers and waits, together, that more of the same work brings. Nothing is imported
from ``benchmarks``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import types
from unittest import mock

import numpy as np
import torch
from scipy.stats import norm, uniform


@contextlib.contextmanager
def device():
    """Let a device be pretended, and yield what counts its traffic; older code has no launches."""
    import nbi_plus

    sys.path.insert(0, os.environ["NBI_PLUS_TESTS"])
    try:
        import nbi_plus.launch
    except ImportError:
        nbi_plus.launch = types.ModuleType("nbi_plus.launch")
        nbi_plus.launch.KINDS = {"cpu": dataclasses.make_dataclass("Empty", [], frozen=True)()}
        sys.modules["nbi_plus.launch"] = nbi_plus.launch
    from pretend_device import pretended

    # torch's own AdamW, which older code takes, refuses devices that it does not know
    adam = sys.modules[torch.optim.Adam.__module__]
    with mock.patch.object(adam, "_device_dtype_check_for_fused"):
        yield pretended


def more(job, few, many):
    """Return the transfers and waits that a job has more with other options."""
    counts = []
    with device() as pretended:
        for options in (few, many):
            with pretended() as traffic:
                job(**options)
            counts.append(traffic.n_transfers + traffic.n_waits)
    return counts[1] - counts[0]


def curve(theta, t):
    return theta[:, :1] * t + torch.cos(t + theta[:, 1:])


def trained(**options):
    """Train on the pretended device, with fresh simulations for every epoch."""
    import nbi_plus as nbi

    priors = {"a": norm(0, 1), "b": uniform(0, 6)}
    options |= {"online": True, "n_sims": 200, "t": np.linspace(0, 1, 50)}
    own = nbi.Engine(curve, priors, noise=0.3, featurizer="resnet", device="meta")
    try:
        own.fit(truth_test=False, **options)
    except TypeError:  # older code has no test of truths to leave out
        own.fit(**options)


def steps():
    """Transfers and waits on a device: 6 more steps of training, online."""
    return more(trained, {"n_epochs": 2, "batch_size": 64}, {"n_epochs": 2, "batch_size": 32})


def an_epoch():
    """Transfers and waits on a device: one more epoch of training, online."""
    return more(trained, {"n_epochs": 2, "batch_size": 64}, {"n_epochs": 3, "batch_size": 64})


def chains():
    """Transfers and waits on a device: 20 more steps of HMC."""
    from nbi_plus.infer.samplers import hmc

    def sampled(**options):
        z0 = torch.randn(3, 16, 2, generator=torch.Generator().manual_seed(0)).double()
        config = hmc.HmcConfig(windows=(10, 10), max_laps=1, **options)
        hmc.sample(lambda z, _: -0.5 * z.square().sum(-1), z0.to("meta"), 4, seed=1,
                   ess_target=1e9, config=config)  # fmt: skip

    return more(sampled, {"block": 10, "max_steps": 20}, {"block": 20, "max_steps": 40})


JOBS = {"traffic_of_steps": steps, "traffic_of_an_epoch": an_epoch, "traffic_of_chains": chains}


if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]]()))
