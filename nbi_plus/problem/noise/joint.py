"""Gaussian noise whose points are correlated, or share some of their errors."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from torch import Tensor

from nbi_plus.data.batch import Batch
from nbi_plus.problem.noise.base import Noise, chi_square_p_value, coordinate_of, fill_masked
from nbi_plus.problem.noise.hyper import NumberOrParameter
from nbi_plus.problem.noise.low_rank import Fit, LowRankGaussian, Term
from nbi_plus.problem.noise.points import GaussianNoise


class JointGaussianNoise(Noise):
    """Noise for which the data of an object are one Gaussian vector.

    Subclasses write `gaussian`; draws, density and p-value follow from it.
    """

    exact_p_value = True
    n_copies = 16
    follows_model = False
    rescales_model = False

    @abstractmethod
    def gaussian(self, model: Tensor, obs: Batch, theta: Tensor) -> LowRankGaussian:
        """Return the distribution of data about a model.

        Parameters
        ----------
        model : Tensor of float64, shape (..., C, L)
        obs : Batch
            With axes that broadcast against those of the model (`add_draw_axis`).
        theta : Tensor, shape (..., P)
        """

    def p_value(self, theta: Tensor, model: Tensor, obs: Batch, rng: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the probability of a larger chi-square, shape (n,)."""
        return chi_square_p_value(self._fit(fill_masked(model, obs), obs, theta).chi2, obs.mask)

    def _fit(self, model: Tensor, obs: Batch, theta: Tensor) -> Fit:
        # in float64: strong correlations leave float32 no digits
        return self.gaussian(model.double(), obs, theta).fit(obs.x.double(), obs.mask)

    def _draw(self, model: Tensor, obs: Batch, theta: Tensor, rng: torch.Generator) -> Tensor:
        return self.gaussian(model.double(), obs, theta).draw(rng)

    def _log_prob(self, model: Tensor, obs: Batch, theta: Tensor) -> Tensor:
        return self._fit(model, obs, theta).log_prob.to(obs.x.dtype)


Gaussian = GaussianNoise | JointGaussianNoise


class SharedErrorNoise(JointGaussianNoise):
    """Gaussian noise plus errors that points share, which are marginalised analytically.

    Parameters
    ----------
    noise : GaussianNoise or JointGaussianNoise
        The noise without these errors.
    """

    def __init__(self, noise: Gaussian) -> None:
        if not isinstance(noise, Gaussian):
            raise TypeError(
                f"noise must be Gaussian to be marginalised analytically, but is {noise!r}. Give "
                "GaussianNoise, GaussianProcessNoise, CalibrationError or LinearNuisance."
            )
        self.noise = noise
        self._hypers: dict[str, NumberOrParameter] = {}

    @property
    def follows_model(self) -> bool:
        """Whether the scatter depends on the model."""
        return self.noise.follows_model

    @property
    def rescales_model(self) -> bool:
        """Whether the model is known up to a factor only."""
        return self.noise.rescales_model

    def in_unit(self, unit: str | None) -> SharedErrorNoise:
        """Return a copy of which the noise that is wrapped is in the unit of the data."""
        same = copy.copy(self)
        same.noise = self.noise.in_unit(unit)
        return same

    def bind(self, has_errors: bool, names: tuple[str, ...]) -> SharedErrorNoise:
        """Return a copy that knows the columns of its parameters."""
        bound = copy.copy(self)
        bound.noise = self.noise.bind(has_errors, names)
        bound._hypers = {k: hyper.bind(names) for k, hyper in self._hypers.items()}
        return bound

    def has_likelihood(self, has_errors: bool) -> bool:
        """Say whether the noise that is wrapped has one."""
        return self.noise.has_likelihood(has_errors)

    def fingerprint(self) -> str:
        """Return a text that changes with the noise."""
        return f"{super().fingerprint()} ({self.noise.fingerprint()})"


class CalibrationError(SharedErrorNoise):
    r"""A factor :math:`1 + \epsilon_b` of the model, unknown but common to all points of a band.

    :math:`\epsilon_b \sim N(0, \eta_b^2)` is integrated out: data of one band are correlated.

    Parameters
    ----------
    noise : GaussianNoise or JointGaussianNoise
        The noise of the points.
    fractional : float or dict of float
        The relative error :math:`\eta`: of every band, or by the name of the band.
    along : str
        The coordinate that says which points share a factor; ``"channel"`` for the channels of x.

    Examples
    --------
    >>> noise = CalibrationError(GaussianNoise(), {"g": 0.02, "r": 0.01})
    """

    def __init__(
        self,
        noise: Gaussian,
        fractional: float | dict[str, float],
        along: str = "band",
    ) -> None:
        super().__init__(noise)
        if noise.rescales_model:
            raise ValueError(
                "noise must leave the size of the model known, but has the term 'scale'. "
                "Give such errors as GaussianNoise(jitter=...), or as a broader sd of the scale."
            )
        self.fractional = fractional
        self.along = along
        each = fractional if isinstance(fractional, dict) else {None: fractional}
        self._errors = {k: NumberOrParameter("fractional", v).value for k, v in each.items()}

    @property
    def follows_model(self) -> bool:
        """Whether the scatter depends on the model: it does."""
        return True

    def meta(self) -> dict[str, object] | None:
        """Return the arguments as plain JSON."""
        inner = self.noise.meta()
        return inner and {
            "type": "CalibrationError",
            "noise": inner,
            "fractional": self.fractional,
            "along": self.along,
        }

    def gaussian(self, model: Tensor, obs: Batch, theta: Tensor) -> LowRankGaussian:
        """Return the distribution of data about a model (..., C, L)."""
        inner = self.noise.gaussian(model, obs, theta)
        groups, names = groups_of(obs, self.along, model, "CalibrationError")
        sizes = [self._error(name) for name in names]
        groups = groups * torch.tensor(sizes, device=model.device, dtype=model.dtype)
        return inner.with_terms((Term(model, groups),), inner.mean)

    def _error(self, name: str) -> float:
        error = self._errors.get(name, self._errors.get(None))
        if error is None:
            raise ValueError(
                f"fractional must name every {self.along}, but {name!r} is not among "
                f"{sorted(self._errors)}. Give its error, 0 where there is none."
            )
        return error


def groups_of(
    obs: Batch, along: str | None, model: Tensor, owner: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Return which points (..., C, L, G) belong to which group, and the names of the groups.

    All belong to one group where ``along`` is None.
    """
    n_channels, length = model.shape[-2:]
    if along is None:
        return model.new_ones(n_channels, length, 1), ("",)
    if along == "channel":
        unit = torch.eye(n_channels, device=model.device, dtype=model.dtype).unsqueeze(1)
        names = tuple(str(c) for c in range(n_channels))
        return unit.expand(n_channels, length, n_channels), names
    codes = coordinate_of(obs, along, owner)
    if along not in obs.categories:
        raise ValueError(
            f"{along} must be categories, but holds {codes.dtype}. "
            f"Give {along}= as texts, such as 'g' and 'r'."
        )
    names = obs.categories[along]
    member = torch.nn.functional.one_hot(codes, len(names)).to(model.dtype).unsqueeze(-3)
    return member.expand(*member.shape[:-3], n_channels, length, len(names)), names
