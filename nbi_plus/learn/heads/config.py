"""Config: which density of parameters a network has, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass

from nbi_plus.arguments import seed_of, whole

KINDS = ("maf", "nsf", "mdn", "fm")
_WIDEST = 2**16  # hidden units, blocks or bins: more is a slip


@dataclass(frozen=True)
class FlowConfig:
    """Chosen state of a density.

    Attributes
    ----------
    kind : {"maf", "nsf", "mdn", "fm"}
        Masked affine blocks; masked rational-quadratic splines; a mixture of ``n_mog`` normals; or
        a continuous flow by flow matching. The last two have no blocks.
    n_blocks, hidden, n_layers : int
        Blocks, width and hidden layers of each block's network.
    n_mog : int
        Components: of the base of "maf" and "nsf", a conditional mixture of Gaussians where 1 is a
        standard normal; of "mdn" itself.
    n_bins : int
        Bins of a spline.
    perm_seed : int
        Seed of the order of parameters in each block.
    """

    kind: str = "maf"
    n_blocks: int = 5
    hidden: int = 64
    n_layers: int = 2
    n_mog: int = 4
    n_bins: int = 8
    perm_seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"flow must be one of {list(KINDS)}, but is {self.kind!r}.")
        for name in ("n_blocks", "hidden", "n_layers", "n_mog", "n_bins"):
            whole(name, getattr(self, name), 2 if name == "n_bins" else 1, _WIDEST)
        seed_of("perm_seed", self.perm_seed)
