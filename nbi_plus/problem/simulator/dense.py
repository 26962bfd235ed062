"""Dense grids: expensive curves simulated once, and interpolated at any object's points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch


@dataclass(frozen=True)
class DenseGrid:
    """Nodes of one coordinate, repeated for each category.

    Attributes
    ----------
    name : str
        The coordinate, as ``t``.
    nodes : Tensor of float64, shape (G,)
        Increasing.
    category : str or None
        A coordinate of codes that the simulator asks for, too.
    n_categories : int
        1 without one.
    """

    name: str
    nodes: Tensor
    category: str | None = None
    n_categories: int = 1

    def __post_init__(self) -> None:
        increasing = self.nodes.ndim == 1 and len(self.nodes) >= 2 and self.nodes.diff().gt(0).all()
        if not (increasing and torch.isfinite(self.nodes).all()):
            raise ValueError(
                f"grid must hold at least two increasing values of {self.name}, but has shape "
                f"{tuple(self.nodes.shape)}. Sort it, and leave out repeated values."
            )

    def to(self, device: torch.device) -> DenseGrid:
        """Return the same on another device."""
        return replace(self, nodes=self.nodes.to(device))

    def conditions(self, bank: Batch) -> Batch:
        """Return what the simulator is run with: the nodes, and the scalars of the bank."""
        k, g = self.n_categories, len(self.nodes)
        coords = {self.name: self.nodes.repeat(k)}
        if self.category is not None:
            codes = torch.arange(k, device=self.nodes.device)
            coords[self.category] = codes.repeat_interleave(g)
        mask = torch.ones(len(bank), 1, 1, dtype=torch.bool).expand(-1, bank.mask.shape[1], k * g)
        empty = torch.zeros(1, 1, 1, dtype=torch.float64).expand(mask.shape)
        return Batch(empty, None, mask, coords, bank.scalars, bank.categories)

    def covers(self, values: Tensor) -> Tensor:
        """Say which objects have all their points (n, L) on the grid, shape (n,)."""
        return ((values >= self.nodes[0]) & (values <= self.nodes[-1])).all(-1)

    def interpolate(self, curves: Tensor, batch: Batch) -> Tensor:
        """Return curves (n, C, K G) of the nodes at the points of n objects, shape (n, C, L).

        By the cubic through the four nearest nodes (Lagrange).
        """
        at = torch.atleast_2d(batch.coords[self.name]).expand(len(curves), -1)
        g = len(self.nodes)
        right = torch.searchsorted(self.nodes, at.contiguous()).clamp(1, g - 1)
        first = (right - 2).clamp(0, max(g - 4, 0))
        taken = torch.stack([first + i for i in range(min(4, g))])  # (4, n, L)
        weights = _lagrange(self.nodes[taken], at).to(curves.dtype)
        if self.category is not None:
            taken = taken + g * torch.atleast_2d(batch.coords[self.category])
        shape = (len(curves), curves.shape[1], at.shape[1])
        total = curves.new_zeros(shape)
        for index, weight in zip(taken, weights, strict=True):
            total += weight[:, None] * curves.gather(2, index[:, None].expand(shape))
        return total


def _lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Return the weights (m, n, L) of nodes (m, n, L) in the polynomial through them."""
    weights = []
    for i, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != i]
        weights.append(torch.stack([(at - o) / (node - o) for o in others]).prod(0))
    return torch.stack(weights)
