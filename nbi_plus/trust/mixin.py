"""What an engine tells of itself: what it is, and how it is calibrated."""

from __future__ import annotations

from collections.abc import Mapping

from nbi_plus.arguments import whole
from nbi_plus.data.observations import Observations
from nbi_plus.markup import Shown, facts
from nbi_plus.torch_state import doors
from nbi_plus.trust.calibration import Calibration, Custom, functions_of, sbc
from nbi_plus.trust.recovery import Bins, groups
from nbi_plus.trust.simulated import objects_of


@doors
class TellingMixin(Shown):
    """For an engine that knows its ``_fitted``, ``_seed``, ``get_params`` and ``predict_many``."""

    def calibrate(
        self, n: int = 1000, bins: Bins | None = None, *,
        observations: Observations | None = None, n_samples: int = 2000,
        custom: Mapping[str, Custom] | None = None, seed: int | None = None,
        progress: bool | None = None,
    ) -> Calibration:  # fmt: skip
        """Return how the truths of simulated objects rank among the draws of their posteriors.

        Parameters
        ----------
        n : int
            Draws of the prior, simulated as the objects of the training were seen.
        bins : int or mapping of one name to int or edges, optional
            Groups of objects that ``to_frame()`` tells apart: by ``"snr"``, ``"n_points"`` or a
            scalar, as ``{"n_points": [5, 20, 100]}``; an integer is so many bins of S/N, of the
            same number of objects each.
        observations : Observations, optional
            Whose cadences and errors they have instead.
        n_samples : int
            Draws wanted of each object.
        custom : mapping of name to callable, optional
            ``f(posteriors, truths)`` gives numbers, of a list of n Posterior and truths (n, D).
        seed : int, optional
            Default: the engine's.
        progress : bool, optional
            As for `fit`.
        """
        whole("n", n, 2)
        custom = functions_of(custom)
        fitted, own = self._fitted("calibrate"), self._seed(seed)
        objects, truths = objects_of(fitted, fitted.network("calibrate"), n, observations, own,
                                     progress)  # fmt: skip
        words = groups(bins, objects)
        how = {"n_samples": n_samples, "seed": own, "progress": progress}
        answers = self.predict_many(objects, **how)
        return sbc(answers, truths, seed=own, groups=words, custom=custom)

    def _repr_html_(self) -> str:
        chosen = {k: getattr(v, "__name__", v) for k, v in self.get_params(deep=False).items()}
        fitted = getattr(self, "fitted_", None)
        state = {"fitted": "not yet: call fit"} if fitted is None else fitted.told()
        return facts(chosen, type(self).__name__) + facts(state, "Fitted")
