"""Comparing: certified evidences of several models of the same objects, or why they cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbi_plus.arguments import of_kind, real
from nbi_plus.infer.posterior.posterior import Posterior
from nbi_plus.infer.posterior.posteriors import Posteriors, listed
from nbi_plus.infer.posterior.status import Status
from nbi_plus.torch_state import door

if TYPE_CHECKING:
    from nbi_plus.estimators.comparison import Comparison

Answers = Posterior | Posteriors | Iterable[Posterior]
Array = NDArray[np.float64]

_NAMED = 3  # objects that an error names
_COLUMNS = ("data_hash", "status", "log_evidence", "log_evidence_err", "evidence_reliable")


@door
def compare(
    posteriors: Mapping[str, Answers],
    model_prior: Mapping[str, float] | Sequence[float] | None = None,
) -> Comparison:
    """Return what the evidences of several models say of the same objects.

    Evidences count that are reliable, of answers that passed their gate, by `Engine.predict`,
    `Engine.predict_many` or a fit in rounds; others are NaN. An evidence is only as good as the
    prior that it is an average over: a prior twice as wide as the data ask for halves it. Nuisances
    that a noise integrates out (`LinearNuisance`) have priors, too, which count in the same way.

    Errors are those of independent draws. Draws that two answers share (`Posterior.reweight`) make
    errors of differences smaller than is said here, as a rule.

    Parameters
    ----------
    posteriors : mapping of str to Posteriors, Posterior or iterable of Posterior
        The answers of each model, two at least, for the same objects in the same order. Without
        draws (``keep=0``) they will do.
    model_prior : mapping of str to float, or sequence of float, optional
        Weights of the models, by name or in their order. Default: all the same.

    Returns
    -------
    Comparison
        A QTable of one row an object, with ``log_bayes_factors()`` and ``summed()``.

    Raises
    ------
    ValueError, TypeError
        Where objects, data, errors, masks or coordinates differ, and for evidences of learned
        ratios and densities (status ``LEARNED``), which are of what their own engine has learned.
        Those of one engine under several priors, by ``reweight``, compare.
    """
    from nbi_plus.estimators.comparison import Comparison  # with astropy, half a second

    of_kind("posteriors", posteriors, Mapping, 'Write {"name": posteriors, "other": ...}.')
    names = _names(posteriors)
    prior = weights_of(model_prior, names)
    models = [_Model.of(name, posteriors[name]) for name in names]
    for other in models[1:]:
        _refuse_others(models[0], other)
    _refuse_learned(models)
    value, error = (np.stack([getattr(m, k) for m in models], 1) for k in ("value", "error"))
    return Comparison.of(models[0].ids, names, (value, error), prior)


@dataclass(frozen=True)
class _Model:
    """What the answers of one model say of N objects.

    Attributes
    ----------
    name : str
    ids : ndarray, shape (N,)
    hashes : ndarray of str, shape (N,)
    value, error : ndarray, shape (N,)
        Of the log evidence; NaN where it is not reliable.
    learned : ndarray of bool, shape (N,)
    draws : sequence of Posterior, or None
    """

    name: str
    ids: NDArray
    hashes: NDArray[np.str_]
    value: Array
    error: Array
    learned: NDArray[np.bool_]
    draws: Sequence[Posterior] | None

    @classmethod
    def of(cls, name: str, answers: Answers) -> _Model:
        """Return those of a model."""
        if isinstance(answers, Posteriors):
            draws, ids = answers.draws, answers.ids
            column = {k: np.asarray(getattr(answers, k)) for k in _COLUMNS}
        else:
            draws = listed(answers)
            ids = np.array([p.id for p in draws])
            column = {k: np.array([getattr(p, k) for p in draws]) for k in _COLUMNS}
        if not len(ids):
            raise ValueError(f"posteriors must hold an object, but {name!r} holds none.")
        learned = column["status"] == Status.LEARNED
        certified = np.array([s.certified for s in column["status"]], bool)
        value, error = column["log_evidence"], column["log_evidence_err"]
        good = column["evidence_reliable"] & (certified | learned) & np.isfinite(value + error)
        value, error = (np.where(good, v, np.nan) for v in (value, error))
        return cls(name, ids, column["data_hash"], value, error, learned & good, draws)

    def named(self, rows: NDArray[np.int64]) -> str:
        """Return how many objects these are, and the ids of the first of them."""
        first = ", ".join(map(str, self.ids[rows][:_NAMED]))
        return f"{len(rows)} of {len(self.ids)} objects (as of {first})"


def _names(posteriors: Mapping[str, Answers]) -> tuple[str, ...]:
    """Return the names of the models: words, of which no two make the same column."""
    names = tuple(posteriors)
    words = all(isinstance(name, str) and name for name in names)
    if not words or len(names) < 2 or {f"err_{name}" for name in names} & set(names):
        raise ValueError(
            "posteriors must hold two models at least, named by texts of which none is another "
            f"one after 'err_', but hold {list(names)}."
        )
    return names


def weights_of(model_prior: Mapping[str, float] | Sequence[float] | None, names: Sequence) -> Array:
    """Return the weights (M,) of the models."""
    if model_prior is None:
        return np.ones(len(names))
    if isinstance(model_prior, Mapping):
        known = set(model_prior) == set(names)
        given = [model_prior[name] for name in names] if known else []
    else:
        given = list(np.atleast_1d(model_prior))
    weights = np.array([real("model_prior", v) for v in given])
    if len(weights) != len(names) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"model_prior must have one positive weight for each of {list(names)}, but is "
            f"{model_prior!r:.80}. Leave out models that are impossible."
        )
    return weights


def _refuse_others(first: _Model, other: _Model) -> None:
    """Refuse answers for other objects than the first model's, or for other data of these."""
    pair = f"those of {first.name!r} and {other.name!r}"
    if len(first.ids) != len(other.ids):
        raise ValueError(
            f"posteriors must be of the same objects, but {pair} are of {len(first.ids)} and "
            f"{len(other.ids)}. Hand over the answers of the same ones."
        )
    rows = np.flatnonzero(first.ids.astype(str) != other.ids.astype(str))
    if len(rows):
        own, its = str(first.ids[rows[0]]), str(other.ids[rows[0]])
        raise ValueError(
            f"posteriors must be of the same objects in the same order, but row {rows[0]} is "
            f"{own!r} for {first.name!r} and {its!r} for {other.name!r}. Sort them alike, and "
            "give data the same ids."
        )
    rows = np.flatnonzero((first.hashes == "") | (other.hashes == ""))
    if len(rows):
        raise ValueError(
            f"posteriors must know the hash of their data, but one of {pair} does not for "
            f"{first.named(rows)}: the file is an old one. Predict again."
        )
    rows = np.flatnonzero(first.hashes != other.hashes)
    if len(rows):
        raise ValueError(
            "posteriors must be of the same data, errors, masks, coordinates and scalars, but "
            f"{pair} are of different ones for {first.named(rows)}. Hand over the same "
            "Observations to both engines."
        )


def _refuse_learned(models: Sequence[_Model]) -> None:
    """Refuse learned evidences beside any that are not of the same likelihood of the same draws."""
    known = ~np.isnan([m.value for m in models])
    learned = np.any([m.learned for m in models], 0) & (known.sum(0) > 1)
    alone = [i for i in np.flatnonzero(learned) if not _share_a_likelihood(models, i, known[:, i])]
    if alone:
        raise ValueError(
            f"posteriors must not be LEARNED, but {models[0].named(np.array(alone))} have such "
            "evidences, which are of what their own engine has learned: a ratio's lacks p(x), and "
            "how far a density is off nobody knows. Answers of one engine under other priors, "
            "posteriors.reweight(prior), compare with each other, with their draws."
        )


def _share_a_likelihood(models: Sequence[_Model], i: int, known: NDArray[np.bool_]) -> bool:
    """Say whether the known answers for one object are one learned answer under other priors."""
    beside = [m for m, own in zip(models, known, strict=True) if own]
    if any(m.draws is None or not m.learned[i] for m in beside):
        return False
    first = beside[0].draws[i].log_likelihood
    return all(np.array_equal(m.draws[i].log_likelihood, first, equal_nan=True) for m in beside)
