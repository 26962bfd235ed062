"""What must hold exactly of a noise model: shapes, dtypes, objects apart from each other, masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.checks.agreement import NoiseRows
from nbi_plus.problem.noise.base import Noise
from nbi_plus.problem.prior.prior import Prior

N_DRAWS = 3


class RemarkError(Exception):
    """A check passed, with a remark."""


@dataclass(frozen=True)
class NoiseTrial:
    """Three objects with three draws each, more than that where it must differ from their number.

    Attributes
    ----------
    theta : Tensor, shape (3, 3, P)
    model : Tensor, shape (3, 3, C, L)
    obs : Batch
        Of three objects.
    seed : int
    """

    theta: Tensor
    model: Tensor
    obs: Batch
    seed: int

    @classmethod
    def of(cls, prior: Prior, rows: NoiseRows, seed: int) -> NoiseTrial:
        """Return objects whose models and parameters all differ."""
        n = torch.arange(N_DRAWS**2, device=rows.model.device)
        # 1 % less is as possible a model, where there are few
        shrunk = (1 - 0.01 * (n // len(rows)).to(rows.model))[:, None, None]
        z = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(n), prior.n_dim)))
        theta = prior.complete(prior.from_latent(z.to(rows.model.device)))
        theta[: len(rows)] = rows.theta[: len(n)]
        shape = (N_DRAWS, N_DRAWS)
        model = shrunk * rows.model[n % len(rows)]
        owner = (torch.arange(N_DRAWS, device=n.device) * N_DRAWS) % len(rows)
        return cls(
            theta.unflatten(0, shape), model.unflatten(0, shape), rows.obs.select(owner), seed
        )

    def data(self, noise: Noise) -> Batch:
        """Return data made about the first model of each object."""
        rng = torch.Generator(self.model.device).manual_seed(self.seed)
        return noise.observe(self.model[:, 0], self.obs, self.theta[:, 0], rng)

    def shapes(self, noise: Noise, weighs: bool) -> str:
        """Draws are (n, C, L), likelihoods (n,) or (n, S), for several n and S."""
        data = self.data(noise)
        if data.x.shape != self.model[:, 0].shape:
            return f"augment must return the shape of the model, but gave {tuple(data.x.shape)}."
        if not bool(torch.isfinite(data.x).any()):
            return "augment must draw finite data, but drew none."
        for n, s in ((2, 3), (3, 3), (3, 2)) if weighs else ():
            some = data.select(slice(0, n))
            one = noise.log_likelihood(self.theta[:n, 0], self.model[:n, 0], some)
            each = noise.log_likelihood(self.theta[:n, :s], self.model[:n, :s], some)
            if tuple(one.shape) != (n,) or tuple(each.shape) != (n, s):
                return (
                    f"log_likelihood must have shapes ({n},) and ({n}, {s}) for {n} objects and "
                    f"{s} draws, but has {tuple(one.shape)} and {tuple(each.shape)}."
                )
        return ""

    def dtypes(self, noise: Noise, weighs: bool) -> str:
        """Single precision, in which networks are trained, works as well as double."""
        theta, model = self.theta.float(), self.model.float()
        obs = self.obs.to(dtype=torch.float32)
        data = replace(self, theta=theta, model=model, obs=obs).data(noise)
        if data.x.dtype != torch.float32:
            return f"augment must keep the dtype of the model, float32, but gave {data.x.dtype}."
        if weighs:
            value = noise.log_likelihood(theta, model, data)
            if value.dtype != torch.float32:
                return f"log_likelihood must keep float32, but gave {value.dtype}."
        return ""

    def objects(self, noise: Noise, weighs: bool) -> str:  # noqa: ARG002
        """Each object and draw alone gives what all together give."""
        data = self.data(noise)
        together = {
            n: noise.log_likelihood(self.theta[:n], self.model[:n], data.select(slice(0, n)))
            for n in (2, N_DRAWS)  # other objects than draws, and as many
        }
        for i, j in np.ndindex(N_DRAWS, N_DRAWS):
            own = slice(i, i + 1)
            alone = noise.log_likelihood(self.theta[own, j], self.model[own, j], data.select(own))
            for n, value in together.items():
                if i < n and not _same(alone, value[own, j]):
                    return (
                        f"log_likelihood must give each of {n} objects and {N_DRAWS} draws what it "
                        f"gives it alone, but gave {float(value[i, j]):.8g} for object {i} and "
                        f"draw {j}, alone {float(alone):.8g}. Write axes from the right, as "
                        "theta[..., i, None, None]."
                    )
        return ""

    def mask(self, noise: Noise, weighs: bool) -> str:  # noqa: ARG002
        """Nothing that stands at masked points changes the likelihood; no points have none."""
        if not bool(self.obs.mask.all()):
            return self._ignores_mask(noise, self.data(noise))
        gap = self.obs.mask.clone()
        gap[..., 0] = False
        if gap.any():
            detail = ""
            try:
                detail = self._ignores_mask(noise, replace(self.data(noise), mask=gap))
            except Exception as error:  # noqa: BLE001 - data without gaps do not need it
                detail = f"with gaps the noise raised {error!r}."
            if detail:
                raise RemarkError(f"No point is masked here; where one is, {detail}")
        return ""

    def _ignores_mask(self, noise: Noise, data: Batch) -> str:
        masked = ~data.mask
        if not bool(masked.any()):
            return ""
        plain = data.with_data(data.x)
        err = None if data.x_err is None else torch.where(masked, 1.0, data.x_err)
        other_err = None if err is None else torch.where(masked, 3.0, err)
        filled = replace(plain, x=torch.where(masked, 7.0, plain.x), x_err=other_err)
        model = torch.where(masked[:, None], torch.nan, self.model)
        values = [
            noise.log_likelihood(self.theta, f, obs)
            for f, obs in ((self.model, replace(plain, x_err=err)), (model, filled))
        ]
        if not _same(*values):
            return (
                f"log_likelihood must not look at masked points, but changed from "
                f"{float(values[0][0, 0]):.8g} to {float(values[1][0, 0]):.8g} with what stands "
                "there. Use torch.where(obs.mask, density, 0.0)."
            )
        none = replace(plain, mask=torch.zeros_like(plain.mask)).with_data(plain.x)
        try:
            empty = noise.log_likelihood(self.theta, self.model, none)
        except Exception:  # noqa: BLE001 - a fit to no points may raise
            return ""
        if bool((torch.nan_to_num(empty).abs() > 1e-9).any()):
            return (
                f"log_likelihood must be 0 where all points are masked, but is "
                f"{float(empty[0, 0]):.8g}. Use torch.where(obs.mask, density, 0.0)."
            )
        return ""


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
