"""LikelihoodEngine: parameters of many exchangeable trials, from a likelihood that is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus import options
from nbi_plus.arguments import seed_of, whole
from nbi_plus.estimators.fits import TrialFit
from nbi_plus.estimators.trial_engine import TrialEngine
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.learned_noise import LearnedNoise, LikelihoodSource
from nbi_plus.learn.likelihood import LikelihoodConfig, labels
from nbi_plus.learn.model import PLAIN, FeaturizerSpec
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.noise.custom import ALREADY_NOISY, CustomNoise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import generator
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.torch_state import doors

_SMALL = FlowConfig(n_blocks=2, hidden=32)


@doors
class LikelihoodEngine(TrialEngine, LikelihoodSource):
    r"""Neural likelihood estimation on single trials, summed over as many as there are.

    A flow learns :math:`p(x \mid \theta)` of one trial from simulations alone (Papamakarios et al.
    2019); columns that are labels, such as a choice beside a reaction time, are learned as a table,
    and the others given these (Boelts et al. 2022). Of exchangeable trials the log-likelihoods add
    up; answers are those of `RatioEngine`, status ``LEARNED``. What is learned is a density: it can
    be drawn from, and its evidence is that of the data. But each trial costs a pass of the flow for
    each draw of an answer: for thousands of trials take `RatioEngine`.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)`` gives one trial for each row of theta (n, P): (n, L), or (n,). It draws its own
        noise, from the global generators of numpy, torch or Python, which are seeded for it.
    prior : Prior, mapping or sequence
    noise : CustomNoise, optional
        Noise to add to the simulations. One whose likelihood is known has no use for this engine.
    flow : str, dict or FlowConfig, optional
        As for `Engine`. Default: a small one, since it is asked for each trial.
    discrete : mapping of int to sequence of float, optional
        Columns of a trial that are labels or small counts, and their values: ``{1: (0, 1)}``.
    seed : int
    device : str, optional
    path : str or Path, optional
        Folder for simulations and checkpoints, as for `Engine`.

    Attributes
    ----------
    prior_ : Prior
    model_ : TrainedModel
    history_ : list of dict

    Examples
    --------
    >>> import torch
    >>> from scipy.stats import uniform
    >>> def simulator(theta):
    ...     return theta + torch.randn(theta.shape, dtype=theta.dtype)
    >>> engine = LikelihoodEngine(simulator, {"mu": uniform(-3, 6)})
    >>> engine = engine.fit(n_sims=2000, n_epochs=5)
    >>> engine.log_likelihood([[0.0]], [[0.1], [2.5]]).shape
    (2,)
    """

    _kind = "likelihood engine"
    _chosen = ("seed",)

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | None = None,
        noise: Noise | None = None,
        *,
        flow: str | Mapping[str, Any] | FlowConfig | None = None,
        discrete: Mapping[int, ArrayLike] | None = None,
        seed: int = 0,
        device: str | None = None,
        path: str | Path | None = None,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.flow = flow
        self.discrete = discrete
        self.seed = seed
        self.device = device
        self.path = path

    def log_likelihood(self, theta: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
        """Return log p(x | theta), shape (n,); -inf outside the prior.

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (n, L), or (n,) where a trial is one number
            They pair row by row; one row of either goes with all of the other.
        """
        return self._of_arrays("log_likelihood", theta, x)

    def log_likelihood_torch(self, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        """Return the same of a tensor theta (n, D), with a graph towards theta."""
        return self._of_tensors("log_likelihood_torch", theta, x)

    def sample(
        self, theta: ArrayLike, n: int = 1, *, seed: int | None = None
    ) -> NDArray[np.float64]:
        """Return trials drawn from what was learned, (B, n, L) for theta (B, D).

        `simulate` draws from the simulator instead.
        """
        fit = self._fitted("sample")
        z = fit.prior.to_latent(torch.as_tensor(fit.prior.check(np.atleast_2d(theta))))
        if not bool(z.isfinite().all()):
            raise ValueError("theta must lie inside the prior, for nothing is learned outside.")
        rng = generator(seed_of("seed", self.seed if seed is None else seed), "trials", fit.device)
        with torch.no_grad():
            return fit.learned.sample(z.to(fit.device), whole("n", n), rng).cpu().numpy()

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        device: str | None = None,
    ) -> LikelihoodEngine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            To simulate and calibrate with.
        prior : Prior, optional
            Needed only where it is your own code.
        device : str, optional
        """
        fit, chosen = TrialFit.load(path, cls._kind, options.device_of(device), prior)
        config = fit.learned.config
        own = {"flow": asdict(config.flow), "discrete": dict(config.discrete) or None}
        return cls(simulator, fit.prior, device=device, **own, **chosen)._loaded(fit)

    def as_noise(self, draws: CustomNoise = ALREADY_NOISY) -> LearnedNoise:
        """Return what was learned as a noise, which `Engine` takes as ``likelihood``."""
        fit = self._fitted("as_noise")
        return LearnedNoise(fit.prior, fit.model, draws)

    # --- behind the verbs ------------------------------------------------------------------------

    @property
    def _reading(self) -> str:
        return PLAIN

    def _learned(self, problem: Problem) -> dict[str, Any]:
        n_columns, n_dim = problem.conditions.mask.shape[1], problem.prior.n_dim
        own = labels(self.discrete)
        wish = _SMALL if self.flow is None else self.flow
        flow = options.flow_config(wish, n_columns - len(own))
        if flow.kind == "fm":
            raise ValueError(
                "flow must be 'maf', 'nsf' or 'mdn' for LikelihoodEngine, whose trials ask for "
                "many densities, but is 'fm'."
            )
        spec = FeaturizerSpec(PLAIN, n_columns, 1, n_dim, {})
        return {"featurizer": spec, "custom": None, "flow": LikelihoodConfig(flow, own, trend=True)}
