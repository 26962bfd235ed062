"""Expectation and maximisation written down draw by draw: what the fast way is held against."""

import torch

FLOOR, EMPTY = 1e-4, 1e-4


def direct_em(white, means, ess, n_steps):
    """Return shares (B, K), means (B, K, D) and covariances of points (B, S, D) of equal weight."""
    n, k, d = means.shape
    eye = torch.eye(d).to(white)
    prior = ((d + 2) / ess)[:, None]
    cov = (0.5 * eye).expand(n, k, d, d)
    shares = white.new_full((n, k), 1.0 / k)
    for _ in range(n_steps):
        factors = torch.linalg.cholesky(cov)
        apart = (white[:, None] - means[:, :, None]).transpose(2, 3)
        u = torch.linalg.solve_triangular(factors, apart, upper=False)
        volume = factors.diagonal(dim1=2, dim2=3).log().sum(-1)
        score = (shares.log() - volume)[..., None] - 0.5 * u.square().sum(2)
        duty = score.softmax(1) / white.shape[1]
        mass = duty.sum(-1) + 1e-12
        means = (duty @ white) / mass[..., None]
        apart = white[:, None] - means[:, :, None]
        scatter = (duty[..., None] * apart).transpose(2, 3) @ apart
        within = scatter.sum(1, keepdim=True) + FLOOR * eye
        cov = (scatter + prior[..., None, None] * within) / (mass + prior)[..., None, None]
        shares = (mass + EMPTY) / (mass + EMPTY).sum(-1, keepdim=True)
    return shares, means, cov


def spread_starts(white, uniform):
    """Return k starting means (B, k, D) far apart, by uniforms (B, k)."""
    distance, chosen = torch.ones_like(white[..., 0]), []
    for i in range(uniform.shape[1]):
        edges = (distance + 1e-30).cumsum(-1)
        at = torch.searchsorted(edges, uniform[:, i : i + 1] * edges[:, -1:])
        at = at.clamp(max=white.shape[1] - 1)
        chosen.append(white.gather(1, at[..., None].expand(-1, -1, white.shape[2])))
        nearest = (white - chosen[-1]).square().sum(-1)
        distance = nearest if i == 0 else torch.minimum(distance, nearest)
    return torch.cat(chosen, 1)
