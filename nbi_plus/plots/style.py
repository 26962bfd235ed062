"""Style: the look of all figures, and the one door through which matplotlib comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, PALE = "#222222", "#BBBBBB"
TRUTH: Mapping[str, Any] = MappingProxyType(
    {"color": "black", "linewidth": 1.0, "linestyle": (0, (4, 2))}
)
GUIDE: Mapping[str, Any] = MappingProxyType({"color": INK, "linewidth": 0.8, "linestyle": ":"})
CREDIBLE = (0.68, 0.95)

STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "font.family": "sans-serif",
        "font.size": 10.0,
        "mathtext.fontset": "dejavusans",
        "text.usetex": False,
        "axes.labelsize": 11.0,
        "axes.titlesize": 10.5,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.direction": "in",
        "ytick.direction": "in",
        "xtick.top": True,
        "ytick.right": True,
        "xtick.labelsize": 9.0,
        "ytick.labelsize": 9.0,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.linewidth": 1.5,
        "figure.facecolor": "white",
        "figure.dpi": 150,
    }
)


@contextmanager
def house_style(caller: str) -> Iterator[Callable[..., Figure]]:
    """Yield what makes figures under `STYLE`; the user's own settings come back afterwards."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'{caller} needs matplotlib. Install it with: pip install "nbi-plus[plots]"'
        ) from error

    def made(**options: Any) -> Figure:  # noqa: ANN401 - as Figure
        figure = Figure(**options)
        # a notebook asks for this, whether pyplot was imported or not
        figure._repr_png_ = partial(png_of, figure)
        return figure

    with matplotlib.rc_context(dict(STYLE)):
        yield made


def png_of(figure: Figure, dpi: float | None = None) -> bytes:
    """Return the picture of a figure, cut to what is drawn; dots per inch are its own, or these."""
    file = BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", dpi=dpi or "figure")
    return file.getvalue()


def colors(n: int) -> list[str]:
    """Return n colours; the first six are told apart by everyone."""
    return [COLORS[i % len(COLORS)] for i in range(n)]
