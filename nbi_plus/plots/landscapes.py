"""Landscapes: what trials say of one parameter or two, as was learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbi_plus.arguments import one_of, whole
from nbi_plus.plots.style import TRUTH, house_style
from nbi_plus.problem.prior.prior import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REACH = 2.5  # standard deviations of the prior
_DEPTH = 12.0  # below the highest: what is lower has one colour


class SummedOverTrials(Protocol):
    """What a landscape is of: a fitted RatioEngine or LikelihoodEngine."""

    prior_: Prior

    def summed(self, theta: ArrayLike, trials: ArrayLike) -> NDArray[np.float64]:
        """Return what all trials (T, L) say of each theta (n, D)."""


def ratio_landscape(
    engine: SummedOverTrials,
    trials: ArrayLike,
    names: Sequence[str] | None = None,
    *,
    at: ArrayLike | None = None,
    truths: ArrayLike | None = None,
    n: int = 60,
    size: float = 3.4,
) -> Figure:
    """Draw the learned log-ratio, or log-likelihood, of trials over one parameter or two.

    Parameters
    ----------
    engine : RatioEngine or LikelihoodEngine
        Fitted.
    trials : array_like, shape (T, L), or (T,) where a trial is one number
    names : sequence of str, optional
        One or two parameters; default: the first two, or the only one.
    at : array_like, shape (D,), optional
        Where the other parameters are; default: at their medians under the prior.
    truths : array_like, shape (D,), optional
        Marked by lines.
    n : int
        Places along each axis.
    size : float
        Of the picture, in inches.

    Returns
    -------
    Figure
        Heights are relative to the highest place.
    """
    prior, n = engine.prior_, whole("n", n, 2)
    names = (names,) if isinstance(names, str) else names
    chosen = prior.names[:2] if names is None else tuple(names)
    if not 1 <= len(chosen) <= 2:
        raise ValueError(f"names must be one parameter or two, but are {chosen}.")
    columns = [prior.names.index(one_of("names", name, prior.names)) for name in chosen]
    middle = prior.from_latent(np.zeros(prior.n_dim)) if at is None else prior.check([at])[0]
    z = np.linspace(-_REACH, _REACH, n)
    ends = prior.from_latent(np.repeat(z[[0, -1], None], prior.n_dim, 1))
    axes = [np.linspace(*ends[:, column], n) for column in columns]
    theta = np.tile(middle, (n ** len(axes), 1))
    theta[:, columns] = np.stack([v.ravel() for v in np.meshgrid(*axes, indexing="ij")], 1)
    height = engine.summed(theta, trials)
    height = (height - height.max()).reshape([n] * len(axes))
    labels = [prior.labels[column] for column in columns]
    marks = [None if truths is None else prior.check([truths])[0][column] for column in columns]
    with house_style("ratio_landscape") as figure_class:
        figure = figure_class(figsize=(size * 1.2, size))
        panel = figure.subplots()
        if len(axes) == 1:
            panel.plot(axes[0], height)
            panel.set(xlabel=labels[0], ylabel="learned, relative", ylim=(-_DEPTH, 0.05 * _DEPTH))
        else:
            shown = panel.pcolormesh(*axes, height.T, vmin=-_DEPTH, vmax=0.0, shading="nearest")
            figure.colorbar(shown, label="learned, relative")
            panel.set(xlabel=labels[0], ylabel=labels[1])
        for mark, line in zip(marks, (panel.axvline, panel.axhline), strict=False):
            if mark is not None:
                line(mark, **TRUTH)
        figure.tight_layout()
    return figure
