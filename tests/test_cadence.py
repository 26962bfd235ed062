"""Laws of cadences: whom simulations imitate, how they vary, and interpolation on dense grids."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus import Perturbation
from nbi_plus.problem.random import generator
from nbi_plus.problem.setup import FitInputs, set_up
from nbi_plus.problem.simulator.cadence import Cadences, shift_by, spans
from nbi_plus.problem.simulator.campaign import Campaign
from nbi_plus.problem.simulator.dense import DenseGrid


def survey(n=40, seed=0, channels=1):
    """Return objects of 1 to 60 points at times of their own, in two bands, with own errors."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, n)
    lengths[0] = 1
    t = [np.sort(rng.uniform(10 * i, 10 * i + 50, k)) for i, k in enumerate(lengths)]
    return nbi.Observations.from_arrays(
        [rng.normal(size=(channels, k)) for k in lengths],
        [np.full((channels, k), 0.1 + 0.01 * i) for i, k in enumerate(lengths)],
        t=t,
        band=[rng.choice(["g", "r"], k) for k in lengths],
        ids=[f"star {i}" for i in range(n)],
    )


def wave(theta, t, band):
    return theta[:, :1] + (1 + band) * torch.sin(t / theta[:, 1:2])


PRIOR = {"offset": norm(0, 1), "period": uniform(8, 4)}


def test_perturbation_only_removes_points_and_scales_errors_of_whole_objects():
    batch = survey(400).batch()
    changed = Perturbation(0.4, 0.3, 2.0).apply(batch, generator(0, "test"))
    assert not (changed.mask & ~batch.mask).any()
    assert not changed.x[~changed.mask].any()
    assert torch.equal(changed.coords["t"], batch.coords["t"])
    ratio = torch.where(changed.mask, changed.x_err / batch.x_err, torch.nan)[:, 0]
    each = ratio.nanmean(1)
    torch.testing.assert_close(ratio, each[:, None].expand_as(ratio).where(changed.mask[:, 0],
                                                                          torch.nan),
                               equal_nan=True)  # fmt: skip
    assert ((each - 1).abs() < 1e-12).double().mean() == pytest.approx(0.5, abs=4 * 0.5 / 20)
    assert each.min() >= 0.5 - 1e-9
    assert each.max() <= 2.0 + 1e-9
    assert each.log().std() > 0.2


def test_perturbation_removes_as_many_points_as_it_says():
    n, length = 2000, 200
    batch = nbi.Observations.from_arrays(np.zeros((n, length)), 1.0, t=np.arange(length)).batch()
    left = Perturbation(0.4, 0.0, 1.0).apply(batch, generator(0, "test")).mask[:, 0].double()
    share = 1 - left.mean(1)
    assert share.mean().item() == pytest.approx(0.1, abs=4 * 0.13 / math.sqrt(n))
    assert (share == 0).double().mean() >= 0.5 - 4 * 0.5 / math.sqrt(n)
    assert 0.4 < share.max() < 0.4 + 4 * 0.5 / math.sqrt(length)
    gaps = Perturbation(0.0, 0.3, 1.0).apply(batch, generator(1, "test")).mask[:, 0]
    edges = (gaps[:, 1:] != gaps[:, :-1]).sum(1)
    assert edges.max() == 2  # one stretch, or one end
    assert ((~gaps).sum(1) <= math.ceil(0.3 * length)).all()
    assert (~gaps).any(1).double().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))


def test_perturbation_leaves_objects_with_few_points_something():
    batch = survey(200).batch()
    hard = Perturbation(0.99, 0.99, 1.0).apply(batch, generator(0, "test"))
    before, after = batch.mask.sum((1, 2)), hard.mask.sum((1, 2))
    assert (after >= torch.minimum(before, torch.tensor(3))).all()
    assert (after < before).any()


@pytest.mark.parametrize(("options", "message"), [
    ({"drop": 1.0}, r"drop must lie in \[0, 1\), but is 1.0"),
    ({"gap": -0.1}, r"gap must lie in"), ({"shift": 2.0}, r"shift must lie in \[0, 1\]"),
    ({"error_scale": 0.5}, "error_scale must be at least 1"),
])  # fmt: skip
def test_impossible_perturbations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(**options)


def test_times_shift_by_at_most_the_share_of_the_span():
    batch = survey().batch()
    span = spans(batch)
    assert span[0] == 0
    t = batch.coords["t"]
    assert span[3] == t[3].max() - t[3].min()
    u = torch.linspace(0, 1, 1001)[:-1]
    moved = shift_by(u, torch.tensor(50.0), 0.1)
    assert moved.abs().max() == pytest.approx(5.0, rel=0.01)
    assert (moved == 0).sum() == pytest.approx(500, abs=2)
    assert moved[u < 0.5].mean().abs() < 0.05


def test_simulations_are_made_at_the_times_they_are_shown_with():
    own = survey()
    setup = set_up(nbi.Prior(PRIOR), wave, nbi.GaussianNoise(), FitInputs(observations=own))
    assert setup.fixed
    campaign = Campaign(setup.prior, setup.simulator, setup.conditions, seed=0, shift=0.2)
    columns = campaign.simulate(np.arange(200))
    shift = torch.as_tensor(columns["shift"])
    assert shift.abs().max() > 1
    cadences = Cadences(setup.conditions, fixed=True)
    model = torch.as_tensor(columns["x"])
    seen, same = cadences.imitate(
        torch.as_tensor(columns["owner"]), shift, model, generator(0, "test")
    )
    theta = torch.as_tensor(columns["theta"])
    exact = wave(theta, seen.coords["t"], seen.coords["band"])
    off = (same[:, 0] - exact).where(seen.mask[:, 0], 0.0)
    assert off.abs().max() < 1e-9
    assert torch.equal(seen.x_err[:, 0, 0], setup.conditions.x_err[columns["owner"], 0, 0])


