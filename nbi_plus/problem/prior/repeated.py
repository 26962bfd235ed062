"""Repeated: the prior of several objects that have some of their parameters in common."""

from __future__ import annotations

from collections.abc import Sequence

from nbi_plus.problem.prior.prior import Prior
from nbi_plus.problem.prior.transport import IndependentPrior


def repeated(prior: Prior, shared: Sequence[str], ids: Sequence[object]) -> Prior:
    """Return the prior of the shared parameters, and of one copy of the others for each object.

    The copies are called ``{name}[{id}]``, object after object. Values that are fixed stay out, for
    they belong to the simulator of each object.

    Examples
    --------
    >>> from scipy.stats import norm
    >>> repeated(Prior({"a": norm(0, 1), "b": norm(0, 2)}), ["b"], ["x", "y"]).names
    ('b', 'a[x]', 'a[y]')
    """
    if not isinstance(prior.transport, IndependentPrior):
        raise ValueError(
            "prior must have one distribution for each parameter where only some are shared, but "
            f"is {prior!r:.99}. Share all parameters, or give a mapping of distributions."
        )
    laws = dict(zip(prior.names, prior.transport.families, strict=True))
    texts = dict(zip(prior.names, prior.labels, strict=True))
    own = [name for name in prior.names if name not in shared]
    each = {name: name for name in prior.names if name in shared}
    each |= {f"{name}[{i}]": name for i in ids for name in own}
    labels = {new: new.replace(old, texts[old], 1) for new, old in each.items()}
    units = {new: prior.units[old] for new, old in each.items() if old in prior.units}
    made = Prior.__new__(Prior)
    transport = IndependentPrior(tuple(laws[old] for old in each.values()))
    made._set(transport, dict.fromkeys(each), labels, units, None, None)
    return made
