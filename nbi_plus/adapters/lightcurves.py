"""Sources and pointings of LightCurveLynx: simulators, and the cadences of a survey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.data.observations import Observations
from nbi_plus.problem.simulator.simulator import Simulator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LightCurveLynxSimulator:
    """Band fluxes of a source of LightCurveLynx, one object at a time.

    Parameters
    ----------
    source : lightcurvelynx.models.physical_model.BasePhysicalModel
        Whatever else it depends on must have a value: what it draws itself would be another answer
        each time, which is refused.
    passbands : lightcurvelynx.astro_utils.passbands.PassbandGroup
    parameters : sequence of str
        The columns of theta: parameters of the source.
    bands : sequence of str
        Its filters in the order of those of the observations: ``categories["band"]``.
    """

    source: Any
    passbands: Any
    parameters: tuple[str, ...]
    bands: tuple[str, ...]

    def simulator(self) -> Simulator:
        """Return the simulator."""
        unknown = [name for name in self.parameters if not self.source.has_valid_param(name)]
        if unknown or not self.parameters:
            raise ValueError(
                f"parameters must be of {self.source.list_params()}, but {unknown} are not."
            )
        self.source.sample_parameters()  # after which the source has a name among its nodes
        return Simulator(self.fluxes, vectorized=False)

    def fluxes(self, theta: Array, t: Array, band: Array) -> Array:
        """Return fluxes (L,) of theta (D,) at times t (L,), band (L,) the places in ``bands``."""
        own = dict(zip(self.parameters, theta.tolist(), strict=True))
        state = self.source.sample_parameters({self.source.node_string: own}, num_samples=1)
        names = np.asarray(self.bands)[np.asarray(band, np.int64)]
        return np.asarray(self.source.evaluate_bandfluxes(self.passbands, t, names, state))


def cadences_of(
    table: Any,  # noqa: ANN401 - of LightCurveLynx
    noise: Any,  # noqa: ANN401 - of LightCurveLynx
    ra: ArrayLike,
    dec: ArrayLike,
    radius: float | None = None,
) -> Observations:
    """Return when, in which bands and how deep a survey looks at places: a bank of cadences.

    Fluxes are zero, and errors those of no flux; `Engine.fit` takes from it what simulations
    imitate.

    Parameters
    ----------
    table : lightcurvelynx.obstable.ObsTable
    noise : lightcurvelynx.noise_models.base_noise_models.FluxNoiseModel
    ra, dec : array_like, shape (N,)
        In degrees. Places that the survey never looks at are left out.
    radius : float, optional
        Of the field of view, in degrees; default: the table's.

    Returns
    -------
    Observations
        With ``ra`` and ``dec`` as scalars.
    """
    places = np.atleast_1d(np.asarray(ra, np.float64)), np.atleast_1d(np.asarray(dec, np.float64))
    looks = [np.asarray(own, np.int64) for own in table.range_search(*places, radius=radius)]
    rows = np.concatenate(looks)
    if not len(rows):
        raise ValueError(f"ra, dec must hold places that the table looks at, but of {len(looks)} "
                         "it looks at none. Check that they are in degrees.")  # fmt: skip
    own = np.repeat(np.arange(len(looks)), [len(some) for some in looks])
    error = noise.compute_flux_error(np.zeros(len(rows)), obs_table=table, indices=rows)
    columns = {
        "id": own, "mjd": np.asarray(table["time"])[rows],
        "band": np.asarray(table["filter"])[rows].astype(str), "flux": np.zeros(len(rows)),
        "flux_err": np.broadcast_to(error, len(rows)), "ra": places[0][own], "dec": places[1][own],
    }  # fmt: skip
    return Observations.from_table(columns, scalars=("ra", "dec"))
