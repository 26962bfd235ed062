"""Laws of the featurizers: the mask, padding, sizes, options, and networks of one's own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from contracts import check_featurizer
from torch import nn

import featurizers

VARIANTS = {
    "resnet-gru": {},
    "resnet-gru, layer norm": {"norm": "layer", "kernel": 3, "activation": "gelu"},
    "resnet-gru, full stem": {"stem_stride": 1, "norm": "none", "n_rnn": 2, "hidden": 24},
    "resnet": {},
    "resnet, last": {"pool": "last+mean", "width_first": 8, "width": 48},
    "gru": {"n_rnn": 2},
    "mlp": {"n_layers": 3},
    "set": {},
    "set, deeper": {"n_layers": 3, "width": 32, "activation": "gelu"},
    "set-transformer": {},
    "set-transformer, small": {"n_induced": 2, "n_seeds": 1, "n_layers": 1, "n_heads": 2},
    "transformer": {},
    "transformer, by time": {"time_channel": 1, "n_layers": 1},
    "spectrum": {},
    "spectrum, halved": {"n_halvings": 2, "n_dilated": 0, "norm": "layer"},
}
SETS = ("set", "set-transformer")


def build(variant, n_channels=3, length=50, n_params=3, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name = variant.split(",")[0]
        chosen = {**VARIANTS.get(variant, {}), **options}
        return featurizers.make(name, n_channels, length, n_params, **chosen)


def series(n, n_channels, length, seed=0):
    x = torch.randn(n, n_channels, length, generator=torch.Generator().manual_seed(seed))
    x[:, -1] = 1.0
    return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_featurizer_keeps_its_contract(variant):
    check_featurizer(build(variant), n_channels=3, length=50)


@pytest.mark.parametrize("name", featurizers.available())
@pytest.mark.parametrize(("n_channels", "length"), [(2, 1), (2, 7), (5, 200)])
def test_default_featurizer_keeps_its_contract_at_other_shapes(name, n_channels, length):
    check_featurizer(build(name, n_channels, length), n_channels=n_channels, length=length)


def two_kinds(n=6, lengths=(20, 60), seed=3):
    """Return series (n, 6, 80): x, x, t, mask of kind 0, mask of kind 1, mask of either."""
    x = series(n, 6, sum(lengths), seed)
    steps = torch.arange(sum(lengths))
    own = torch.randint(3, lengths[0], (n, 1), generator=torch.Generator().manual_seed(seed))
    x[:, 3] = (steps < own).float()
    x[:, 4] = ((steps >= own) & (steps < own + lengths[1])).float()
    x[:, 5] = x[:, 3] + x[:, 4]
    return x


def multi():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [featurizers.make("gru", 3, 20, 3), featurizers.make("spectrum", 3, 60, 3)]
        return featurizers.MultiInput(parts, [[0, 2, 3], [1, 2, 4]])


def test_each_kind_of_data_reaches_its_own_featurizer_alone():
    net, x = multi(), two_kinds()
    features = net(x)
    assert features.shape == (6, net.n_features)
    n_first = net.parts[0].n_features
    for own, other, part in ((0, 1, slice(n_first, None)), (1, 0, slice(0, n_first))):
        changed = x.clone()
        changed[:, own] += x[:, 3 + own]
        moved = (net(changed) - features).abs().amax(0)
        assert not moved[part].any(), "the other kind's features must stay as they are"
        assert moved.max() > 1e-3
        hidden = x.clone()  # what kind ``own`` holds where it has no point is nothing
        hidden[:, own] = torch.where(x[:, 3 + own] > 0, x[:, own], torch.nan)
        torch.testing.assert_close(net(hidden), features)
        lacking = x.clone()
        lacking[:, 3 + other] = 0.0
        assert net(lacking).isfinite().all()


def test_a_kind_gives_the_same_features_wherever_it_stands():
    net, x = multi(), two_kinds()
    for i in range(len(x)):
        own = int(x[i, 3].sum())
        alone = net.parts[1](x[i : i + 1, [1, 2, 4], own : own + 60])
        torch.testing.assert_close(net(x)[i, net.parts[0].n_features :], alone[0])
    padded = torch.cat([x, torch.zeros(6, 6, 37)], 2)
    torch.testing.assert_close(net(padded), net(x), rtol=1e-5, atol=1e-5)


def test_a_spectrum_of_ten_thousand_pixels_is_seen_from_end_to_end():
    net = build("spectrum", 3, 10_000, 4)
    x = series(2, 3, 10_000)
    x[:, -1, 300:420] = 0.0  # a chip gap
    x.requires_grad_()
    net(x)[0, 0].backward()
    reach = x.grad[0, 0].abs() > 0
    assert reach[:300].any()
    assert reach[-100:].any()
    assert not reach[300:420].any()
    start = torch.zeros(1, net.dilated[0].wide.in_channels, 10_000 // 2**6).requires_grad_()
    y, mask = start, torch.ones(1, 1, start.shape[2])
    for look in net.dilated:
        y = look(y, mask)
    y[0, :, 80].sum().backward()
    assert (start.grad[0].abs().sum(0) > 0).sum() > 100, "the dilated blocks must see far"


class Broken(featurizers.Featurizer):
    """Breaks one clause of the contract at a time."""

    def __init__(self, how):
        super().__init__()
        self.how, self.n_features = how, 4
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        mask = x[:, -1:] > 0.5
        values = torch.where(mask, x, 0.0)
        total = values.sum(2)
        summary = {
            "reads under the mask": lambda: x.sum(2),
            "counts the padding": lambda: values.mean(2),
            "divides by no point": lambda: total / mask.sum(2),
            "looks at its batch": lambda: total - total.mean(0),
            "draws random numbers": lambda: total + torch.randn(1),
            "works in float32 alone": lambda: total.float(),
            "ignores the data": lambda: 0 * total,
            "normalises a batch": lambda: self.norm(total),
            "nothing": lambda: total * self.norm.weight + self.norm.bias,
        }[self.how]()
        return self.linear(summary)


@pytest.mark.parametrize(
    "how",
    [
        "reads under the mask",
        "counts the padding",
        "divides by no point",
        "looks at its batch",
        "draws random numbers",
        "works in float32 alone",
        "ignores the data",
        "normalises a batch",
    ],
)
def test_contract_refuses_what_breaks_it(how):
    check_featurizer(Broken("nothing"), n_channels=3, length=20)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check_featurizer(Broken(how), n_channels=3, length=20)


def test_transformer_by_time_ignores_the_order_of_the_points():
    net, x = build("transformer, by time"), series(4, 3, 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x[:, :, order]), net(x), rtol=1e-5, atol=1e-5)
    by_step = build("transformer")
    assert (by_step(x[:, :, order]) - by_step(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", featurizers.available())
def test_featurizer_is_pickled_and_made_again_from_its_seed(name):
    net, x = build(name), series(4, 3, 50)
    again = pickle.loads(pickle.dumps(net))  # noqa: S301
    assert torch.equal(again(x), net(x))
    assert torch.equal(build(name)(x), net(x))
    assert not torch.equal(build(name, seed=1)(x), net(x))


# torch's compiler itself looks at .grad when it resumes after a recurrent layer
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", featurizers.available())
def test_featurizer_compiles(name):
    net, x = build(name), series(4, 3, 50)
    whole = "gru" not in name  # torch's compiler runs every recurrent layer outside its graph
    compiled = torch.compile(net, backend="eager", fullgraph=whole)
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("name", [n for n in featurizers.available() if n not in SETS])
def test_featurizer_learns_the_time_of_a_bump(name):
    net = build(name, n_channels=2, length=30, n_params=1)
    head = nn.Linear(net.n_features, 1)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
    losses = []
    for _ in range(100):
        t0 = torch.rand(64, 1, generator=rng)
        bump = torch.exp(-0.5 * ((torch.linspace(0, 1, 30) - t0) / 0.1) ** 2)
        x = torch.stack([bump, torch.ones_like(bump)], dim=1)
        loss = (head(net(x)) - (t0 - 0.5) * 12**0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.1  # 1 is what the prior mean gives


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.split(",")[0] in SETS])
@pytest.mark.parametrize("n_points", [1, 7, 200])
def test_featurizer_of_sets_ignores_order_and_padding(variant, n_points):
    net, x = build(variant), series(5, 3, n_points)
    x[:, -1, n_points // 2 :] = 0.0
    order = torch.randperm(n_points, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([torch.full((5, 3, 40), torch.nan), x[:, :, order]], 2)
    padded[:, -1, :40] = 0.0
    torch.testing.assert_close(net(padded), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", SETS)
def test_featurizer_of_sets_knows_how_many_points_there_are(variant):
    net, x = build(variant), series(4, 3, 10)
    twice = torch.cat([x, x], 2)
    assert (net(twice) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", SETS)
def test_every_point_of_a_set_reaches_every_feature(variant):
    net, x = build(variant), series(1, 3, 6).requires_grad_()
    for feature in range(net.n_features):
        (grad,) = torch.autograd.grad(net(x)[0, feature], x)
        assert (grad[0, 0] != 0).all()


@pytest.mark.parametrize("name", SETS)
def test_featurizer_of_sets_learns_the_spread_of_sets_of_any_size(name):
    net = build(name, n_channels=2, length=30, n_params=1)
    head = nn.Linear(net.n_features, 1)
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], lr=2e-3)
    losses = []
    for _ in range(150):
        log_sd = torch.rand(64, 1, generator=rng) * 2 - 1
        x = torch.randn(64, 40, generator=rng) * log_sd.exp()
        mask = (torch.arange(40) < torch.randint(20, 41, (64, 1), generator=rng)).float()
        loss = (head(net(torch.stack([x, mask], 1))) - log_sd).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # the prior mean gives 1 / 3; the error of a sample deviation is 1 / (2 n), n about 30
    assert sum(losses[-30:]) / 30 < 0.06


def test_default_size_grows_with_each_argument():
    size = featurizers.default_size
    assert size(3, 50, 3) == featurizers.Size(length=50, depth=2, width=64, n_features=40)
    assert [size(3, length, 3).depth for length in (1, 16, 64, 1000, 4000)] == [1, 1, 2, 6, 8]
    assert [size(3, 50, d).width for d in (1, 5, 7, 20)] == [64, 112, 208, 256]
    assert [size(c, 50, 1).width for c in (2, 12)] == [64, 96]
    assert [size(3, 50, d).n_features for d in (1, 4, 20)] == [32, 64, 128]
    with pytest.raises(ValueError, match="length must be at least 1, but is 0"):
        size(3, 0, 3)


def test_widths_double_and_reach_the_width():
    def widths(**options):
        chosen = {"n_features": 8, "depth": 4, "width": 64, **options}
        return featurizers.ResNetOptions(**chosen).widths

    assert widths(width_first=16) == (16, 32, 64, 64)
    assert widths() == (32, 64, 64, 64)
    assert widths(width=512, depth=2) == (256, 512)
    assert widths(width=8) == (8, 8, 8, 8)


def test_options_are_taken_and_none_means_ours():
    net = featurizers.make("resnet-gru", 3, 50, 3, n_features=7, depth=2, n_rnn=2, width=None)
    assert net.n_features == net(series(2, 3, 50)).shape[1] == 7
    assert len(net.trunk.blocks) == net.gru.num_layers == 2
    assert net.gru.hidden_size == featurizers.default_size(3, 50, 3).width
    assert set(featurizers.options("gru")) == {"n_features", "width", "n_rnn", "pool"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "resnet50",
            {},
            ", ".join(map(repr, featurizers.available())) + ", but is 'resnet50'",
        ),
        ("gru", {"kernel": 3}, "n_features, n_rnn, pool, width, but has kernel"),
        ("resnet", {"kernel": 4}, "kernel must be odd, but is 4"),
        ("resnet", {"depth": 0}, "depth must be a whole number >= 1, but is 0"),
        ("resnet", {"depth": "deep"}, "depth must be a whole number >= 1, but is 'deep'"),
        ("resnet", {"norm": "batch"}, "'weight', 'layer', 'none', but is 'batch'"),
        ("resnet", {"activation": "tan"}, "activation must be one of 'relu'"),
        ("resnet", {"stem_stride": 3}, "stem_stride must be one of 1, 2, but is 3"),
        ("resnet", {"width": 16, "width_first": 32}, "width_first must be at most width = 16"),
        ("resnet-gru", {"pool": "last+median"}, "but is 'median'"),
        ("transformer", {"width": 30}, "width must be a multiple of n_heads, but 30 is none of 4"),
        ("transformer", {"time_channel": 3}, "time_channel must be one of 0, 1, 2, but is 3"),
    ],
)
def test_make_refuses_what_it_does_not_know(name, options, words):
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        featurizers.make(name, 3, 50, 3, **options)
    if not options:
        with pytest.raises(ValueError, match="name must be one of"):
            featurizers.options(name)


def test_nbi_dictionary_keeps_its_meaning():
    config = {
        "type": "ResNet-GRU", "dim_in": 1, "dim_out": 24, "dim_conv_min": 8, "dim_conv_max": 20,
        "max_hidden": 20, "kernel": 3, "depth": 3, "n_rnn": 2, "norm": "weight_norm",
        "dim_hidden": 12,
    }  # fmt: skip
    given = copy.deepcopy(config)
    name, options = featurizers.from_nbi(config, n_channels=4)
    assert config == given
    assert name == "resnet-gru"
    net = featurizers.make(name, 4, 50, 3, **options)
    assert [block.conv_2.out_channels for block in net.trunk.blocks] == [8, 16, 20]
    assert net.trunk.stem.kernel_size == (3,)
    assert (net.gru.num_layers, net.gru.hidden_size, net.n_features) == (2, 12, 24)


@pytest.mark.parametrize(
    ("config", "name", "options"),
    [
        ({"dim_in": 2, "dim_out": -1, "depth": 3}, "resnet-gru", {"depth": 3}),
        ({"type": "resnet-gru", "n_rnn": 0}, "resnet", {}),
        ({"type": "resnet", "n_rnn": 2, "norm": "layer_norm"}, "resnet", {"norm": "layer"}),
        ({"type": "resnet", "dim_conv_min": 32}, "resnet", {"width_first": 32, "width": 256}),
        ({"type": "GRU", "dim_hidden": 9, "depth": 2}, "gru", {"width": 9, "n_rnn": 2}),
        ({"type": "transformer", "dim_hidden": 8}, "transformer", {"width": 8}),
    ],
)
def test_nbi_dictionary_is_translated(config, name, options):
    assert featurizers.from_nbi(config) == (name, options)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dim_output": 3}, "dim_conv_max, .*type, but has dim_output"),
        ({"type": "rnn"}, "type must be one of 'resnet-gru'"),
        ({"norm": "batch_norm"}, "over a batch, an object's features"),
        ({"norm": "group"}, "norm must be one of"),
        ({"dim_conv_max": 64, "max_hidden": 32}, "64 and 32 were given"),
        ({"dim_in": 3}, "dim_in must be below the 3 channels"),
    ],
)
def test_nbi_dictionary_refuses_what_it_does_not_know(config, words):
    with pytest.raises(ValueError, match=words):
        featurizers.from_nbi(config, n_channels=3)


def test_own_network_is_wrapped_and_left_as_it_was():
    net = nn.Sequential(nn.Flatten(), nn.Linear(150, 12), nn.BatchNorm1d(12), nn.Dropout(0.5))
    net[3].eval()
    before = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    wrapped = featurizers.as_featurizer(net, n_channels=3, length=50)
    assert isinstance(wrapped, featurizers.Featurizer)
    assert wrapped.n_features == 12
    assert (net.training, net[3].training) == (True, False)
    assert all(torch.equal(v, before[0][k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    x = series(4, 3, 50)
    assert torch.equal(wrapped.eval()(x), net.eval()(x))


def test_own_network_may_be_lazy_or_without_parameters_or_double():
    lazy = featurizers.as_featurizer(nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), 3, 50)
    assert lazy(series(2, 3, 50)).shape == (2, 6)
    assert featurizers.as_featurizer(nn.Flatten(), 3, 50).n_features == 150
    double = nn.Sequential(nn.Flatten(), nn.Linear(150, 5)).double()
    assert featurizers.as_featurizer(double, 3, 50).n_features == 5


def test_own_featurizer_is_returned_as_it_is():
    net = build("resnet")
    assert featurizers.as_featurizer(net, 3, 50) is net


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class NotFinite(nn.Module):
    def forward(self, x):
        return x[:, 0] / 0.0


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 5)), "but raised RuntimeError"),
        (nn.Linear(50, 5), r"but returned \(2, 3, 5\)"),
        (nn.Flatten(0), r"but returned \(300,\)"),
        (Pair(), "but returned a tuple"),
        (NotFinite(), "but returned NaN or inf"),
    ],
)
def test_own_network_that_does_not_fit_is_refused(module, words):
    with pytest.raises(ValueError, match=words):
        featurizers.as_featurizer(module, 3, 50)


def test_own_network_must_be_an_instance():
    with pytest.raises(TypeError, match="must be a torch.nn.Module, but is a function"):
        featurizers.as_featurizer(lambda x: x, 3, 50)


def test_mlp_refuses_more_points_than_it_was_made_for():
    net, x = featurizers.make("mlp", 3, 6, 2), torch.ones(2, 3, 9)
    with pytest.raises(ValueError, match="at most 6 points for this mlp, but have 9"):
        net(x)
    x[:, -1, 6:] = 0.0
    assert torch.equal(net(x), net(x[..., :6]))
