"""Layout: where the parameters of each of several objects stand among those of all together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbi_plus.infer.proposals.circles import Cut, circular_columns
from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.prior.repeated import repeated

_MOST, _MOST_OF_BLACK_BOX = 100, 40  # parameters together, by what docs/shared.md has measured


@dataclass(frozen=True)
class SharedLayout:
    """All parameters that N objects have together, and which of them each object sees.

    Attributes
    ----------
    prior : Prior
        Of all J parameters: the shared ones, then those of each object, object after object.
    columns : Tensor of int64, shape (N, D)
        Where the D parameters of each object are among them.
    """

    prior: Prior
    columns: Tensor

    @classmethod
    def of(
        cls, prior: Prior, shared: Sequence[str] | None, ids: Sequence[object], device: torch.device
    ) -> SharedLayout:
        """Return the layout for parameters of which some, by default all, are shared."""
        names = list(prior.names)
        chosen = names if shared is None else _chosen(shared, names)
        n, is_own = len(ids), [name not in chosen for name in names]
        n_own = sum(is_own)
        n_shared = len(names) - n_own
        wanted = torch.tensor(is_own)
        place = torch.where(wanted, wanted.cumsum(0) - 1 + n_shared, (~wanted).cumsum(0) - 1)
        columns = place + torch.arange(n)[:, None] * n_own * wanted
        joint = repeated(prior, chosen, ids) if n_own else prior
        return cls(joint, columns.to(device))

    def refuse_large(self, differentiable: bool) -> None:
        """Refuse more parameters than the ladder can be trusted to answer together."""
        most = _MOST if differentiable else _MOST_OF_BLACK_BOX
        if not self.is_whole and self.prior.n_dim > most:
            more = "" if differentiable else f", {_MOST} of a simulator in torch"
            raise ValueError(
                f"predict_shared must have at most {most} parameters together{more}, but "
                f"{len(self.columns)} objects have {self.prior.n_dim}. Answer fewer objects "
                "together, or each alone (predict_many) and what they are drawn from with "
                "nbi_plus.population.fit."
            )

    @property
    def is_whole(self) -> bool:
        """Whether all parameters are shared."""
        return self.prior.n_dim == self.columns.shape[1]

    def of_each(self, z: Tensor) -> Tensor:
        """Return what each object sees, shape (N, S, D), of draws z (S, J) of all parameters."""
        n, d = self.columns.shape
        return z.index_select(1, self.columns.flatten()).unflatten(1, (n, d)).transpose(0, 1)

    def summed(self, precision: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums (J, J) and (J,) of matrices (N, D, D) and vectors (N, D) of the objects.

        Each adds to its own rows and columns.
        """
        rows, j = self.columns, self.prior.n_dim
        whole, total = precision.new_zeros(j, j), precision.new_zeros(j)
        at = rows[:, :, None].expand_as(precision), rows[:, None].expand_as(precision)
        whole.index_put_(at, precision, accumulate=True)
        return whole, total.index_put_((rows,), pull, accumulate=True)

    def cuts(self, z: Tensor, periods: tuple[float | None, ...]) -> tuple[Cut, Cut]:
        """Return where circles are cut for each object, and for all parameters together.

        Draws z (N, S, D) of each object say where; a shared circle is cut at one place.
        """
        columns = circular_columns(periods)
        alone = Cut.of(z, torch.full_like(z[..., 0], 1 / z.shape[1]), columns)
        pooled = z.flatten(0, 1)[None]
        common = Cut.of(pooled, torch.full_like(pooled[..., 0], 1 / pooled.shape[1]), columns)
        where = self.columns[:, list(columns)]
        is_shared = (where[:1] == where).all(0) & torch.tensor(len(where) > 1 or self.is_whole)
        start = torch.where(is_shared, common.start, alone.start)
        turns = start.new_zeros(self.prior.n_dim).index_put((where,), start)
        joint = circular_columns(self.prior.periods)
        return Cut(columns, start), Cut(joint, turns[None, list(joint)])


def _chosen(shared: Sequence[str], names: list[str]) -> list[str]:
    """Return the names of the shared parameters."""
    words = [shared] if isinstance(shared, str) else shared
    chosen = list(words) if isinstance(words, Iterable) else []
    if not chosen or not set(chosen) <= set(names):
        raise ValueError(
            f"shared must name some of the parameters {names}, but is {shared!r:.99}. Without "
            "anything to share, predict_many answers each object alone."
        )
    return chosen
