"""Models of sncosmo as simulators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbi_plus.problem.simulator.simulator import Simulator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SncosmoSimulator:
    """Fluxes of a model of sncosmo, one object at a time.

    Parameters
    ----------
    model : sncosmo.Model
        What is no parameter keeps the value that it has there.
    parameters : sequence of str
        The columns of theta, as sncosmo calls them: ``("t0", "x0", "x1", "c")``.
    bands : sequence of str
        The bands of sncosmo in the order of those of the observations: ``categories["band"]``.
    zero_point, system
        Of the fluxes, as `Observations.from_survey` of the kind "sncosmo" leaves them.
    """

    model: Any
    parameters: tuple[str, ...]
    bands: tuple[str, ...]
    zero_point: float = 25.0
    system: str = "ab"

    def simulator(self, *, redshift: bool = False) -> Simulator:
        """Return the simulator, which takes the redshift of each object as a scalar, or not."""
        unknown = [name for name in self.parameters if name not in self.model.param_names]
        if unknown or not self.parameters:
            raise ValueError(
                f"parameters must be of {self.model.param_names}, but {unknown} are not."
            )
        return Simulator(self.at_redshift if redshift else self.fluxes, vectorized=False)

    def fluxes(self, theta: Array, t: Array, band: Array) -> Array:
        """Return fluxes (L,) of theta (D,) at times t (L,), band (L,) the places in ``bands``."""
        return self._fluxes(dict(zip(self.parameters, theta.tolist(), strict=True)), t, band)

    def at_redshift(self, theta: Array, t: Array, band: Array, redshift: float) -> Array:
        """Return the same of an object of known redshift."""
        own = dict(zip(self.parameters, theta.tolist(), strict=True))
        return self._fluxes({**own, "z": float(np.squeeze(redshift))}, t, band)

    def _fluxes(self, values: dict[str, float], t: Array, band: Array) -> Array:
        own = _copied(self.model, values)
        names = np.asarray(self.bands)[np.asarray(band, np.int64)]
        return np.asarray(own.bandflux(names, t, zp=self.zero_point, zpsys=self.system))


def _copied(model: Any, values: dict[str, float]) -> Any:  # noqa: ANN401 - of sncosmo
    """Return a model of its own with these values: the user's is not edited."""
    own = model.__copy__()
    own.set(**values)
    return own
