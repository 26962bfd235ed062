"""Members: several trained models as one, the weights of its mixture, and where they disagree."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nbi_plus import files
from nbi_plus.arguments import real
from nbi_plus.data.batch import Batch
from nbi_plus.data.observations import Observations
from nbi_plus.fitted import Fitted
from nbi_plus.infer.proposals.several import divergence
from nbi_plus.io.archive import Archive, ArchiveError
from nbi_plus.io.parts import joined, split
from nbi_plus.learn.flows import Flow
from nbi_plus.learn.losses import nll
from nbi_plus.learn.model import TrainedModel
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.learn.scores.estimates import Scores
from nbi_plus.learn.training import History

_N_STEPS = 1000  # of the weights; they move by less than 1e-3 long before
_N_KNOWN = 1024  # held-out simulations that divergences are of, at most


@dataclass(frozen=True)
class JoinedModel:
    """Several models that were trained for the same objects; see `Trained`.

    Attributes
    ----------
    models : tuple of TrainedModel
    shares : tuple of float
        Of the mixture; their sum is one.
    divergences : Tensor, shape (m,)
        How far the members lie apart on held-out simulations, sorted.
    """

    models: tuple[TrainedModel, ...]
    shares: tuple[float, ...]
    divergences: Tensor

    @classmethod
    def of(cls, models: Sequence[TrainedModel], z: Tensor, data: Batch) -> JoinedModel:
        """Return the mixture that is best on data (n) of z (n, D) that none was trained on."""
        n = len(models)
        some = data.select(slice(0, _N_KNOWN))
        equal = cls(tuple(models), (1 / n,) * n, torch.zeros(1, dtype=torch.float64))
        with torch.no_grad():
            scores = torch.stack([_scores(model.network, z, data) for model in models])
            keys = torch.arange(len(some), device=z.device)
            apart = divergence(equal, equal.features(some), keys)
        return replace(equal, shares=stacked(scores), divergences=apart.sort().values)

    @property
    def networks(self) -> tuple[PosteriorNetwork, ...]:
        """Those of all members."""
        return tuple(model.network for model in self.models)

    @property
    def conditions(self) -> Batch:
        """Errors, masks, coordinates and scalars of the training."""
        return self.models[0].conditions

    @property
    def units(self) -> dict[str, str]:
        """Of the observations trained for."""
        return self.models[0].units

    @property
    def window(self) -> tuple[float, float] | None:
        """Their first and last time."""
        return self.models[0].window

    @property
    def history(self) -> History:
        """The epochs of all members, one after another."""
        return [epoch for model in self.models for epoch in model.history]

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and points of one object."""
        return self.models[0].shape

    def check_grid(self, observations: Observations) -> None:
        """Refuse data of another shape or grid than those of the training."""
        self.models[0].check_grid(observations)

    def features(self, batch: Batch, lengths: NDArray[np.int64] | None = None) -> Tensor:
        """Return the features (n, F) of all members, one beside the other."""
        return torch.cat([model.features(batch, lengths) for model in self.models], -1)

    def unlike(self, features: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
        """Say which objects half of the members find unlike the simulations, and the p-values.

        The median of those of all members.
        """
        each = [model.unlike(own, coverage) for model, own in self._own(features)]
        flags, p_values = (torch.stack(values) for values in zip(*each, strict=True))
        return flags.double().mean(0) >= 0.5, torch.quantile(p_values, 0.5, 0)

    def judge_together(self, features: Tensor) -> tuple[bool, float]:
        """Say whether half of the members find objects of one kind unlike, and the median p."""
        flags, p_values = zip(*(m.judge_together(own) for m, own in self._own(features)),
                              strict=True)  # fmt: skip
        return float(np.mean(flags)) >= 0.5, float(np.median(p_values))

    def _own(self, features: Tensor) -> Iterator[tuple[TrainedModel, Tensor]]:
        """Return each member with what belongs to it of features (n, F)."""
        widths = [network.n_features for network in self.networks]
        return zip(self.models, features.split(widths, -1), strict=True)


def shares_of(
    weights: Mapping[str, float] | Sequence[float], names: list[str]
) -> tuple[float, ...]:
    """Return the shares of members from weights that people give."""
    remedy = f"Give a number for each of {names}."
    if isinstance(weights, Mapping):
        if set(weights) != set(names):
            raise ValueError(f"member_weights must be of {names}, but are of {list(weights)}.")
        weights = [weights[name] for name in names]
    values = np.array([real("member_weights", w) for w in np.atleast_1d(weights)])
    if len(values) != len(names) or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"member_weights must be finite and at least 0, but are {values.tolist()}. {remedy}"
        )
    if not values.max() > 0:
        raise ValueError(f"member_weights must not all be 0. {remedy}")
    values = values / values.max()  # a sum of great ones may be none
    return tuple((values / values.sum()).tolist())


