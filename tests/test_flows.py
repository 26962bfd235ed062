"""Laws of the flows: inverses, densities, their use of the context, widths and cost."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from contracts import check_flow
from torch.utils.flop_counter import FlopCounterMode

from nbi_plus import FlowConfig
from nbi_plus.infer.proposals.base import FlowProposal
from nbi_plus.infer.weights.clean import defensive_log_prob
from nbi_plus.learn.flows import LOG_SCALE_BOUND, Flow
from nbi_plus.problem.random import preserved_random_state, reseed_global_generators

N_CONTEXT = 3


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def uniforms(*shape, seed=0):
    return torch.rand(shape, generator=rng(seed + 100), dtype=torch.float64)


def make(n_dims, kind="maf", n_blocks=3, *, seed=0, dtype=torch.float64, **options):
    """Return a flow as it is before training."""
    options = {"hidden": 16, "n_layers": 2, "n_mog": 1} | options
    with preserved_random_state():
        reseed_global_generators(seed)
        flow = Flow(n_dims, N_CONTEXT, FlowConfig(kind, n_blocks, **options))
    return flow.double() if dtype == torch.float64 else flow


@torch.no_grad()
def trained(flow, strength=1.0, seed=1):
    """Make a flow as curved and narrow as a trained one, with a whitening that is no identity."""
    moved = rng(seed)
    for net in [b.autoregressive_net for b in flow.blocks] + list(flow.base.children()):
        for name, p in net.named_parameters():
            scale = {"out.weight": 0.3, "out.bias": 0.5, "context.weight": 0.3}.get(name, 0.0)
            p += strength * scale * torch.randn(p.shape, generator=moved, dtype=p.dtype)
    flow.whiten(normals(500, flow.n_dims, seed=3) @ normals(flow.n_dims, flow.n_dims, seed=4) + 2.0)
    return flow


def to_and_from(flow, z, context):
    """Return z after the way to the base and back, through the blocks alone."""
    u, _ = flow._to_base(z, context)
    for block in reversed(flow.blocks):
        u = block.inverse(u, context)[0]
    return u @ flow.chol.T + flow.mean


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_dims", range(1, 9))
@torch.no_grad()
def test_inverse_undoes_forward(kind, n_dims):
    for n_blocks in range(1, 6):
        flow = trained(make(n_dims, kind, n_blocks, n_layers=1 + n_blocks % 3), 0.5)
        context = normals(2, N_CONTEXT, seed=5)
        z = flow.sample(1.5 * normals(2, 50, n_dims), context)
        torch.testing.assert_close(to_and_from(flow, z, context), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_mog", [1, 4])
@pytest.mark.parametrize("n_dims", [1, 2, 5])
def test_flow_keeps_its_contract(kind, n_mog, n_dims):
    flow = trained(make(n_dims, kind, n_mog=n_mog), 0.5)
    check_flow(flow, normals(3, N_CONTEXT, seed=5))


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_dims", range(1, 9))
@torch.no_grad()
def test_every_quantile_of_an_untrained_flow_depends_on_the_data(kind, n_dims):
    noise, choice = normals(1, 101, n_dims), uniforms(1, 101, n_dims)
    context, step = normals(1, N_CONTEXT, seed=5), 1e-5 * normals(1, N_CONTEXT, seed=6)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    for n_blocks in range(1, 6):
        for n_layers in (1, 2, 3):
            flow = make(n_dims, kind, n_blocks, n_layers=n_layers, n_mog=1 + 3 * (n_layers == 2))
            found = [
                torch.quantile(flow.sample(noise, c, choice), levels, dim=1)
                for c in (context - step, context + step)
            ]
            slope = (found[1] - found[0]).abs() / 2e-5
            assert slope.shape == (5, 1, n_dims)
            assert slope.min() > 1e-6


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_mog", [1, 4])
@torch.no_grad()
def test_density_integrates_to_one(kind, n_mog):
    context = normals(1, N_CONTEXT, seed=5)
    line = torch.linspace(-6, 6, 4001, dtype=torch.float64)  # z = sinh(v) reaches +-200
    flow = trained(make(1, kind, n_mog=n_mog), 0.5)
    for part in flow.log_probs(line.sinh()[None, :, None], context, (1.0, 2.0)):
        total = (part[0].exp() * line.cosh()).sum() * (line[1] - line[0])
        assert total.item() == pytest.approx(1, abs=2e-4)
    line = torch.linspace(-5, 5, 401, dtype=torch.float64)
    flow = trained(make(2, kind, n_mog=n_mog), 0.2)
    z = torch.cartesian_prod(line.sinh(), line.sinh())[None]
    weight = torch.outer(line.cosh(), line.cosh()).reshape(-1) * (line[1] - line[0]) ** 2
    total = (flow.log_prob(z, context)[0].exp() * weight).sum()
    assert total.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_dims", [1, 3, 4])
def test_log_determinant_equals_that_of_the_jacobian(kind, n_dims):
    flow, context = trained(make(n_dims, kind)), normals(1, N_CONTEXT, seed=5)
    for z in normals(3, n_dims, seed=6):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: flow._to_base(v[None, None], context)[0][0, 0], z
        )
        log_det = flow._to_base(z[None, None], context)[1].item()
        assert log_det == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


def test_each_output_sees_only_what_stands_before_it():
    flow = trained(make(6))
    net = flow.blocks[0].autoregressive_net
    u, terms = normals(1, 1, 6), net.terms(normals(1, N_CONTEXT, seed=5))
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, terms)[0, 0].sum(-1), u)
    assert not torch.triu(jacobian[:, 0, 0]).any()
    assert (torch.tril(jacobian[:, 0, 0], -1)[torch.tril_indices(6, 6, -1).unbind()] != 0).all()


@pytest.mark.parametrize("n_dims", [1, 4])
@torch.no_grad()
def test_every_output_is_a_curved_function_of_the_context(n_dims):
    """The direct path is linear; the hidden units must serve the first parameter too."""
    net = make(n_dims).blocks[0].autoregressive_net
    u, context, step = normals(1, 1, n_dims), normals(1, N_CONTEXT), normals(1, N_CONTEXT, seed=6)
    left, middle, right = (net(u, net.terms(context + s * step)) for s in (-1, 0, 1))
    assert ((left + right - 2 * middle).abs() > 1e-5).all()


@torch.no_grad()
def test_steps_together_equal_one_forward_pass():
    for n_layers in (1, 2, 3):
        net = trained(make(5, n_layers=n_layers)).blocks[0].autoregressive_net
        u, terms = normals(2, 4, 5), net.terms(normals(2, N_CONTEXT, seed=5))
        cache = net.empty_cache(u)
        steps = [net.step(d, u[..., :d], terms, cache) for d in range(5)]
        torch.testing.assert_close(torch.stack(steps, 2), net(u, terms))


@pytest.mark.parametrize("n_mog", [1, 4])
@torch.no_grad()
def test_drawing_costs_no_more_than_one_density(n_mog):
    flow = make(8, n_blocks=5, hidden=64, n_mog=n_mog)
    noise, context, choice = normals(2, 100, 8), normals(2, N_CONTEXT), uniforms(2, 100, 8)
    costs = []
    for work in (
        lambda: flow.sample(noise, context, choice),
        lambda: flow.log_prob(noise, context),
    ):
        with FlopCounterMode(display=False) as counter:
            work()
        costs.append(counter.get_total_flops())
    assert 0 < costs[0] <= costs[1]


@pytest.mark.parametrize("n_mog", [1, 4])
@torch.no_grad()
def test_defensive_density_is_that_of_defensive_draws(n_mog):
    flow = trained(make(3, n_mog=n_mog), 0.5)
    proposal = FlowProposal(flow, flow, share=0.25)
    features, keys = normals(4, N_CONTEXT), torch.tensor([11, 5, 7, 2])
    draws = proposal.draw(features, keys, 4000, 0, "test")
    narrow, wide = flow.log_probs(draws.z, features, (1.0, 2.0))
    both = torch.logaddexp(narrow + math.log(0.75), wide + math.log(0.25))
    torch.testing.assert_close(draws.log_q, both)
    torch.testing.assert_close(draws.log_q, defensive_log_prob(narrow, wide, 0.25))
    for part in (narrow, wide):  # each is a density, so its mean ratio to the mixture is 1
        ratio = torch.exp(part - draws.log_q)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(ratio.numel())
    order = torch.tensor([2, 0])
    again = proposal.draw(features[order], keys[order], 4000, 0, "test")
    torch.testing.assert_close(again.z, draws.z[order])
    other = proposal.draw(features, keys, 4000, 1, "test")
    assert (other.z != draws.z).all()


@torch.no_grad()
def test_plain_proposal_is_the_flow_itself():
    flow = trained(make(2), 0.5)
    features = normals(3, N_CONTEXT)
    draws = FlowProposal(flow, flow, share=0.0).draw(features, torch.arange(3), 500, 0, "test")
    torch.testing.assert_close(draws.log_q, flow.log_prob(draws.z, features))
    ratio = torch.exp(flow.log_probs(draws.z, features, (0.5,))[0] - draws.log_q)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(ratio.numel())


@pytest.mark.parametrize("n_mog", [1, 4])
@torch.no_grad()
def test_float32_densities_of_affine_blocks_are_good_to_a_thousandth(n_mog):
    single = trained(make(5, n_blocks=5, n_mog=n_mog, dtype=torch.float32), 0.7)
    exact = copy.deepcopy(single).double()  # the same weights
    context = normals(4, N_CONTEXT)
    z = single.sample(normals(4, 5000, 5), context, uniforms(4, 5000, 5))
    error = (single.log_prob(z, context).double() - exact.log_prob(z, context)).abs()
    assert z.dtype == single.mean.dtype == torch.float64
    assert error.median() < 1e-5
    assert error.quantile(0.999) < 1e-3


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@pytest.mark.parametrize("n_mog", [1, 4])
@torch.no_grad()
def test_float32_draws_have_the_float64_density(kind, n_mog):
    single = trained(make(5, kind, n_blocks=5, n_mog=n_mog, dtype=torch.float32), 0.5)
    proposal = FlowProposal(single, copy.deepcopy(single).double())
    features = normals(4, N_CONTEXT)
    draws = proposal.draw(features, torch.arange(4), 4000, 0, "test")
    for part in proposal.exact.log_probs(draws.z, features, (0.5, 1.0)):
        ratio = torch.exp(part - draws.log_q)
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(ratio.numel())
    doubled = FlowProposal(proposal.exact, proposal.exact)
    moved = (doubled.draw(features, torch.arange(4), 4000, 0, "test").z - draws.z).abs()
    width = draws.z.quantile(0.84, 1, keepdim=True) - draws.z.quantile(0.16, 1, keepdim=True)
    assert (moved / width).median() < 1e-5
    assert (moved / width).flatten().quantile(0.99) < 1e-3


@pytest.mark.parametrize("kind", ["maf", "nsf"])
@torch.no_grad()
def test_densities_are_double_precision_where_single_is_not_enough(kind):
    """Blocks that narrow draws to 1e-5 of the prior leave single precision no digits."""
    single = trained(make(3, kind, n_blocks=2, dtype=torch.float32), 0.5)
    net = single.blocks[0].autoregressive_net
    features = torch.cat([torch.ones(3, N_CONTEXT), torch.zeros(3, N_CONTEXT)])
    shift, scale = (torch.arange(3) * net.n_out + i for i in (0, 1))
    first = net.context.out_features - 3 * net.n_out
    # the context of some objects says that their draws lie within e^-11.5 of 5
    net.context.weight[first + scale] = -23.0 / N_CONTEXT
    net.context.weight[first + shift] = 5.0 / N_CONTEXT
    proposal = FlowProposal(single, single.exact())
    draws = proposal.draw(features, torch.arange(6), 2000, 0, "test")
    rough, quick = proposal._made(features, torch.arange(6), 2000, 0, "test", 0.2)
    exact = proposal.log_prob(draws.z, features)
    assert torch.equal(rough, draws.z)
    worst = (quick - exact).abs().amax(1)
    assert (worst > 1e-3).any(), "or this law has no subject"
    assert ((draws.log_q - exact).abs() < 5e-3).all()
    good = worst < 5e-4
    assert good.any()
    assert torch.equal(draws.log_q[good], quick[good].double())


def maximise(flow, z, steps=150):
    """Fit a flow of constant context to draws (n, D), to the end."""
    optimizer = torch.optim.LBFGS(
        flow.parameters(), max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
    )
    context = torch.zeros(1, N_CONTEXT, dtype=flow.dtype)

    def closure():
        optimizer.zero_grad()
        loss = -flow.log_prob(z[None], context).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return flow


@torch.no_grad()
def draws_of(flow, n=20_000):
    context = torch.zeros(1, N_CONTEXT, dtype=torch.float64)
    return flow.sample(normals(1, n, flow.n_dims), context, uniforms(1, n, flow.n_dims))[0]


@pytest.mark.parametrize("n_blocks", [1, 2, 5])
def test_width_has_no_floor(n_blocks):
    z = 0.3 + 1e-5 * normals(1000, 1, seed=8)
    flow = maximise(make(1, n_blocks=n_blocks, n_layers=1), z)
    assert draws_of(flow).std().item() == pytest.approx(z.std().item(), rel=0.05)
    assert draws_of(flow).mean().item() == pytest.approx(0.3, abs=2e-6)
    assert math.exp(-LOG_SCALE_BOUND) < 1e-5


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_whitened_flow_recovers_narrow_and_correlated_parameters(kind):
    sd = torch.tensor([1e-5, 1.0, 3e-3], dtype=torch.float64)
    z = torch.tensor([0.3, -1.0, 2.0]) + sd * normals(1000, 3, seed=8)
    z[:, 2] += 10 * z[:, 0] * 1e2 + 0.01 * z[:, 1]
    flow = make(3, kind, 2, n_layers=1, dtype=torch.float32)
    flow.whiten(z)
    maximise(flow, z, 30)
    drawn = draws_of(flow)
    torch.testing.assert_close(drawn.std(0), z.std(0), rtol=0.05, atol=0)
    assert ((drawn.mean(0) - z.mean(0)).abs() < 0.1 * z.std(0)).all()
    torch.testing.assert_close(torch.corrcoef(drawn.T), torch.corrcoef(z.T), atol=0.1, rtol=0)


@torch.no_grad()
def test_whitening_standardises_whatever_the_units():
    z = normals(400, 3) * torch.tensor([1e-7, 1.0, 1e6]) + torch.tensor([1.0, 2.0, 3.0])
    flow = make(3)
    for weights in (None, torch.full((400,), 1 / 400, dtype=torch.float64)):
        flow.whiten(z, weights)
        white = torch.linalg.solve_triangular(flow.chol, (z - flow.mean).T, upper=False)
        torch.testing.assert_close(white @ white.T / 400, torch.eye(3, dtype=torch.float64),
                                   atol=1e-6, rtol=0)  # fmt: skip
        torch.testing.assert_close(white.mean(1), torch.zeros(3, dtype=torch.float64),
                                   atol=1e-6, rtol=0)  # fmt: skip
    heavy = torch.zeros(400, dtype=torch.float64)
    heavy[:200] = 1 / 200
    flow.whiten(z, heavy)
    torch.testing.assert_close(flow.mean, z[:200].mean(0))


@pytest.mark.parametrize("kind", ["maf", "nsf"])
def test_mixture_base_learns_two_modes(kind):
    sign = torch.where(uniforms(1000, 1, seed=9) < 0.3, -1.0, 1.0)
    z = sign + 0.1 * normals(1000, 1, seed=8)
    flow = maximise(make(1, kind, 1, n_layers=1, n_mog=4), z)
    drawn = draws_of(flow)
    share = (z < 0).double().mean().item()
    assert (drawn < 0).double().mean().item() == pytest.approx(share, abs=0.03)
    assert ((drawn.abs() - 1).abs() < 0.5).double().mean() > 0.99
    for mode in (drawn[drawn > 0] - 1, drawn[drawn < 0] + 1):
        assert mode.std().item() == pytest.approx(0.1, rel=0.15)


@torch.no_grad()
def test_spline_reaches_beyond_its_bound():
    flow = trained(make(2, "nsf", 1), 0.2)
    z = torch.tensor([[[30.0, -20.0], [6.0, -6.0], [0.0, 50.0]]], dtype=torch.float64)
    context = normals(1, N_CONTEXT)
    assert flow.log_prob(z, context).isfinite().all()
    assert (flow._to_base(z, context)[0].abs() > 6).any()
    torch.testing.assert_close(to_and_from(flow, z, context), z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [
    {"kind": "glow"}, {"n_blocks": 0}, {"hidden": 0}, {"n_layers": 0}, {"n_mog": 0}, {"n_bins": 1},
])  # fmt: skip
def test_bad_flow_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        FlowConfig(**options)


def test_order_of_parameters_follows_its_own_seed():
    orders = [
        [b.order.tolist() for b in make(6, n_blocks=4, perm_seed=seed, seed=other).blocks]
        for seed, other in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][1] == orders[0][0][::-1]  # the last of one block is the first of the next
