"""Feature distance: how far an object lies from the simulations the network was trained on.

A flag, never a gate: on ordinary data it says nothing about whether importance weights will fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.io.header import ArchiveError

_SHRINK = 1e-3
_CUT = 0.99  # the quantile of ordinary objects beyond which one is flagged
_BY_CHANCE, _FAR = 1e-3, 2.0  # p-value of many together; times the furthest known
_LOG_ERR_MARGIN = math.log(1.1)  # errors 10 % outside the trained range are still ordinary


@dataclass(frozen=True)
class FeatureReference:
    """Mahalanobis distance in feature space, and the range of errors and lengths seen in training.

    Attributes
    ----------
    mean, precision_root : Tensor, shape (F,), (F, F)
        Of features of held-out noisy simulations; the distance is |precision_root^T (f - mean)|.
    distances : Tensor, shape (m,)
        Sorted distances of a second held-out set: they give the cut-off and the p-values.
    ranges : Tensor, shape (2, C + 1)
        Lowest and highest mean log error of each channel, and number of points, seen in training.
    """

    mean: Tensor
    precision_root: Tensor
    distances: Tensor
    ranges: Tensor

    @classmethod
    def fit(cls, features: Tensor, held_out: Tensor, *shown: Batch) -> FeatureReference:
        """Fit to features (n, F), with the cut-off from other features (m, F).

        Errors and numbers of points are ordinary as in the batches ``shown``.
        """
        f = features.to(torch.float64)
        mean = f.mean(0)
        cov = (f - mean).T @ (f - mean) / max(len(f) - 1, 1)
        trace = (cov.diagonal().sum() / len(mean)).clamp(min=1e-12)
        # fewer simulations than the covariance has room for: lean on its trace instead
        shrink = min(1.0, _SHRINK + len(mean) / (50.0 * len(f)))
        cov = (1 - shrink) * cov + shrink * trace * torch.eye(
            len(mean), dtype=cov.dtype, device=cov.device
        )
        root = torch.linalg.inv(torch.linalg.cholesky(cov)).T
        seen = torch.cat([batch.coverage.to(mean.device) for batch in shown])
        ranges = torch.stack([
            seen.nan_to_num(nan=math.inf).amin(0), seen.nan_to_num(nan=-math.inf).amax(0)
        ])  # fmt: skip
        bare = cls(mean, root, mean[:0], ranges)
        return cls(mean, root, bare.distance(held_out).sort().values, ranges)

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor], n_features: int) -> FeatureReference:
        """Return what `arrays` gave, of networks with so many features."""
        made = cls(**arrays)
        f, m = n_features, len(made.distances)
        shapes = {"mean": (f,), "precision_root": (f, f), "distances": (m,)}
        shapes["ranges"] = (2, made.ranges.shape[-1])
        for name, shape in shapes.items():
            own = arrays[name]
            # of channels without errors, or without points, there is no range
            bad = own.isnan() if name == "ranges" else ~own.isfinite()
            if tuple(own.shape) != shape or own.dtype != torch.float64 or bool(bad.any()):
                raise ArchiveError(
                    f"{name} of the feature reference must be finite numbers of shape {shape}, but "
                    f"is {own.dtype} of {tuple(own.shape)} with {int(bad.sum())} that are not. "
                    "The file is damaged or forged."
                )
        return made

    def distance(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distance of features (n, F), shape (n,)."""
        return torch.linalg.vector_norm(
            (features.to(torch.float64) - self.mean) @ self.precision_root, dim=-1
        )

    def p_value(self, features: Tensor) -> Tensor:
        """Return the share of held-out simulations further out than each object, shape (n,)."""
        further = len(self.distances) - torch.searchsorted(self.distances, self.distance(features))
        return (further.to(torch.float64) + 1.0) / (len(self.distances) + 1.0)

    def flag(self, features: Tensor, coverage: Tensor) -> Tensor:
        """Say which objects are unlike the training set, bool (n,).

        ``coverage`` is `Batch.coverage`.
        """
        cut = torch.quantile(self.distances, _CUT)
        seen = coverage.to(cut.device)
        margin = torch.full_like(self.ranges[0], _LOG_ERR_MARGIN)
        margin[-1] = 0.5
        outside = ((seen < self.ranges[0] - margin) | (seen > self.ranges[1] + margin)).any(-1)
        return (self.distance(features) > cut) | outside

    def judge_together(self, features: Tensor) -> tuple[bool, float]:
        """Say whether objects of one kind (T, F) are unlike the training set, and a p-value.

        They are where more lie beyond the cut than chance allows, or one lies far beyond all.
        """
        distance = self.distance(features)
        n_far = int((distance > torch.quantile(self.distances, _CUT)).sum())
        p_value = float(stats.binom.sf(n_far - 1, len(distance), 1 - _CUT))
        return p_value < _BY_CHANCE or bool(distance.max() > _FAR * self.distances[-1]), p_value

    def arrays(self) -> dict[str, Tensor]:
        """Return the state as named tensors."""
        return {k: getattr(self, k) for k in ("mean", "precision_root", "distances", "ranges")}
