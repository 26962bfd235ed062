"""Posterior: the answer for one object, with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import generator_of, new_file, path_of, whole
from nbi_plus.data.ingest import numbers
from nbi_plus.infer.posterior import export
from nbi_plus.infer.posterior.agreeing import contradictions
from nbi_plus.infer.posterior.columns import NUMBERS, FiguresOfOne
from nbi_plus.infer.posterior.reweighting import reweighted
from nbi_plus.infer.posterior.status import Flag, RungReport, Status, is_trusted, settled_by
from nbi_plus.infer.weights.resample import systematic_resample
from nbi_plus.infer.weights.summary import Gate
from nbi_plus.io.archive import (
    Archive,
    ArchiveError,
    fitting_parts,
    read_archive,
    write_archive,
)
from nbi_plus.io.parts import joined, split
from nbi_plus.markup import Shown
from nbi_plus.torch_state import door

if TYPE_CHECKING:
    from astropy.table import QTable

    from nbi_plus.problem.prior.prior import Prior

Array = NDArray[np.float64]


FOOTER = "A mode or tail that no proposal and no chain has visited cannot be seen."


@dataclass(frozen=True)
class Parameters:
    """Names (D,), display labels (D,), units and periods (D,) of the parameters."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    periods: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, prior: Prior) -> Parameters:
        """Return those of a prior."""
        return cls(tuple(prior.names), tuple(prior.labels), dict(prior.units), prior.periods)


