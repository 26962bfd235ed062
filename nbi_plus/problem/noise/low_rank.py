r"""Gaussians whose covariance is diagonal plus low rank, in many batches at once.

Data are :math:`m + \sum_k a_k U_k + \sigma \epsilon` with standard normal :math:`a` and
:math:`\epsilon`; :math:`a` is integrated out. By the identities of Woodbury and Sylvester

.. math:: r^T C^{-1} r = |D^{-1/2} (r - U \hat a)|^2 + |\hat a|^2, \qquad |C| = |D| |M|,

with :math:`D = \mathrm{diag}(\sigma^2)`, :math:`M = 1 + U^T D^{-1} U` and
:math:`\hat a = M^{-1} U^T D^{-1} r`. This form of the square has no cancellation, and an error of
:math:`\hat a` enters it squared, for :math:`\hat a` makes it smallest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """Columns ``values * groups[..., g]`` of the low-rank factor, one for each group.

    Attributes
    ----------
    values : Tensor, broadcastable to shape (..., C, L)
    groups : Tensor, shape (..., C, L, G)
        A point has a weight in one group at most.
    """

    values: Tensor
    groups: Tensor

    def project(self, weights: Tensor) -> Tensor:
        """Return the sums (..., G) of the columns, times ``weights`` (..., C, L)."""
        return torch.einsum("...cl,...clg->...g", weights * self.values, self.groups)

    def expand(self, coefficients: Tensor) -> Tensor:
        """Return the sum (..., C, L) of the columns times ``coefficients`` (..., G)."""
        return self.values * torch.einsum("...g,...clg->...cl", coefficients, self.groups)

    def inner(self, other: Term, weights: Tensor) -> Tensor:
        """Return the weighted products (..., G, H) of the columns with those of another term."""
        weights = weights * (self.values * other.values)
        if self.groups is other.groups:
            squares = torch.einsum("...cl,...clg->...g", weights, self.groups.square())
            return torch.diag_embed(squares)
        pairs = (self.groups.unsqueeze(-1) * other.groups.unsqueeze(-2)).flatten(-2)
        sums = torch.einsum("...cl,...clg->...g", weights, pairs)
        return sums.unflatten(-1, (self.groups.shape[-1], other.groups.shape[-1]))


@dataclass(frozen=True)
class Fit:
    """What data say about a `LowRankGaussian`.

    Attributes
    ----------
    log_prob : Tensor, shape (...)
        Normalised log-density of the valid points.
    chi2 : Tensor, shape (...)
        Their chi-square, with one degree of freedom for each.
    coefficients : Tensor, shape (..., K)
        Conditional mean of the coefficients.
    factor : Tensor, shape (..., K, K)
        Cholesky factor of their precision; K = 0 without terms.
    """

    log_prob: Tensor
    chi2: Tensor
    coefficients: Tensor
    factor: Tensor


class Scatter(Protocol):
    """Gaussian scatter of the points about the mean, without the terms."""

    def color(self, noise: Tensor) -> Tensor:
        """Return scatter made of standard normal noise, both (..., C, L)."""

    def decorrelate(
        self, r: Tensor, terms: tuple[Term, ...], mask: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Term, ...]]:
        """Return residuals r (..., C, L) and terms made independent, and the sigma they then have.

        By a transformation of determinant one, which leaves masked points out.
        """


@dataclass(frozen=True)
class Independent:
    """Scatter of independent points, of standard deviation ``sigma``, broadcastable to (..., C, L).

    It fulfils `Scatter`.
    """

    sigma: Tensor

    def color(self, noise: Tensor) -> Tensor:
        """Return noise of the right size."""
        return self.sigma * noise

    def decorrelate(
        self,
        r: Tensor,
        terms: tuple[Term, ...],
        mask: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, tuple[Term, ...]]:
        """Return all as it is."""
        return r, self.sigma, terms


@dataclass(frozen=True)
class LowRankGaussian:
    """A Gaussian with scatter of the points and standard normal coefficients of some terms.

    Attributes
    ----------
    mean : Tensor, shape (..., C, L)
    scatter : Scatter
    terms : tuple of Term
    """

    mean: Tensor
    scatter: Scatter
    terms: tuple[Term, ...] = ()

    def with_terms(self, terms: tuple[Term, ...], mean: Tensor) -> LowRankGaussian:
        """Return this with more terms, about another mean."""
        return replace(self, mean=mean, terms=self.terms + terms)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Return draws, shape (..., C, L)."""
        like = {"generator": rng, "device": self.mean.device, "dtype": self.mean.dtype}
        scatter = self.scatter.color(torch.randn(self.mean.shape, **like))
        n_columns = sum(term.groups.shape[-1] for term in self.terms)
        return self.shifted(torch.randn(*self.mean.shape[:-2], n_columns, **like)) + scatter

    def shifted(self, coefficients: Tensor) -> Tensor:
        """Return the mean plus the terms with such coefficients (..., K), shape (..., C, L)."""
        return self.mean + _expanded(self.terms, coefficients)

    def fit(self, x: Tensor, mask: Tensor) -> Fit:
        """Return density and conditional coefficients of data x, at ``mask``, both (..., C, L)."""
        r, sigma, terms = self.scatter.decorrelate(x - self.mean, self.terms, mask)
        weights = mask / sigma.square()
        if terms:
            factor = _precision_factor(terms, weights)
            best = _solve(factor, torch.cat([term.project(weights * r) for term in terms], -1))
            r = r - _expanded(terms, best)
        else:
            factor, best = r.new_zeros(*r.shape[:-2], 0, 0), r.new_zeros(*r.shape[:-2], 0)
        chi2 = (weights * r.square()).sum((-2, -1)) + best.square().sum(-1)
        log_det = 2 * torch.where(mask, sigma.log(), 0.0).sum((-2, -1))
        log_det = log_det + 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        size = mask.sum((-2, -1)).to(chi2) * math.log(2 * math.pi)
        return Fit(-0.5 * (chi2 + log_det + size), chi2, best, factor)


def _expanded(terms: tuple[Term, ...], coefficients: Tensor) -> Tensor | float:
    """Return the sum (..., C, L) of the terms with coefficients (..., K)."""
    counts = [term.groups.shape[-1] for term in terms]
    own = coefficients.split(counts, -1) if terms else ()
    return sum((term.expand(c) for term, c in zip(terms, own, strict=True)), start=0.0)


def _precision_factor(terms: tuple[Term, ...], weights: Tensor) -> Tensor:
    """Return the Cholesky factor of 1 + U^T W U, shape (..., K, K)."""
    blocks = [[a.inner(b, weights) for b in terms[: i + 1]] for i, a in enumerate(terms)]
    lead = torch.broadcast_tensors(*(b[..., 0, 0] for row in blocks for b in row))[0].shape
    blocks = [[b.expand(*lead, *b.shape[-2:]) for b in row] for row in blocks]
    n = range(len(blocks))
    rows = [torch.cat([blocks[i][j] if j <= i else blocks[j][i].mT for j in n], -1) for i in n]
    matrix = torch.cat(rows, -2)
    identity = torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
    factor, info = torch.linalg.cholesky_ex(matrix + identity)
    return factor.masked_fill(info[..., None, None] > 0, math.nan)  # else it would be half a factor


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """Return M^-1 b of b (..., K), for M of Cholesky factor (..., K, K)."""
    if factor.ndim == 4 and factor.shape[1] == 1:  # one for all draws: not copied for each
        return torch.cholesky_solve(right.mT, factor[:, 0]).mT
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
