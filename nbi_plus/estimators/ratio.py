"""RatioEngine: parameters of many exchangeable trials, from simulations of single ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor, nn

from nbi_plus import options
from nbi_plus.arguments import seed_of, whole
from nbi_plus.estimators.fits import TrialFit
from nbi_plus.estimators.trial_engine import TrialEngine
from nbi_plus.learn.losses import ContrastLoss
from nbi_plus.learn.ratio import RatioConfig
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.setup import Problem
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.torch_state import doors

_N_STRATA = 256
_N_RIDGES = 32


@doors
class RatioEngine(TrialEngine):
    r"""Contrastive ratio estimation on single trials, summed over as many as there are.

    A network learns :math:`\log r(x \mid \theta) = \log p(x \mid \theta) / p(x)` of one trial from
    simulations alone (NRE-C, Miller et al. 2022). Of exchangeable trials the log-ratios add up, and
    the ladder of `Engine` answers with their sum: peaks, weights, chains. Answers have status
    ``LEARNED``: their weights passed, but the likelihood is only as good as its training, and small
    errors add up, too. `calibrate` says for how many trials they still do not matter.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)`` gives one trial for each row of theta (n, P): (n, L), or (n,). It draws its own
        noise, from the global generators of numpy, torch or Python, which are seeded for it.
    prior : Prior, mapping or sequence
    noise : CustomNoise, optional
        Noise to add to the simulations. One whose likelihood is known has no use for this engine.
    n_contrast, gamma : int, float
        How many parameters each trial is compared with, and the odds that one of them is its own.
    featurizer : str, dict or nn.Module
        ``"auto"``: fewer than 16 numbers are columns, each with a scale of its own; more are a
        series. Any other choice is of a series; see `Engine`.
    seed : int
    device : str, optional
    path : str or Path, optional
        Folder for simulations and checkpoints, as for `Engine`.
    balance : float
        Weight of the balancing term of Delaunoy et al. (2022), whose own choice is 100: it makes
        answers cautious where there are few simulations.

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
    >>> engine = RatioEngine(simulator, {"mu": uniform(-3, 6)})
    >>> engine = engine.fit(n_sims=2000, n_epochs=5)
    >>> engine.log_ratio([[0.0]], [[0.1], [2.5]]).shape
    (2,)
    """

    _kind = "ratio engine"
    _chosen = ("n_contrast", "gamma", "seed", "balance")

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | None = None,
        noise: Noise | None = None,
        *,
        n_contrast: int = 32,
        gamma: float = 1.0,
        featurizer: str | Mapping[str, Any] | nn.Module = options.AUTO,
        seed: int = 0,
        device: str | None = None,
        path: str | Path | None = None,
        balance: float = 0.0,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.n_contrast = n_contrast
        self.gamma = gamma
        self.featurizer = featurizer
        self.seed = seed
        self.device = device
        self.path = path
        self.balance = balance

    def log_ratio(self, theta: ArrayLike, x: ArrayLike) -> NDArray[np.float64]:
        """Return log p(x | theta) / p(x), shape (n,); -inf outside the prior.

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (n, L), or (n,) where a trial is one number
            They pair row by row; one row of either goes with all of the other.
        """
        return self._of_arrays("log_ratio", theta, x)

    def log_ratio_torch(self, theta: Tensor, x: ArrayLike | Tensor) -> Tensor:
        """Return the same of a tensor theta (n, D), with a graph towards theta."""
        return self._of_tensors("log_ratio_torch", theta, x)

    def imbalance(self, n: int = 4096, *, seed: int | None = None) -> tuple[float, float]:
        r"""Return by how much the ratio fails to be balanced, and the standard error of that.

        Where the ratio is right, the mean of :math:`r / (1 + r)` over pairs that belong together
        and that over pairs that do not add up to one (Delaunoy et al. 2022, arXiv:2208.13624).
        Returned is that sum less one: away from 0 the ratio is wrong, at 0 it need not be right.

        Parameters
        ----------
        n : int
            Simulations to try it on.
        seed : int, optional
            Default: the engine's.
        """
        fit = self._fitted("imbalance")
        own = seed_of("seed", self.seed if seed is None else seed)
        theta = fit.prior.sample(whole("n", n, 2), np.random.default_rng([own, 1]))
        x = self.simulate(theta, seed=own)
        good = np.isfinite(x).all(1)
        theta, x = theta[good], x[good]
        together, apart = self.log_ratio(theta, x), self.log_ratio(np.roll(theta, 1, 0), x)
        each = expit(together) + expit(apart) - 1
        return float(each.mean()), float(each.std() / np.sqrt(len(each)))

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        featurizer: nn.Module | None = None,
        device: str | None = None,
    ) -> RatioEngine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            To simulate and calibrate with.
        prior, featurizer
            Needed only where they are your own code.
        device : str, optional
        """
        own = options.device_of(device)
        fit, chosen = TrialFit.load(path, cls._kind, own, prior, featurizer)
        wish = fit.model.featurizer.wish if featurizer is None else featurizer
        if fit.trials.is_columns:
            wish = options.AUTO
        engine = cls(simulator, fit.prior, featurizer=wish, device=device, **chosen)
        return engine._loaded(fit)

    # --- behind the verbs ------------------------------------------------------------------------

    @property
    def _reading(self) -> str | Mapping[str, Any] | nn.Module:
        return self.featurizer

    def _learned(self, problem: Problem) -> dict[str, Any]:
        wish, n_dim = self.featurizer, problem.prior.n_dim
        spec, custom = options.featurizer_spec(wish, problem.conditions, n_dim)
        loss = ContrastLoss(self.n_contrast, self.gamma, self.balance)
        # a factor of x that is free has a mean that is none of the ratio's
        n_strata = _N_STRATA if np.isfinite(self.gamma) else 0
        config = RatioConfig(n_strata=n_strata, n_ridges=_N_RIDGES)
        return {"featurizer": spec, "custom": custom, "flow": config, "loss": loss}
