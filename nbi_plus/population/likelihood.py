"""The likelihood of hyper-parameters, from the draws of all objects and of a selection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus import launch
from nbi_plus.population.draws import ObjectDraws, PaddedDraws
from nbi_plus.population.selection import Selection
from nbi_plus.problem.prior.prior import Prior

_LOG = logging.getLogger("nbi_plus")

_N_TRIED = 8  # draws of the hyper-prior that a family is tried at
_SEED = 0  # of these
_CONTRACT = "family must be a function family(hyper, theta) -> log density (n,), in torch or numpy,"


@dataclass(frozen=True)
class PopulationFamily:
    """A family of distributions as a user wrote it.

    Attributes
    ----------
    function : callable
        ``function(hyper, theta)`` of hyper (P,) and theta (n, D).
    prior : Prior
        Of hyper.
    backend : {"torch", "numpy"}
        What goes in.
    differentiable : bool
        Whether torch carries gradients with respect to hyper.
    batched : bool
        Whether torch takes many hyper-parameters through it at once.
    """

    function: Callable[[Any, Any], Any]
    prior: Prior
    backend: str = "torch"
    differentiable: bool = True
    batched: bool = False

    def many(self, hyper: Tensor, theta: Tensor) -> Tensor:
        """Return log densities (k, n) of theta (n, D) for each of hyper (k, P)."""
        if self.batched and len(hyper) > 1:
            return torch.vmap(self, in_dims=(0, None))(hyper, theta)
        return torch.stack([self(row, theta) for row in hyper])

    def __call__(self, hyper: Tensor, theta: Tensor) -> Tensor:
        """Return log densities (n,) of theta (n, D)."""
        if self.backend == "numpy":
            arrays = (v.detach().cpu().numpy().copy() for v in (hyper, theta))
            found = torch.as_tensor(np.asarray(self.function(*arrays), np.float64))
        else:
            found = self.function(hyper, theta.clone())  # user code may edit what it gets
        if not isinstance(found, Tensor) or found.shape != theta.shape[:1]:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{_CONTRACT} but gave {came} for theta {tuple(theta.shape)}. Write columns of "
                "theta as theta[:, 0]."
            )
        return found.to(theta)

    @classmethod
    def of(cls, function: Callable[[Any, Any], Any], theta: Tensor) -> PopulationFamily:
        """Return a user's function, and whether it is of torch or numpy: tried on theta (n, D)."""
        if not callable(function):
            raise TypeError(f"{_CONTRACT} but is a {type(function).__name__}.")
        if getattr(function, "prior", None) is None:
            raise TypeError(
                "family must have a Prior of its hyper-parameters as family.prior, but has none. "
                "Write family.prior = Prior({...})."
            )
        prior = Prior.coerce(function.prior)
        hyper = torch.from_numpy(prior.complete(prior.sample(_N_TRIED, _SEED))).to(theta.device)
        reasons, found = [], None
        for backend in ("torch", "numpy"):
            own = cls(function, prior, backend, differentiable=False)
            try:
                with torch.enable_grad():
                    value = own(hyper[0].clone().requires_grad_(True), theta[:2])
            except Exception as error:  # noqa: BLE001 - user code, perhaps for the other backend
                reasons.append(f"{backend}: {error!r}")
                continue
            found = found if found is not None and backend == "torch" else own
            if backend == "torch" and value.requires_grad:
                found = replace(own, differentiable=True)
                break
        if found is None:
            raise TypeError(f"{_CONTRACT} but neither works ({'; '.join(reasons)}).")
        return replace(found, batched=found.backend == "torch" and found._takes_many(hyper, theta))

    def _takes_many(self, hyper: Tensor, theta: Tensor) -> bool:
        """Say whether many hyper-parameters at once give what they give alone."""
        some = theta[:_N_TRIED]
        try:
            together = replace(self, batched=True).many(hyper, some)
        except Exception as error:  # noqa: BLE001 - as where it looks at values
            _LOG.debug("the family takes one set of hyper-parameters at a time: %r", error)
            return False
        return torch.allclose(together, self.many(hyper, some), rtol=1e-10, equal_nan=True)


