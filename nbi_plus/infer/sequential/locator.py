"""Locator: a network trained, round after round, where one object's posterior seems to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.fitting import Ingredients, Material, problem_of, untrained
from nbi_plus.learn.losses import Loss, nll
from nbi_plus.learn.model import without_global_rng
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.sources import Resident, Rows
from nbi_plus.learn.training import History, train
from nbi_plus.problem.random import generator, keyed_uniform, stage_key


@dataclass(frozen=True)
class Locator:
    """How a network learns from a weighted pool of simulations.

    Attributes
    ----------
    parts : Ingredients
        Of the fit; their training configuration is that of one round.
    callback : callable, optional
        Called with the history of the round after each epoch.
    """

    parts: Ingredients
    callback: Callable[[History], None] | None = None

    def train(
        self, pool: Rows, weights: Tensor, n: int, start: PosteriorNetwork | None, stage: str
    ) -> PosteriorNetwork:
        """Return a network trained on ``n`` simulations drawn from the pool by weight.

        A simulation is held out with all its copies, or the held-out loss could not see a network
        that learns the simulations by heart.

        Parameters
        ----------
        pool : Rows
            Simulations, on the device.
        weights : Tensor, shape (S,)
            Normalised.
        n : int
        start : PosteriorNetwork, optional
            Goes on from there; the latent space is whitened anew.
        stage : str
            What the randomness is keyed by.
        """
        rng = generator(self.parts.seed, f"{stage} bootstrap", weights.device)
        pick = torch.multinomial(weights, n, replacement=True, generator=rng)
        out = torch.rand(len(weights), generator=rng, device=weights.device, dtype=torch.float64)
        held_out = out[pick] < self.parts.train.val_fraction
        if held_out.all() or not held_out.any():  # a handful of simulations carries all the weight
            held_out = torch.arange(n, device=pick.device) % 10 == 0
        return self._train(pool.pick(pick[~held_out]), pool.pick(pick[held_out]), start, stage, nll)

    def train_on_all(
        self, pool: Rows, usable: Tensor, start: PosteriorNetwork | None, stage: str,
        loss: Loss = nll,
    ) -> PosteriorNetwork:  # fmt: skip
        """Return a network trained on every usable simulation of the pool, each once an epoch.

        Which are held out is keyed by their place in the pool, so that a pool that grows keeps
        them; rows come in random order, as `AtomicLoss` wants them.

        Parameters
        ----------
        pool : Rows
            Simulations, on the device.
        usable : Tensor of bool, shape (S,)
        start : PosteriorNetwork, optional
            Goes on from there; the latent space is whitened anew.
        stage : str
            What the randomness is keyed by.
        loss : Loss
        """
        place = torch.arange(len(usable), device=usable.device)
        order = keyed_uniform(self.parts.seed, "held out", place, ()).argsort()
        order = order[usable[order]]
        n_out = max(1, round(self.parts.train.val_fraction * len(order)))
        return self._train(pool.pick(order[n_out:]), pool.pick(order[:n_out]), start, stage, loss)

    def rebuild(self, state: dict[str, Tensor]) -> PosteriorNetwork:
        """Return the network of a recorded state."""
        parts = self.parts
        network = without_global_rng(
            0,
            lambda: PosteriorNetwork(
                EncoderConfig.of(parts.conditions),
                parts.featurizer.build(parts.custom),
                parts.prior.n_dim,
                parts.flow,
            ),
        )
        network.load_state_dict(state)
        return network.to(parts.device).eval()

    def _train(
        self, rows: Rows, validation: Rows, start: PosteriorNetwork | None, stage: str, loss: Loss
    ) -> PosteriorNetwork:
        material = Material(Resident(rows), validation, rows, len(rows.z))
        problem = replace(problem_of(material, self.parts), loss=loss)
        if start is None:
            network = untrained(self.parts, problem, rows)
        else:
            network = copy.deepcopy(start)
            network.flow.whiten(rows.z)
        size = min(self.parts.train.batch_size, len(rows.z))
        config = replace(self.parts.train, batch_size=size)
        seed = stage_key(self.parts.seed, stage) % 2**31
        train(network, problem, config, seed, callback=self.callback, progress=False)
        return network
