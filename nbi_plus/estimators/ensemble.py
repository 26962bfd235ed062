"""Ensemble: several engines trained on shared simulations, whose mixture answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import nn

from nbi_plus import options
from nbi_plus.arguments import new_file, of_kind, path_of, real, seed_of, whole
from nbi_plus.data.observations import Observations
from nbi_plus.engine import Engine
from nbi_plus.estimators import members
from nbi_plus.estimators.members import JoinedModel
from nbi_plus.estimators.point import Estimates, PointEngine
from nbi_plus.estimators.prepared import prepare
from nbi_plus.fitted import Computing, Fitted, tried
from nbi_plus.infer.ladder.ladder import Ladder
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.proposals.several import divergence
from nbi_plus.io.archive import fitting_parts, read_archive, write_archive
from nbi_plus.learn.learned_noise import arguments_of, noise_of
from nbi_plus.problem.gathered import Files
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulator.simulator import Simulator
from nbi_plus.survey.mixin import SurveyMixin
from nbi_plus.torch_state import doors
from nbi_plus.trust.mixin import TellingMixin

Weights = Mapping[str, float] | Sequence[float]
Member = Engine | PointEngine
_KIND = "ensemble"
_KINDS = (Engine, PointEngine)


@doors
class Ensemble(TellingMixin, SurveyMixin, BaseEstimator):
    """Several engines for the same problem; the mixture of their networks answers as one would.

    The mixture is what the ladder weighs draws of, so that weights, verdicts and evidences are as
    exact as those of `Engine`. Where the members lie further apart than on 99 % of held-out
    simulations an answer has flag ``DISAGREE``: what they were trained on did not settle it.

    Parameters
    ----------
    engine : Engine, or mapping of name to Engine or PointEngine
        One to copy, each copy with a seed of its own: the first has that of the engine, the next
        ones those that follow. Or engines with other flows or featurizers, for the same simulator,
        prior and noise; what is not of one network (``path``, ``n_jobs``, ``memory``, ``ladder``)
        the first says for all. Where one is a `PointEngine`, which has no density, members answer
        one by one.
    n : int
        How many copies.

    Attributes
    ----------
    members_ : dict of Engine or PointEngine
        Fitted, by name.
    member_weights_ : dict of float
        Of the mixture, by name; their sum is one. Empty where there is none.
    prior_, noise_, simulator_, fitted_, truth_test_
        As of `Engine`.
    history_ : dict of list of dict
        Losses of every epoch, by name.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> engine = Engine(lambda theta: theta @ np.ones((1, 8)), {"a": norm(0, 1)}, noise=0.5)
    >>> ensemble = Ensemble(engine, n=2).fit(n_sims=500, n_epochs=2)
    >>> list(ensemble.members_), round(sum(ensemble.member_weights_.values()), 6)
    (['member_0', 'member_1'], 1.0)
    """

    def __init__(self, engine: Member | Mapping[str, Member], n: int = 4) -> None:
        self.engine = engine
        self.n = n

    def fit(
        self,
        n_sims: int | ArrayLike | None = None,
        x: ArrayLike | Files | None = None,
        *,
        data_reuse: float = 1.0,
        truth_test: bool | int | None = None,
        **others: Any,  # noqa: ANN401 - as Engine.fit, which checks them
    ) -> Ensemble:
        """Simulate once, and train all members.

        Parameters
        ----------
        n_sims : int
            Simulations of each member. An array in this place is ``theta``: ``fit(theta, x)``.
        x : array_like, optional
            Simulations made elsewhere, of which each member uses its share.
        data_reuse : float
            Share of its simulations that every member sees, in [0, 1]: 1 trains all on the same
            ``n_sims``, 0 each on ``n_sims`` of its own. No member trains on what any other holds
            out: these give the weights of the mixture, and say how far members lie apart.
        truth_test : bool or int, optional
            Of the mixture; see `Engine.fit`.
        **others
            ``theta``, ``n_epochs``, ``observations``, ``x_obs``, ``x_err``, ``mask``, ``bad``,
            ``noise``, ``perturb``, ``grid``, ``batch_size``, ``lr``, ``train``, ``augment``,
            ``max_failed``, ``callback``, ``progress``, coordinates and scalars, as for
            `Engine.fit`.

        Returns
        -------
        Ensemble
            Itself.
        """
        reuse = real("data_reuse", data_reuse)
        if not 0 <= reuse <= 1:
            raise ValueError(f"data_reuse must lie in [0, 1], but is {data_reuse!r}.")
        engines = self._engines()
        first = next(iter(engines.values()))
        with preserved_random_state():
            ready = prepare(_as_engine(first), n_sims, x, **others)
            recipes = [ready.recipe(engine) for engine in engines.values()]
            recipes = [replace(r, device=recipes[0].device, memory=recipes[0].memory)
                       for r in recipes]  # fmt: skip
            began = time.perf_counter()
            models, held_out = ready.run.several(ready.problem, recipes, reuse)
            if _can_merge(engines):
                model = JoinedModel.of(models, *held_out)
                wanted = truth_test, time.perf_counter() - began
                fitted = tried(model, ready.run, ready.problem, recipes[0], ready.given,
                               first._how(), wanted)  # fmt: skip
            else:
                fitted = Fitted.of(ready.problem, ready.given.defaults())
        for engine, own in zip(engines.values(), models, strict=True):
            engine._keep(replace(fitted, model=own, truth=None))
        return self._kept(fitted, engines)

    def predict(
        self, x_obs: ArrayLike, x_err: ArrayLike | None = None, *, merge_members: bool = True,
        member_weights: Weights | None = None, **others: Any,  # noqa: ANN401 - as Engine.predict
    ) -> Posterior | dict[str, Posterior]:  # fmt: skip
        """Return the posterior of one object; see `Engine.predict` for all other arguments.

        Parameters
        ----------
        x_obs, x_err : array_like
        merge_members : bool
            False returns the answers of each member, by name.
        member_weights : mapping of name to float, or sequence of float, optional
            Of the mixture, at least 0; they are scaled to a sum of one. Default:
            ``member_weights_``.
        """
        return self._ask("predict", merge_members, member_weights, x_obs, x_err, **others)

    def predict_many(
        self, observations: Observations, *, merge_members: bool = True,
        member_weights: Weights | None = None, **others: Any,  # noqa: ANN401 - as Engine.predict_many
    ) -> Posteriors | dict[str, Posteriors]:  # fmt: skip
        """Return the posteriors of many objects; see `predict` and `Engine.predict_many`."""
        return self._ask("predict_many", merge_members, member_weights, observations, **others)

    def sample(
        self, x_obs: ArrayLike, x_err: ArrayLike | None = None, *, merge_members: bool = True,
        member_weights: Weights | None = None, **others: Any,  # noqa: ANN401 - as Engine.sample
    ) -> NDArray[np.float64] | dict[str, NDArray[np.float64]]:  # fmt: skip
        """Return draws (n_samples, D) of the networks alone; see `predict` and `Engine.sample`."""
        return self._ask("sample", merge_members, member_weights, x_obs, x_err, **others)

    def log_prob(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, *,
        merge_members: bool = True, member_weights: Weights | None = None,
        **others: Any,  # noqa: ANN401 - as Engine.log_prob
    ) -> NDArray[np.float64] | dict[str, NDArray[np.float64]]:  # fmt: skip
        """Return log q(theta | x) of the mixture, (n,); see `predict` and `Engine.log_prob`."""
        return self._ask("log_prob", merge_members, member_weights, theta, x, x_err, **others)

    def score(
        self, theta: ArrayLike, x: ArrayLike, x_err: ArrayLike | None = None, **inputs: ArrayLike
    ) -> float:
        """Return the mean of `log_prob` over pairs theta (n, D), x (n, L) or (n, C, L)."""
        return self._merged("score").score(theta, x, x_err, **inputs)

    def retry(
        self, posteriors: Posteriors, observations: Observations, *, ladder: Ladder | None = None
    ) -> Posteriors:
        """Return the posteriors with those that nothing certified tried again: `Engine.retry`."""
        return self._merged("retry").retry(posteriors, observations, ladder=ladder)

    def simulate(self, theta: ArrayLike, **inputs: ArrayLike) -> NDArray[np.float64]:
        """Return noise-free data (n, C, L) of theta (n, D): `Engine.simulate`."""
        return self._merged("simulate").simulate(theta, **inputs)

    def predict_shared(self, observations: Observations, **others: Any) -> Posterior:  # noqa: ANN401
        """Return the posterior of one theta behind several objects: `Engine.predict_shared`."""
        return self._merged("predict_shared").predict_shared(observations, **others)

    def log_likelihood(
        self, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None = None,
        **others: ArrayLike,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Return log L(theta) of one object, shape (n,): `Engine.log_likelihood`."""
        return self._merged("log_likelihood").log_likelihood(theta, x_obs, x_err, **others)

    def log_posterior(
        self, theta: ArrayLike, x_obs: ArrayLike, x_err: ArrayLike | None = None,
        **others: ArrayLike,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Return log prior + log L of one object, shape (n,): `Engine.log_posterior`."""
        return self._merged("log_posterior").log_posterior(theta, x_obs, x_err, **others)

    def disagreement(self, observations: Observations) -> NDArray[np.float64]:
        """Return how far the members lie apart for each object, shape (N,).

        The mean Kullback-Leibler divergence, in nats, over all ordered pairs of members. NaN for
        objects whose data the networks cannot read, or that have none.
        """
        fitted = self._fitted("disagreement")
        objects = fitted.like_training(observations)
        fitted.model.check_grid(objects)
        _, features = fitted.amortized(self._how(), "disagreement").features(objects)
        keys = torch.as_tensor(objects.keys, device=features.device)
        apart = divergence(fitted.model, features, keys).cpu().numpy()
        return np.where(objects.n_points > 0, apart, np.nan)

    def estimate(
        self, observations: Observations, *, groupby: str = "rule", merge_members: bool = False
    ) -> dict[str, Estimates]:
        """Return the estimates of each PointEngine among the members, by name.

        Parameters
        ----------
        observations, groupby
            As for `PointEngine.estimate`.
        merge_members : bool
            Must be False: a mixture of posteriors has no quantiles that are means of theirs.
        """
        if of_kind("merge_members", merge_members, bool, "Write False."):
            raise ValueError("merge_members must be False for estimate, which merges none.")
        return self._each("estimate", PointEngine, observations, groupby=groupby)

    def save(self, path: str | Path) -> None:
        """Write all members to a file of JSON and numbers; code is not in it."""
        fitted, path = self._was_fitted("save"), new_file("path", path)
        of_each = {name: (engine.fitted_, engine.seed) for name, engine in self.members_.items()}
        archive = members.contents(fitted, of_each, not isinstance(self.engine, Mapping))
        write_archive(path, _KIND, archive.meta, archive.arrays)

    @classmethod
    def load(
        cls,
        path: str | Path,
        simulator: Simulator | Callable | None = None,
        *,
        prior: Prior | None = None,
        noise: Noise | Callable | None = None,
        featurizer: nn.Module | Mapping[str, nn.Module] | None = None,
        device: str | None = None,
        **others: Any,  # noqa: ANN401 - passed on to Engine
    ) -> Ensemble:
        """Read a fitted ensemble; nothing in the file is executed.

        Parameters
        ----------
        path : str or Path
        simulator, prior, noise, device, **others
            As for `Engine.load`.
        featurizer : nn.Module, or mapping of name to it, optional
            Needed only where it is your own code.
        """
        path = path_of("path", path)
        members.check_known("keywords", others, Engine().get_params())
        archive = read_archive(path, _KIND)
        code = {"prior": prior, "noise": noise, "featurizer": featurizer}
        with fitting_parts(path, _KIND):
            fitted, of_each = members.rebuilt(archive, path, options.device_of(device), code)
        if isinstance(featurizer, Mapping):
            members.check_known("names of featurizer", featurizer, of_each)
        whole_fit = next(iter(of_each.values()))[0].with_simulator(simulator, others.get("n_jobs"))
        fitted = replace(fitted, simulator=whole_fit.simulator)
        engines = {}
        for name, (one, seed) in of_each.items():
            code = members.own_code(featurizer, name)
            own = {**arguments_of(one.noise), "device": device, "seed": seed, **one.wishes(code),
                   **others}  # fmt: skip
            kind = PointEngine if "rules" in own else Engine
            own = {k: v for k, v in own.items() if kind is Engine or k in kind().get_params()}
            engine = kind(simulator, one.prior, **own)
            engines[name] = engine._keep(replace(one, simulator=fitted.simulator))
        given = {name: _fresh(engine) for name, engine in engines.items()}
        if archive.meta["copies"]:
            ensemble = cls(next(iter(given.values())), len(given))
        else:
            ensemble = cls(given)
        return ensemble._kept(fitted, engines)

    # --- behind the verbs ------------------------------------------------------------------------

    def _engines(self) -> dict[str, Member]:
        """Return the members, not fitted."""
        if isinstance(self.engine, _KINDS):
            n, seed = whole("n", self.n, 2), seed_of("seed", self.engine.seed)
            return {f"member_{i}": _fresh(self.engine, seed=seed + i) for i in range(n)}
        of_kind("engine", self.engine, Mapping, "Give an Engine, or a dict of name to Engine.")
        for name, engine in self.engine.items():
            of_kind("names of members", name, str, "Give a word.")
            if not isinstance(engine, _KINDS):
                raise TypeError(
                    f"engine[{name!r}] must be an Engine or a PointEngine, but is a "
                    f"{type(engine).__name__}."
                )
        if len(self.engine) < 2:
            raise ValueError(
                f"engine must hold at least two engines, but holds {list(self.engine)}. One alone "
                "needs no ensemble."
            )
        (first_name, first), *rest = self.engine.items()
        for name, engine in rest:
            what = _different(first, engine)
            if what:
                raise ValueError(
                    f"engine must hold engines for one problem, but the {what} of {name!r} is "
                    f"another than that of {first_name!r}. Give all the same objects."
                )
        return {name: _fresh(engine) for name, engine in self.engine.items()}

    def _was_fitted(self, caller: str) -> Fitted:
        """Return what was fitted, or say that nothing was."""
        if not hasattr(self, "fitted_"):
            raise NotFittedError(f"This Ensemble is not fitted yet. Call fit before {caller}.")
        return self.fitted_

    def _fitted(self, caller: str) -> Fitted:
        """Return what was fitted, with a mixture, or say that there is none."""
        fitted = self._was_fitted(caller)
        if fitted.model is None:
            points = [n for n, m in self.members_.items() if isinstance(m, PointEngine)]
            raise ValueError(
                f"members must all be Engines to be merged for {caller}, but {points} have no "
                "density. Ask with merge_members=False, or fit an Ensemble without them."
            )
        return fitted

    def _how(self, ladder: Ladder | None = None) -> Computing:
        return next(iter(self.members_.values()))._how(ladder)

    def _seed(self, seed: int | None) -> int:
        return next(iter(self.members_.values()))._seed(seed)

    def _kept(self, fitted: Fitted, engines: Mapping[str, Member]) -> Ensemble:
        """Keep what was fitted, and the members under their names."""
        self.fitted_, self.members_ = fitted, dict(engines)
        self.prior_, self.noise_, self.simulator_ = fitted.prior, fitted.noise, fitted.simulator
        shares = () if fitted.model is None else fitted.model.shares
        self.member_weights_ = dict(zip(engines, shares, strict=bool(shares)))
        self.history_ = {name: engine.history_ for name, engine in engines.items()}
        self.truth_test_ = fitted.truth
        return self

    def _merged(self, caller: str, weights: Weights | None = None) -> Engine:
        """Return an engine whose network is the mixture."""
        fitted = self._fitted(caller)
        if weights is not None:
            shares = members.shares_of(weights, list(self.members_))
            fitted = replace(fitted, model=replace(fitted.model, shares=shares))
        return _fresh(next(iter(self.members_.values())))._keep(fitted)

    def _ask(
        self,
        verb: str,
        merge: bool,
        weights: Weights | None,
        *given: object,
        **others: Any,  # noqa: ANN401 - of the verb
    ) -> Any:  # noqa: ANN401 - what the verb returns, or a dict of it
        """Return what the mixture answers, or each member."""
        if of_kind("merge_members", merge, bool, "Write True or False."):
            return getattr(self._merged(verb, weights), verb)(*given, **others)
        if weights is not None:
            raise ValueError("member_weights must be None where members are not merged.")
        return self._each(verb, Engine, *given, **others)

    def _each(self, verb: str, kind: type, *given: object, **others: object) -> dict[str, Any]:
        """Return what each member of some kind answers, by name."""
        self._was_fitted(verb)
        asked = {name: own for name, own in self.members_.items() if isinstance(own, kind)}
        if not asked:
            raise ValueError(
                f"members must hold a {kind.__name__} for {verb}, but are {list(self.members_)}, "
                "of another kind."
            )
        return {name: getattr(engine, verb)(*given, **others) for name, engine in asked.items()}


def _fresh(engine: Member, **changed: object) -> Member:
    """Return an engine with the very same arguments that is not fitted."""
    return type(engine)(**engine.get_params(deep=False) | changed)


def _as_engine(member: Member) -> Engine:
    """Return an Engine for the same problem."""
    return member._engine() if isinstance(member, PointEngine) else member


def _can_merge(engines: Mapping[str, Member]) -> bool:
    return all(isinstance(engine, Engine) for engine in engines.values())


def _different(one: Member, other: Member) -> str:
    """Return what of the problems of two engines is not the same; nothing where all is."""
    one, other = _as_engine(one), _as_engine(other)
    if one.simulator is not other.simulator:
        return "simulator"
    if one._prior() != other._prior():
        return "prior"
    believed = (noise_of(engine.noise, engine.likelihood).fingerprint() for engine in (one, other))
    if len(set(believed)) > 1:
        return "noise"
    return ""
