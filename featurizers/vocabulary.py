"""The option names of the nbi package, translated into ours."""

from __future__ import annotations

from collections.abc import Mapping

from featurizers.checks import check_at_least, check_keys, check_name

NBI_TYPES = ("resnet-gru", "resnet", "gru", "transformer")
_RESNET = {
    "dim_out": "n_features",
    "dim_conv_min": "width_first",
    "dim_conv_max": "width",
    "max_hidden": "width",
    "kernel": "kernel",
    "depth": "depth",
    "norm": "norm",
}
_MEANINGS = {
    "resnet": _RESNET,
    "resnet-gru": {**_RESNET, "n_rnn": "n_rnn", "dim_hidden": "hidden"},
    "gru": {"dim_out": "n_features", "dim_hidden": "width", "depth": "n_rnn", "n_rnn": "n_rnn"},
    "transformer": {"dim_out": "n_features", "dim_hidden": "width", "depth": "n_layers"},
}
_NORMS = {
    "weight_norm": "weight",
    "layer_norm": "layer",
    "weight": "weight",
    "layer": "layer",
    "none": "none",
}
_NBI_CAP = 256  # where nbi's doubling from dim_conv_min ends unless told otherwise
_KEYS = {"type", "dim_in", "dim_hidden", "n_rnn", *_RESNET}


def from_nbi(
    config: Mapping[str, object], n_channels: int | None = None
) -> tuple[str, dict[str, object]]:
    """Translate a featurizer dictionary of the nbi package into a name and options of ours.

    ============================== ==============================================================
    key                            meaning
    ============================== ==============================================================
    ``type``                       "resnet-gru" (the default), "resnet", "gru" or "transformer"
    ``dim_in``                     channels of the data, without error, coordinates and mask
    ``dim_out``                    features returned; -1 for our choice
    ``dim_conv_min``               channels of the first residual block; each further block
                                   doubles them
    ``dim_conv_max``, ``max_hidden`` the largest number of channels
    ``kernel``                     length of the filters
    ``depth``                      residual blocks, each of which halves the series; layers of
                                   a GRU or transformer
    ``n_rnn``                      recurrent layers; 0 makes a ResNet of a ResNet-GRU
    ``norm``                       "weight_norm", "layer_norm" or "none"
    ``dim_hidden``                 size of the recurrent state; channels of a transformer
    ============================== ==============================================================

    Types that nbi does not have have no such dictionary: `make` takes their own options.

    A known key that has no meaning for the type is ignored, as nbi does. What is not given is our
    default, but for the cap of 256 that goes with ``dim_conv_min``.

    Parameters
    ----------
    config : mapping
        Left as it is.
    n_channels : int, optional
        Channels the network will see, to check ``dim_in`` against; the mask is one of them.

    Returns
    -------
    name : str
    options : dict
        For ``make(name, n_channels, length, n_params, **options)``.

    Examples
    --------
    >>> from_nbi({"type": "ResNet-GRU", "dim_in": 1, "dim_out": 128, "depth": 3})
    ('resnet-gru', {'n_features': 128, 'depth': 3})
    """
    check_keys("featurizer keys", config, _KEYS)
    given = {key: value for key, value in config.items() if value is not None}
    name = _name(given)
    if n_channels is not None and "dim_in" in given:
        _check_channels(given["dim_in"], n_channels)
    if given.get("dim_out") == -1:
        del given["dim_out"]
    if "norm" in given:
        given["norm"] = _norm(given["norm"])
    options: dict[str, object] = {}
    for key, ours in _MEANINGS[name].items():
        if key in given:
            if options.get(ours, given[key]) != given[key]:
                raise ValueError(
                    f"{key} must agree with the other key for {ours}, but {options[ours]!r} and "
                    f"{given[key]!r} were given. Remove one of them."
                )
            options[ours] = given[key]
    if "width_first" in options:
        options.setdefault("width", _NBI_CAP)
    return name, options


def _name(given: dict[str, object]) -> str:
    """Return our name of the type, in which a ResNet-GRU without recurrent layer is a ResNet."""
    name = str(given.get("type", NBI_TYPES[0])).lower().replace("_", "-")
    check_name("type", name, NBI_TYPES)
    return "resnet" if name == "resnet-gru" and given.get("n_rnn") == 0 else name


def _norm(norm: object) -> str:
    """Return our name of a normalisation; one over the batch has none."""
    if str(norm).startswith("batch"):
        raise ValueError(
            f'norm must be "weight_norm", "layer_norm" or "none", but is {norm!r}: over a batch, '
            "an object's features would depend on its neighbours and their padding. "
            'Take "weight_norm".'
        )
    check_name("norm", norm, _NORMS)
    return _NORMS[str(norm)]


def _check_channels(dim_in: object, n_channels: int) -> None:
    """Raise unless the data's channels and the mask fit into the channels of the network."""
    check_at_least("dim_in", dim_in, 1)
    if dim_in >= n_channels:
        raise ValueError(
            f"dim_in must be below the {n_channels} channels of the network, of which one is the "
            f"mask, but is {dim_in}. Set dim_in to the number of channels of your data."
        )
