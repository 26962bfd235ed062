"""Linear nuisance terms of a model, such as a baseline, marginalised analytically."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import (
    Array,
    Data,
    add_draw_axis,
    as_batch,
    as_tensor,
    code_text,
    coordinate_of,
    fill_masked,
    like,
)
from nbi_plus.problem.noise.hyper import NumberOrParameter
from nbi_plus.problem.noise.joint import Gaussian, SharedErrorNoise, groups_of
from nbi_plus.problem.noise.low_rank import LowRankGaussian, Term

Basis = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Nuisances:
    """What data say about the coefficients of linear terms, for one theta each.

    Attributes
    ----------
    names : tuple of str
        K of them, such as ``"offset"`` or, along a coordinate, ``"offset[g]"``.
    mean : Tensor or ndarray, shape (..., K)
    covariance : Tensor or ndarray, shape (..., K, K)
    """

    names: tuple[str, ...]
    mean: Tensor | NDArray
    covariance: Tensor | NDArray


class LinearNuisance(SharedErrorNoise):
    r"""Terms :math:`\sum_k a_k B_k` of unknown size, added to the model.

    The coefficients :math:`a_k \sim N(\mu_k, s_k^2)` are integrated out exactly (see Hogg,
    Price-Whelan and Leistedt 2020), so that neither the network nor the sampler has to find them.
    Priors may be broad: with :math:`s_k` of :math:`10^8` errors the log-likelihood is right to
    :math:`10^{-6}`, unless two terms are nearly the same.

    Parameters
    ----------
    noise : GaussianNoise or JointGaussianNoise
        The noise of the points.
    terms : str, callable or sequence of these
        ``"offset"``: one constant, such as a baseline or a zero point.
        ``"slope"``: the coordinate ``t`` less its mean over the object's valid points, in its unit.
        ``"scale"``: the model itself, which then enters through this term alone, as
        :math:`a f`: the flux of a source, the amplitude of a template.
        A callable maps the coordinates, each a tensor (..., L), to further terms (..., K, L).
    sd, mean : float, str or sequence of these
        Of the priors of the coefficients: one for all terms or one for each (a callable is one
        term); a text names the parameter that holds it.
    along : str, optional
        A coordinate of categories, such as ``"band"``: each has its own coefficients. ``"channel"``
        for the channels of x.

    Examples
    --------
    >>> from nbi_plus.problem.noise.points import GaussianNoise
    >>> noise = LinearNuisance(GaussianNoise(), ("scale", "offset"), sd=1e3, along="instrument")
    """

    def __init__(
        self,
        noise: Gaussian,
        terms: str | Basis | Sequence[str | Basis],
        *,
        sd: float | str | Sequence[float | str],
        mean: float | str | Sequence[float | str] = 0.0,
        along: str | None = None,
    ) -> None:
        super().__init__(noise)
        self.terms = _listed(terms)
        self.sd, self.mean = (_for_each(k, v, self.terms) for k, v in (("sd", sd), ("mean", mean)))
        self.along = along
        for term in self.terms:
            if not callable(term) and term not in _BASES:
                raise ValueError(
                    f"terms must be callables or of {sorted(_BASES)}, but {term!r} is not."
                )
        if self.rescales_model and (noise.follows_model or noise.rescales_model):
            raise ValueError(
                "noise must not depend on the model where its scale is free, but has a fractional "
                "error or a scale already. Give the error of the points, or a jitter."
            )
        lowest = {"sd": 0.0, "mean": -float("inf")}
        self._hypers = {
            f"{kind} {i}": NumberOrParameter(kind, value, lowest[kind])
            for kind, values in (("sd", self.sd), ("mean", self.mean))
            for i, value in enumerate(values)
        }

    @property
    def rescales_model(self) -> bool:
        """Whether the model is known up to a factor only."""
        return "scale" in self.terms or self.noise.rescales_model

    def meta(self) -> dict[str, object] | None:
        """Return the arguments as plain JSON, or None when a term is a function."""
        inner = self.noise.meta()
        if inner is None or any(callable(term) for term in self.terms):
            return None
        n = range(len(self.terms))
        prior = {k: [self._hypers[f"{k} {i}"].value for i in n] for k in ("sd", "mean")}
        terms = {"terms": list(self.terms), **prior, "along": self.along}
        return {"type": "LinearNuisance", "noise": inner, **terms}

    def fingerprint(self) -> str:
        """Return a text that changes with the noise and its functions."""
        own = (self.sd, self.mean, self.along, [code_text("term", term) for term in self.terms])
        return f"{super().fingerprint()} {own}"

    def gaussian(self, model: Tensor, obs: Batch, theta: Tensor) -> LowRankGaussian:
        """Return the distribution of data about a model (..., C, L)."""
        alone = torch.zeros_like(model) if "scale" in self.terms else model
        inner = self.noise.gaussian(alone, obs, theta)
        groups, _ = groups_of(obs, self.along, model, "LinearNuisance")
        center = inner.mean
        terms: list[Term] = []
        for i, bases in enumerate(self._bases(model, obs)):
            sd, mean = (self._hypers[f"{kind} {i}"].of(theta) for kind in ("sd", "mean"))
            center = center + mean * sum(bases)
            terms += [Term(sd * basis, groups) for basis in bases]
        return inner.with_terms(tuple(terms), center)

    def nuisances(self, theta: Array, model: Array, obs: Data) -> Nuisances:
        """Return mean and covariance of the coefficients, given data and parameters.

        Parameters as for `log_likelihood`; leading axes of the results are those of ``theta``.
        """
        f, t = as_tensor(model).double(), as_tensor(theta)
        data = add_draw_axis(as_batch(obs, f), f)
        fit = self._fit(fill_masked(f, data), data, t)
        _, groups = groups_of(data, self.along, f, "LinearNuisance")
        counts = [len(bases) for bases in self._bases(f, data)]
        sd, mean = self._prior(t, f, counts, len(groups))
        n_own = sd.shape[-1]
        covariance = torch.cholesky_inverse(fit.factor)[..., -n_own:, -n_own:]
        covariance = sd.unsqueeze(-1) * covariance * sd.unsqueeze(-2)
        return Nuisances(
            self._names(counts, groups),
            like(mean + sd * fit.coefficients[..., -n_own:], model),
            like(covariance, model),
        )

    def corrected(self, theta: Array, model: Array, obs: Data) -> Array:
        """Return the model plus all fitted terms, in the shape of the model: the curve to plot."""
        f, t = as_tensor(model).double(), as_tensor(theta)
        data = add_draw_axis(as_batch(obs, f), f)
        best = self._fit(fill_masked(f, data), data, t).coefficients
        return like(self.gaussian(f, data, t).shifted(best), model)

    def _bases(self, model: Tensor, obs: Batch) -> list[tuple[Tensor, ...]]:
        """Return what each term multiplies, tensors broadcastable to the model."""
        return [
            tuple(_basis(term, obs, model).unsqueeze(-2).unbind(-3))
            if callable(term)
            else (_BASES[term](model, obs),)
            for term in self.terms
        ]

    def _prior(
        self, theta: Tensor, model: Tensor, counts: list[int], n_groups: int
    ) -> tuple[Tensor, Tensor]:
        """Return sd and mean of all coefficients, each (..., K)."""
        ones = model.new_ones(*model.shape[:-2], 1, 1)

        def each(kind: str) -> Tensor:
            values = [self._hypers[f"{kind} {i}"].of(theta) * ones for i in range(len(counts))]
            repeated = [v.expand(*v.shape[:-1], n * n_groups)
                        for v, n in zip(values, counts, strict=True)]  # fmt: skip
            return torch.cat(repeated, -1).squeeze(-2)

        return each("sd"), each("mean")

    def _names(self, counts: list[int], groups: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of all coefficients."""
        names = [
            getattr(term, "__name__", "term") + f"[{i}]" if callable(term) else term
            for term, n in zip(self.terms, counts, strict=True)
            for i in range(n)
        ]
        return tuple(n if self.along is None else f"{n}[{g}]" for n in names for g in groups)


