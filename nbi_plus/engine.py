"""Engine: the estimator people hold. It opens doors and passes work to the rooms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from nbi_plus import files, options
from nbi_plus.arguments import new_folder, seed_of
from nbi_plus.data.ingest import point_mask
from nbi_plus.data.observations import Observations
from nbi_plus.fitted import Answers, Computing, Fitted, trained
from nbi_plus.infer.ladder.hints import Hints
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import UntrustedWarning, doubts
from nbi_plus.infer.sequential.config import RoundsConfig
from nbi_plus.infer.sequential.fit import SequentialRun
from nbi_plus.infer.shared.mixin import SharedMixin
from nbi_plus.infer.shared.restricted import restricted
from nbi_plus.learn import fitting
from nbi_plus.learn.flows import FlowConfig
from nbi_plus.learn.learned_noise import LikelihoodSource, arguments_of, noise_of
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.run import Run
from nbi_plus.learn.training import History, TrainConfig
from nbi_plus.problem import binding
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.noise.points import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.setup import FitInputs, Problem, check_noise_of, set_up
from nbi_plus.problem.simulator.cadence import Cadences, Perturbation
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.problem.target import Target
from nbi_plus.survey.mixin import SurveyMixin
from nbi_plus.torch_state import doors
from nbi_plus.trust.mixin import TellingMixin

_PARTS = ("model_", "history_", "truth_test_", "sequential_", "posterior_", "rounds_")
_MAX_FAILED = {False: 0.1, True: 0.5}  # in a sequential fit, that learns where not to look
_LOCATE = {"n_epochs": 25}  # of a network that need only find the place, round after round


@doors
class Engine(TellingMixin, SurveyMixin, SharedMixin, BaseEstimator):
    """Neural posterior estimation whose every answer is weighted, judged and labelled.

    Parameters
    ----------
    simulator : callable or Simulator, optional
        ``f(theta)``, ``f(theta, t)``, ...; any further argument is looked up by name among the
        coordinates. numpy or torch, one row or many at a time. Where objects have times of their
        own, each point must be given whatever other points there are. Without one, `fit` takes
        simulations (``theta=``, ``x=``) and answers stay uncorrected.
    prior : Prior, mapping, sequence or callable
        See `Prior`.
    noise : Noise, float, array_like or callable, optional
        Default `GaussianNoise`, with the observations' own errors. Numbers are its sigma.
    likelihood : LikelihoodEngine, optional
        Fitted: what draws are weighted with where no noise has a likelihood, of one trial (1, L) or
        T of them, (C, T). Answers have status LEARNED. The simulator draws its own noise, or
        ``noise`` is a `CustomNoise` without a likelihood.
    featurizer : str, dict, list of these, or nn.Module
        ``"auto"`` is ``"mlp"`` for fewer than 16 numbers without coordinates, ``"set"`` for points
        of each object's own that no number orders, else ``"resnet-gru"``; or one of
        `featurizers.available`, nbi's dict, or your own. A list has one for each channel of the
        data.
    flow : str, dict or FlowConfig
        A kind of `FlowConfig`, ``"maf"``, ``"nsf"``, ``"mdn"`` or ``"fm"``, or options of it.
    labels : sequence of str, optional
        Names of parameters, for a prior given as a list.
    priors : optional
        nbi's name for ``prior``.
    device : str, optional
        Default: CUDA where there is one.
    n_jobs : int, optional
        Processes that simulate; None chooses, -1 takes all cores. A simulator that may end its
        process or hang in compiled code needs two at least.
    client : dask.distributed.Client, optional
        Simulates there instead.
    seed : int
    path : str or Path, optional
        Folder for simulations and checkpoints, used again by the next `fit` of the same problem.
    ladder : Ladder, optional
        Thresholds and budgets of the corrections.
    memory : float
        Gigabytes of simulations held on the device; more are streamed from disk.

    Attributes
    ----------
    model_ : TrainedModel
    prior_ : Prior
    noise_ : Noise
    simulator_ : BoundSimulator or None
    history_ : list of dict
        Losses of every epoch.
    posterior_ : Posterior
        After a sequential fit: its answer, of all its simulations.
    rounds_ : Rounds
        What every round of it came to; prints as a table.
    truth_test_ : TruthTest or None
        What the truths of simulated objects say of the network; None where nobody asked them.
    sequential_ : SequentialFit
    fitted_ : Fitted
        All of these; prints what was fitted.
    defaults_ : dict
        Errors and coordinates given to `fit`, used by the other doors when they are given none.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.stats import norm
    >>> engine = Engine(lambda theta: theta @ np.ones((1, 8)), {"a": norm(0, 1)}, noise=0.5)
    >>> x = 0.3 + 0.5 * np.random.default_rng(0).normal(size=8)
    >>> posterior = engine.fit(n_sims=500, n_epochs=2).predict(x)
    >>> posterior.names, len(posterior) >= 2000
    (('a',), True)
    """

    def __init__(  # noqa: PLR0913 - the public door
        self,
        simulator: Simulator | Callable | None = None,
        prior: Prior | Mapping | list | Callable | None = None,
        *,
        noise: Noise | ArrayLike | Callable | None = None,
        likelihood: LikelihoodSource | None = None,
        featurizer: str | Mapping[str, Any] | list[str | Mapping] | nn.Module = options.AUTO,
        flow: str | Mapping[str, Any] | FlowConfig = "maf",
        labels: list[str] | None = None,
        priors: Prior | Mapping | list | Callable | None = None,
        device: str | None = None,
        n_jobs: int | None = None,
        client: object | None = None,
        seed: int = 0,
        path: str | Path | None = None,
        ladder: Ladder | None = None,
        memory: float = 4.0,
    ) -> None:
        self.simulator = simulator
        self.prior = prior
        self.noise = noise
        self.likelihood = likelihood
        self.featurizer = featurizer
        self.flow = flow
        self.labels = labels
        self.priors = priors
        self.device = device
        self.n_jobs = n_jobs
        self.client = client
        self.seed = seed
        self.path = path
        self.ladder = ladder
        self.memory = memory

    def __sklearn_clone__(self) -> Engine:
        given = self.get_params(deep=False)  # what was learned for it is no state of its own
        kept = {"likelihood": given.pop("likelihood")}
        return type(self)(**{k: clone(v, safe=False) for k, v in given.items()}, **kept)

    def fit(  # noqa: PLR0913 - the public door
        self,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | Files | None = None,
        *,
        n_rounds: int = 1,
        n_epochs: int | None = None,
        observations: Observations | None = None,
        x_obs: ArrayLike | None = None,
        x_err: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        theta: ArrayLike | None = None,
        noise: Noise | ArrayLike | Callable | None = None,
        online: bool = False,
        warm_start: bool = False,
        method: str | None = None,
        locate: str = "auto",
        ess_target: float = 1000.0,
        max_sims: int | None = None,
        max_seconds: float | None = None,
        modes: ArrayLike | Callable[[NDArray], ArrayLike] | None = None,
        perturb: Perturbation | bool | None = None,
        grid: ArrayLike | Mapping[str, ArrayLike] | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        train: TrainConfig | Mapping[str, Any] | None = None,
        augment: Callable[..., Tensor] | None = None,
        restrict: Posteriors | Posterior | None = None,
        max_failed: float | None = None,
        truth_test: bool | int | None = None,
        callback: Callable[[History], None] | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> Engine:
        """Simulate and train.

        Parameters
        ----------
        n_sims : int
            Simulations, of each round; with ``online`` as many fresh ones for each epoch. An array
            in this place is ``theta``: ``fit(theta, x)``.
        n_rounds : int
            1: one amortized network for all objects. More: a sequential fit of ``x_obs`` alone,
            in at most so many rounds; its answer is ``posterior_``.
        n_epochs, batch_size, lr, train
            Training; ``train`` takes every option of `TrainConfig`.
        observations : Observations, optional
            Objects whose errors, gaps and coordinates the network is trained for.
        x_obs, x_err : array_like, optional
            The same for one object, or only its errors; ``x_obs`` may be a table, as for `predict`.
        mask, bad : array_like of bool, optional
            One of them, of the points of ``x_obs``: ``mask`` is True for a real point, ``bad`` is
            True for one to leave out, as masks of numpy and astropy are.
        theta, x : array_like, optional
            Noise-free simulations made elsewhere, (n, D) and (n, L) or (n, C, L), instead of
            ``n_sims``; or ``x`` names HDF5 files that hold datasets ``x`` and, unless it is given,
            ``theta``, or stores of simulations: a path, a pattern as ``"sims/*.h5"``, or a list of
            these. More than ``memory`` of them are streamed. Rows are numbered through the files
            in the order of their names, in whatever order these are given.
        noise : optional
            Overrides the constructor's.
        online : bool
            Simulate fresh batches while training.
        warm_start : bool
            Go on with the present network instead of a new one. A sequential fit then starts from
            the posterior of the amortized network instead of the prior.
        method : {"amis", "snpe-is", "apt", "tsnpe"}, optional
            Of a sequential fit: see the guide. Default: "amis", or "tsnpe" without a likelihood.
        locate : {"auto", "peaks", "network"}
            How a sequential fit "amis" finds the place: uphill, or by networks. Default: uphill
            where there are gradients or a call takes less than 0.1 ms.
        ess_target : float
            Effective sample size that a sequential fit shall reach.
        max_sims, max_seconds : optional
            Where a sequential fit must stop. Default: ``n_sims * n_rounds``, and never.
        modes : array_like, shape (M, D), dict or callable, optional
            Places in theta where a sequential fit shall look from the start, or ``modes(x_obs)``:
            see `predict_many`, without its N.
        perturb : Perturbation or bool, optional
            How far simulations may differ from the cadences of ``observations`` that they imitate.
            Default: `Perturbation` for several objects, no change for one.
        grid : array_like, shape (G,), or mapping of one name to it, optional
            For an expensive simulator: it is run at these times ``t`` (or values of the coordinate
            named) instead of at those of an object, and its curves are interpolated for other
            objects at each epoch. Weights always use the simulator itself.
        augment : callable, optional
            What is done to the noisy data of training batches, and to nothing else: the held-out
            loss, the outlier test and every answer are of plain data. ``augment(x, rng)`` returns
            ``x`` (n, C, L), a tensor in the device's memory, changed as it likes; it draws from
            ``rng`` and asks by name for ``theta``, ``x_err``, ``mask``, coordinates or scalars. Not
            in a sequential fit.
        restrict : Posteriors or Posterior, optional
            Answers, with their draws, where simulations shall lie: four fifths of them come from a
            mixture that is wider than these draws together, a fifth from the prior. The loss is
            corrected for it, so that the network learns posteriors under the prior as ever, and
            objects elsewhere are answered, too. Not in a sequential fit.
        max_failed : float, optional
            Largest share of simulations that may fail. Default: 0.1, in a sequential fit 0.5.
        truth_test : bool or int, optional
            Whether, or with how many simulated objects of known truth, the network is tried:
            ``truth_test_``. Default: in a tenth of the time of the training. Where it fails, and
            the ladder's audit finds no missed truth either, no answer is trusted.
        callback : callable, optional
            ``callback(history)`` after each epoch.
        progress : bool, optional
            Whether it tells how far it is: False never, True always. Default: bars on terminals
            and in notebooks, elsewhere (``nohup``, CI) lines on stderr, where it takes long.
        **inputs : array_like
            Coordinates (``t=``, ``wavelength=``, ...) and scalars that the simulator asks for.

        Returns
        -------
        Engine
            Itself.
        """
        n_sims, theta = options.positional(n_sims, theta, x)
        binding.check_inputs(inputs, self.simulator, "fit", noise, self.noise)
        wishes = method, locate, ess_target, max_sims, max_seconds, modes
        in_rounds = options.is_sequential(n_rounds, observations, x_obs, wishes)
        before, network, known = self._before(warm_start, in_rounds)
        real = point_mask(mask, bad)
        given = FitInputs(observations, x_obs, x_err, theta, x, inputs, grid, known, real)
        options.check_start(in_rounds, n_sims, online, given, augment, restrict)
        chosen = {"n_epochs": n_epochs, "batch_size": batch_size, "lr": lr}
        config = options.train_config(train, chosen, _LOCATE if in_rounds else {})
        run, how = self._run(n_sims, online, max_failed, in_rounds, callback, progress), self._how()
        with preserved_random_state():
            believed = noise_of(self.noise if noise is None else noise, self.likelihood, in_rounds)
            problem = set_up(self._prior(), self.simulator, believed, given, how.n_jobs)
            start = options.goes_on_from(network if warm_start else None, problem.conditions)
            recipe = self._recipe(problem, config, options.perturbation(perturb, observations))
            run, recipe = restricted(run, recipe.augmented(augment), restrict)
            check_noise_of(problem, recipe.device)
            if not in_rounds:
                return self._keep(trained(run, problem, recipe, start, given, how, truth_test))
            rounds = RoundsConfig(n_sims, n_rounds, ess_target, max_sims, max_seconds, locate)
            fit = SequentialRun(rounds, options.method_for(method, problem), how.ladder, run, modes)
            own = Fitted.of(problem, given.defaults()) if network is None else before
            return self._keep(replace(own, sequential=fit(problem, given.objects, recipe, start)))

    def predict(  # noqa: PLR0913 - the public door
        self,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        n_samples: int = 2000,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        modes: Hints | None = None,
        prior: Prior | Mapping | None = None,
        seed: int | None = None,
        progress: bool | None = None,
        **inputs: ArrayLike,
    ) -> Posterior:
        """Return the posterior of one object.

        Parameters
        ----------
        x_obs : array_like, shape (L,) or (C, L), or a table
            One object; masks and units of numpy and astropy are kept. Or all that belongs to it: a
            Table, TimeSeries, LightCurve, Spectrum, DataFrame, or `Observations` of one object.
        x_err : array_like, optional
            Standard deviations. Default: those given to `fit`.
        n_samples : int
            Draws wanted; at least as many are returned, with their weights.
        mask, bad : array_like of bool, optional
            One of them: ``mask`` is True for a real point, ``bad`` is True for one to leave out, as
            masks of numpy and astropy are.
        modes : array_like, shape (M, D), dict or callable, optional
            Places in theta that are worth a look: see `predict_many`.
        prior : Prior, optional
            Another prior on the same parameters, to answer under; default: that of the fit.
        seed : int, optional
            Default: the engine's.
        progress : bool, optional
            As for `fit`.
        **inputs : array_like
            Coordinates and scalars; default: those given to `fit`.

        Returns
        -------
        Posterior
        """
        one = self._one("predict", x_obs, x_err, point_mask(mask, bad), inputs)
        answers = self._answers("predict", one, prior, progress).looking_at(modes, one)
        posterior = answers.posterior(one, n_samples, self._seed(seed))
        if not posterior.trusted:
            told = doubts(posterior.status, posterior.flags, posterior.rungs[-1].reason)
            warnings.warn(told, UntrustedWarning, stacklevel=3)
        return posterior

    def predict_many(
        self,
        observations: Observations,
        *,
        n_samples: int = 2000,
        keep: int | None = None,
        modes: Hints | None = None,
        prior: Prior | Mapping | None = None,
        seed: int | None = None,
        progress: bool | None = None,
    ) -> Posteriors:
        """Return the posteriors of many objects, batched throughout.

        Parameters
        ----------
        observations : Observations
        n_samples : int
            Draws wanted of each object.
        keep : int, optional
            None keeps all draws, n keeps n of them (resampled where they have weights), 0 only the
            summaries.
        modes : array_like, shape (N, M, D), dict or callable, optional
            Places in theta that are worth a look, or ``modes(observations)``, as the peaks of a
            periodogram; NaN where a coordinate is not known. A dict has ``points`` with ``std``
            (N, M, D) or ``cov`` (N, M, D, D), or ``samples`` (N, S, D), as of an emcee chain.
        prior : Prior, optional
            Another prior on the same parameters. The network's draws are taken over to its latent
            space, and objects whose posterior can go on beyond the old prior climb the ladder.
        seed : int, optional
            Default: the engine's. The draws of an object depend on the seed and its id alone.
        progress : bool, optional
            As for `fit`.

        Returns
        -------
        Posteriors
        """
        fitted = self._fitted("predict_many")
        fitted.network("predict_many")
        objects = fitted.like_training(observations)
        amortized = fitted.amortized(self._how(progress=progress), "predict_many", prior)
        amortized = amortized.looking_at(modes, objects)
        return amortized.posteriors(objects, n_samples, keep, self._seed(seed))

    def retry(
        self, posteriors: Posteriors, observations: Observations, *, ladder: Ladder | None = None
    ) -> Posteriors:
        """Return the posteriors with those that no rung certified tried once more.

        Draws start where the kept ones are, beside those of the network; the budget counts anew,
        and what is certified stays as it is.

        Parameters
        ----------
        posteriors : Posteriors
            From `predict_many`, of this process or another, with draws kept.
        observations : Observations
            Of these objects, and maybe others, in any order.
        ladder : Ladder, optional
            With other thresholds or budgets; default: the engine's.
        """
        fitted = self._fitted("retry")
        amortized = fitted.amortized(self._how(ladder), "retry")
        return amortized.retry(posteriors, fitted.like_training(observations), self._seed(None))

    def log_prob(
        self,
        theta: ArrayLike,
        x: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log q(theta | x) of the network, shape (n,).

        Parameters
        ----------
        theta : array_like, shape (n, D)
        x : array_like, shape (L,) or (C, L) for one object, else (n, L) or (n, C, L)
            One object for all theta, or one for each.
        x_err, mask, bad, **inputs
            As for `predict`.
        """
        fitted = self._fitted("log_prob")
        draws = fitted.prior.check(theta)
        make = (
            binding.one_object
            if binding.is_one_object(x, fitted.shape, len(draws))
            else binding.many_objects
        )
        objects = self._one("log_prob", x, x_err, point_mask(mask, bad), inputs, make)
        return self._answers("log_prob", objects).log_prob(draws, objects)

    def score(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> float:
        """Return the mean of `log_prob` over pairs theta (n, D), x (n, L) or (n, C, L)."""
        return float(self.log_prob(theta, x, x_err, **inputs).mean())

    def simulate(self, theta: ArrayLike, **inputs: ArrayLike) -> NDArray[np.float64]:
        """Return noise-free data (n, C, L) of theta (n, D), at the same coordinates for all.

        Parameters
        ----------
        theta : array_like, shape (n, D)
        **inputs : array_like
            Coordinates (L,) and scalars; default: those given to `fit`.
        """
        binding.check_inputs(inputs, self.simulator, "simulate", self.noise)
        return self._fitted("simulate").simulate(theta, inputs)

    def log_likelihood(
        self,
        theta: ArrayLike,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log L(theta) of one object, shape (n,): what every answer is weighted with.

        The data as for `predict`.
        """
        data = x_obs, x_err, point_mask(mask, bad), inputs
        return self._densities("log_likelihood", theta, *data)[1]

    def log_posterior(
        self,
        theta: ArrayLike,
        x_obs: ArrayLike,
        x_err: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        bad: ArrayLike | None = None,
        **inputs: ArrayLike,
    ) -> NDArray[np.float64]:
        """Return log prior + log L of one object in theta, shape (n,); -inf outside the prior.

        The data as for `predict`.
        """
        data = x_obs, x_err, point_mask(mask, bad), inputs
        log_prior, log_like = self._densities("log_posterior", theta, *data)
        return np.where(np.isfinite(log_prior) & ~np.isnan(log_like), log_prior + log_like, -np.inf)

    def save(self, path: str | Path) -> None:
        """Write the fitted engine to a file of JSON and numbers; code is not in it."""
        files.write(path, self._fitted("save"), self.seed)

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        noise: Noise | Callable | None = None,
        featurizer: nn.Module | None = None,
        device: str | None = None,
        **others: Any,  # noqa: ANN401 - passed on to Engine
    ) -> Engine:
        """Read a fitted engine; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator : callable, optional
            The same as at `fit`; without it answers stay uncorrected.
        prior, noise, featurizer
            Needed only where they are your own code.
        device, **others
            As for `Engine`.
        """
        fitted, seed = files.read(
            path, options.device_of(device), prior=prior, noise=noise, featurizer=featurizer
        )
        fitted = fitted.with_simulator(simulator, others.get("n_jobs"))
        own = arguments_of(fitted.noise) | fitted.wishes(featurizer) | others
        return cls(simulator, fitted.prior, device=device, seed=seed, **own)._keep(fitted)

    # --- behind the verbs ------------------------------------------------------------------------

    def _fitted(self, caller: str) -> Fitted:
        """Return what was fitted, or say that nothing was."""
        if not hasattr(self, "fitted_"):
            raise NotFittedError(f"This Engine is not fitted yet. Call fit before {caller}.")
        return self.fitted_

    def _before(
        self, warm_start: bool, in_rounds: bool
    ) -> tuple[Fitted | None, TrainedModel | None, binding.Conventions]:
        """Return what was fitted, its network, which a warm start must have, and what it knows."""
        if warm_start:
            self._fitted("fit(warm_start=True)").network("fit(warm_start=True)")
        before = getattr(self, "fitted_", None)
        network = None if before is None else before.model
        goes_on = network is not None and (in_rounds or warm_start)
        return before, network, before.conventions if goes_on else binding.NONE_KNOWN

    def _how(self, ladder: Ladder | None = None, progress: bool | None = None) -> Computing:
        device, own = options.device_of(self.device), self.ladder if ladder is None else ladder
        chosen = Ladder() if own is None else own
        return Computing(chosen, device, self.n_jobs, self.client, progress)

    def _seed(self, seed: int | None) -> int:
        return seed_of("seed", self.seed if seed is None else seed)

    def _one(
        self, caller: str, x: ArrayLike, x_err: ArrayLike | None, real: ArrayLike | None,
        inputs: Mapping[str, ArrayLike], make: Callable[..., Observations] = binding.one_object,
    ) -> Observations:  # fmt: skip
        """Return one object, with what was given to `fit` where nothing is given here."""
        binding.check_inputs(inputs, self.simulator, caller, self.noise)
        fitted = self._fitted(caller)
        return make(x, x_err, real, inputs, fitted.conventions, fitted.defaults)

    def _answers(
        self, caller: str, objects: Observations, prior: object = None,
        progress: bool | None = None,
    ) -> Answers:  # fmt: skip
        """Return who answers for these objects; only one alone can be that of a sequential fit."""
        data_hash = objects.hashes[0] if len(objects) == 1 else None
        how = self._how(progress=progress)
        return self._fitted(caller).answers_for(data_hash, how, caller, prior)

    def _prior(self) -> Prior:
        return options.prior_of(self.simulator, (self.prior, self.priors), self.labels)

    def _densities(
        self, caller: str, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None,
        real: ArrayLike | None, inputs: Mapping[str, ArrayLike],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
        """Return log prior and log likelihood of theta (n, D) for one object, fitted or not."""
        with preserved_random_state():
            target = self._target(caller, x_obs, x_err, real, inputs)
            return target.densities(target.prior.check(theta, one=True))

    def _target(
        self, caller: str, x_obs: ArrayLike, x_err: ArrayLike | None, real: ArrayLike | None,
        inputs: Mapping[str, ArrayLike],
    ) -> Target:  # fmt: skip
        """Return what is believed of one object, fitted or not, or of Observations of many."""
        if self.simulator is None:
            raise ValueError(f"{caller} must have a simulator, but the engine has none.")
        binding.check_inputs(inputs, self.simulator, caller, self.noise)
        how, many = self._how(), isinstance(x_obs, Observations) and len(x_obs) > 1
        fitted = getattr(self, "fitted_", None)
        if fitted is not None:
            if many:
                fitted.network(caller)
                return fitted.target(fitted.like_training(x_obs), how)
            return fitted.target(self._one(caller, x_obs, x_err, real, inputs), how)
        data = {"observations" if many else "x_obs": x_obs}
        given = FitInputs(**data, x_err=x_err, inputs=inputs, mask=real)
        believed = self._prior(), self.simulator, noise_of(self.noise, self.likelihood)
        return set_up(*believed, given, how.n_jobs).target(how.n_jobs, how.client)

    def _keep(self, fitted: Fitted) -> Engine:
        """Keep what was fitted, and its parts under names of their own."""
        for name in _PARTS:
            vars(self).pop(name, None)  # of an earlier fit
        self.fitted_, self.defaults_ = fitted, fitted.defaults
        self.prior_, self.noise_, self.simulator_ = fitted.prior, fitted.noise, fitted.simulator
        model, one = fitted.model, fitted.sequential
        if model is not None:
            self.model_, self.history_, self.truth_test_ = model, model.history, fitted.truth
        if one is not None:
            self.sequential_, self.posterior_, self.rounds_ = one, one.posterior, one.rounds
        return self

    def _run(
        self, n_sims: int | None, online: bool, max_failed: float | None, sequential: bool,
        callback: Callable[[History], None] | None, progress: bool | None,
    ) -> Run:  # fmt: skip
        most = _MAX_FAILED[sequential] if max_failed is None else max_failed
        folder = None if self.path is None else new_folder("path", self.path)
        return Run(n_sims, online, most, folder, self.n_jobs, self.client, callback, progress)

    def _recipe(
        self, problem: Problem, config: TrainConfig, perturbation: Perturbation | None
    ) -> fitting.Recipe:
        prior = problem.prior
        spec, custom = options.featurizer_spec(self.featurizer, problem.conditions, prior.n_dim)
        own = custom is None
        return fitting.Recipe(
            prior=prior, noise=problem.noise, units=problem.units, window=problem.window,
            cadences=Cadences(problem.conditions, problem.fixed, perturbation, problem.grid, own),
            featurizer=spec, custom=custom, flow=options.flow_config(self.flow, prior.n_dim),
            train=config, device=options.device_of(self.device), seed=self._seed(None),
            memory=options.bytes_of(self.memory),
        )  # fmt: skip