@dataclass(frozen=True, eq=False)
class Posterior(FiguresOfOne, Shown):
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
    rungs : tuple of RungReport
        What was tried.
    derived : dict of ndarray, shape (S,)
    id : str
    chains : ndarray, shape (C, N, D), or None
        Markov chains, where the object was escalated to them.
    support : ndarray, shape (D, 2), or None
        The edges that the prior sets to ``samples``; infinite where there is none (as on a circle),
        NaN or None where they are not known.
    gate : Gate
        By which rules, and as draws of what family, the weights were judged.
    data_hash : str
        Of data, errors, mask, coordinates and scalars: the same for the same data of an object.
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
    rungs: tuple[RungReport, ...] = ()
    derived: dict[str, Array] = field(default_factory=dict)
    id: str = "0"
    chains: Array | None = None
    support: Array | None = None
    gate: Gate = Gate()
    data_hash: str = ""

    def __iter__(self) -> Iterator[Array]:
        return iter((self.samples, self.weights))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, name: str) -> Array:
        """Return the draws (S,) of a parameter or a derived quantity."""
        known = [*self.names, *self.derived]
        if not isinstance(name, str) or name not in known:
            raise KeyError(f"name must be one of {known}, but is {name!r:.80}.")
        return self.derived[name] if name in self.derived else self.samples[:, known.index(name)]

    def __repr__(self) -> str:
        flags = " ".join(sorted(f.name for f in self.flags)) or "none"
        return (
            f"Posterior({self.id}: {self.status.name}, {len(self)} draws of {self.names}, "
            f"ess={self.ess:.0f}, k_hat={self.k_hat:.2f}, "
            f"log_evidence={self.log_evidence:.3f}+-{self.log_evidence_err:.3f}, flags: {flags})"
        )

    def _repr_html_(self) -> str:
        return export.posterior_html(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.parameters.names

    @property
    def certified(self) -> bool:
        """Whether the weights, or chains, of this posterior passed their gate."""
        return self.status.certified

    @property
    def trusted(self) -> bool:
        """Whether it is certified, and no flag says that the model or the draws are wrong."""
        return is_trusted(self.status, self.flags)

    @property
    def settled_by(self) -> str:
        """The last rung of the report; "" where there is no answer."""
        return settled_by(self.status, self.rungs)

    @property
    def best(self) -> Array:
        """The draw of highest posterior density, shape (D,); NaN when there is none."""
        exact = self.log_prior + self.log_likelihood
        score = self.log_q + self.log_weights if self.status is Status.AMORTIZED else exact
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
        levels = numbers("q", q)
        if not ((levels >= 0) & (levels <= 1)).all():
            raise ValueError(f"q must lie in [0, 1], but is {q}.")
        columns = [weighted_quantile(c, self._require_weights(), levels) for c in self.samples.T]
        return np.stack(columns, -1)

    def summary(self) -> QTable:
        """Return a table with one row per parameter: mean, std, quantiles, unit."""
        return export.parameter_table(self)

    @door
    def resample(self, n: int, rng: np.random.Generator | int | None = None) -> Array:
        """Return n draws of equal weight, shape (n, D): systematic resampling, shuffled."""
        rng, n = generator_of("rng", rng), whole("n", n, 0)
        weights = torch.from_numpy(self._require_weights())
        start = torch.tensor(rng.random(), dtype=torch.float64)
        picked = systematic_resample(weights, n, start).numpy()
        return self.samples[rng.permutation(picked)]

    @door
    def reweight(self, new_prior: Prior) -> Posterior:
        """Return the posterior under another prior on the same parameters, judged anew.

        The draws stay, and no simulation is made. Weights, ``ess``, ``k_hat``, evidence, the flags
        that are about weights, the verdict and the report are those of the new weights; k-hat of
        the second moments is taken in the latent space of the new prior. Flags about the data or
        the simulator stay, and so does ``fit_p_value``, an average over the posterior as it was.

        The gate is the one that the answer was judged by (``gate``). Draws of the
        network need its efficiency as before. Pools of fitted proposals hold the draws of early
        rounds, too, which a certificate of fresh draws had left aside; chains, resampled draws and
        uncorrected draws of a network are draws of the answer already. Of these the gate asks the
        same efficiency of the change of prior alone: new effective draws for each old one. Answers
        that pass keep their status (``AMORTIZED`` among them, which stays uncorrected for the
        likelihood), others become ``UNCERTIFIED``; nothing that was not certified becomes so.

        So do posteriors of which more than 1 % can lie where the old prior allowed no draws, with
        the flag ``SUPPORT``: see `nbi_plus.infer.posterior.support.missing_share` for the rule.
        Draws on a circle are moved to the new prior's side of its cut. Chains are left out: they
        are of the old prior. Where this fails, `Engine.predict` with ``prior=`` draws anew.

        Raises
        ------
        ValueError
            For other parameters, units or circles, or where the old prior has no density of theta.
        """
        return reweighted([self], new_prior)[0]

    def to_arviz(self) -> Any:  # noqa: ANN401 - arviz is optional
        """Return an arviz InferenceData of resampled draws; chains keep their own group."""
        return export.to_arviz(self)

    def save(self, path: str | Path) -> None:
        """Write the posterior to an HDF5 file of JSON and numbers."""
        archive = self.to_archive()
        write_archive(new_file("path", path), "posterior", archive.meta, archive.arrays)

    def to_archive(self) -> Archive:
        """Return the posterior as JSON and numbers."""
        arrays = {k: getattr(self, k) for k in _ARRAYS}
        arrays |= joined({"derived": self.derived})
        arrays |= {k: v for k in _EXTRA if (v := getattr(self, k)) is not None}
        return Archive(self._meta(), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """Read a posterior; nothing in the file is executed."""
        return cls.from_archive(read_archive(path_of("path", path), "posterior"), str(path))

    @classmethod
    def from_archive(cls, archive: Archive, name: str) -> Posterior:
        """Undo `to_archive`; ``name`` is what errors call it."""
        with fitting_parts(name, "posterior"):
            posterior = cls._of_archive(archive)
            told = next(contradictions(posterior), None)
        if told is not None:
            raise ArchiveError(
                f"{name} must hold an answer that agrees with itself, but {told}. The file is "
                "damaged or forged: predict again."
            )
        return posterior

    @classmethod
    def _of_archive(cls, archive: Archive) -> Posterior:
        meta = dict(archive.meta)
        p = meta.pop("parameters")
        return cls(
            parameters=Parameters(
                tuple(p["names"]), tuple(p["labels"]), p["units"], tuple(p.get("periods", ()))
            ),
            **{k: archive.arrays[k] for k in _ARRAYS},
            status=Status[meta.pop("status")],
            flags=frozenset(Flag[f] for f in meta.pop("flags")),
            rungs=tuple(RungReport(**_floats(r)) for r in meta.pop("rungs")),
            derived=split(archive.arrays).get("derived", {}),
            id=meta.pop("id"),
            gate=Gate(**_floats(meta.pop("gate", {}))),
            **{k: archive.arrays.get(k) for k in _EXTRA},
            **_floats(meta),
        )

    def _meta(self) -> dict[str, object]:
        p = self.parameters
        return {
            "parameters": {
                "names": list(p.names),
                "labels": list(p.labels),
                "units": dict(p.units),
                "periods": list(p.periods),
            },
            "status": self.status.name,
            "flags": sorted(f.name for f in self.flags),
            "rungs": [_plain({f.name: getattr(r, f.name) for f in fields(r)}) for r in self.rungs],
            "id": self.id,
            "gate": _plain(vars(self.gate)),
            "data_hash": self.data_hash,
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
_EXTRA = ("chains", "support")


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
