"""Posterior: the answer for one object, with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.infer import export
from nbi_plus.infer.resample import systematic_resample
from nbi_plus.infer.status import Flag, Rung, Status
from nbi_plus.infer.weights import summarise
from nbi_plus.io.archive import Archive, ArchiveError, read_archive, write_archive

if TYPE_CHECKING:
    from astropy.table import QTable

    from nbi_plus.problem.prior import Prior

Array = NDArray[np.float64]


FOOTER = "A mode or tail that no proposal and no chain has visited cannot be seen."


# what the weights of one object come to, in every container of answers
WEIGHT_NUMBERS = (
    "ess",
    "ess_low",
    "efficiency",
    "k_hat",
    "log_evidence",
    "log_evidence_err",
    "evidence_reliable",
)
NUMBERS = (*WEIGHT_NUMBERS, "ood_p_value", "fit_p_value")


@dataclass(frozen=True)
class Parameters:
    """Names (D,), display labels (D,) and units of the parameters."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, prior: Prior) -> Parameters:
        """Return those of a prior."""
        return cls(tuple(prior.names), tuple(prior.labels), dict(prior.units))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Weighted draws of one object, and how far they can be trusted.

    Unpacks as ``samples, weights = posterior``.

    Attributes
    ----------
    parameters : Parameters
    samples : ndarray, shape (S, D)
    log_weights : ndarray, shape (S,)
        Raw and unnormalised; -inf is a weight of zero.
    weights : ndarray, shape (S,)
        Smoothed (PSIS) and normalised.
    log_q, log_prior : ndarray, shape (S,)
        Densities in the space of ``samples`` (latent, when the prior is a bare transform).
    log_likelihood : ndarray, shape (S,)
        NaN where there is no likelihood, or none could be computed.
    status : Status
    flags : frozenset of Flag
    ess, ess_low, efficiency, k_hat : float
        Kish's effective sample size, its 5 % bootstrap quantile, ess / S, the Pareto shape.
    log_evidence, log_evidence_err : float
    evidence_reliable : bool
    ood_p_value : float
        Share of held-out simulations whose features lie further out.
    fit_p_value : float
        Posterior-predictive: probability that the model makes data no likelier than these.
    rungs : tuple of Rung
        What was tried.
    derived : dict of ndarray, shape (S,)
    id : str
    chains : ndarray, shape (C, N, D), or None
        Markov chains, where the object was escalated to them.
    """

    parameters: Parameters
    samples: Array
    log_weights: Array
    weights: Array
    log_q: Array
    log_prior: Array
    log_likelihood: Array
    status: Status
    flags: frozenset[Flag] = frozenset()
    ess: float = 0.0
    ess_low: float = 0.0
    efficiency: float = 0.0
    k_hat: float = np.inf
    log_evidence: float = np.nan
    log_evidence_err: float = np.nan
    evidence_reliable: bool = False
    ood_p_value: float = np.nan
    fit_p_value: float = np.nan
    rungs: tuple[Rung, ...] = ()
    derived: dict[str, Array] = field(default_factory=dict)
    id: str = "0"
    chains: Array | None = None

    def __iter__(self) -> Iterator[Array]:
        return iter((self.samples, self.weights))

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        flags = " ".join(sorted(f.name for f in self.flags)) or "none"
        return (
            f"Posterior({self.id}: {self.status.name}, {len(self)} draws of {self.names}, "
            f"ess={self.ess:.0f}, k_hat={self.k_hat:.2f}, "
            f"log_evidence={self.log_evidence:.3f}+-{self.log_evidence_err:.3f}, flags: {flags})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.parameters.names

    @property
    def certified(self) -> bool:
        """Whether the weights, or chains, of this posterior passed their gate."""
        return self.status.certified

    @property
    def best(self) -> Array:
        """The draw of highest posterior density, shape (D,); NaN when there is none."""
        score = (
            self.log_q if self.status is Status.AMORTIZED else self.log_prior + self.log_likelihood
        )
        score = np.where(self.weights > 0, score, -np.inf)
        if not np.isfinite(score).any():
            return np.full(len(self.names), np.nan)
        return self.samples[np.argmax(score)]

    @property
    def report(self) -> str:
        """Every rung tried, the flags in words, and what no diagnostic can see."""
        lines = [f"{self.id}: {self.status.name}. {self.status.value}"]
        lines += [f"  {rung}" for rung in self.rungs]
        lines += [f"  {f.name}: {f.sentence}" for f in sorted(self.flags)]
        return "\n".join([*lines, f"  {FOOTER}"])

    def mean(self) -> Array:
        """Return the weighted mean, shape (D,)."""
        return self._require_weights() @ self.samples

    def std(self) -> Array:
        """Return the weighted standard deviation, shape (D,)."""
        return np.sqrt(self._require_weights() @ (self.samples - self.mean()) ** 2)

    def quantile(self, q: ArrayLike) -> Array:
        """Return weighted quantiles of each parameter, shape (D,) or (len(q), D)."""
        levels = np.asarray(q, np.float64)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"q must lie in [0, 1], but is {q}.")
        columns = [weighted_quantile(c, self._require_weights(), levels) for c in self.samples.T]
        return np.stack(columns, -1)

    def summary(self) -> QTable:
        """Return a table with one row per parameter: mean, std, quantiles, unit."""
        return export.parameter_table(self)

    def resample(self, n: int, rng: np.random.Generator | int | None = None) -> Array:
        """Return n draws of equal weight, shape (n, D): systematic resampling, shuffled."""
        rng = np.random.default_rng(rng)
        weights = torch.from_numpy(self._require_weights())
        picked = systematic_resample(weights, n, torch.tensor(rng.random())).numpy()
        return self.samples[rng.permutation(picked)]

    def reweight(self, new_prior: Prior) -> Posterior:
        """Return the posterior under another prior on the same parameters.

        The draws stay; ESS, k-hat, evidence and the verdict are judged anew by the caller's eye:
        a prior that moves the mass to where few draws are lowers ``ess`` and raises ``k_hat``.
        """
        if tuple(new_prior.names) != self.names:
            raise ValueError(
                f"new_prior must be of parameters {self.names}, but is of {new_prior.names}."
            )
        log_prior = np.asarray(new_prior.log_prob(self.samples))
        ratio = np.where(np.isfinite(self.log_weights), log_prior - self.log_prior, -np.inf)
        log_weights = np.where(np.isneginf(ratio), -np.inf, self.log_weights + np.nan_to_num(ratio))
        s = summarise(log_weights[None])
        return replace(
            self,
            log_prior=log_prior,
            log_weights=log_weights,
            weights=s.weights[0].numpy(),
            ess=float(s.ess),
            ess_low=float(s.ess_low),
            efficiency=float(s.efficiency),
            k_hat=float(s.k_hat),
            log_evidence=float(s.log_evidence),
            log_evidence_err=float(s.log_evidence_err),
            evidence_reliable=bool(s.evidence_reliable),
        )

    def to_arviz(self) -> Any:  # noqa: ANN401 - arviz is optional
        """Return an arviz InferenceData of resampled draws; chains keep their own group."""
        return export.to_arviz(self)

    def save(self, path: str | Path) -> None:
        """Write the posterior to an HDF5 file of JSON and numbers."""
        archive = self.to_archive()
        write_archive(Path(path), "posterior", archive.meta, archive.arrays)

    def to_archive(self) -> Archive:
        """Return the posterior as JSON and numbers."""
        arrays = {k: getattr(self, k) for k in _ARRAYS}
        arrays |= {f"derived/{k}": v for k, v in self.derived.items()}
        arrays |= {} if self.chains is None else {"chains": self.chains}
        return Archive(self._meta(), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """Read a posterior; nothing in the file is executed."""
        return cls.from_archive(read_archive(Path(path), "posterior"), str(path))

    @classmethod
    def from_archive(cls, archive: Archive, name: str) -> Posterior:
        """Undo `to_archive`; ``name`` is what errors call it."""
        try:
            posterior = cls._of_archive(archive)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchiveError(
                f"{name} must hold a complete posterior, but its parts do not fit: {error!r}."
            ) from error
        n, d = len(posterior.weights), len(posterior.names)
        expected = {k: (n,) for k in _ARRAYS} | {"samples": (n, d)}
        if posterior.chains is not None:
            expected["chains"] = (*posterior.chains.shape[:2], d)
        for array_name, shape in expected.items():
            array = getattr(posterior, array_name)
            if array.shape != shape or array.dtype != np.float64:
                raise ArchiveError(
                    f"{name}: {array_name} must be float64 of shape {shape}, but is "
                    f"{array.dtype} of {array.shape}."
                )
        return posterior

    @classmethod
    def _of_archive(cls, archive: Archive) -> Posterior:
        meta = dict(archive.meta)
        derived = {k[8:]: v for k, v in archive.arrays.items() if k.startswith("derived/")}
        p = meta.pop("parameters")
        return cls(
            parameters=Parameters(tuple(p["names"]), tuple(p["labels"]), p["units"]),
            **{k: archive.arrays[k] for k in _ARRAYS},
            status=Status[meta.pop("status")],
            flags=frozenset(Flag[f] for f in meta.pop("flags")),
            rungs=tuple(Rung(**_floats(r)) for r in meta.pop("rungs")),
            derived=derived,
            id=meta.pop("id"),
            chains=archive.arrays.get("chains"),
            **_floats(meta),
        )

    def _meta(self) -> dict[str, object]:
        p = self.parameters
        return {
            "parameters": {
                "names": list(p.names),
                "labels": list(p.labels),
                "units": dict(p.units),
            },
            "status": self.status.name,
            "flags": sorted(f.name for f in self.flags),
            "rungs": [_plain({f.name: getattr(r, f.name) for f in fields(r)}) for r in self.rungs],
            "id": self.id,
            **_plain({k: getattr(self, k) for k in NUMBERS}),
        }

    def _require_weights(self) -> Array:
        if not len(self.weights) or not self.weights.sum() > 0:
            raise ValueError(
                f"{self.id} must have draws of positive weight for this, but its status is "
                f"{self.status.name} with {len(self.weights)} draws. See posterior.report."
            )
        return self.weights


_ARRAYS = ("samples", "log_weights", "weights", "log_q", "log_prior", "log_likelihood")


def weighted_quantile(values: Array, weights: Array, levels: Array) -> Array:
    """Return quantiles of weighted values (S,), linear between the middles of their steps."""
    order = np.argsort(values)
    steps = weights[order]
    middle = (np.cumsum(steps) - 0.5 * steps) / steps.sum()
    return np.interp(levels, middle, values[order])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return JSON-able values; floats that JSON does not know become strings."""
    return {
        k: repr(float(v)) if isinstance(v, float) and not np.isfinite(v) else v
        for k, v in values.items()
    }


def _floats(values: dict[str, Any]) -> dict[str, Any]:
    """Undo `_plain`."""
    special = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
    return {k: special.get(v, v) if isinstance(v, str) else v for k, v in values.items()}
