r"""Restricted: simulations where posteriors lie, and a loss whose optimum is under the prior.

Parameters come from a defensive mixture, in the latent space,

.. math:: r(z) = a\, p(z) + (1 - a)\, m(z), \qquad w(z) = p(z) / r(z) \le 1 / a,

of the prior p and of a mixture m that is wider than the posteriors it was fitted to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.arguments import of_kind
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors
from nbi_plus.infer.posterior.status import Status
from nbi_plus.infer.proposals.base import Blend, PriorProposal
from nbi_plus.infer.proposals.mixture import MixtureConfig, StudentMixture, fit_mixture
from nbi_plus.io.fingerprint import content, digest
from nbi_plus.learn.fitting import Recipe
from nbi_plus.learn.flows import Flow
from nbi_plus.learn.run import Run
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.random import keyed_normal, keyed_uniform

SHARE = 0.2  # of simulations, from the prior itself: no weight is larger than 1 / SHARE
_WIDER = 1.5  # than the draws, in each direction: what a first network says is not exact
_N_DRAWS = 16_384  # of all posteriors together, that the mixture is fitted to
_N_LOOKED = 16  # draws of the flow that say how a row's weight compares with others of such data


@dataclass(frozen=True, eq=False)
class Restriction:
    """The mixture r(z) that simulations are drawn from.

    Attributes
    ----------
    mixture : StudentMixture
        Of one object: m(z).
    share : float
        Of the prior.
    """

    mixture: StudentMixture
    share: float = SHARE

    @classmethod
    def of(cls, posteriors: Posteriors | Posterior, prior: Prior, seed: int) -> Restriction:
        """Return what is fitted to the weighted draws of posteriors, each counting the same."""
        draws = np.concatenate(_some_draws(posteriors, prior, seed))
        z = np.asarray(prior.to_latent(draws))
        z = torch.as_tensor(z[np.isfinite(z).all(1)])
        if len(z) <= prior.n_dim:
            raise ValueError(
                f"restrict must hold draws inside the prior, but {len(z)} of {len(draws)} are. "
                "Give posteriors under this prior."
            )
        weights = torch.full((1, len(z)), 1 / len(z), dtype=torch.float64)
        config = MixtureConfig(n_points=len(z)).in_dims(prior.n_dim)
        key = torch.zeros(1, dtype=torch.int64)
        return cls(fit_mixture(z[None], weights, key, config, seed, "restrict").wider(_WIDER))

    def to(self, device: torch.device | str) -> Restriction:
        """Return the same on another device."""
        m = self.mixture
        parts = (v.to(device) for v in (m.log_shares, m.means, m.factors))
        return replace(self, mixture=StudentMixture(*parts, m.dof))

    def draw(self, seed: int, rows: Tensor) -> Tensor:
        """Return latent draws (n, D) of numbered rows (n,), each of its number alone."""
        m = self.to(rows.device).mixture
        noise = keyed_normal(seed, "prior", rows, (m.means.shape[-1],))
        u = keyed_uniform(seed, "restrict", rows, (1,))[:, 0]
        edges = m.log_shares[0].exp().cumsum(0)
        inside = (u - self.share) / (1 - self.share) * edges[-1]
        k = torch.searchsorted(edges, inside.clamp(min=0.0), right=True).clamp(max=len(edges) - 1)
        chi2 = keyed_normal(seed, "restrict stretch", rows, (round(m.dof),)).square().sum(-1)
        stretched = noise * (m.dof / chi2).sqrt()[:, None]
        z = m.means[0, k] + (m.factors[0, k] @ stretched[..., None])[..., 0]
        return torch.where((u < self.share)[:, None], noise, z)

    def log_weights(self, z: Tensor) -> Tensor:
        """Return log w (n,) of latent z (n, D), at most ``-log share``."""
        z = z.to(torch.float64)
        parts = PriorProposal(z.shape[-1]), self.mixture
        both = Blend(parts, (self.share, 1 - self.share))
        return (parts[0].log_prob(z[None]) - both.log_prob(z[None]))[0]

    def manifest(self) -> str:
        """Return a text that changes with the mixture."""
        m = self.mixture
        return f"{self.share} {m.dof} {digest(map(content, (m.log_shares, m.means, m.factors)))}"


@dataclass(frozen=True)
class RestrictedLoss:
    r"""The loss of simulations that are drawn from r, whose optimum is the posterior under p.

    Each row counts :math:`w(z)\, c(x)`. For any positive c that knows the data alone the optimum is
    the posterior under the prior; with c = 1 the loss would be the mean over the prior, and the few
    rows outside the mixture would say most of it. Here :math:`c(x)` is one over the mean weight of
    draws of the flow itself: rows of data that the mixture explains then count one, as others do.

    The held-out loss, by which epochs are compared, is how badly :math:`q r / p`, normalised, says
    what rows were drawn from: the mean of :math:`-\log q + \log w + \log \mathrm{E}_q[1 / w]`.
    """

    restriction: Restriction = field(repr=False)
    manifest: str

    @classmethod
    def of(cls, restriction: Restriction, device: torch.device) -> RestrictedLoss:
        """Return the loss on a device."""
        return cls(restriction.to(device), restriction.manifest())

    def __call__(self, flow: Flow, z: Tensor, features: Tensor, good: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of each row; see `nbi_plus.learn.losses.nll` for the shapes."""
        nll = -flow.log_prob(z[:, None], features)[:, 0]
        log_w, log_others = self._weights(flow, z, features.detach())
        if flow.training:
            mean = log_others.logsumexp(1) - math.log(_N_LOOKED)
            return (log_w - mean).exp().to(nll.dtype) * nll
        return nll + log_w + (-log_others).logsumexp(1) - math.log(_N_LOOKED)

    @torch.no_grad()
    def _weights(self, flow: Flow, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return log w (n,) of rows, and (n, S) of draws of the flow given the same data."""
        rows = torch.arange(len(z), device=z.device)
        shape = (_N_LOOKED, flow.n_dims)
        # a row's numbers are the same at every epoch: what is compared is not their noise
        noise = keyed_normal(0, "restricted", rows, shape)
        choice = keyed_uniform(0, "restricted choice", rows, shape)
        draws = flow.sample(noise, features, choice.to(flow.dtype)).flatten(0, 1)
        finite = draws.isfinite().all(-1)
        log_others = self.restriction.log_weights(torch.where(finite[:, None], draws, 0.0))
        log_others = torch.where(finite, log_others, 0.0)
        return self.restriction.log_weights(z), log_others.view(len(z), _N_LOOKED)


def restricted(
    run: Run, recipe: Recipe, posteriors: Posteriors | Posterior | None
) -> tuple[Run, Recipe]:
    """Return how to simulate and to train where posteriors lie; as given, where there are none."""
    if posteriors is None:
        return run, recipe
    if recipe.flow.kind == "fm":
        raise ValueError(
            "restrict must be None for flow 'fm', whose loss is no log-density that could be "
            "corrected. Take flow='maf', 'nsf' or 'mdn'."
        )
    found = Restriction.of(posteriors, recipe.prior, recipe.seed)
    loss = RestrictedLoss.of(found, recipe.device)
    return replace(run, restriction=found), replace(recipe, loss=loss)


def _some_draws(
    posteriors: Posteriors | Posterior, prior: Prior, seed: int
) -> list[NDArray[np.float64]]:
    """Return draws of equal weight of each posterior that has some."""
    if not isinstance(posteriors, Posterior):
        of_kind("restrict", posteriors, Posteriors, "Give what predict or predict_many returned.")
    if not prior.has_inverse:
        raise ValueError(
            "restrict must be None for a prior_transform, which has no inverse: nothing says where "
            "draws lie in its latent space."
        )
    if posteriors.parameters.names != prior.names:
        raise ValueError(
            f"restrict must be of the parameters {prior.names}, but is of "
            f"{posteriors.parameters.names}."
        )
    if isinstance(posteriors, Posteriors) and posteriors.draws is None:
        raise ValueError(
            "restrict must have kept its draws, but has summaries only (keep=0). Predict with "
            "keep=None, or with some."
        )
    answers = [posteriors] if isinstance(posteriors, Posterior) else list(posteriors.draws)
    usable = [p for p in answers if p.status is not Status.FAILED and p.weights.sum() > 0]
    if not usable:
        raise ValueError(f"restrict must hold an answer, but all {len(answers)} have FAILED.")
    rng = np.random.default_rng(seed)
    if len(usable) > _N_DRAWS:
        usable = [usable[i] for i in rng.permutation(len(usable))[:_N_DRAWS]]
    # each object has draws of its own number
    return [p.resample(max(1, _N_DRAWS // len(usable)), rng) for p in usable]
