"""Ancestral draws: children, for each draw of what their parents are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.data.batch import Batch
from nbi_plus.data.ingest import numbers
from nbi_plus.data.joining import with_scalars
from nbi_plus.data.observations import Observations
from nbi_plus.data.tables.tables import as_table, is_table
from nbi_plus.data.units import factor
from nbi_plus.infer.ladder.amortized import Amortized
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import normalise
from nbi_plus.problem.random import keyed_uniform, paired_keys

Given = Posterior | Mapping[str, ArrayLike] | Any  # or a table


@dataclass(frozen=True)
class Children:
    """N children, and how they are drawn.

    Attributes
    ----------
    amortized : Amortized
        Of their engine.
    observations : Observations
        As the network knows them; scalars that are given they need not have.
    n_weighed : int
        Draws of the network of which one is taken, by its weight; 1: none is weighed.
    seed : int
    """

    amortized: Amortized
    observations: Observations
    n_weighed: int
    seed: int

    @torch.no_grad()
    def of(self, given: Given, n_samples: int) -> NDArray[np.float64]:
        """Return one draw for each child and each draw of its parents, (S, N, D).

        Parameters
        ----------
        given : Posterior, mapping of str to array_like of shape (S,) or (S, N), or table
            Scalars of the children. A posterior is resampled.
        n_samples : int
            S, for a posterior.
        """
        n, model = len(self.observations), self.amortized.model
        known = tuple(model.conditions.scalars)
        drawn = _scalars(given, known, model.units, n_samples, self.seed)
        _refuse_other_shapes(drawn, n)
        first = {name: np.broadcast_to(value[0], n) for name, value in drawn.items()}
        children = replace(self, observations=with_scalars(self.observations, first, {}))
        model.check_grid(children.observations)
        reason = self.amortized.why_not(children.observations) if self.n_weighed > 1 else ""
        if reason:
            raise ValueError(f"n_weighed must be 1, for {reason}, but is {self.n_weighed}.")
        device = self.amortized.device
        # parents may be the same for all children
        parents = {
            k: torch.as_tensor(v.reshape(len(v), -1), device=device).expand(-1, n)
            for k, v in drawn.items()
        }
        return children._drawn(parents).cpu().numpy()

    def _drawn(self, parents: dict[str, Tensor]) -> Tensor:
        """Return draws (S, N, D) for scalars (S, N), all objects for some parents at a time."""
        device, n = self.amortized.device, len(self.observations)
        batch = self.observations.batch().to(device)
        keys = torch.as_tensor(self.observations.keys, device=device)
        most = launch.of(device)
        at_once = most.encoded_points // max(batch.mask[:, 0].numel(), 1)
        at_once = max(1, min(at_once, most.batch_draws // (n * self.n_weighed)))
        found = []
        for rows in torch.arange(len(next(iter(parents.values()))), device=device).split(at_once):
            own = batch.select(torch.arange(n, device=device).repeat(len(rows)))
            scalars = {k: v[rows].flatten() for k, v in parents.items()}
            own = replace(own, scalars=own.scalars | scalars)
            each = paired_keys(keys.repeat(len(rows)), rows.repeat_interleave(n))
            z = self._one_of_each(own, np.tile(self.observations.lengths, len(rows)), each)
            found.append(self.amortized.prior.from_latent(z).unflatten(0, (len(rows), n)))
        return torch.cat(found)

    def _one_of_each(self, batch: Batch, lengths: NDArray[np.int64], keys: Tensor) -> Tensor:
        """Return one latent draw (b, D) of each of b objects."""
        amortized = self.amortized
        features = amortized.sound_features(batch, lengths)
        share = amortized.ladder.defensive_share if self.n_weighed > 1 else 0.0
        made = amortized.proposal(share).draw(features, keys, self.n_weighed, self.seed, "given")
        if self.n_weighed == 1:
            return made.z[:, 0]
        index = torch.arange(len(keys), device=keys.device)
        found = amortized.target_of(batch).evaluate(made.z, index)
        log_w = found.log_prior + found.log_likelihood - made.log_q
        log_w = log_w.nan_to_num(nan=-torch.inf).masked_fill(found.failed, -torch.inf)
        weights = normalise(log_w)
        # without any weight one draw is as good as another
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1 / self.n_weighed)
        comb = keyed_uniform(self.seed, "given, chosen", keys, (1,))[:, 0]
        chosen = systematic_resample(weights, 1, comb)
        return made.z.gather(1, chosen[..., None].expand(-1, -1, made.z.shape[-1]))[:, 0]


def _refuse_other_shapes(drawn: Mapping[str, NDArray], n: int) -> None:
    """Refuse draws that are not of the same number, for all of n objects or for each."""
    for name, value in drawn.items():
        bad = int((~np.isfinite(value)).sum())
        if value.ndim > 2 or value.shape[1:] not in ((), (n,)) or not value.size or bad:
            raise ValueError(
                f"given[{name!r}] must be finite, of shape (S,) for all objects or (S, {n}) for "
                f"each, but has shape {value.shape}, {bad} not finite."
            )
    if len({len(v) for v in drawn.values()}) > 1:
        came = {name: len(value) for name, value in drawn.items()}
        raise ValueError(f"given must have as many draws of each scalar, but has {came}.")


def _scalars(
    given: Given, known: tuple[str, ...], units: Mapping[str, str], n_samples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return the draws of each scalar that is given."""
    if isinstance(given, Posterior):
        draws = dict(zip(given.names, given.resample(n_samples, seed).T, strict=True))
        own, found = given.parameters.units, {k: draws[k] for k in draws if k in known}
        for name in found:
            if own.get(name) and units.get(name):  # no unit is any unit
                found[name] = found[name] * factor(own[name], units[name], name)
        names = given.names
    elif is_table(given):
        names = tuple(given) if isinstance(given, Mapping) else tuple(as_table(given).names)
        found = {name: numbers(name, given[name], units.get(name)) for name in names}
        found = {name: np.atleast_1d(value) for name, value in found.items()}
    else:
        raise TypeError(
            "given must be a Posterior, a mapping of arrays or a table, but is "
            f"{type(given).__name__}. Write given={{'name': draws}}."
        )
    if not found or not set(found) <= set(known):
        raise ValueError(
            f"given must name scalars that the network was trained with, {list(known)}, but has "
            f"{list(names)}."
        )
    return found
