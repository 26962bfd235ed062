"""Noise: what the data add to a model, drawn and weighed.

A noise model, or a kernel, is a class in a file of its own and one line here: all that is imported
``as`` itself is public, here and in `nbi_plus`, and found by its name when a file is read.
"""

from __future__ import annotations

import collections.abc as abc

from nbi_plus.problem.noise import kernels
from nbi_plus.problem.noise.base import Noise as Noise
from nbi_plus.problem.noise.base import PointNoise as PointNoise
from nbi_plus.problem.noise.counts import BetaBinomialNoise as BetaBinomialNoise
from nbi_plus.problem.noise.counts import BinomialNoise as BinomialNoise
from nbi_plus.problem.noise.counts import PoissonNoise as PoissonNoise
from nbi_plus.problem.noise.custom import CustomNoise as CustomNoise
from nbi_plus.problem.noise.gaussian_process import GaussianProcessNoise as GaussianProcessNoise
from nbi_plus.problem.noise.joint import CalibrationError as CalibrationError
from nbi_plus.problem.noise.kernels import DampedRandomWalk as DampedRandomWalk
from nbi_plus.problem.noise.kernels import Harmonic as Harmonic
from nbi_plus.problem.noise.linear_nuisance import LinearNuisance as LinearNuisance
from nbi_plus.problem.noise.outliers import OutlierNoise as OutlierNoise
from nbi_plus.problem.noise.points import GaussianNoise as GaussianNoise
from nbi_plus.problem.noise.points import StudentTNoise as StudentTNoise
from nbi_plus.problem.noise.upper_limits import UpperLimits as UpperLimits

_PUBLIC = {name: made for name, made in sorted(globals().items()) if isinstance(made, type)}
__all__ = list(_PUBLIC)  # no list to forget a name in

# what files can hold: whatever says what it is made of; the user's code does not
NOISES = {
    name: made
    for name, made in _PUBLIC.items()
    if issubclass(made, Noise) and made.meta is not Noise.meta
}
KERNELS = {name: made for name, made in _PUBLIC.items() if issubclass(made, kernels.Kernel)}


def noise_from_meta(meta: abc.Mapping[str, object]) -> Noise:
    """Return the shipped noise model that `Noise.meta` described."""
    options = dict(meta)
    kind = options.pop("type", None)
    if kind not in NOISES:
        raise ValueError(
            f"noise must be one of {sorted(NOISES)}, but the file says {kind!r}. Pass noise=."
        )
    parts = {key: make(options[key]) for key, make in _PARTS.items() if key in options}
    return NOISES[kind](**(options | parts))


def kernel_from_meta(meta: abc.Mapping[str, object]) -> kernels.Kernel:
    """Return the kernel that `Kernel.meta` described."""
    options = dict(meta)
    kind = options.pop("type", None)
    if kind == "Sum":
        return kernels.Sum(*(kernel_from_meta(options[key]) for key in ("first", "second")))
    if kind not in KERNELS:
        raise ValueError(f"kernel must be Sum or one of {sorted(KERNELS)}, but is {kind!r}.")
    return KERNELS[kind](**options)


_PARTS = {"noise": noise_from_meta, "kernel": kernel_from_meta}
