"""Comparison: what the evidences of several models say, object by object and all together.

Imported where there is one: tables are astropy's, which takes half a second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nbi_plus.arguments import one_of
from nbi_plus.printed import Summary

Array = NDArray[np.float64]

_UNRELIABLE = ("nan", "leave out")


class Evidences(Summary):
    """A table of evidences, and of probabilities, which have three digits whatever their errors.

    Next to 0 and 1 these would ask for all digits.
    """

    def _spread(self, name: str, values: Array) -> Array:
        known = super()._spread(name, values)
        return np.full_like(known, np.nan) if name.startswith("probability") else known


class Comparison(Evidences):
    """A table of N objects and M models: evidences, and probabilities of the models.

    Columns: ``id``; for each model ``log_evidence_{name}``, ``log_evidence_err_{name}``,
    ``probability_{name}``, ``probability_err_{name}``; ``reliable``, whether all evidences of the
    object are. What is not is NaN, and so are all probabilities of its object. Rows can be picked
    as those of any table, and files of astropy (ECSV, FITS, HDF5, parquet) hold all of it: ``meta``
    has the prior weights of the models.
    """

    @classmethod
    def of(
        cls, ids: NDArray, models: Sequence[str], evidences: tuple[Array, Array], prior: Array
    ) -> Comparison:
        """Return what evidences and their errors, (N, M) both and NaN where unreliable, say."""
        value, error = evidences
        chances = probabilities(value, error, prior)
        columns = {"id": ids}
        for kind, own, own_err in (("log_evidence", *evidences), ("probability", *chances)):
            for i, name in enumerate(models):
                columns[f"{kind}_{name}"] = own[:, i]
                columns[f"{kind}_err_{name}"] = own_err[:, i]
        columns["reliable"] = ~np.isnan(value).any(1)
        return cls(columns, meta={"model_prior": prior.tolist()})

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, shape (M,)."""
        start = "log_evidence_err_"
        return tuple(n.removeprefix(start) for n in self.colnames if n.startswith(start))

    def log_bayes_factors(self, against: str | None = None) -> Evidences:
        """Return log Bayes factors of all other models against one, and their standard errors.

        Parameters
        ----------
        against : str, optional
            Default: the first model.

        Returns
        -------
        Evidences
            Columns ``id`` and, for each other model, ``log_bayes_factor_{name}``,
            ``log_bayes_factor_err_{name}``.
        """
        value, error = _against(*self._evidences(), self._place(against))
        columns = {"id": self["id"]}
        for i, name in enumerate(self.models):
            if i != self._place(against):
                columns[f"log_bayes_factor_{name}"] = value[:, i]
                columns[f"log_bayes_factor_err_{name}"] = error[:, i]
        return Evidences(columns)

    def summed(self, unreliable: str = "nan", *, against: str | None = None) -> Evidences:
        """Return what all objects say together, if one and the same model has made them all.

        Their parameters may differ. The weights of ``model_prior`` count once.

        Parameters
        ----------
        unreliable : {"nan", "leave out"}
            What objects with an evidence that is not reliable make of the sums. Without them the
            others are no fair sample, unless all evidences fail alike.
        against : str, optional
            The model that log Bayes factors are against. Default: the first.

        Returns
        -------
        Evidences
            One row for each model, with columns ``model``, ``log_evidence``, ``log_bayes_factor``,
            ``probability``, their standard errors (``log_evidence_err`` and so on) and
            ``n_objects``, those that count.
        """
        one_of("unreliable", unreliable, _UNRELIABLE)
        value, error = self._evidences()
        counts = ~np.isnan(value).any(1) | (unreliable == "nan")
        value = value[counts].sum(0, keepdims=True)
        error = np.sqrt(np.square(error[counts]).sum(0, keepdims=True))
        columns = {"model": list(self.models)}
        for name, (own, own_err) in {
            "log_evidence": (value, error),
            "log_bayes_factor": _against(value, error, self._place(against)),
            "probability": probabilities(value, error, np.array(self.meta["model_prior"])),
        }.items():
            columns |= {name: own[0], f"{name}_err": own_err[0]}
        return Evidences(columns | {"n_objects": np.full(len(self.models), counts.sum())})

    def _evidences(self) -> tuple[Array, Array]:
        """Return log evidences (N, M) and their errors."""
        return tuple(
            np.stack([np.asarray(self[f"{kind}_{name}"]) for name in self.models], 1)
            for kind in ("log_evidence", "log_evidence_err")
        )

    def _place(self, against: str | None) -> int:
        if against is None:
            return 0
        return self.models.index(one_of("against", against, self.models))


def probabilities(log_evidence: Array, error: Array, prior: Array) -> tuple[Array, Array]:
    r"""Return probabilities (N, M) of models, and their standard errors.

    :math:`p_m \propto \pi_m Z_m`; to first order in the errors :math:`s_k` of the log evidences
    :math:`\sigma(p_m) = p_m \sqrt{\sum_k (\delta_{mk} - p_k)^2 s_k^2}`.

    Parameters
    ----------
    log_evidence, error : ndarray, shape (N, M)
        A NaN makes all of its row NaN.
    prior : ndarray, shape (M,)
        Weights of the models.

    Examples
    --------
    >>> p, err = probabilities(np.log([[1.0, 3.0]]), np.array([[0.1, 0.0]]), np.ones(2))
    >>> p.round(3).tolist(), err.round(5).tolist()
    ([[0.25, 0.75]], [[0.01875, 0.01875]])
    """
    score = log_evidence + np.log(prior)
    odds = np.exp(score - score.max(1, keepdims=True))
    p = odds / odds.sum(1, keepdims=True)
    own = np.eye(p.shape[1])
    # 1 - p as the sum of the others, for p may be 1 to rounding
    slope = np.where(own == 1, (p @ (1 - own))[:, None], -p[:, None])
    return p, p * np.sqrt((slope**2 @ (error**2)[..., None])[..., 0])


def _against(value: Array, error: Array, place: int) -> tuple[Array, Array]:
    """Return log evidences (N, M) less those of one model, and the errors of the differences."""
    other = np.arange(value.shape[1]) != place
    errors = np.hypot(error, error[:, [place]])
    # against itself there is nothing to know, unless it is not known itself
    return value - value[:, [place]], np.where(other, errors, 0.0 * errors)
