"""Verdicts: whether an answer is what the exact posterior says, and the tables of many verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from nbi_plus import Flag

MEAN_OFF, SD_OFF = 0.2, 0.15  # wrong: a mean off by so many sd, an sd by such a share ...
LOG_Z_OFF = 0.1
ERRORS_OFF = 4.0  # ... and by so many Monte-Carlo errors of the answer
MODE_MASS, MODE_LEFT = 0.05, 0.2  # a mode of so much mass is lost where less than a share is left
NUMBERS = (
    "ess", "ess_low", "efficiency", "k_hat", "log_evidence", "log_evidence_err", "n_simulated",
    "n_gradients",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What is judged of one answer.

    Attributes
    ----------
    mean, sd : ndarray, shape (D,)
    ess : float
        Effective draws behind them.
    log_evidence, log_evidence_err : float
        NaN where there is none; it is judged no further then.
    mode_mass : dict of int to float
        What the answer gives to every mode of the reference; may be empty.
    """

    mean: np.ndarray
    sd: np.ndarray
    ess: float
    log_evidence: float = np.nan
    log_evidence_err: float = np.nan
    mode_mass: dict = field(default_factory=dict)


def judge(answer, reference):
    """Return how far an answer is off, and whether that is wrong.

    Parameters
    ----------
    answer : Answer
    reference : Reference
        Of a family, or of `benchmarks.exact`; ``modes`` are asked for if the answer gives masses.

    Returns
    -------
    dict
        ``mean_off`` in sd of the reference, ``sd_off`` as a share of it, the Monte-Carlo errors of
        both, ``log_z_off``, ``modes_lost``, what is wrong (``wrong_in``), and ``wrong``.
    """
    ess = max(float(answer.ess), 1.0)
    mean_off = (answer.mean - reference.mean) / reference.sd
    sd_off = answer.sd / reference.sd - 1
    mean_error = np.hypot(1 / np.sqrt(ess), reference.mean_error)
    sd_error = np.hypot(np.sqrt((reference.kurtosis - 1) / 4 / ess), reference.sd_error)
    log_z_off = float(answer.log_evidence - reference.log_evidence)
    lost = modes_lost(answer.mode_mass, reference.modes if answer.mode_mass else {}, ess)
    # an answer without numbers is wrong in its moments, an answer without an evidence is not
    found = {
        "mean": not _all_within(mean_off, MEAN_OFF, mean_error),
        "sd": not _all_within(sd_off, SD_OFF, sd_error),
        "evidence": np.isfinite(log_z_off)
        and not _all_within(log_z_off, LOG_Z_OFF, np.nan_to_num(answer.log_evidence_err)),
        "mode": bool(lost),
    }
    return {
        "mean_off": mean_off.tolist(),
        "sd_off": sd_off.tolist(),
        "mean_error": mean_error.tolist(),
        "sd_error": sd_error.tolist(),
        "log_z_off": log_z_off,
        "modes_lost": lost,
        "wrong_in": [name for name, is_wrong in found.items() if is_wrong],
        "wrong": any(found.values()),
    }


def modes_lost(given, exact, ess):
    """Return the labels of modes that an answer of so many effective draws starves.

    Parameters
    ----------
    given, exact : dict of int to float
        Mass of each mode in the answer and in truth.
    ess : float
    """
    return [
        label
        for label, mass in exact.items()
        if mass > MODE_MASS
        and given.get(label, 0.0) < MODE_LEFT * mass
        and mass - given.get(label, 0.0) > ERRORS_OFF * np.sqrt(mass * (1 - mass) / ess)
    ]


def _all_within(off, allowed, error):
    """Say whether nothing is off by more than is allowed and its errors explain; NaN is off."""
    return bool((np.abs(off) <= np.maximum(allowed, ERRORS_OFF * error)).all())


def told(posteriors, i):
    """Return, in plain values, what the package says of answer i."""
    status, flags = posteriors.status[i], posteriors.flags[i]
    return {
        "id": str(posteriors.ids[i]),
        "status": status.name,
        "certified": status.certified,
        "trusted": bool(posteriors.trusted[i]),
        "misfit": Flag.MISFIT in flags,
        "flags": sorted(flag.name for flag in flags),
        "rungs": [asdict(rung) for rung in posteriors.rungs[i]],
        **{k: float(getattr(posteriors, k)[i]) for k in NUMBERS},
    }


