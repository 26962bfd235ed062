"""Estimates: a network of what proper scoring rules are of, and the loss that trains it.

Points, and of independent parameters what is equivariant, are learned in the latent space, where
no estimate can leave the prior; all else in parameters on a scale of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from nbi_plus.arguments import whole
from nbi_plus.learn.heads.latent import LatentInput, perceptron
from nbi_plus.learn.scores.circles import Circles
from nbi_plus.learn.scores.rules import RULES, Score
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.prior.transport import IndependentPrior
from nbi_plus.problem.random import keyed_normal

_WIDEST = 2**16
_N_SCALE = 4096  # draws of the prior that scales are of
_TOLD = ("name", "kind")  # what says which rule it is
_DECADE = 10.0  # a positive parameter that spans more has a logarithmic scale


@dataclass(frozen=True)
class Scale:
    """Where the parameters of a prior lie, on a linear or a logarithmic scale each.

    Attributes
    ----------
    centre, spread : Tensor, shape (D,)
    log : Tensor of bool, shape (D,)
        Whether they are of logarithms.
    """

    centre: Tensor
    spread: Tensor
    log: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, prior: Prior) -> Scale:
        """Return the scale, which depends on the prior alone."""
        draws = prior.from_latent(keyed_normal(0, "scale", torch.arange(_N_SCALE), (prior.n_dim,)))
        low, high = torch.quantile(draws, 0.01, 0), torch.quantile(draws, 0.99, 0)
        log = (draws > 0).all(0) & (high > _DECADE * low)
        log &= torch.tensor([period is None for period in prior.periods])
        own = torch.where(log, draws.clamp(min=torch.finfo(draws.dtype).tiny).log(), draws)
        return cls(own.mean(0), own.std(0).clamp(min=1e-30), log)

    def growth(self) -> Tensor:
        """Return the powers of e (D,) that one step is, 0 where the scale is linear."""
        return torch.where(self.log, self.spread, 0.0)

    def read(self, theta: Tensor) -> Tensor:
        """Return parameters (..., D) on this scale."""
        own = torch.where(self.log, torch.where(self.log, theta, 1.0).log(), theta)
        return (own - self.centre) / self.spread

    def theta(self, values: Tensor) -> Tensor:
        """Return the parameters (..., D) of values on this scale."""
        own = self.centre + self.spread * values
        return torch.where(self.log, torch.where(self.log, own, 0.0).exp(), own)

    def to(self, device: torch.device) -> Scale:
        """Return the same on another device."""
        return Scale(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class ScoreConfig:
    """Chosen state of a network of estimates.

    Attributes
    ----------
    rules : tuple of dict
        Each rule's name, kind and options.
    hidden, n_layers : int
        Of the network of each rule.
    circles : tuple of int
        Which parameters are angles.
    """

    rules: tuple[dict[str, Any], ...]
    kind: str = "scores"
    hidden: int = 64
    n_layers: int = 2
    circles: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind != "scores":
            raise ValueError(f"kind must be 'scores', but is {self.kind!r}.")
        for name in ("hidden", "n_layers"):
            whole(name, getattr(self, name), 1, _WIDEST)
        for rule in self.made.values():
            whole("n_values", rule.n_values, 1, _WIDEST)
        own = tuple(whole("circles", column, 0, _WIDEST) for column in self.circles)
        object.__setattr__(self, "circles", own)

    @classmethod
    def of(cls, rules: Mapping[str, Score]) -> ScoreConfig:
        """Return that of rules by name."""
        told = [{"name": n, "kind": rule.kind, **asdict(rule)} for n, rule in rules.items()]
        return cls(tuple(told))

    @property
    def made(self) -> dict[str, Score]:
        """The rules by name."""
        options = [{k: v for k, v in rule.items() if k not in _TOLD} for rule in self.rules]
        return {
            rule["name"]: RULES[rule["kind"]](**own)
            for rule, own in zip(self.rules, options, strict=True)
        }


class Scores(LatentInput):
    """Estimates of D parameters given features of the data.

    Parameters
    ----------
    n_dims, n_context : int
        D and the number F of features.
    config : ScoreConfig
    """

    def __init__(self, n_dims: int, n_context: int, config: ScoreConfig) -> None:
        super().__init__(n_dims)
        self.config = config
        self.rules = config.made
        self.heads = nn.ModuleList(
            perceptron(n_context, config.hidden, config.n_layers, rule.n_values * n_dims)
            for rule in self.rules.values()
        )
        size = n_context, config.hidden, config.n_layers
        self.circles = Circles(n_dims, config.circles, *size) if config.circles else None

    def forward(self, context: Tensor) -> dict[str, Tensor]:
        """Return estimates (n, K, D) by rule, given features (n, F), on the scales of learning."""
        context, found = context.to(self.dtype), {}
        for (name, rule), head in zip(self.rules.items(), self.heads, strict=True):
            values = rule.shaped(head(context).unflatten(-1, (rule.n_values, self.n_dims)))
            found[name] = values if self.circles is None else self.circles.bounded(values)
        return found

    @torch.no_grad()
    def estimates(self, context: Tensor, prior: Prior, scale: Scale) -> dict[str, Tensor]:
        """Return estimates (n, K, D) of the parameters by rule, float64."""
        found, middles = {}, self.middles(context, prior)[:, None]
        turn = middles.new_tensor([p or 0.0 for p in prior.periods]) / (2 * torch.pi)
        for name, values in self(context).items():
            values = values.to(torch.float64)
            if in_latent_space(self.rules[name], prior):
                theta = prior.from_latent(self.mean + self.width * values)
            else:
                theta = scale.theta(values)
            theta = torch.where(middles.isfinite(), middles + turn * values, theta)
            # a map of floats may step back by its rounding
            found[name] = theta if self.rules[name].joint else theta.cummax(1).values
        return found

    @torch.no_grad()
    def middles(self, context: Tensor, prior: Prior) -> Tensor:
        """Return what each angle (n, D) is told from; NaN for other parameters."""
        z = torch.full((len(context), self.n_dims), torch.nan, dtype=torch.float64)
        z = z.to(context.device)
        if self.circles is None:
            return z
        z[:, self.circles.columns] = self.circles.middles(context.to(self.dtype))
        theta = prior.from_latent(torch.where(z.isfinite(), z, 0.0))
        return torch.where(z.isfinite(), theta, torch.nan)


@dataclass(frozen=True)
class ScoreLoss:
    """The sum of the scores of all rules.

    Attributes
    ----------
    prior : Prior
    """

    prior: Prior = field(repr=False)
    scale: Scale = field(repr=False)

    @classmethod
    def of(cls, prior: Prior, device: torch.device) -> ScoreLoss:
        """Return that of estimates of the parameters of a prior."""
        return cls(prior, Scale.of(prior).to(device))

    def __call__(self, flow: Scores, z: Tensor, features: Tensor, good: Tensor) -> Tensor:  # noqa: ARG002
        """Return the loss of each row; see `nll` for the shapes."""
        latent = flow.white(z)
        linear = self.scale.read(self.prior.from_latent(z)).to(latent.dtype)
        growth = self.scale.growth().to(latent.dtype)
        total = torch.zeros_like(latent[:, 0])
        if flow.circles is not None:
            vectors = flow.circles(features.to(latent.dtype))
            total = flow.circles.loss(vectors, z)
            latent = flow.circles.told_from(vectors, z, latent)
            linear = flow.circles.told_from(vectors, z, linear)
        for name, values in flow(features).items():
            rule = flow.rules[name]
            truth = latent if in_latent_space(rule, self.prior) else linear
            total = total + rule.loss(values, truth, growth)
        return total


def in_latent_space(rule: Score, prior: Prior) -> bool:
    """Say whether a rule's estimates are learned there: if single, where each z is of one theta."""
    return rule.joint or (rule.equivariant and isinstance(prior.transport, IndependentPrior))
