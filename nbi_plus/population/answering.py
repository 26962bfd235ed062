"""Answering: the posterior of the hyper-parameters of a population."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import options
from nbi_plus.arguments import of_kind, seed_of, whole
from nbi_plus.data.batch import Batch
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Flag, Status, UntrustedWarning, doubts
from nbi_plus.infer.sequential.config import RoundsConfig
from nbi_plus.infer.sequential.fit import SequentialRun
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.run import Run
from nbi_plus.population.draws import ObjectDraws
from nbi_plus.population.likelihood import PopulationFamily, PopulationLikelihood
from nbi_plus.population.precision import Precision
from nbi_plus.population.selection import Selection
from nbi_plus.population.widening import Widening
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, Problem, set_up
from nbi_plus.problem.simulator.cadence import Cadences
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.torch_state import door

if TYPE_CHECKING:
    from nbi_plus.data.observations import Observations
    from nbi_plus.engine import Engine

ID = "population"
_ROUNDS = 20
_MEMORY = 4.0  # gigabytes of what a network may be trained on
_N_JUDGED = 256  # hyper-parameters at which the draws of the objects are judged
_EPOCHS = 25  # of a network that need only find the place, round after round


@door
def fit(  # noqa: PLR0913 - the public door
    posteriors: Posteriors | Iterable[Posterior],
    family: Callable[[Any, Any], Any],
    selection: Selection | None = None,
    seed: int = 0,
    *,
    engine: Engine | None = None,
    observations: Observations | None = None,
    uncertified: str = "refuse",
    n_sims: int = 1000,
    ladder: Ladder | None = None,
    device: str | torch.device | None = "cpu",
) -> Posterior:
    r"""Return the posterior of the hyper-parameters of the population that objects are drawn from.

    The likelihood of hyper-parameters is
    :math:`\prod_i \sum_s w_{is}\, p(\theta_{is} \mid h) / p_0(\theta_{is})`, with the weighted
    draws of each object and the density of the prior that these were found under, over the
    detected share of the population to the power of the number of objects. It is sampled and judged
    like the likelihood of any one object by `Engine.fit` in rounds. Besides, an answer that the
    finite draws of objects or selection do not support is ``UNCERTIFIED``: see
    `nbi_plus.population.precision.Precision`. Where the population goes on beyond the priors of the
    answers, an engine answers the objects anew under a wider one: see
    `nbi_plus.population.widening.widened`.

    Parameters
    ----------
    posteriors : Posteriors, or iterable of Posterior
        Of the objects, with their draws.
    family : callable
        ``family(hyper, theta) -> log density (n,)`` of theta (n, D), normalised over all of theta,
        -inf where there are none; hyper (P,), in the order of ``family.prior``, a `Prior` of the
        hyper-parameters. In torch, which carries gradients, or in numpy.
    selection : Selection, optional
        Which objects are detected. Default: all.
    seed : int
    engine : Engine, optional
        That has answered; with it objects that no rung certified are tried once more, and all
        objects are answered anew where the population lies beyond their prior. Without it, such a
        population is ``UNCERTIFIED``.
    observations : Observations, optional
        Of these objects, with ``engine``; and maybe others, in any order.
    uncertified : {"refuse", "leave out"}
        What becomes of objects that passed no gate.
    n_sims : int
        Likelihoods of a round.
    ladder : Ladder, optional
        Its gate judges, and its audit looks at the answer.
    device : str, optional
        Where the draws are, and the family is computed; None takes CUDA where there is one.

    Returns
    -------
    Posterior
        Of the hyper-parameters. ``log_evidence`` is that of the family against the prior of the
        objects, the sum over objects of their own left out.

    Raises
    ------
    ValueError, TypeError
        For answers without draws, of other parameters or not certified, and for a family that has
        no prior or gives no densities.

    Warns
    -----
    UntrustedWarning
        Where the answer is not to be trusted.
    """
    ladder = Ladder() if ladder is None else of_kind("ladder", ladder, Ladder, "Write Ladder().")
    seed, n_sims = seed_of("seed", seed), whole("n_sims", n_sims, 2)
    rounds = RoundsConfig(n_sims, _ROUNDS, locate="peaks")
    with preserved_random_state():
        widening = Widening.of(posteriors, engine, observations)
        if widening is not None:
            posteriors = widening.retried(posteriors)
        while widening is not None:
            likelihood = _likelihood(posteriors, family, selection, uncertified, device)
            _, sides = _found(likelihood, rounds, replace(ladder, audit=None), seed)
            widening = widening.by(sides)
            posteriors = posteriors if widening is None else widening.answered(posteriors)
        likelihood = _likelihood(posteriors, family, selection, uncertified, device)
        found, _ = _found(likelihood, rounds, ladder, seed)
    if not found.trusted:
        told = doubts(found.status, found.flags, found.rungs[-1].reason)
        warnings.warn(told, UntrustedWarning, stacklevel=3)
    return found


class ToldNoise(Noise):
    """No noise: the likelihood is what the simulator says, and the data are nothing."""

    exact_p_value = True

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return NaN: there are no other data."""
        return torch.full_like(theta[:, 0], torch.nan, dtype=torch.float64)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(model)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:  # noqa: ARG002
        return model.sum((-2, -1))


