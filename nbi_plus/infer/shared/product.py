r"""Product: a proposal of what several posteriors, each of one object, say together.

With a prior N(0, I) and posteriors N(m_i, P_i^-1) the posterior of all data is normal, too, of
precision :math:`I + \sum_i (P_i - I)` and mean :math:`P^{-1} \sum_i P_i m_i`: the product of the
posteriors over the prior to the power of one less than there are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nbi_plus.infer.proposals.base import Blend, LatentProposal, PriorProposal
from nbi_plus.infer.proposals.circles import CutProposal
from nbi_plus.infer.proposals.mixture import MANY_DIMS, MANY_DIMS_DOF, StudentMixture
from nbi_plus.infer.shared.layout import SharedLayout

_RIDGE = 1e-6  # of the variances of a member's draws
_WIDTHS, _WIDTH_SHARES = (1.0, 2.5, 6.0), (0.5, 0.3, 0.2)  # what networks miss adds up
_MANY_WIDTHS = (1.0, 1.3, 2.0)
_DOF = 7
_PRIOR_SHARE, _MEMBERS_SHARE = 0.1, 0.25


class JointNormal(NamedTuple):
    """A normal of all parameters together: mean (J,) and lower Cholesky factor (J, J)."""

    mean: Tensor
    factor: Tensor


def product(z: Tensor, layout: SharedLayout) -> JointNormal:
    """Return the product of the normals that have the moments of draws z (N, S, D) of N objects.

    An object whose posterior is wider than the prior in some direction says nothing of it.
    """
    mean = z.mean(1)
    away = z - mean[:, None]
    cov = away.transpose(1, 2) @ away / z.shape[1]
    cov = cov + torch.diag_embed(_RIDGE * cov.diagonal(dim1=1, dim2=2).clamp(min=1e-20))
    size, axes = torch.linalg.eigh(cov)
    gain = (1 / size - 1).clamp(min=0.0)
    added = axes @ (gain[..., None] * axes.mT)
    pull = added @ mean[..., None] + axes @ ((gain > 0)[..., None] * (axes.mT @ mean[..., None]))
    whole, total = layout.summed(added, pull[..., 0])
    whole = whole + torch.eye(len(whole), dtype=whole.dtype, device=whole.device)
    root = torch.linalg.cholesky(whole)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(root))
    return JointNormal(torch.cholesky_solve(total[:, None], root)[:, 0], factor)


def shared_proposal(
    z: Tensor,
    layout: SharedLayout,
    periods: tuple[float | None, ...],
    members: LatentProposal | None,
) -> LatentProposal:
    """Return where draws for all objects together shall come from first.

    Parameters
    ----------
    z : Tensor, shape (N, S, D)
        Draws of the posterior of each object alone.
    layout : SharedLayout
    periods : tuple
        Of the D parameters.
    members : LatentProposal or None
        Of all J parameters, as single objects have them: their modes may be several, of which a
        normal knows nothing.
    """
    alone, joint = layout.cuts(z, periods)
    found = product(alone.to(z), layout)
    many = len(found.mean) > MANY_DIMS
    widths = torch.tensor(_MANY_WIDTHS if many else _WIDTHS, dtype=z.dtype, device=z.device)
    shares = torch.tensor(_WIDTH_SHARES, dtype=z.dtype, device=z.device)
    normal = StudentMixture(
        shares.log()[None],
        found.mean.expand(1, len(widths), -1),
        (widths[:, None, None] * found.factor)[None],
        float(MANY_DIMS_DOF if many else _DOF),
    )
    first = CutProposal(normal, joint) if joint.columns else normal
    prior = PriorProposal(len(found.mean))
    if members is None:
        return Blend((first, prior), (1 - _PRIOR_SHARE, _PRIOR_SHARE))
    rest = 1 - _PRIOR_SHARE - _MEMBERS_SHARE
    return Blend((first, members, prior), (rest, _MEMBERS_SHARE, _PRIOR_SHARE))
