"""ChEES-HMC of blackjax: ``python -m benchmarks.peer_blackjax --data in.npz --out out.npz ...``.

`benchmarks.escalation` writes the problem and reads the draws. The density is sampled in the
coordinates that ours starts with, and its data are arguments of the compiled function: one
compilation serves all objects. Needs jax and blackjax, not torch.
"""

from __future__ import annotations

import argparse
import time
from importlib import metadata

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtr

jax.config.update("jax_enable_x64", True)

RATE = 0.025  # of learning the trajectory, and the longest one: those of nbi_plus
MAX_LEAPS = 64


def gaussian(z, data):
    """Return the log-density of one place (D,)."""
    return -0.5 * z @ data["precision"] @ z


def lens(z, data):
    """Return the log-density of latent t0, u0, log tE (3,): a point lens, Gaussian errors."""
    values = data["low"] + (data["high"] - data["low"]) * ndtr(z)
    t0, u0, te = values[0], values[1], jnp.exp(values[2])
    square = u0**2 + ((data["t"] - t0) / te) ** 2
    s = jnp.sqrt(square * (square + 4.0))
    model = 1.0 + 4.0 / (s * (square + 2.0 + s))
    return -0.5 * jnp.sum(((data["x"] - model) / data["x_err"]) ** 2) - 0.5 * z @ z


DENSITIES = {"gaussian": gaussian, "lens": lens}


def chains(log_prob, options):
    """Return a function (key, starts (C, D), map, data) -> draws of z (C, N, D), leaps (), u."""

    def run(key, z0, mean, factor, data):
        def whitened(u):
            return log_prob(mean + factor @ u, data)

        n_chains, n_dim = z0.shape
        u0 = jax.scipy.linalg.solve_triangular(factor, (z0 - mean).T, lower=True).T
        warm_up = blackjax.chees_adaptation(
            whitened,
            num_chains=n_chains,
            max_leapfrog_steps=MAX_LEAPS,
            mass_matrix_estimation=None if options.metric == "none" else options.metric,
        )
        keys = jax.random.split(key)
        (states, found), info = warm_up.run(
            keys[0],
            u0,
            0.5 * n_dim**-0.25,
            optax.adam(RATE),
            num_steps=options.n_warm,
            max_sampling_steps=options.n_draws,
        )
        step = jax.vmap(blackjax.dynamic_hmc(whitened, **found).step)

        def one_step(states, key):
            states, info = step(jax.random.split(key, n_chains), states)
            return states, (states.position, info.num_integration_steps)

        _, (u, leaps) = jax.lax.scan(one_step, states, jax.random.split(keys[1], options.n_draws))
        z = mean + jnp.swapaxes(u, 0, 1) @ factor.T
        return z, info.info.num_integration_steps.sum() + leaps.sum()

    return run


def main():
    options = _arguments()
    with np.load(options.data) as file:
        arrays = dict(file)
    starts = [arrays.pop(name) for name in ("z0", "mean", "factor")]
    log_prob = DENSITIES[str(arrays.pop("problem"))]
    n, at_once = len(starts[0]), options.at_once
    keys = jax.random.split(jax.random.key(options.seed), n)
    run = chains(log_prob, options)
    function = run if at_once == 1 else jax.vmap(run)

    def part(i):
        rows = i if at_once == 1 else slice(i, i + at_once)
        data = {name: jnp.asarray(value[rows]) for name, value in arrays.items()}
        return keys[rows], *(jnp.asarray(value[rows]) for value in starts), data

    before = _now()
    compiled = jax.jit(function).lower(*part(0)).compile()
    compile_seconds = _now() - before
    jax.block_until_ready(compiled(*part(0)))
    seconds, draws, gradients = [], [], []
    for i in range(0, n, at_once):
        arguments = part(i)
        before = _now()
        z, leaps = jax.block_until_ready(compiled(*arguments))
        seconds.append(_now() - before)
        draws.append(np.asarray(z).reshape(-1, *z.shape[-3:]))
        gradients.append(np.asarray(leaps).reshape(-1))
    data = {name: jnp.asarray(value) for name, value in arrays.items()}
    at_starts = jax.vmap(jax.vmap(log_prob, (0, None)))(jnp.asarray(starts[0]), data)
    np.savez(
        options.out,
        draws=np.concatenate(draws),
        gradients=np.concatenate(gradients),
        seconds=np.array(seconds),  # (calls, 2): wall, CPU
        compile_seconds=compile_seconds,
        log_prob=np.asarray(at_starts),
        version=metadata.version("blackjax"),
    )


def _now():
    """Return seconds on the wall and of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--n-warm", type=int, required=True)
    parser.add_argument("--n-draws", type=int, required=True)
    parser.add_argument("--at-once", type=int, default=1, help="objects in one call")
    parser.add_argument("--metric", choices=("none", "diagonal"), default="none")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