def stacked(scores: Tensor) -> tuple[float, ...]:
    """Return the weights of a mixture that give log-scores (M, n) of its members the best sum.

    Stacking of predictive distributions (Yao et al. 2018, arXiv:1704.02030), by expectation and
    maximisation that begins at equal weights. One score more for each member, which it alone
    explains, keeps the weight of none at zero.

    Examples
    --------
    >>> stacked(torch.tensor([[0.0, 0.0], [-50.0, -50.0]]))
    (0.75, 0.25)
    """
    scores = scores.to(torch.float64)
    scores = scores[:, (scores > -torch.inf).any(0)]  # what none explains speaks for none
    weights = torch.full_like(scores[:, 0], 1 / len(scores))
    for _ in range(_N_STEPS):
        explained = (weights.log()[:, None] + scores).softmax(0).sum(1) + 1
        weights = explained / explained.sum()
    return tuple(weights.tolist())


def _scores(network: PosteriorNetwork, z: Tensor, data: Batch) -> Tensor:
    """Return log q (n,) of z (n, D) given their data."""
    every = torch.ones(len(z), dtype=torch.bool, device=z.device)
    return -nll(network.flow, z, network.features(data), every)


def contents(fitted: Fitted, of_each: Mapping[str, tuple[Fitted, int]], copies: bool) -> Archive:
    """Return what a file holds of an ensemble: of each member what its engine would be saved as.

    Parameters
    ----------
    fitted : Fitted
        With the mixture as its model.
    of_each : mapping of str to (Fitted, int)
        What each member was fitted to, and its seed, by name.
    copies : bool
        Whether they are copies of one engine.
    """
    own = [files.contents(*member) for member in of_each.values()]
    meta = {
        "members": [{"name": n, **a.meta} for n, a in zip(of_each, own, strict=True)],
        "merged": fitted.model is not None,
        "copies": copies,
        "truth_test": None if fitted.truth is None else asdict(fitted.truth),
    }
    arrays = joined({str(i): archive.arrays for i, archive in enumerate(own)})
    if fitted.model is not None:
        arrays["shares"] = np.array(fitted.model.shares)
        arrays["divergences"] = fitted.model.divergences.cpu().numpy()
    return Archive(meta, arrays)


def rebuilt(
    archive: Archive, path: Path, device: torch.device, code: Mapping[str, Any]
) -> tuple[Fitted, dict[str, tuple[Fitted, int]]]:
    """Return what `contents` was given; ``code`` is prior, noise and featurizers of the user."""
    meta, parts = archive.meta, split(archive.arrays)
    of_each = {}
    for i, own in enumerate(meta["members"]):
        one = Archive(own, parts[str(i)])
        files.check_sizes(one)
        given = {**code, "featurizer": own_code(code["featurizer"], own["name"])}
        given["kind"] = Scores if own["model"]["flow"]["kind"] == "scores" else Flow
        of_each[own["name"]] = files.rebuilt(one, path, device, **given)
    fits = [fitted for fitted, _ in of_each.values()]
    alike = {(fit.prior, fit.noise.fingerprint(), fit.model.shape) for fit in fits}
    if not (len(fits) == len(meta["members"]) and len(alike) == 1 and type(meta["copies"]) is bool):
        raise ArchiveError(
            "the members of the ensemble must be of one problem, with a name each, but are not. "
            "The file is damaged or forged."
        )
    if not meta["merged"]:
        return replace(fits[0], model=None), of_each
    told = meta["truth_test"]
    truth = None if told is None else files.truth_test_of(told)
    return replace(fits[0], model=_mixture(fits, archive, device), truth=truth), of_each


def _mixture(fits: Sequence[Fitted], archive: Archive, device: torch.device) -> JoinedModel:
    """Return the mixture of members, with the weights and divergences of a file."""
    shares, apart = archive.arrays["shares"], archive.arrays["divergences"]
    sound = (
        all(isinstance(fit.model.network.flow, Flow) for fit in fits)
        and shares.shape == (len(fits),)
        and (shares >= 0).all() and np.isclose(shares.sum(), 1.0)
        and apart.dtype == np.float64 and apart.ndim == 1 and len(apart) > 0
        and np.isfinite(apart).all() and (np.diff(apart) >= 0).all()
    )  # fmt: skip
    if not sound:
        raise ArchiveError(
            "the members of the ensemble must agree with their weights and divergences, but do "
            "not. The file is damaged or forged."
        )
    models = tuple(fit.model for fit in fits)
    return JoinedModel(models, tuple(shares.tolist()), torch.as_tensor(apart).to(device))


def own_code(featurizer: nn.Module | Mapping[str, nn.Module] | None, name: str) -> nn.Module | None:
    """Return the featurizer of a member, of those that the user passes for all, or by name."""
    return featurizer.get(name) if isinstance(featurizer, Mapping) else featurizer


def check_known(what: str, given: Collection[str], known: Collection[str]) -> None:
    """Refuse names that nothing is called by."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(f"{what} must be among {sorted(known)}, but are {unknown}.")
