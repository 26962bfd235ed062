"""Audit: whether there are places that a certified answer does not hold.

Weights say nothing of places that no draw visited. The audit goes uphill from many draws, weighs
the neighbourhood of every peak by draws of its own, and compares with the answer. The end of a long
bent ridge has no peak of its own; but the ratio of the posterior to the proposal has one there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nbi_plus import launch
from nbi_plus.batched import pick
from nbi_plus.infer.ladder.peak_masses import lacking, weighed
from nbi_plus.infer.ladder.rung import RungContext
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal, PriorProposal
from nbi_plus.infer.samplers import ends, peaks
from nbi_plus.infer.samplers.gradients import Gradients
from nbi_plus.infer.samplers.landscape import Landscape
from nbi_plus.infer.samplers.peaks import Peaks, PeaksConfig
from nbi_plus.infer.weights.summary import Grade
from nbi_plus.problem.target import LatentTarget

AUDIT_TIMES = 10.0  # what the first rung took: so long an audit of point lenses takes
_STAGE = "audit"
_CHEAP = 1e-4  # seconds of one simulation
_SCOUTING = 0.4  # seconds that the scouts of one object may take, where simulations are not cheap
_FEWEST = 64
_SCOUTS_OF_BLACK_BOX = 4096
_OF_ONE = 16  # times the starts of one of many
_MANY = 4  # peaks: where there are more of them, some others were not found ...
_MORE = 4  # ... and so many times the starts follow
_POWERS = 0.2, 0.5  # of the proposal's density: little finds what is near, more what is far
_BEYOND = 4  # places of each that are kept: there is one at every end
_TOLD = 4  # peaks of an object that its report names


def is_cheap(target: LatentTarget) -> bool:
    """Say whether simulations cost so little that an audit may make thousands without counting."""
    return target.seconds_per_row <= _CHEAP


@dataclass(frozen=True)
class PeakAudit:
    """Chosen state of the audit.

    Attributes
    ----------
    n_starts : int
        Ascents of each object: half from the steepest places, an eighth each from the heaviest
        draws, the best of cells of the answer, the best of cells of scouts and the highest scouts
        of the prior. A quarter of all without gradients, where no place is known to be steep. Four
        times as many follow, from cells of the prior, where these find many peaks.
    n_tried : int
        Draws and scouts among which the steepest are looked for.
    n_scouts, scout_numbers : int
        Places of the prior and around the answer, half of each, and simulated numbers of all of
        them: so many that narrow places are met where simulations are short.
    n_local : int
        Draws around each peak.
    n_beyond : int
        Ascents of the ratio of posterior to proposal, for each of two powers of the latter; 0
        leaves them out.
    n_quick, n_tried_quick, steep : int, int, float
        Of the quick audit: ascents from the steepest of so many draws alone, and only where their
        steepness is beyond that of a normal by such a factor. 0 ascents leave it out.
    mass_max, mean_max, std_max : float
        An answer misses something if more than this mass is missing, or would move a mean by so
        many standard deviations, or change one by such a share.
    search : PeaksConfig
    """

    n_starts: int = 32
    n_tried: int = 2048
    n_scouts: int = 131_072
    scout_numbers: int = 2**20
    n_local: int = 384
    n_beyond: int = 8
    n_quick: int = 2
    n_tried_quick: int = 64
    steep: float = 4.0
    mass_max: float = 0.05
    mean_max: float = 0.15
    std_max: float = 0.12
    search: PeaksConfig = PeaksConfig(max_steps=60)

    def __post_init__(self) -> None:
        least = {"n_starts": 8, "n_local": 16, "n_quick": 0, "n_beyond": 0}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ValueError(
                    f"{name} must be at least {value}, but is {getattr(self, name)!r}."
                )

    def doubled(self, scouts: int = 1) -> PeakAudit:
        """Return the same with twice the starts, for answers that there is reason to doubt.

        Maybe with so many times the scouts, too.
        """
        n, numbers = scouts * self.n_scouts, scouts * self.scout_numbers
        return replace(self._times(2), n_scouts=n, scout_numbers=numbers)

    def of_one(self, target: LatentTarget) -> PeakAudit:
        """Return the same for one object alone: many more starts, if these are cheap.

        Of black boxes twice as many, and so few scouts that it costs about what the fit did.
        """
        if not target.differentiable:
            return replace(self.doubled(), n_scouts=min(self.n_scouts, _SCOUTS_OF_BLACK_BOX))
        return self._times(_OF_ONE) if is_cheap(target) else self

    def _times(self, n: int) -> PeakAudit:
        return replace(self, n_starts=n * self.n_starts, n_tried=n * self.n_tried)

    def n_scouts_of(self, context: RungContext) -> int:
        """Return how many scouts each object gets."""
        n = min(self.n_scouts, self.scout_numbers // context.target.n_numbers)
        if not is_cheap(context.target):  # what is cheap is not timed: nothing depends on the clock
            n = min(n, int(_SCOUTING / context.target.seconds_per_row))
        return max(n, _FEWEST)

    @property
    def room(self) -> int:
        """How many places of one object are kept at most."""
        return self.search.max_peaks + len(_POWERS) * _BEYOND

    @torch.no_grad()
    def __call__(
        self, outcome: Outcome, keys: Tensor, context: RungContext, *, quick: bool = False,
        proposal: LatentProposal | None = None,
    ) -> Outcome:  # fmt: skip
        """Return the outcome with nothing certified for those whose draws miss a place.

        Parameters
        ----------
        outcome : Outcome
            Of b objects; those that passed are looked at.
        keys : Tensor of int64, shape (b,)
        context : RungContext
            Nothing is counted in its meter, but what was found stands in its report.
        quick : bool
            Look at the steepest draws alone, and no further where these are not steep.
        proposal : LatentProposal, optional
            What the last draws came from: where it ends too early is looked for, too.
        """
        missed = torch.zeros_like(outcome.passed)
        found = Peaks.none(len(missed), self.room, outcome.pool.z)
        if outcome.missed is not None:  # of an earlier look
            missed |= outcome.missed
            found.put(torch.arange(len(missed), device=missed.device), outcome.peaks)
        outcome = self._in_time(outcome, context)
        passed, n_pool = outcome.passed.nonzero()[:, 0], outcome.pool.z.shape[1]
        told, n_spent = [""] * len(missed), torch.zeros_like(outcome.pool.index)
        first = _Audited.look_quickly if quick else _Audited.look
        looks = [(self.n_scouts_of(context) + n_pool, lambda own, _: first(own))]
        if proposal is not None and self.n_beyond:
            n_local = len(_POWERS) * _BEYOND * self.n_local
            looks.append((n_pool + n_local, lambda own, i: own.look_beyond(proposal.select(i))))
        for each, look in looks if len(passed) else ():
            at_once = max(1, launch.of(passed.device).batch_draws // each)
            for rows in passed.split(at_once):
                own = _Audited(outcome.select(rows), keys[rows], context, self)
                with context.meter.timed(outcome.pool.index[rows]):
                    look(own, rows)
                missed[rows] |= own.missed
                found.put(rows, own.peaks.beside(found.select(rows)))
                n_spent[rows] += own.n_spent
                for row, words in zip(rows.tolist(), own.found, strict=True):
                    told[row] = f"{told[row]} {words}".strip()
        words = [told[row] for row in passed.tolist()]
        index = outcome.pool.index[passed]
        context.report.note_audit(index, missed[passed], words, n_spent[passed])
        return outcome.audited(missed, found)

    def _in_time(self, outcome: Outcome, context: RungContext) -> Outcome:
        """Return the outcome with nothing certified that there is no time left to look at."""
        late = outcome.passed & ~context.can_audit(outcome.pool.index)
        if not late.any():
            return outcome
        context.report.note_unaudited(outcome.pool.index[late])
        return replace(outcome, grade=torch.where(late, Grade.F, outcome.grade))


class _Audited:
    """A few objects while they are looked at; everything is of shape (b, ...).

    Attributes
    ----------
    missed : Tensor of bool
    peaks : Peaks
    found : list of str
        What there is to say of these.
    n_spent : Tensor of int64
    """

    def __init__(
        self, outcome: Outcome, keys: Tensor, context: RungContext, config: PeakAudit
    ) -> None:
        pool = outcome.pool
        self._outcome, self._keys, self._context, self._config = outcome, keys, context, config
        self._stage = context.stage(_STAGE)
        height = pool.log_prior + pool.log_likelihood
        height = torch.where(height.isfinite() & ~pool.failed, height, -torch.inf)
        log_weights = outcome.summary.weights.log()
        self._land = Landscape(pool.bounded, height, log_weights, pool.index, keys)
        density = context.density(pool.index)
        self._gradients = Gradients(density, context.gradient_rows)
        self.n_spent = torch.zeros_like(pool.index)
        self.missed = torch.zeros_like(outcome.passed)
        self.peaks = Peaks.none(len(keys), config.room, pool.z)
        self.found = [""] * len(keys)

    def look(self) -> None:
        """Look from all kinds of draws, and where there are many peaks from more of the prior."""
        every = torch.arange(len(self._keys), device=self._keys.device)
        scouts, prior = self._scouts()
        starts = self._starts(scouts, prior)
        self._climb(every, starts)
        rows = (self.peaks.found.sum(1) > _MANY).nonzero()[:, 0]
        if len(rows):
            n, seed = _MORE * starts.shape[1], self._context.seed
            more = pick(prior, rows).best_of_cells(n, seed, f"{self._stage} more")
            self._climb(rows, torch.cat([self.peaks.z[rows], more], 1))

    def look_quickly(self) -> None:
        """Look from the steepest draws, where these are steep."""
        c = self._config
        if not (c.n_quick and self._context.target.differentiable):
            return
        some = self._land.some(c.n_tried_quick, self._context.seed, self._stage)
        starts, steep = self._steepest(c.n_quick, some)
        rows = (steep[:, 0] > c.steep).nonzero()[:, 0]
        if len(rows):
            self._climb(rows, starts[rows])

    def look_beyond(self, proposal: LatentProposal) -> None:
        """Look where the posterior goes on and a proposal does not, from the ends of the draws."""
        context, c, land, index = self._context, self._config, self._land, self._land.index
        n = c.n_beyond // 2
        starts = [land.heaviest(n), land.some(c.n_beyond - n, context.seed, f"{self._stage} ends")]
        found = [
            ends.find(
                context.density(index), proposal, torch.cat(starts, 1), power=power,
                seed=context.seed, circles=context.circles, rows=context.gradient_rows,
                differentiable=context.target.differentiable,
                config=replace(c.search, max_peaks=_BEYOND),
            )
            for power in _POWERS
        ]  # fmt: skip
        both, rows = found[0].beside(found[1]), torch.arange(len(index), device=index.device)
        self.n_spent += both.n_gradients
        cheap = ends.without_networks(proposal)
        # networks are dear: those are asked of whom the other parts say that something is missing
        for q in (proposal,) if cheap is proposal else (cheap, proposal):
            places, own = both.select(rows), self._outcome.select(rows)
            short = lacking(
                places, q.select(rows), own, self._keys[rows], context, c.n_local,
                f"{self._stage} beyond",
            )  # fmt: skip
            self.n_spent[rows] += c.n_local * places.found.sum(1)
            missing = short.missing(c.mass_max, c.mean_max, c.std_max)
            rows, mass = rows[missing], short.mass[missing]
            if not len(rows):
                return
        self.missed[rows] = True
        self.peaks.put(rows, both.select(rows))
        for row, lack in zip(rows.tolist(), mass.tolist(), strict=True):
            self.found[row] = f"Mass {lack:.3g} beyond the ends of the draws."

    def _starts(self, scouts: Landscape, prior: Landscape) -> Tensor:
        c, land, seed, stage = self._config, self._land, self._context.seed, self._stage
        differentiable = self._context.target.differentiable
        n = c.n_starts if differentiable else max(c.n_starts // 4, 8)
        parts = [
            land.heaviest(n // 8), land.best_of_cells(n // 8, seed, stage),
            scouts.best_of_cells(n // 8, seed, stage), prior.highest(n // 8),
        ]  # fmt: skip
        if differentiable:
            few, many = c.n_tried // 4, c.n_tried // 2
            tried = [land.some(few, seed, stage), land.suspects(few, land)]
            tried = torch.cat([*tried, land.suspects(many, scouts)], 1)
            parts.append(self._steepest(n // 2, tried)[0])
        else:
            parts.append(land.suspects(n // 2, scouts))
        if self._outcome.peaks is not None:
            parts.append(self._outcome.peaks.z)  # of an earlier look
        return torch.cat(parts, 1)

    def _steepest(self, n: int, places: Tensor) -> tuple[Tensor, Tensor]:
        self.n_spent += places.shape[1]
        return self._land.steepest(n, places, self._gradients)

    def _scouts(self) -> tuple[Landscape, Landscape]:
        """Return draws of the prior and as many around the answer, and those of the prior alone."""
        context, stage = self._context, f"{self._stage} scouts"
        n = self._config.n_scouts_of(context)
        prior = PriorProposal(self._land.z.shape[-1])
        z = torch.cat([
            prior.draw(self._keys, n // 2, context.seed, stage),
            self._land.wider(n // 2, context.seed, stage),
        ], 1)  # fmt: skip
        height = context.target.log_prob(z, self._land.index)
        self.n_spent += z.shape[1]
        nothing, whose = torch.zeros_like(height), (self._land.index, self._keys)
        alone = slice(None, n // 2)
        return (
            Landscape(z, height, nothing, *whose),
            Landscape(z[:, alone], height[:, alone], nothing[:, alone], *whose),
        )

    def _climb(self, rows: Tensor, starts: Tensor) -> None:
        """Find the peaks of some objects, and what mass they have that the answer has not."""
        context, c = self._context, self._config
        index = self._land.index[rows]
        found = peaks.find(
            context.density(index), starts, seed=context.seed, circles=context.circles,
            differentiable=context.target.differentiable, rows=context.gradient_rows,
            config=c.search,
        )  # fmt: skip
        outcome = self._outcome.select(rows)
        masses = weighed(found, outcome, self._keys[rows], context, c.n_local, self._stage)
        self.n_spent[rows] += found.n_gradients + c.n_local * found.found.sum(1)
        missing = masses.missing(c.mass_max, c.mean_max, c.std_max)
        self.missed[rows] = missing
        self.peaks.put(rows, found)
        told = masses.words(_TOLD)
        for row, text in zip(rows.tolist(), told, strict=True):
            self.found[row] = text