def test_cubic_interpolation_is_exact_for_cubics_and_of_fourth_order():
    nodes = torch.cumsum(torch.rand(30, dtype=torch.float64, generator=generator(0, "g")), 0)
    grid = DenseGrid("t", nodes, "band", 2)
    n, length = 5, 40
    t = nodes[0] + (nodes[-1] - nodes[0]) * torch.rand(
        n, length, dtype=torch.float64, generator=generator(1, "g")
    )
    band = torch.randint(2, (n, length), generator=generator(2, "g"))
    batch = nbi.Observations.from_arrays(
        np.zeros((n, length)), t=t.numpy(), band=band.numpy(), categories={"band": "gr"}
    ).batch()

    def curves(f):
        return torch.stack([torch.cat([f(nodes), 2 * f(nodes) + 1])] * n)[:, None]

    for f in (lambda v: v**3 - 4 * v, lambda v: 0 * v + 3):
        exact = torch.where(band == 0, f(t), 2 * f(t) + 1)
        torch.testing.assert_close(grid.interpolate(curves(f), batch)[:, 0], exact)
    errors = []
    for m in (50, 100):
        fine = DenseGrid("t", torch.linspace(0, 10, m, dtype=torch.float64))
        at = nbi.Observations.from_arrays(np.zeros((1, 500)), t=np.linspace(0, 10, 500)).batch()
        found = fine.interpolate(torch.sin(fine.nodes)[None, None], at)[0, 0]
        errors.append((found - torch.sin(at.coords["t"])).abs().max().item())
    assert errors[0] / errors[1] > 12  # 16 in the limit


def test_a_grid_gives_every_simulation_other_cadences_at_every_epoch():
    own = survey().relative_to("first")
    nodes = np.linspace(0, 60, 600)
    given = FitInputs(observations=own, grid=nodes)
    setup = set_up(nbi.Prior(PRIOR), wave, nbi.GaussianNoise(), given)
    assert not setup.fixed
    assert setup.simulator.shape == (1, 1200)
    campaign = Campaign(setup.prior, setup.simulator, setup.simulated_at, seed=0)
    columns = {k: torch.as_tensor(v) for k, v in campaign.simulate(np.arange(300)).items()}
    cadences = Cadences(setup.conditions, False, Perturbation(), setup.grid)
    rng = generator(0, "test")
    for _ in range(2):
        seen, model = cadences.imitate(columns["owner"], columns["shift"], columns["x"], rng)
        assert len(seen.mask.sum((1, 2)).unique()) > 20
        exact = wave(columns["theta"], seen.coords["t"], seen.coords["band"])
        off = (model[:, 0] - exact).where(seen.mask[:, 0], 0.0)
        assert off.abs().max() < 1e-5
        assert seen.coords["t"][seen.mask[:, 0]].min() >= 0


@pytest.mark.parametrize(("grid", "message"), [
    (np.linspace(0, 10, 50), "grid must cover every t of the observations, but .* outside 0 to 10"),
    ([3.0, 2.0, 1.0], "grid must hold at least two increasing values of t"),
    ({"phase": [0.0, 1.0]}, "grid must hold values of one coordinate"),
    ({"t": [0.0, 1.0], "band": [0.0, 1.0]}, "grid must hold values of one coordinate"),
])  # fmt: skip
def test_a_grid_that_cannot_serve_is_refused(grid, message):
    given = FitInputs(observations=survey(), grid=grid)
    with pytest.raises(ValueError, match=message):
        set_up(nbi.Prior(PRIOR), wave, nbi.GaussianNoise(), given)


def test_a_coarse_grid_is_warned_of(caplog):
    own = survey().relative_to("first")
    engine = nbi.Engine(wave, PRIOR, featurizer="gru")
    with caplog.at_level(logging.WARNING, "nbi_plus"):
        engine.fit(n_sims=40, n_epochs=1, observations=own, grid=np.linspace(0, 60, 400))
        assert "denser grid" not in caplog.text
        engine.fit(n_sims=40, n_epochs=1, observations=own, grid=np.linspace(0, 60, 4))
    assert "denser grid" in caplog.text


def test_batches_of_similar_length_hold_every_simulation_once():
    from nbi_plus.learn.sources import Resident, TrainingRows

    n = 1000
    rows = TrainingRows(*(torch.arange(n, dtype=torch.float64) for _ in range(3)), torch.arange(n))
    lengths = torch.randint(20, 400, (n,), generator=generator(0, "test"))
    batches = [b.owner for b in Resident(rows, lengths).batches(0, 50, generator(1, "test"))]
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    plain = [b.owner for b in Resident(rows).batches(0, 50, generator(1, "test"))]
    assert padded < 0.7 * sum(int(lengths[b].max()) * len(b) for b in plain)
    again = [b.owner for b in Resident(rows, lengths).batches(0, 50, generator(2, "test"))]
    assert [b.tolist() for b in again] != [b.tolist() for b in batches]