def _offset(model: Tensor, obs: Batch) -> Tensor:  # noqa: ARG001
    return model.new_ones(1, 1)


def _slope(model: Tensor, obs: Batch) -> Tensor:  # noqa: ARG001
    t = coordinate_of(obs, "t", "the term 'slope'").unsqueeze(-2).double()
    seen = obs.mask.any(-2, keepdim=True)
    center = torch.where(seen, t, 0.0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(1)
    return t - center


def _scale(model: Tensor, obs: Batch) -> Tensor:  # noqa: ARG001
    return model


_BASES: dict[str, Callable[[Tensor, Batch], Tensor]] = {
    "offset": _offset,
    "slope": _slope,
    "scale": _scale,
}


def _basis(function: Basis, obs: Batch, model: Tensor) -> Tensor:
    """Return what the user's function gives, shape (..., K, L)."""
    value = function(obs.coords)
    length = model.shape[-1]
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[-1] != length:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"terms must map the coordinates to a tensor (..., K, {length}), but one gave {came}."
        )
    return value.to(model)


def _listed(terms: str | Basis | Sequence[str | Basis]) -> tuple[str | Basis, ...]:
    """Return the terms as a tuple, refusing none and doubles."""
    single = isinstance(terms, str) or callable(terms)
    found = (terms,) if single else tuple(terms)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"terms must be different, and one at least, but are {found!r}.")
    return found


def _for_each(
    name: str, value: float | str | Sequence[float | str], terms: tuple[str | Basis, ...]
) -> tuple[float | str, ...]:
    """Return one value for each term."""
    values = (value,) * len(terms) if np.ndim(value) == 0 else tuple(value)
    if len(values) != len(terms):
        raise ValueError(f"{name} must have one value for each of {terms!r}, but is {value!r}.")
    return values
