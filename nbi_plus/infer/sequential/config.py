"""Plans: what a sequential fit is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nbi_plus.arguments import one_of, real, whole
from nbi_plus.infer.ladder.audit import is_cheap
from nbi_plus.infer.ladder.hints import Look
from nbi_plus.infer.posterior.outcome import Outcome
from nbi_plus.infer.proposals.base import LatentProposal
from nbi_plus.infer.sequential.rounds import Rounds
from nbi_plus.learn.network import PosteriorNetwork
from nbi_plus.problem.target import Target

LOCATE = ("auto", "peaks", "network")


@dataclass(frozen=True)
class RoundsConfig:
    """Chosen state of a sequential fit.

    Attributes
    ----------
    n_per_round : int
        Simulations of a round.
    n_rounds : int
        Rounds of locating and adapting, the first included.
    ess_target : float
        Wanted effective sample size of the answer.
    max_sims : int
        Simulations in all.
    max_seconds : float
    locate : {"auto", "peaks", "network"}
        What finds the place: the peaks of the density, uphill from the best draws; or networks
        trained round after round. "auto" looks for peaks where torch can differentiate the
        target or a call takes less than 0.1 ms, and trains networks elsewhere, and where peaks
        were of no use.
    scout_share : float
        Of a round: draws of the prior that ways uphill begin from, and as many again each time
        that these find several peaks, up to a whole round.
    least_scouts : int
        The same as a number, where the budget has ten times as many.
    locate_ess : tuple of int
        The network locates until so many draws are effective: per parameter, and at least.
    max_adapt : int
        Most rounds of adapting in a row.
    max_attempts : int
        How often certificates may fail before the fit gives up.
    fit_points : int
        Draws that a mixture is fitted to at most.
    bootstrap : float
        Simulations that a network is trained on, for each of a round.
    bootstrap_ess : float
        Weights are flattened until so many of them are effective, as a share of a round.
    certify_draws : int
        Fresh draws at least.
    spare : float
        Draws asked for beyond those that should suffice.
    gain : float
        Adapting ends when the efficiency grew by less than this factor, twice.
    """

    n_per_round: int
    n_rounds: int
    ess_target: float = 1000.0
    max_sims: int | None = None
    max_seconds: float | None = None
    locate: str = "auto"
    scout_share: float = 0.25
    least_scouts: int = 100
    locate_ess: tuple[int, int] = (10, 50)
    max_adapt: int = 8
    max_attempts: int = 4
    fit_points: int = 4000
    bootstrap: float = 4.0
    bootstrap_ess: float = 0.5
    certify_draws: int = 1000
    spare: float = 1.2
    gain: float = 1.1

    def __post_init__(self) -> None:
        for name in ("n_per_round", "n_rounds"):
            whole(name, getattr(self, name))
        if not real("ess_target", self.ess_target) > 0:
            raise ValueError(f"ess_target must be positive, but is {self.ess_target!r}.")
        one_of("locate", self.locate, LOCATE)
        if self.max_sims is not None and not whole("max_sims", self.max_sims) >= self.n_per_round:
            raise ValueError(
                f"max_sims must be at least n_sims = {self.n_per_round}, one round, but is "
                f"{self.max_sims!r}."
            )
        if self.max_seconds is not None and not real("max_seconds", self.max_seconds) > 0:
            raise ValueError(f"max_seconds must be positive, but is {self.max_seconds!r}.")

    @property
    def budget(self) -> int:
        """Simulations in all."""
        return self.n_per_round * self.n_rounds if self.max_sims is None else self.max_sims

    @property
    def n_scouts(self) -> int:
        """Draws of the prior at first, where gradients lead on from them."""
        wanted = max(int(self.scout_share * self.n_per_round), self.least_scouts)
        return min(wanted, self.n_per_round, max(self.budget // 10, 2))

    def goes_uphill(self, target: Target) -> bool:
        """Say whether ways uphill locate."""
        cheap = target.differentiable or is_cheap(target)
        return self.locate == "peaks" or (self.locate == "auto" and cheap)


@dataclass(frozen=True)
class RoundZero:
    """The draws of round 0: of the prior, simulated already, or of a network still to be asked.

    Attributes
    ----------
    simulations : tuple of Tensor, or None
        Prior draws z (n, D), models (n, C, L) and whether they failed (n,).
    network : PosteriorNetwork or None
        An amortized one; its posterior takes the place of the prior.
    look : Look or None
        Where to look besides.
    """

    simulations: tuple[Tensor, Tensor, Tensor] | None = None
    network: PosteriorNetwork | None = None
    look: Look | None = None


@dataclass(frozen=True)
class SequentialOutcome:
    """What a sequential fit found.

    Attributes
    ----------
    outcome : Outcome
    frozen : LatentProposal
        What the last draws came from: more can be drawn.
    rounds : Rounds
    network : PosteriorNetwork or None
        The locator.
    """

    outcome: Outcome
    frozen: LatentProposal
    rounds: Rounds
    network: PosteriorNetwork | None
