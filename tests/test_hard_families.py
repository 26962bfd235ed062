"""Laws of the families: references that other computations confirm, and a judge of every way."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm

import nbi_plus as nbi
from nbi_plus import Simulator
from nbi_plus.problem.simulator.simulator import bind

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the package

from benchmarks import hard_families, hard_objects
from benchmarks.families import FAMILIES, Reference
from benchmarks.families.labels import Labels
from benchmarks.families.needle import Needle
from benchmarks.families.rings import Rings
from benchmarks.families.separable import Aliases, Bananas, Funnel, Pulse
from benchmarks.verdicts import Answer, judge, modes_lost

# posteriors that draws of the prior can reach
BROAD = [
    Needle(dim=1), Needle(dim=2, width=0.1), Needle(dim=3, width=0.3), Aliases(sigma=2.0),
    Pulse(sigma=1.0, n_points=40, width=0.05), Labels(sigma=0.5), Rings(), Rings(dim=3),
    Rings(dim=4), Bananas(), Bananas(n_pairs=1, bend=2.0, along=3.0), Funnel(sigma=1.0, n_groups=2),
    Funnel(sigma=2.0),
]  # fmt: skip


# --- references ----------------------------------------------------------------------------------


def prior_draws(family, x, n=150_000):
    """Return draws of the prior and their weights, as the package's simulator and noise have it."""
    rng = np.random.default_rng(8)
    theta = np.stack([p.rvs(n, random_state=rng) for p in family.priors().values()], 1)
    model = family.clean(theta)[None, :, None]
    observed = nbi.Observations.from_arrays(x[None])
    log_weights = family.noise().log_likelihood(theta[None], model, observed)[0]
    return theta, log_weights


@pytest.mark.parametrize("family", BROAD, ids=str)
def test_references_equal_weighted_draws_of_the_prior(family):
    _, xs, err = family.make(2, seed=5)
    for x in xs:
        exact = family.exact(x, err)
        theta, log_weights = prior_draws(family, x)
        w = np.exp(log_weights - logsumexp(log_weights))
        assert 1 / (w**2).sum() > 100
        error = np.sqrt((w**2).sum() - 1 / len(w))
        log_z = logsumexp(log_weights) - np.log(len(w))
        assert log_z == pytest.approx(exact.log_evidence, abs=4.5 * error)
        away = (theta - exact.mean) / exact.sd
        for power, value in ((1, 0.0), (2, 1.0), (4, exact.kurtosis)):
            off = w @ away**power - value
            scatter = np.sqrt(w**2 @ (away**power - value) ** 2)
            assert (np.abs(off) < 4.5 * scatter + 0.01 * (power == 4)).all()
        label = family.label(theta, x)
        for k, mass in exact.modes.items():
            scatter = np.sqrt(w**2 @ ((label == k) - mass) ** 2)
            assert abs(w[label == k].sum() - mass) < 4.5 * scatter + 1e-3


def test_needle_equals_a_fine_grid():
    family = Needle(dim=2)
    axis = np.arange(-6.0, 6.0, 0.006)
    for x in family.make(3, seed=1)[1]:
        a, b = np.meshgrid(axis, axis, indexing="ij")
        squares = (x[0] - a) ** 2 + (x[1] - b) ** 2
        shift = 2.5 / np.sqrt(2)
        shifted = (x[0] - a - shift) ** 2 + (x[1] - b - shift) ** 2
        density = 0.7 * np.exp(-squares / 0.5) / (2 * np.pi * 0.25)
        density += 0.3 * np.exp(-shifted / 0.0008) / (2 * np.pi * 0.0004)
        density *= norm.pdf(a) * norm.pdf(b) * 0.006**2
        exact, total = family.exact(x, None), density.sum()
        mean = np.array([(density * a).sum(), (density * b).sum()]) / total
        square = np.array([(density * a**2).sum(), (density * b**2).sum()]) / total
        assert exact.log_evidence == pytest.approx(np.log(total), abs=1e-4)
        np.testing.assert_allclose(exact.mean, mean, atol=1e-4)
        np.testing.assert_allclose(exact.sd, np.sqrt(square - mean**2), rtol=1e-4)
        inside = family.label(np.column_stack([a.ravel(), b.ravel()]), x) == 1
        share = density.ravel()[inside].sum() / total
        assert exact.modes[1] == pytest.approx(share, abs=0.002)


def marginal_gaussians(xs, design, err):
    """Return log N(x; 0, design design' + err^2) of xs (N, L) for designs (G, L, P): (N, G)."""
    found = []
    for some in design.split(256):
        covariance = some @ some.mT + torch.diag(torch.as_tensor(err) ** 2)
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, torch.as_tensor(xs).T, upper=False)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        constant = 0.5 * xs.shape[1] * np.log(2 * np.pi)
        found.append(-0.5 * white.square().sum(1) - log_det - constant)
    return torch.cat(found).T.numpy()


