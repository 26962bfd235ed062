"""Floor: no peak that was found is forgotten by the proposals that are fitted later.

What is fitted to weighted draws gives a mode as many draws as it seems to weigh. A mode that few
draws have hit seems lighter than it is, gets fewer, and starves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Blend, LatentProposal
from nbi_plus.infer.proposals.circles import CutProposal
from nbi_plus.infer.proposals.cross_fit import Pair
from nbi_plus.infer.proposals.laplace import FLOOR, laplace_mixture
from nbi_plus.infer.proposals.mixture import StudentMixture
from nbi_plus.infer.sequential.summits import Summits
from nbi_plus.infer.weights.summary import normalise

STARVED = 30.0  # times its fair weight: a draw that stands for so many says that these are missing
_RAISE, _MOST = 2.0, 0.5  # of a starved peak's share, and of the shares of all
_OF_SPREAD = 0.3  # as bad as so large a weight: of a normal one draw makes ten shares of a variance
_NO_MASS = 1e-3  # of the posterior: peaks that hold less for sure need no draws
_MANY_ERRORS = 4.0


@dataclass(frozen=True)
class Floor:
    """The peaks of one object, and what share of all later draws each of them keeps.

    Attributes
    ----------
    known : Summits
        The peaks.
    circles : tuple of int
        The periodic parameters.
    shares : tuple of float
        Of the M peaks; those that are 0 turned out to have no mass.
    """

    known: Summits
    circles: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, known: Summits, circles: tuple[int, ...]) -> Floor:
        """Return the floor under peaks of which nothing else is known."""
        return cls(known, circles, (FLOOR,) * len(known))

    def beside(self, more: Summits) -> Floor:
        """Return the floor under these peaks and other places."""
        return replace(self, known=self.known.plus(more), shares=self.shares + (FLOOR,) * len(more))

    def holding(self, former: Floor | None, pair: Pair) -> Floor:
        """Return the floor that also holds the light peaks of a former one, not known any more.

        What is fitted to the draws forgets no heavy one.
        """
        if former is None:
            return self
        light = Masses.of(former, pair).mass.amax(0) < FLOOR
        light &= torch.tensor(former.shares, device=light.device) > 0
        stays = former.known.apart_from(self.known, self.circles) & light
        shares = tuple(s for s, on in zip(former.shares, stays[0].tolist(), strict=True) if on)
        known = self.known.plus(former.known.where(stays))
        return replace(self, known=known, shares=self.shares + shares)

    @cached_property
    def _around(self) -> LatentProposal:
        k = self.known
        return laplace_mixture(k.z, k.factor, k.log_mass, self.circles)

    @property
    def cut(self) -> CutProposal | None:
        """What the mixture stands in, where there are circles."""
        return self._around if self.circles else None

    @property
    def mixture(self) -> StudentMixture:
        """Around the peaks, in the coordinates of the cut: M parts, and the same M again wider."""
        return self._around.inner if self.circles else self._around

    def under(self, proposal: LatentProposal) -> LatentProposal:
        """Return a proposal of which every peak has its share."""
        total = sum(self.shares)
        if not total:
            return proposal
        whole = min(total, _MOST)
        own = self.mixture.log_shares.view(2, -1)
        share = torch.tensor(self.shares, dtype=own.dtype, device=own.device) / total
        split = own.softmax(0).nan_to_num(nan=0.0)  # narrow and wide, of each peak
        parts = replace(self.mixture, log_shares=(share * split).log().view(1, -1))
        floor = parts if self.cut is None else replace(self.cut, inner=parts)
        return Blend((proposal, floor), (1 - whole, whole))

    def after(self, pair: Pair) -> tuple[Floor, str]:
        """Return the floor that the draws so far ask for, and what is to be said of it."""
        masses = Masses.of(self, pair)
        kept = (masses.mass + _MANY_ERRORS * masses.error).max(0).values > _NO_MASS
        kept |= masses.n_draws < 1 / FLOOR
        starved = masses.heaviest > STARVED
        alive = kept & torch.tensor([share > 0 for share in self.shares], device=kept.device)
        several = int(alive.sum()) > 1  # or none goes short
        shares, told = [], []
        for i, share in enumerate(self.shares):
            stays = bool(kept[i]) and share > 0
            hungry = stays and several and bool(starved[i])
            shares.append(min(share * (_RAISE if hungry else 1.0), _MOST) if stays else 0.0)
            if hungry:
                told.append(f"peak {i + 1} starved (w n {float(masses.heaviest[i]):.0f})")
            if stays and bool(masses.clash[i]):
                a, b = masses.mass[:, i].tolist()
                told.append(f"streams disagree on peak {i + 1} ({a:.3f}, {b:.3f})")
        return replace(self, shares=tuple(shares)), "; ".join(told)

    def spread_shares(self, z: Tensor, weights: Tensor) -> Tensor:
        """Return the largest share (S,) of a variance that each draw z (1, S, D) makes alone."""
        v = (z if self.cut is None else self.cut.cut.to(z))[0].nan_to_num(nan=0.0)
        away = (v - weights @ v).square() * weights[:, None]
        return (away / away.sum(0).clamp(min=1e-300)).amax(1)

    def owner(self, z: Tensor) -> Tensor:
        """Return which peak (S,) each draw z (S, D) most likely belongs to."""
        v = z[None] if self.cut is None else self.cut.cut.to(z[None])
        apart = (v[:, None] - self.mixture.means[:, :, None]).transpose(2, 3)
        n = len(self.shares)
        own, u = self.mixture.factors[:, :n], apart[:, :n]
        square = torch.linalg.solve_triangular(own, u, upper=False).square().sum(2)
        volume = own.diagonal(dim1=2, dim2=3).log().sum(-1)
        dof, n_dim = self.mixture.dof, z.shape[-1]
        height = -volume[..., None] - (dof + n_dim) / 2 * torch.log1p(square / dof)
        known = torch.tensor(self.shares, dtype=torch.float64, device=z.device) > 0
        return height[0].masked_fill(~known[:, None], -math.inf).argmax(0)


@dataclass(frozen=True)
class Masses:
    """What both streams say of M peaks.

    Attributes
    ----------
    mass, error : Tensor, shape (2, M)
        Share of the posterior that falls to a peak, and its standard error.
    n_draws : Tensor, shape (M,)
        Draws that fell to it.
    heaviest : Tensor, shape (M,)
        The largest weight among them, in units of the mean weight; or what stands for as much: a
        draw far out, of a light place, that alone makes a spread.
    """

    mass: Tensor
    error: Tensor
    n_draws: Tensor
    heaviest: Tensor

    @classmethod
    def of(cls, floor: Floor, pair: Pair) -> Masses:
        """Return the masses of the peaks of one object."""
        n = len(floor.shares)
        mass, error, count, heaviest = [], [], [], []
        for stream in (pair.a, pair.b):
            w = normalise(stream.log_weights)[0]
            own = torch.nn.functional.one_hot(floor.owner(stream.z[0]), n).to(w)
            share = w @ own
            mass.append(share)
            error.append((w.square() @ (own - share).square()).sqrt())
            count.append(own.sum(0))
            burden = torch.maximum(w, _OF_SPREAD * floor.spread_shares(stream.z, w))
            heaviest.append((burden[:, None] * own).amax(0) * len(w))
        both = [torch.stack(v) for v in (mass, error, count, heaviest)]
        return cls(both[0], both[1], both[2].sum(0), both[3].amax(0))

    @property
    def clash(self) -> Tensor:
        """Whether the streams disagree, bool (M,)."""
        apart = (self.mass[0] - self.mass[1]).abs()
        return apart > _MANY_ERRORS * torch.hypot(*self.error) + 1e-9