def _likelihood(
    posteriors: Posteriors | Iterable[Posterior],
    family: Callable[[Any, Any], Any],
    selection: Selection | None,
    uncertified: str,
    device: str | torch.device | None,
) -> PopulationLikelihood:
    """Return the likelihood, tried on all draws at a few hyper-parameters."""
    objects = ObjectDraws.of(posteriors, uncertified, options.device_of(device))
    n_dim = len(objects.names)
    if selection is not None:
        of_kind("selection", selection, Selection, "Write Selection(theta, log_prob, n_simulated), "
                "or Selection.of(detects, prior).")  # fmt: skip
        if selection.theta.shape[1] != n_dim:
            raise ValueError(
                f"selection must have the {n_dim} parameters {objects.names} of the objects, but "
                f"its theta has shape {selection.theta.shape}."
            )
    own = PopulationFamily.of(family, objects.pieces[0].rows)
    likelihood = PopulationLikelihood(objects, own, selection)
    likelihood.check()
    return likelihood


def _answered(
    likelihood: PopulationLikelihood, rounds: RoundsConfig, ladder: Ladder, seed: int
) -> Posterior:
    """Return what a fit in rounds makes of the likelihood."""
    family = likelihood.family
    simulator = Simulator(likelihood, vectorized=True, differentiable=family.differentiable)
    given = FitInputs(x_obs=np.zeros(1))
    problem = set_up(family.prior, simulator, ToldNoise(), given, n_jobs=1)
    # where the place was not found hyper-parameters without any likelihood are no failures
    run = Run(rounds.n_per_round, online=False, max_failed=1.0, folder=None, n_jobs=1)
    run_rounds = SequentialRun(rounds, options.method_for(None, problem), ladder, run)
    return run_rounds(problem, given.objects, _recipe(problem, seed)).posterior


def _recipe(problem: Problem, seed: int) -> Recipe:
    """Return how networks are trained, where the place is not found without one."""
    conditions, n_dim = problem.conditions, problem.prior.n_dim
    spec, custom = options.featurizer_spec(options.AUTO, conditions, n_dim)
    return Recipe(
        prior=problem.prior, noise=problem.noise, units=problem.units,
        cadences=Cadences(conditions, problem.fixed), featurizer=spec, custom=custom,
        flow=options.flow_config("maf", n_dim),
        train=options.train_config(None, {}, {"n_epochs": _EPOCHS}),
        device=torch.device("cpu"), seed=seed, memory=options.bytes_of(_MEMORY),
    )  # fmt: skip


def _found(
    likelihood: PopulationLikelihood, rounds: RoundsConfig, ladder: Ladder, seed: int
) -> tuple[Posterior, NDArray[np.bool_]]:
    """Return the answer under its own name, with what the draws of the objects allow.

    With it come the sides (D, 2) of the priors of these that the population goes beyond.
    """
    answer = _answered(likelihood, rounds, ladder, seed)
    named = replace(answer, id=ID, data_hash=likelihood.objects.data_hash)
    if not answer.weights.sum() > 0:
        return named, np.zeros((len(likelihood.objects.names), 2), bool)
    prior, device = likelihood.family.prior, likelihood.device
    draws = answer.resample(_N_JUDGED, seed)
    hyper, free = (torch.as_tensor(v, device=device) for v in (prior.complete(draws), draws))
    found = Precision.of(likelihood, hyper, free)
    good = answer.certified and found.enough and found.inside
    flags = answer.flags | ({Flag.FEW_DRAWS} if not found.enough else frozenset())
    flags |= frozenset() if found.inside else {Flag.SUPPORT}
    last = answer.rungs[-1]
    told = "; ".join(v for v in (found.reason, last.reason, str(found)) if v)
    status = answer.status if good or not answer.certified else Status.UNCERTIFIED
    rungs = (*answer.rungs[:-1], replace(last, passed=last.passed and good, reason=told))
    return replace(named, status=status, flags=flags, rungs=rungs), found.sides