@pytest.mark.parametrize("family", [Aliases(), Pulse()], ids=str)
def test_separable_equals_marginal_gaussians_on_another_grid(family):
    _, xs, err = family.make(2, seed=2)
    low, high = next(iter(family.priors().values())).support()
    grid = np.linspace(low, high, 3001)
    design = family.design(torch.as_tensor(grid))
    for x, log_density in zip(xs, marginal_gaussians(xs, design, err), strict=True):
        exact = family.exact(x, err)
        weights = np.exp(log_density - logsumexp(log_density))
        mean = weights @ grid
        sd = np.sqrt(weights @ (grid - mean) ** 2)
        assert abs(mean - exact.mean[0]) < 2e-3 * exact.sd[0]
        assert sd == pytest.approx(exact.sd[0], rel=2e-3)
        log_z = logsumexp(log_density) - np.log(len(grid))
        assert log_z == pytest.approx(exact.log_evidence, abs=2e-3)


def test_labels_are_converged_and_alike():
    family = Labels()
    _, xs, err = family.make(4, seed=3)
    for x in xs:
        exact, finer = family.exact(x, err), replace(family, n_grid=800).exact(x, err)
        assert exact.log_evidence == pytest.approx(finer.log_evidence, abs=1e-3)
        np.testing.assert_allclose(exact.mean, finer.mean, atol=1e-3 * exact.sd.min())
        np.testing.assert_allclose(exact.sd, finer.sd, rtol=1e-3)
        assert exact.mean[0] == exact.mean[1]


# --- families ------------------------------------------------------------------------------------


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param()


def test_masses_of_modes_add_up_and_truths_have_labels(family):
    truths, xs, err = family.make(3, seed=0)
    for truth, x in zip(truths, xs, strict=True):
        modes = family.exact(x, err).modes
        assert sum(modes.values()) == pytest.approx(1.0)
        assert family.label(truth[None], x)[0] in modes


def test_objects_follow_the_seed_and_the_simulator_has_a_gradient(family):
    theta, x, err = family.make(50, seed=0)
    again, other = family.make(50, seed=0), family.make(50, seed=1)
    np.testing.assert_array_equal(x, again[1])
    assert (x != other[1]).any()
    if err is not None:
        away = (x - family.clean(theta)) / err
        assert abs((away**2).mean() - 1) < 4.5 * np.sqrt(2 / away.size)
    bound = bind(Simulator(family.simulator), theta, {}, frozenset())
    assert bound.differentiable


def test_labels_tell_modes_apart():
    swap = np.array([[0.2, 0.7, 1.0], [0.7, 0.2, 1.0]])
    assert Labels().label(swap, None).tolist() == [1, 0]
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    assert Rings().label(corners, None).tolist() == [0, 1, 2, 3]
    arms = np.column_stack([corners[:, 0], np.zeros(4), corners[:, 1], np.zeros(4)])
    assert Bananas().label(arms, None).tolist() == [0, 1, 2, 3]
    needle, x = Needle(dim=2), np.array([2.0, 2.0])
    narrow = x - 2.5 / np.sqrt(2)
    assert needle.label(np.stack([narrow, narrow + 0.1, x]), x).tolist() == [1, 0, 0]
    frequencies = np.array([[0.30], [0.301], [0.33]])
    assert len(set(Aliases().label(frequencies, None))) == 2


def test_families_refuse_options_they_do_not_have():
    assert hard_families.family_of("needle", dim=6, width=None) == Needle(dim=6)
    with pytest.raises(ValueError, match=r"options of aliases must be among .* \['dim'\]"):
        hard_families.family_of("aliases", dim=2)
    with pytest.raises(ValueError, match="at least 2, but is 1"):
        hard_families.family_of("rings", dim=1)


# --- the judge -----------------------------------------------------------------------------------


TRUE = Reference(np.zeros(2), np.ones(2), np.full(2, 3.0), -7.0, {0: 0.7, 1: 0.26, 2: 0.04})
RIGHT = Answer(TRUE.mean, TRUE.sd, 1e6, -7.0, 0.01, TRUE.modes)


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        replace(RIGHT, mean=np.array([0.19, -0.19]), sd=np.array([1.14, 0.86])),
        replace(RIGHT, log_evidence=-7.09, log_evidence_err=0.0),
        replace(RIGHT, log_evidence=-8.0, log_evidence_err=0.3),
        replace(RIGHT, log_evidence=np.nan, log_evidence_err=np.nan),
        replace(RIGHT, mode_mass={0: 0.94, 1: 0.06}),
        replace(RIGHT, mode_mass={}),
    ],
)
def test_judge_passes_what_is_right_or_not_said(answer):
    assert not judge(answer, TRUE)["wrong"]


