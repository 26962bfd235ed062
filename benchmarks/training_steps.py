"""What small things cost: a first try, the import, and one step of the optimizer.

``python -m benchmarks.training_steps`` prints CPU seconds of one run on one core; the steps are
those of ``nbi_plus.learn.optimizer``, with AdamW alone, and of torch's own clipping, AdamW and
averaging, by turns, on the network of the sine.
"""

from __future__ import annotations

import json
import time

import torch

clock = time.process_time
_BEGAN = clock()
import nbi_plus as nbi  # noqa: E402 - it is what is timed

_ = nbi.Engine  # imported when it is asked for
_IMPORT = clock() - _BEGAN

import copy  # noqa: E402

import numpy as np  # noqa: E402
from scipy.stats import uniform  # noqa: E402

from nbi_plus.learn.optimizer import FlatOptimizer  # noqa: E402

N_STEPS, TURNS = 200, 5


def wave(theta, t):
    phase, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phase)


def first_try():
    """Return the engine of a fit that is as small as can be, and what it costs."""
    prior = {"phase": uniform(0, 6), "amplitude": uniform(1, 4), "omega": uniform(10, 20)}
    engine = nbi.Engine(wave, prior, noise=1.0)
    began = clock()
    engine.fit(n_sims=64, n_epochs=1, t=np.linspace(0, 1, 50))
    return engine, clock() - began


def seconds_of_steps(network, *, flat):
    """Return what a step costs; its gradients are there already."""
    network, average = copy.deepcopy(network).float(), copy.deepcopy(network).float()
    for weight in network.parameters():
        weight.requires_grad_(True)
    loss = sum(weight.square().sum() for weight in network.parameters())
    if flat:
        optimizer = FlatOptimizer(network, average, 1e-4, 5.0, muon=False)
        optimizer.backward(loss)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4, fused=True)
        loss.backward()
    own, copies = list(network.parameters()), list(average.parameters())
    value = loss.detach()
    began = clock()
    for _ in range(N_STEPS):
        if flat:
            optimizer.step(1e-3, value)
            optimizer.follow(0.01)
            continue
        norm = torch.nn.utils.clip_grad_norm_(own, 5.0)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(copies, own, 0.01)  # noqa: SLF001 - as it was done
    return (clock() - began) / N_STEPS


def main():
    """Print one line of JSON."""
    torch.set_num_threads(1)
    engine, first = first_try()
    network = engine.fitted_.model.network
    turns = [[seconds_of_steps(network, flat=flat) for flat in (False, True)] for _ in range(TURNS)]
    torch_ms, flat_ms = 1e3 * np.median(turns, 0)
    print(json.dumps({
        "import beyond torch, s": round(_IMPORT, 2), "fit of 64 simulations, s": round(first, 2),
        "step of torch, ms": round(torch_ms, 3), "step on one buffer, ms": round(flat_ms, 3),
        "ratio": round(torch_ms / flat_ms, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
