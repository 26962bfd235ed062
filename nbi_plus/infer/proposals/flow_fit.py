"""Densities: a flow without context, fitted to weighted draws of one object."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nbi_plus.learn.flows import Flow, FlowConfig
from nbi_plus.learn.model import without_global_rng
from nbi_plus.learn.network import estimator
from nbi_plus.learn.optimizer import FlatOptimizer
from nbi_plus.problem.random import generator, stage_key


@dataclass(frozen=True)
class DensityConfig:
    """Chosen state of a fit.

    Attributes
    ----------
    flow : FlowConfig
    n_steps, batch_size : int
    lr : float
        First rate of Adam; it falls to zero as a cosine.
    clip : float
        Largest norm of the gradient.
    held_out : float
        Share of the draws that choose the best step.
    max_seconds : float
        Of wall-clock time: the rate falls the sooner, and the best weights by then are kept.
    """

    flow: FlowConfig = field(default_factory=lambda: FlowConfig(hidden=48, n_mog=1))
    n_steps: int = 1000
    batch_size: int = 256
    lr: float = 2e-3
    clip: float = 5.0
    held_out: float = 0.1
    max_seconds: float = math.inf


_N_CHECKS = 20  # how often the held-out density is looked at


def fit_density(z: Tensor, weights: Tensor, config: DensityConfig, seed: int, stage: str) -> Flow:
    """Return a flow fitted by weighted maximum likelihood; its context is one zero.

    Parameters
    ----------
    z : Tensor, shape (S, D)
    weights : Tensor, shape (S,)
        Normalised.
    config : DensityConfig
    seed, stage
        Of the randomness.
    """
    flow = without_global_rng(
        stage_key(seed, stage) % 2**63, lambda: estimator(z.shape[1], 1, config.flow)
    ).to(z.device)
    flow.whiten(z, weights)
    rng = generator(seed, stage, z.device)
    apart = torch.rand(len(z), generator=rng, device=z.device) < config.held_out
    learned = torch.where(apart, 0.0, weights)
    # draws without weight may lie where the flow overflows, and 0 times infinity is no score
    held_out = (apart & (weights > 0)).nonzero()[:, 0]
    if not (learned.sum() > 0 and len(held_out)):
        learned = weights
    batches = torch.multinomial(
        learned, config.n_steps * config.batch_size, replacement=True, generator=rng
    ).view(config.n_steps, -1)
    with torch.enable_grad():
        _train(flow, z, batches, (z[held_out], weights[held_out]), config)
    return flow.eval()


def _train(
    flow: Flow, z: Tensor, batches: Tensor, held_out: tuple[Tensor, Tensor], config: DensityConfig
) -> None:
    """Take one step for each batch; keep the weights of the best density of the held-out draws."""
    judged, worth = held_out
    kept = copy.deepcopy(flow)
    # torch's own optimizers import its compiler, a second of the first fit in a process; in so few
    # steps AdamW alone gets further
    optimizer = FlatOptimizer(flow, kept, 0.0, config.clip, muon=False)
    nothing, best = z.new_zeros(1, 1, dtype=torch.float32), -math.inf
    began, most = time.perf_counter(), max(config.max_seconds, 1e-9)
    for step, rows in enumerate(batches):
        share = max(step / len(batches), (time.perf_counter() - began) / most)
        if share > 1:
            break
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * share))
        loss = -flow.log_prob(z[rows][None], nothing).mean()
        optimizer.backward(loss)
        optimizer.step(rate, loss.detach())
        if (step + 1) % max(len(batches) // _N_CHECKS, 1) == 0:
            with torch.no_grad():
                score = float((worth * flow.log_prob(judged[None], nothing)[0]).sum())
            if score > best or not len(judged):
                best = score
                optimizer.follow(1.0)
    flow.load_state_dict(kept.state_dict())
