"""Laws of the hard objects: exact references, honest judges, and what the ladder must reach."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm

from nbi_plus import Simulator
from nbi_plus.problem.simulator.simulator import bind

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the package

from benchmarks import hard_lenses as hard
from benchmarks import verdicts
from benchmarks.exact import Exact
from benchmarks.verdicts import Answer, judge


@pytest.fixture(scope="module")
def lens():
    return Exact(hard.LENS, hard.curves)


@pytest.fixture(scope="module")
def event(lens):
    objects = hard.make("noisy", 1, lens, seed=3)
    return lens(objects.x[0], objects.err[0], objects.mask[0], objects.truth[0])


# --- references ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 20.0])
def test_exact_equals_closed_form_of_a_linear_gaussian(sigma):
    rng = np.random.default_rng(1)
    design = rng.normal(size=(3, 12)) / 2
    truth = rng.normal(size=3)
    err = sigma * rng.uniform(0.5, 2.0, 12)
    x = truth @ design + err * rng.normal(size=12)
    mask = rng.random(12) > 0.2
    kept = design[:, mask] / err[mask]
    cov = np.linalg.inv(np.eye(3) + kept @ kept.T)
    mean = cov @ kept @ (x[mask] / err[mask])
    spread = design[:, mask].T @ design[:, mask] + np.diag(err[mask] ** 2)
    chi2 = x[mask] @ np.linalg.solve(spread, x[mask])
    log_z = -0.5 * (chi2 + np.linalg.slogdet(2 * np.pi * spread)[1])

    found = Exact(dict.fromkeys("abc", norm(0, 1)), lambda theta: theta @ design)(x, err, mask)
    sd, error = np.sqrt(np.diag(cov)), 1 / np.sqrt(found.ess)
    assert found.sound
    assert (np.abs(found.mean - mean) < 4.5 * error * sd).all()
    assert (np.abs(found.sd / sd - 1) < 4.5 * error / np.sqrt(2)).all()
    assert found.kurtosis == pytest.approx(3.0, abs=0.2)
    assert found.log_evidence == pytest.approx(log_z, abs=4.5 * error)


def test_exact_equals_prior_draws_where_these_suffice(lens):
    objects = hard.make("noisy", 1, lens, seed=3)
    x, err = objects.x[0], 2 * objects.err[0]
    found = lens(x, err)
    theta = lens.theta(np.random.default_rng(5).standard_normal((200_000, 3)))
    chi2 = (((hard.curves(theta) - x) / err) ** 2).sum(1)
    weights = np.exp(-0.5 * (chi2 - found.chi2))
    weights /= weights.sum()
    ess = 1 / (weights**2).sum()
    mean = weights @ theta
    sd = np.sqrt(weights @ (theta - mean) ** 2)
    assert ess > 400
    assert (np.abs(mean - found.mean) / found.sd < 4.5 / np.sqrt(ess)).all()
    assert (np.abs(sd / found.sd - 1) < 4.5 * np.sqrt((found.kurtosis - 1) / 4 / ess)).all()


def test_exact_finds_both_modes_in_equal_shares_from_the_truth_of_one():
    problem = hard.PROBLEMS["mirrored"]
    solver = Exact(problem.priors, problem.curves)
    objects = hard.make("mirrored", 2, solver, seed=0)
    for x, err, truth in zip(objects.x, objects.err, objects.truth, strict=True):
        found = solver(x, err, None, truth)
        assert found.n_modes == 2
        assert abs(found.mean[1] / found.sd[1]) < 4.5 / np.sqrt(found.ess)
        assert found.sd[1] == pytest.approx(abs(truth[1]), rel=0.2)


def test_exact_does_not_need_the_truth(lens):
    objects = hard.make("narrow", 3, lens, seed=1)
    for x, err, truth in zip(objects.x, objects.err, objects.truth, strict=True):
        found, blind = lens(x, err, None, truth), lens(x, err)
        assert found.sound
        assert (np.abs(found.mean - blind.mean) < 0.03 * found.sd).all()


# --- judges --------------------------------------------------------------------------------------


def test_judge_passes_the_exact_answer_and_small_noise(event):
    assert not judge(Answer(event.mean, event.sd, 2000), event)["wrong"]
    assert not judge(Answer(event.mean + 0.19 * event.sd, 1.14 * event.sd, 1e6), event)["wrong"]


@pytest.mark.parametrize("parameter", range(3))
def test_judge_finds_one_shifted_mean_and_one_narrow_sd(event, parameter):
    one = np.eye(3)[parameter]
    assert judge(Answer(event.mean - 0.21 * one * event.sd, event.sd, 1e6), event)["wrong"]
    assert judge(Answer(event.mean, event.sd * (1 - 0.16 * one), 1e6), event)["wrong"]


def test_judge_allows_few_draws_their_scatter(event):
    """Honest draws are called wrong for nothing but a scatter of four errors."""
    rng = np.random.default_rng(0)
    gaussian = replace(event, kurtosis=np.full(3, 3.0))
    for n in (30, 300):
        draws = event.mean + event.sd * rng.standard_normal((500, n, 3))
        moments = zip(draws.mean(1), draws.std(1), strict=True)
        wrong = [judge(Answer(mean, sd, n), gaussian)["wrong"] for mean, sd in moments]
        assert np.mean(wrong) < 0.005


def test_bounds_count_no_bump_and_nothing_uncertified_as_wrong():
    row = {"certified": True, "wrong": True, "misfit": True, "exact_is_sound": True}
    rows = [row | {"kind": "bump"}, row | {"kind": "gap", "certified": False}]
    rows += [row | {"kind": "ordinary", "wrong": False}] * 198
    assert all(b.met for b in verdicts.adversarial_bounds(rows))
    rows += [row | {"kind": "narrow"}] * 2
    assert [b.met for b in verdicts.adversarial_bounds(rows)] == [False, True, True, True]
    rows[-1] = row | {"kind": "narrow", "exact_is_sound": False}
    assert [b.met for b in verdicts.adversarial_bounds(rows)] == [True, True, True, True]


# --- objects -------------------------------------------------------------------------------------


def test_kinds_are_what_their_names_say(lens):
    made = {kind: hard.make(kind, 3, lens, 0) for kind in hard.COUNTS if kind != "mirrored"}
    assert sum(hard.COUNTS.values()) == 500
    assert np.median(made["precise"].err) < 0.1 * np.median(made["noisy"].err)
    assert 0.1 < 1 - made["missing"].mask.mean() < 0.3
    for i in range(3):
        narrow, bump, gap = (made[kind] for kind in ("narrow", "bump", "gap"))
        found = lens(narrow.x[i], narrow.err[i])
        relative = found.sd / [p.std() for p in hard.LENS.values()]
        assert relative.min() == pytest.approx(hard.NARROW, rel=0.2)
        assert lens(bump.x[i], bump.err[i]).chi2 > len(hard.T) + 50
        peak = np.argmin(np.abs(hard.T - gap.truth[i, 0]))
        assert not gap.mask[i, peak : peak + 2].any()


def test_objects_of_one_seed_are_the_same_again(lens):
    first, again, other = (hard.make("missing", 2, lens, seed).digest() for seed in (0, 0, 1))
    assert first == again != other


def test_references_from_the_cache_equal_those_made(lens, tmp_path):
    objects = hard.make("noisy", 2, lens, 0)
    made = hard.references(lens, objects, tmp_path)
    stored = hard.references(None, objects, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(
        (a.mean == b.mean).all() and a.ess == b.ess for a, b in zip(made, stored, strict=True)
    )


def test_simulators_equal_the_exact_curves_and_the_black_box_has_no_gradient(lens):
    theta = lens.theta(np.random.default_rng(0).standard_normal((20, 3)))
    bound = {
        name: bind(Simulator(p.simulator), theta, {"t": hard.T}, frozenset())
        for name, p in hard.PROBLEMS.items()
    }
    assert bound["lens"].differentiable
    assert bound["mirrored"].differentiable
    assert (bound["black box"].backend, bound["black box"].differentiable) == ("numpy", False)
    np.testing.assert_allclose(hard.black_box(theta, hard.T), hard.curves(theta), rtol=1e-9)
    given = torch.as_tensor(theta), torch.as_tensor(hard.T)
    mirrored = hard.PROBLEMS["mirrored"]
    np.testing.assert_allclose(mirrored.simulator(*given), mirrored.curves(theta), rtol=1e-9)


def test_tables_name_every_kind_and_rung():
    rung = {"name": "refine", "n_draws": 10, "passed": True}
    row = {"certified": True, "wrong": False, "misfit": False, "rungs": [rung]}
    rows = [row | {"kind": kind} for kind in hard.COUNTS]
    assert all(kind in verdicts.kind_table(rows) for kind in hard.COUNTS)
    assert "refine" in verdicts.rung_table(rows)


# --- the ladder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return types.SimpleNamespace(
        seed=0, scale=1.0, ladder=None, cache=tmp_path_factory.mktemp("hard")
    )


@pytest.mark.statistics
@pytest.mark.parametrize("name", ["under-trained", "black-box", "adversarial"])
def test_ladder_keeps_its_bounds(name, options):
    rows, seconds, bounds = hard.run(name, options)
    print(name, f"{seconds:.0f} s", verdicts.kind_table(rows), verdicts.rung_table(rows), sep="\n")
    print(*map(verdicts.describe, verdicts.certified_and_wrong(rows)), *bounds, sep="\n")
    assert [str(b) for b in bounds if not b.met] == []


@pytest.mark.statistics
def test_exact_equals_long_chains(lens):
    """Walkers that share nothing with the references but the light curves."""
    emcee = pytest.importorskip("emcee")
    low, wide = np.array([30.0, 0.05, np.log(3.0)]), np.array([60.0, 0.95, np.log(40.0 / 3.0)])

    for kind in ("ordinary", "precise", "noisy", "missing", "gap"):
        o = hard.make(kind, 1, lens, seed=7)
        x, err, mask, truth = o.x[0], o.err[0], o.mask[0], o.truth[0]

        def log_density(p, x=x, err=err, mask=mask):
            inside = ((p > low) & (p < low + wide)).all(1)
            p = np.clip(p, low, low + wide)
            curve = hard.curves(np.column_stack([p[:, :2], np.exp(p[:, 2])]))
            chi2 = (((curve - x) / err)[:, mask] ** 2).sum(1)
            return np.where(inside, -0.5 * chi2, -np.inf)

        rng = np.random.RandomState(0)
        start = np.append(truth[:2], np.log(truth[2])) + 1e-3 * wide * rng.randn(48, 3)
        sampler = emcee.EnsembleSampler(48, 3, log_density, vectorize=True)
        sampler.random_state = rng.get_state()
        sampler.run_mcmc(np.clip(start, low + 1e-6, low + wide - 1e-6), 6000)
        chain = sampler.get_chain(discard=1000, flat=True)
        chain[:, 2] = np.exp(chain[:, 2])
        found = lens(x, err, mask, truth)
        n_eff = 5000 * 48 / sampler.get_autocorr_time(discard=1000, quiet=True).max()
        off = (chain.mean(0) - found.mean) / found.sd
        print(kind, off, chain.std(0) / found.sd - 1, n_eff)
        assert (np.abs(off) < 4.5 / np.sqrt(n_eff) + 0.01).all()
        error = np.sqrt((found.kurtosis - 1) / 4 / n_eff)
        assert (np.abs(chain.std(0) / found.sd - 1) < 4.5 * error + 0.01).all()
