"""Embedding networks for light curves, spectra, sets and other masked series.

The package stands alone: it needs torch and nothing else, and knows nothing of `nbi_plus`, which it
is installed with. Every featurizer is a `torch.nn.Module` that maps ``x (n, C, L)``, whose last
channel is the mask (1 = a real point), to features ``(n, F)``. Padding, and whatever stands under a
zero mask, change nothing. So it serves as an embedding net elsewhere, too: in sbi as
``embedding_net`` (with ``z_score_x="none"``: scaling would move the mask), in lampe before the
estimator, which then gets ``n_features`` numbers.

`make` makes one by its name (`available`), `options` lists what can be chosen, `MultiInput` joins
several, `as_featurizer` checks a network of your own.
"""

from __future__ import annotations

from dataclasses import asdict, fields

from featurizers.base import Featurizer, WrappedFeaturizer, as_featurizer
from featurizers.checks import check_keys, check_name
from featurizers.deep_set import DeepSet, DeepSetOptions
from featurizers.mlp import MLP, MLPOptions
from featurizers.multi import MultiInput
from featurizers.recurrent import GRU, GRUOptions
from featurizers.resnet import ResNet, ResNetGRU, ResNetGRUOptions, ResNetOptions
from featurizers.set_transformer import SetTransformer, SetTransformerOptions
from featurizers.size import Size, default_size
from featurizers.spectrum import Spectrum, SpectrumOptions
from featurizers.transformer import Transformer, TransformerOptions
from featurizers.vocabulary import NBI_TYPES, from_nbi

__all__ = [
    "MLP",
    "NBI_TYPES",
    "GRU",
    "DeepSet",
    "DeepSetOptions",
    "Featurizer",
    "GRUOptions",
    "MLPOptions",
    "MultiInput",
    "ResNet",
    "ResNetGRU",
    "ResNetGRUOptions",
    "ResNetOptions",
    "SetTransformer",
    "SetTransformerOptions",
    "Size",
    "Spectrum",
    "SpectrumOptions",
    "Transformer",
    "TransformerOptions",
    "WrappedFeaturizer",
    "as_featurizer",
    "available",
    "default_size",
    "from_nbi",
    "make",
    "options",
]

_REGISTRY = {
    "resnet-gru": (ResNetGRU, ResNetGRUOptions),
    "resnet": (ResNet, ResNetOptions),
    "gru": (GRU, GRUOptions),
    "spectrum": (Spectrum, SpectrumOptions),
    "transformer": (Transformer, TransformerOptions),
    "mlp": (MLP, MLPOptions),
    "set": (DeepSet, DeepSetOptions),
    "set-transformer": (SetTransformer, SetTransformerOptions),
}


def available() -> tuple[str, ...]:
    """Return the names that `make` knows."""
    return tuple(_REGISTRY)


def options(name: str) -> tuple[str, ...]:
    """Return the names of the options that `make` takes for one featurizer.

    Examples
    --------
    >>> options("gru")
    ('n_features', 'width', 'n_rnn', 'pool')
    """
    check_name("name", name, _REGISTRY)
    return tuple(f.name for f in fields(_REGISTRY[name][1]) if f.name != "length")


def make(name: str, n_channels: int, length: int, n_params: int, **chosen: object) -> Featurizer:
    """Make a featurizer, untrained, of a size that suits the problem.

    Its first weights are drawn from torch's global generator, as those of any network.

    Parameters
    ----------
    name : str
        One of `available()`.
    n_channels, length, n_params : int
        C (the mask included), L, and the number of parameters to infer; see `default_size`.
    **chosen
        Some of `options(name)`; None, or an option left out, is the default.

    Returns
    -------
    Featurizer

    Examples
    --------
    >>> net = make("resnet-gru", n_channels=3, length=50, n_params=3, depth=2)
    >>> net.n_features
    40
    """
    check_name("name", name, _REGISTRY)
    check_keys(f"options of {name}", chosen, options(name))
    network, options_type = _REGISTRY[name]
    size = asdict(default_size(n_channels, length, n_params))
    sized = {f.name: size[f.name] for f in fields(options_type) if f.name in size}
    given = {key: value for key, value in chosen.items() if value is not None}
    return network(n_channels, options_type(**{**sized, **given}))
