"""What an engine tells of itself: what it is, and how it is calibrated."""

from __future__ import annotations

from nbi_plus.arguments import whole
from nbi_plus.data.observations import Observations
from nbi_plus.markup import Shown, facts
from nbi_plus.progress import progress as shown
from nbi_plus.torch_state import doors
from nbi_plus.trust.calibration import Calibration, sbc
from nbi_plus.trust.simulated import simulated_objects


@doors
class TellingMixin(Shown):
    """For an engine that knows its ``_fitted``, ``_seed``, ``get_params`` and ``predict_many``."""

    def calibrate(
        self, n: int = 1000, *, observations: Observations | None = None, n_samples: int = 2000,
        seed: int | None = None, progress: bool | None = None,
    ) -> Calibration:  # fmt: skip
        """Return how the truths of simulated objects rank among the draws of their posteriors.

        Parameters
        ----------
        n : int
            Draws of the prior, simulated as the objects of the training were seen.
        observations : Observations, optional
            Whose cadences and errors they have instead.
        n_samples : int
            Draws wanted of each object.
        seed : int, optional
            Default: the engine's.
        progress : bool, optional
            As for `fit`.
        """
        whole("n", n, 2)
        fitted, own = self._fitted("calibrate"), self._seed(seed)
        model = fitted.network("calibrate")
        if fitted.simulator is None:
            raise ValueError(
                "calibrate must have a simulator, but the engine has none. Load it with one, or "
                "give sbc the truths that you know."
            )
        if observations is None:
            bank = model.conditions
        else:
            bank = fitted.like_training(observations).batch()
        units = dict(fitted.conventions.units)
        with shown("simulating objects", show=progress):
            objects, truths = simulated_objects(fitted, bank, n, own, units)
        how = {"n_samples": n_samples, "seed": own, "progress": progress}
        return sbc(self.predict_many(objects, **how), truths, seed=own)

    def _repr_html_(self) -> str:
        chosen = {k: getattr(v, "__name__", v) for k, v in self.get_params(deep=False).items()}
        fitted = getattr(self, "fitted_", None)
        state = {"fitted": "not yet: call fit"} if fitted is None else fitted.told()
        return facts(chosen, type(self).__name__) + facts(state, "Fitted")