@dataclass(frozen=True)
class PopulationLikelihood:
    """Log likelihood of the hyper-parameters of a family.

    Attributes
    ----------
    objects : ObjectDraws
    family : PopulationFamily
    selection : Selection or None
    """

    objects: ObjectDraws
    family: PopulationFamily
    selection: Selection | None = None

    def __call__(self, hyper: NDArray[np.float64] | Tensor) -> NDArray[np.float64] | Tensor:
        """Return log likelihoods (n, 1) of hyper (n, P), of the kind that hyper is."""
        if torch.compiler.is_compiling():  # who compiles goes on with plain code
            raise NotImplementedError("The likelihood of a population is not compiled.")
        if isinstance(hyper, Tensor):
            return _Rows.apply(hyper, self)[:, None]
        return self.rows(torch.from_numpy(hyper), gradients=False)[0].numpy()[:, None]

    @property
    def device(self) -> torch.device:
        """Where the draws are."""
        return self.objects.pieces[0].theta.device

    @cached_property
    def detected(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pieces of the selection; none without one."""
        if self.selection is None:
            return ()
        return self.selection.tensors(launch.of(self.device).gradient_numbers, self.device)

    def rows(self, hyper: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
        """Return log likelihoods (n,) of hyper (n, P), and gradients (n, P), or zeros."""
        values, slopes = torch.zeros_like(hyper[:, 0]), torch.zeros_like(hyper)
        given = hyper.detach().to(self.device, torch.float64)
        # objects and draws fill the launches; hyper-parameters do where these are few
        for part in torch.arange(len(hyper)).split(self.n_together):
            found = [self._differentiated(given[part], self._of_piece(p), gradients)
                     for p in self.objects.pieces]  # fmt: skip
            value, slope = (sum(v) for v in zip(*found, strict=True))
            if self.detected:
                share, own = self._detected_share(given[part], gradients)
                value, slope = (value - len(self.objects) * share,
                                slope - len(self.objects) * own)  # fmt: skip
            # an infinite density would make any hyper-parameters certain
            values[part] = torch.where(torch.isposinf(value), torch.nan, value).to(values)
            slopes[part] = slope.to(slopes)
        return values, slopes

    @cached_property
    def n_together(self) -> int:
        """How many hyper-parameters are tried at once."""
        sizes = [piece.weights.numel() for piece in self.objects.pieces]
        sizes += [len(theta) for theta, _ in self.detected]
        return max(1, launch.of(self.device).gradient_numbers // max(sizes))

    def log_share(self, hyper: Tensor) -> Tensor:
        """Return the log of the detected share (k,) of populations of hyper-parameters (k, P)."""
        return self._detected_share(hyper, gradients=False)[0]

    def log_terms(self, hyper: Tensor, piece: PaddedDraws) -> Tensor:
        """Return the logs (k, b, S) of what draws add to the likelihood of hyper (k, P)."""
        log_density = self.family.many(hyper, piece.rows)
        return piece.log_ratio + log_density.unflatten(1, piece.weights.shape)

    @torch.no_grad()
    def check(self) -> None:
        """Refuse densities that are NaN or infinite, at any draw and a few hyper-parameters."""
        prior = self.family.prior
        hyper = torch.from_numpy(prior.complete(prior.sample(_N_TRIED, _SEED))).to(self.device)
        places = [piece.rows for piece in self.objects.pieces]
        for row in hyper:
            for theta in (*places, *(theta for theta, _ in self.detected)):
                found = self.family(row, theta)
                bad = found.isnan() | found.isposinf()
                if bad.any():
                    told = dict(zip(prior.full_names, row.tolist(), strict=True))
                    raise ValueError(
                        "family must give log densities, finite or -inf, but gave "
                        f"{float(found[bad][0])} at theta {theta[bad][0].tolist()} for {told}, "
                        f"as for {int(bad.sum())} draws. Return -inf where there is no density."
                    )

    def _of_piece(self, piece: PaddedDraws) -> Callable[[Tensor], Tensor]:
        return lambda hyper: torch.logsumexp(self.log_terms(hyper, piece), 2).sum(1)

    def _detected_share(self, hyper: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
        """Return the log of the detected share (k,) of populations, and its gradient (k, P)."""
        parts = [
            self._differentiated(
                hyper, lambda h, t=theta, r=ratio: torch.logsumexp(r + self.family.many(h, t), 1),
                gradients,
            )
            for theta, ratio in self.detected
        ]  # fmt: skip
        values, slopes = (torch.stack(v) for v in zip(*parts, strict=True))
        share = torch.softmax(values, 0)[..., None]
        return torch.logsumexp(values, 0), (share * slopes).sum(0)

    @staticmethod
    def _differentiated(
        hyper: Tensor, of: Callable[[Tensor], Tensor], gradients: bool
    ) -> tuple[Tensor, Tensor]:
        """Return values (k,) and their gradients (k, P): one graph at a time is in memory."""
        if not gradients:
            with torch.no_grad():
                return of(hyper), torch.zeros_like(hyper)
        with torch.enable_grad():
            leaf = hyper.clone().requires_grad_(True)
            value = of(leaf)
            if not value.requires_grad:  # as where no hyper-parameter matters here
                return value, torch.zeros_like(hyper)
            (slope,) = torch.autograd.grad(
                value.sum(), leaf, allow_unused=True, materialize_grads=True
            )
        return value.detach(), slope


class _Rows(torch.autograd.Function):
    """Log likelihoods (n,) whose gradients are computed beside them, not kept as graphs."""

    @staticmethod
    def forward(ctx: Any, hyper: Tensor, likelihood: PopulationLikelihood) -> Tensor:  # noqa: ANN401
        """Return log likelihoods."""
        values, slopes = likelihood.rows(hyper, gradients=ctx.needs_input_grad[0])
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Return gradients with respect to hyper."""
        (slopes,) = ctx.saved_tensors
        return above[0][:, None] * slopes, None
