"""Locator: a network trained, round after round, where one object's posterior seems to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.learn.encode import EncoderConfig
from nbi_plus.learn.fitting import Recipe, TrainingSet, task_of, untrained
from nbi_plus.learn.losses import Loss, nll
from nbi_plus.learn.model import without_global_rng
from nbi_plus.learn.network import PosteriorNetwork, load_sound
from nbi_plus.learn.sources import Resident, TrainingRows
from nbi_plus.learn.training import History, train
from nbi_plus.problem.random import generator, keyed_uniform, stage_key


@dataclass(frozen=True)
class Locator:
    """How a network learns from a weighted pool of simulations.

    Attributes
    ----------
    recipe : Recipe
        Of the fit; their training configuration is that of one round.
    callback : callable, optional
        Called with the history of the round after each epoch.
    """

    recipe: Recipe
    callback: Callable[[History], None] | None = None

    def train(
        self,
        pool: TrainingRows,
        weights: Tensor,
        n: int,
        start: PosteriorNetwork | None,
        stage: str,
    ) -> PosteriorNetwork:
        """Return a network trained on ``n`` simulations drawn from the pool by weight.

        A simulation is held out with all its copies, or the held-out loss could not see a network
        that learns the simulations by heart.

        Parameters
        ----------
        pool : TrainingRows
            Simulations, on the device.
        weights : Tensor, shape (S,)
            Normalised.
        n : int
        start : PosteriorNetwork, optional
            Goes on from there; the latent space is whitened anew.
        stage : str
            What the randomness is keyed by.
        """
        rng = generator(self.recipe.seed, f"{stage} bootstrap", weights.device)
        pick = torch.multinomial(weights, n, replacement=True, generator=rng)
        out = torch.rand(len(weights), generator=rng, device=weights.device, dtype=torch.float64)
        held_out = out[pick] < self.recipe.train.val_fraction
        if held_out.all() or not held_out.any():  # a handful of simulations carries all the weight
            held_out = torch.arange(n, device=pick.device) % 10 == 0
        return self._train(pool.pick(pick[~held_out]), pool.pick(pick[held_out]), start, stage, nll)

    def train_on_all(
        self, pool: TrainingRows, usable: Tensor, start: PosteriorNetwork | None, stage: str,
        loss: Loss = nll,
    ) -> PosteriorNetwork:  # fmt: skip
        """Return a network trained on every usable simulation of the pool, each once an epoch.

        Which are held out is keyed by their place in the pool, so that a pool that grows keeps
        them; rows come in random order, as `AtomicLoss` wants them.

        Parameters
        ----------
        pool : TrainingRows
            Simulations, on the device.
        usable : Tensor of bool, shape (S,)
        start : PosteriorNetwork, optional
            Goes on from there; the latent space is whitened anew.
        stage : str
            What the randomness is keyed by.
        loss : Loss
        """
        place = torch.arange(len(usable), device=usable.device)
        order = keyed_uniform(self.recipe.seed, "held out", place, ()).argsort()
        order = order[usable[order]]
        n_out = max(1, round(self.recipe.train.val_fraction * len(order)))
        return self._train(pool.pick(order[n_out:]), pool.pick(order[:n_out]), start, stage, loss)

    def rebuild(self, state: dict[str, Tensor]) -> PosteriorNetwork:
        """Return the network of a recorded state."""
        recipe = self.recipe
        network = without_global_rng(
            0,
            lambda: PosteriorNetwork(
                EncoderConfig.of(recipe.conditions),
                recipe.featurizer.build(recipe.custom),
                recipe.prior.n_dim,
                recipe.flow,
            ),
        )
        load_sound(network, state)
        return network.to(recipe.device).eval()

    def _train(
        self,
        rows: TrainingRows,
        validation: TrainingRows,
        start: PosteriorNetwork | None,
        stage: str,
        loss: Loss,
    ) -> PosteriorNetwork:
        training_set = TrainingSet(Resident(rows), validation, rows, len(rows.z))
        problem = replace(task_of(training_set, self.recipe), loss=loss)
        if start is None:
            network = untrained(self.recipe, problem, rows)
        else:
            network = copy.deepcopy(start)
            network.flow.whiten(rows.z)
        size = min(self.recipe.train.batch_size, len(rows.z))
        config = replace(self.recipe.train, batch_size=size)
        seed = stage_key(self.recipe.seed, stage) % 2**31
        train(network, problem, config, seed, callback=self.callback, progress=False)
        return network