@dataclass(frozen=True)
class Bound:
    """A figure and what it may be at most, or at least."""

    name: str
    value: float
    limit: float
    at_most: bool

    @property
    def met(self):
        """Whether the figure is within the bound."""
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    def __str__(self):
        sign = "<=" if self.at_most else ">="
        verdict = "met" if self.met else "NOT MET"
        return f"{self.name}: {self.value:.4g} (bound {sign} {self.limit:g}) {verdict}"


def certified_and_wrong(rows):
    """Return the records that must not be, among those whose likelihood is right."""
    return [
        r
        for r in rows
        if r["certified"] and r["wrong"] and r["exact_is_sound"] and r["kind"] != "bump"
    ]


def plain_bounds(rows):
    """Return the bounds of the sets of ordinary events."""
    return [
        Bound("certified", share(rows, "certified"), 0.97, at_most=False),
        Bound("certified and wrong", len(certified_and_wrong(rows)), 1, at_most=True),
        Bound("without a sound reference", unsound(rows), 0.02, at_most=True),
    ]


def adversarial_bounds(rows):
    """Return the bounds of the adversarial set."""
    right = [r for r in rows if r["kind"] != "bump"]
    ordinary, bumps = of_kind(rows, "ordinary"), of_kind(rows, "bump")
    wrong = len(certified_and_wrong(rows)) / len(right)
    return [
        Bound("certified and wrong, of right likelihoods", wrong, 0.005, at_most=True),
        Bound("bumps flagged MISFIT", share(bumps, "misfit"), 0.9, at_most=False),
        Bound("ordinary, uncertified", 1 - share(ordinary, "certified"), 0.05, at_most=True),
        Bound("without a sound reference", unsound(rows), 0.02, at_most=True),
    ]


def of_kind(rows, kind):
    """Return the records of one kind."""
    return [r for r in rows if r["kind"] == kind]


def share(rows, name):
    """Return the share of records for which something holds."""
    return sum(r[name] for r in rows) / len(rows)


def unsound(rows):
    """Return the share of records that cannot be judged."""
    return 1 - share(rows, "exact_is_sound")


def kind_table(rows):
    """Return a table with a row for each kind."""
    lines = [
        f"{'kind':10s}{'n':>5s}{'certified':>11s}{'wrong':>7s}{'cert+wrong':>12s}{'misfit':>8s}"
    ]
    for kind in dict.fromkeys(r["kind"] for r in rows):
        own = of_kind(rows, kind)
        both = sum(r["certified"] and r["wrong"] for r in own)
        settled = Counter(r["rungs"][-1]["name"] if r["certified"] else "none" for r in own)
        wrong = sum(r["wrong"] for r in own)
        lines.append(
            f"{kind:10s}{len(own):5d}{share(own, 'certified'):11.3f}{wrong:7d}{both:12d}"
            f"{share(own, 'misfit'):8.3f}  settled: "
            + ", ".join(f"{name} {n}" for name, n in settled.most_common())
        )
    return "\n".join(lines)


def rung_table(rows):
    """Return a table with a row for each rung: how many it tried, settled, and what it cost."""
    lines = [f"{'rung':14s}{'tried':>7s}{'passed':>8s}  mean of each object"]
    tried = [rung for r in rows for rung in r["rungs"]]
    for name in dict.fromkeys(rung["name"] for rung in tried):
        own = [rung for rung in tried if rung["name"] == name]
        costs = [c for c in ("n_draws", "n_calls", "n_gradients", "seconds") if c in own[0]]
        means = ", ".join(f"{c} {np.mean([rung[c] for rung in own]):.4g}" for c in costs)
        lines.append(f"{name:14s}{len(own):7d}{sum(r['passed'] for r in own):8d}  {means}")
    return "\n".join(lines)


def describe(row):
    """Return one line about an object."""
    means = " ".join(f"{v:+.2f}" for v in row["mean_off"])
    sds = " ".join(f"{v:+.2f}" for v in row["sd_off"])
    return (
        f"{row['id']}: {row['status']} by {row['rungs'][-1]['name']}, means off {means} sd, sds "
        f"off {sds} (1 error: {row['ess'] ** -0.5:.3f}), k_hat {row['k_hat']:.2f}, efficiency "
        f"{row['efficiency']:.2f}, ess {row['ess']:.0f}, log Z off "
        f"{row['log_evidence'] - row['exact']['log_evidence']:+.3f}, "
        f"wrong in {' '.join(row['wrong_in'])}, flags {' '.join(row['flags']) or 'none'}"
    )