@pytest.mark.parametrize(
    ("way", "answer"),
    [
        ("mean", replace(RIGHT, mean=np.array([0.0, -0.21]))),
        ("mean", replace(RIGHT, mean=np.array([0.0, np.nan]))),
        ("sd", replace(RIGHT, sd=np.array([0.84, 1.0]))),
        ("sd", replace(RIGHT, sd=np.array([1.0, 1.16]))),
        ("evidence", replace(RIGHT, log_evidence=-7.11)),
        ("evidence", replace(RIGHT, log_evidence=-6.89, log_evidence_err=np.nan)),
        ("mode", replace(RIGHT, mode_mass={0: 0.96, 2: 0.04})),
        ("mode", replace(RIGHT, mode_mass={0: 0.95, 1: 0.05})),
    ],
)
def test_judge_names_each_way_to_be_wrong(way, answer):
    verdict = judge(answer, TRUE)
    assert verdict["wrong"]
    assert verdict["wrong_in"] == [way]
    json.dumps(verdict)


def test_judge_allows_few_draws_to_miss_a_mode_by_chance():
    assert modes_lost({0: 1.0}, TRUE.modes, ess=20) == []
    assert modes_lost({0: 1.0}, TRUE.modes, ess=100) == [1]


# --- figures -------------------------------------------------------------------------------------


def row(certified, wrong, flagged=False, status="REWEIGHTED"):
    return {
        "certified": certified, "trusted": certified and not flagged, "wrong": wrong,
        "wrong_in": ["mode"] if wrong else [], "mode_missed": flagged, "status": status,
        "n_simulated": 2048.0, "n_gradients": 10.0, "rungs": [{"n_apart": 30}, {"n_apart": 70}],
    }  # fmt: skip


def test_figures_count_what_was_trusted_and_what_was_not():
    rows = [row(True, False)] * 5 + [row(True, True)] * 2 + [row(True, True, flagged=True)]
    rows += [row(True, False, flagged=True), row(False, False, status="UNCERTIFIED")]
    rows += [row(False, True, status="FAILED")]
    found = hard_families.figures(hard_families.Answered(rows, 3.0, 22.0))
    assert (found["certified"], found["trusted"]) == (9, 7)
    assert (found["wrong_and_certified"], found["wrong_and_trusted"]) == (3, 2)
    assert found["wrong_in"] == {"mean": 0, "sd": 0, "evidence": 0, "mode": 3}
    assert (found["mode_missed"], found["mode_missed_and_wrong"]) == (2, 1)
    assert found["false_alarms"] == 2
    assert (found["calls"], found["cpu_seconds"]) == (2048.0, 2.0)
    assert found["audit_calls"] == 100.0
    assert "UNCERTIFIED 1" in hard_families.report("a set", found)
    assert [b.met for b in hard_families.bounds(Needle(), found)] == [False]


def test_ladder_is_without_what_it_has(monkeypatch):
    @dataclass
    class AuditedLadder:
        audit: int | None = 1
        n_draws: int = 2048

    assert hard_families.ladder_without(["no such feature"]) is None
    assert hard_families.ladder_without([]) is None
    monkeypatch.setattr(nbi, "Ladder", AuditedLadder)
    assert hard_families.ladder_without(["audit", "more"]) == AuditedLadder(audit=None)


def test_command_tells_and_stores_what_it_found(monkeypatch, tmp_path, capsys):
    quick = nbi.Ladder(escalate="never", top_up_draws=0)
    monkeypatch.setattr(hard_families, "ladder_without", lambda features: quick)
    words = "x --set needle --dim 2 --width 0.2 --objects 3 --epochs 1 --n-sims 300 --no-audit"
    out = ["--out", str(tmp_path / "a.json"), "--cache", str(tmp_path)]
    for _ in range(2):  # trained, and from the cache
        monkeypatch.setattr(sys, "argv", [*words.split(), *out])
        with pytest.raises(SystemExit) as left:
            hard_objects.main()
        stored = json.loads((tmp_path / "a.json").read_text())
        told = capsys.readouterr().out
        assert "Needle(dim=2, width=0.2" in told
        calls = int(re.search(r"an object: (\d+) calls", told)[1])
        assert 2000 < calls <= 2048  # draws beyond the latent bound are not simulated
        assert left.value.code == (0 if stored["bounds"][0]["met"] else 1)
        assert len(stored["objects"]) == stored["figures"]["objects"] == 3
        assert stored["without"] == ["audit"]


def test_failed_answers_are_wrong():
    nothing = np.full(2, np.nan)
    assert judge(Answer(nothing, nothing, 0.0), TRUE)["wrong_in"] == ["mean", "sd"]
