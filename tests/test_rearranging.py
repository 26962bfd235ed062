"""Laws of rearranging: joining, folding, binning, origins, selecting and bucketing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbi_plus import Observations

laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def some(n=5, seed=0, **changes):
    """Return objects of 0 to 6 points in two bands, a fifth of them masked."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, n)
    total = int(lengths.sum())
    table = {
        "id": np.repeat([f"{seed}-{i}" for i in range(n)], lengths),
        "t": 59000 + rng.uniform(0, 20, total),
        "x": np.where(rng.random(total) < 0.2, np.nan, rng.normal(5, 1, total)),
        "x_err": rng.uniform(0.1, 1, total),
        "band": rng.choice(["g", "r"], total),
        "redshift": np.repeat(rng.random(n), lengths),
    } | changes
    return Observations.from_table(table, scalars=["redshift"], units={"t": "d", "x": "mJy"})


def fields(obs):
    return [obs.values, obs.errors, obs.valid, obs.offsets, obs.ids, obs.n_masked, obs.origins,
            *(obs.points[k] for k in sorted(obs.points)),
            *(obs.scalars[k] for k in sorted(obs.scalars))]  # fmt: skip


def equal(one, other):
    pairs = list(zip(fields(one), fields(other), strict=True))
    return all(np.array_equal(a, b) for a, b in pairs) and one.shared_grid == other.shared_grid


@laws
@given(st.integers(0, 99), st.integers(0, 5))
def test_concatenating_parts_restores_the_whole(seed, cut):
    obs = some(5, seed).relative_to("first")
    assert equal(Observations.concatenate([obs[:cut], obs[cut:]]), obs)
    assert equal(Observations.concatenate(obs), obs)


def test_concatenating_converts_units_and_merges_categories():
    one = some(2, 0)
    other = some(3, 1).like({}, {"t": "h", "x": "Jy"})
    both = Observations.concatenate([one, other])
    assert both.units == {"t": "d", "x": "mJy"}
    assert both[2:].points["t"] == pytest.approx(some(3, 1).points["t"], rel=1e-14)
    assert both[2:].values == pytest.approx(some(3, 1).values, rel=1e-14)
    bands = [Observations.from_table({"id": [i], "t": [1.0], "flux": [1.0], "band": [b]})
             for i, b in enumerate("rgr")]  # fmt: skip
    joined = Observations.concatenate(bands)
    assert joined.categories == {"band": ("r", "g")}
    assert joined.points["band"].tolist() == [0, 1, 0]


def test_concatenating_keeps_a_common_grid_alone():
    grid = {"t": [0.0, 1.0]}
    one, other = (
        Observations.from_arrays(np.ones((2, 2)), ids=ids, **grid)
        for ids in (["a", "b"], ["c", "d"])
    )
    assert Observations.concatenate([one, other]).shared_grid
    moved = Observations.from_arrays(np.ones((1, 2)), ids=["e"], t=[0.0, 2.0])
    flat = Observations.concatenate([one, moved])
    assert not flat.shared_grid
    assert flat.points["t"].tolist() == [0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize(("parts", "message"), [
    (lambda: [], "parts must be at least one data set"),
    (lambda: [some(2), some(2)], r"ids must be different.* 2 are not, such as \['0-0', '0-1'\]"),
    (lambda: [some(2), Observations.from_arrays(np.ones((1, 3)))], "parts must have errors in all"),
    (lambda: [some(2), Observations.from_arrays(np.ones((1, 2, 3)), 1)], "same number of channels"),
    (lambda: [some(2), Observations.from_arrays(np.ones((1, 3)), 1, t=[1, 2, 3])],
     "parts must have the same coordinates, but part 0 has"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Observations.concatenate(parts())


@laws
@given(st.integers(0, 99), st.floats(0.01, 50), st.floats(-1e5, 1e5))
def test_phase_is_the_fraction_of_a_period(seed, period, epoch):
    obs = some(4, seed)
    folded = obs.fold(period, epoch)
    phase, t = folded.points["phase"], folded.points["t"]
    assert ((phase >= 0) & (phase < 1)).all()
    turns = (t - epoch) / period - phase
    assert turns == pytest.approx(np.round(turns), abs=1e-6)
    assert all((np.diff(phase) >= 0) | (np.diff(folded.owner) > 0))
    assert sorted(t) == sorted(obs.points["t"])
    assert np.array_equal(folded.lengths, obs.lengths)
    shifted = obs.relative_to("median").fold(period, epoch).points["phase"]
    distance = np.abs(np.sort(shifted) - np.sort(phase))
    assert np.minimum(distance, 1 - distance).max() < 1e-4


def test_period_may_be_a_scalar_or_one_for_each_object():
    obs = some(3)
    by_name = obs.fold("redshift")
    assert equal(by_name, obs.fold(obs.scalars["redshift"]))
    assert by_name[1].points["phase"].tolist() == obs[1].fold("redshift").points["phase"].tolist()
    exact = Observations.from_arrays(np.ones((1, 3)), t=[-1e-20, 0.5, 1.0]).fold(1.0)
    assert exact.points["phase"].tolist() == [0.0, 0.0, 0.5]
    for bad, message in ((0.0, "period must be positive"), ([1.0], "period must be one finite"),
                         ("P", r"'P' must be one of \['redshift'\]")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            obs.fold(bad)
    with pytest.raises(ValueError, match="fold must have a coordinate 't'"):
        Observations.from_arrays(np.ones((1, 3))).fold(1.0)


@laws
@given(st.integers(0, 99), st.sampled_from([0.5, 3.0, 100.0]))
def test_bins_are_weighted_means(seed, width):
    obs = some(4, seed)
    binned = obs.bin(width)
    assert binned.valid.all()
    owner, t, band = obs.owner, obs.points["t"], obs.points["band"]
    found = set()
    for k in range(len(binned.points["t"])):
        i, b = binned.owner[k], binned.points["band"][k]
        number = np.floor(binned.points["t"][k] / width)
        own = (owner == i) & (band == b) & (np.floor(t / width) == number) & obs.valid[0]
        weight = obs.errors[0, own] ** -2.0
        assert binned.values[0, k] == pytest.approx(np.average(obs.values[0, own], weights=weight))
        assert binned.errors[0, k] == pytest.approx(weight.sum() ** -0.5)
        assert binned.points["t"][k] == pytest.approx(np.average(t[own], weights=weight))
        found |= set(np.flatnonzero(own).tolist())
    assert found == set(np.flatnonzero(obs.valid[0]).tolist())
    assert all((np.diff(binned.points["t"]) >= 0) | (np.diff(binned.owner) > 0))


def test_binning_leaves_limits_and_lone_points_as_they_are():
    obs = Observations.from_table(
        {"id": ["a"] * 5 + ["b"], "t": [0.1, 0.2, 0.3, 0.4, 1.5, 0.1], "flux": [1, 3, 7, 9, 4, 2.0],
         "upper_limit": [False, False, True, True, False, False]}
    )  # fmt: skip
    binned = obs.bin(1.0)
    assert binned.values[0].tolist() == [2.0, 7.0, 9.0, 4.0, 2.0]
    assert binned.points["upper_limit"].tolist() == [False, True, True, False, False]
    assert binned.lengths.tolist() == [4, 1]
    assert binned.errors is None
    tiny = some(4).bin(1e-9)
    kept = some(4).select_points(some(4).valid[0])
    assert equal(tiny, kept)
    with pytest.raises(ValueError, match="dt must be a positive time"):
        obs.bin(0.0)


def test_channels_are_binned_by_their_own_points():
    x = np.array([[[1.0, 3.0, 5.0], [np.nan, 4.0, np.nan]]])
    binned = Observations.from_arrays(x, 1.0, t=[0.0, 0.2, 1.0]).bin(1.0)
    assert binned.valid.tolist() == [[True, True], [True, False]]
    assert binned.values.tolist() == [[2.0, 5.0], [4.0, 0.0]]
    assert binned.errors[:, 0] == pytest.approx([2**-0.5, 1.0])


@laws
@given(st.integers(0, 99), st.sampled_from(["first", "median", "peak"]))
def test_times_and_origins_add_up_to_absolute_times(seed, origin):
    obs = some(4, seed)
    relative = obs.relative_to(origin)
    absolute = relative.points["t"] + relative.origins[obs.owner]
    assert absolute == pytest.approx(obs.points["t"], rel=1e-15)
    assert relative.relative_to(0.0).points["t"] == pytest.approx(obs.points["t"], rel=1e-15)
    for i in range(len(obs)):
        own = obs.select_points(obs.valid[0])[i]
        t, x = own.points["t"], own.values[0]
        if len(t):
            expected = {"first": t.min(), "median": np.median(t), "peak": t[x.argmax()]}[origin]
            if origin != "peak" or (x >= 3 * own.errors[0]).any():
                sure = x >= 3 * own.errors[0]
                expected = t[sure][x[sure].argmax()] if origin == "peak" else expected
            assert relative.origins[i] == pytest.approx(expected, rel=1e-15)
    assert equal(relative[[2, 0]], obs[[2, 0]].relative_to(origin))


def test_peak_is_no_noise_no_limit_and_no_magnitude():
    obs = Observations.from_arrays(
        [[9.0, 5.0, 7.0, 1.0]], [[8.0, 0.1, 0.1, 0.1]], t=[0.0, 1.0, 2.0, 3.0],
        upper_limit=[False, False, True, False],
    )  # fmt: skip
    assert obs.relative_to("peak").origins.tolist() == [1.0]
    with pytest.raises(ValueError, match="must have fluxes, but x is in magnitudes"):
        obs.like({}, {"x": "mag"}).relative_to("peak")
    with pytest.raises(ValueError, match=r"'best' must be one of \['first', 'median', 'peak'\]"):
        obs.relative_to("best")
    with pytest.raises(ValueError, match="origin must be one finite number or 1"):
        obs.relative_to([1.0, 2.0])
    given_origin = obs.relative_to([0.5])
    assert given_origin.origins.tolist() == [0.5]
    assert given_origin.points["t"].tolist() == [-0.5, 0.5, 1.5, 2.5]
    hours = given_origin.like({}, {"t": "d"}).like({}, {"t": "h"})
    assert hours.origins.tolist() == [12.0]


def test_selected_points_are_those_flagged():
    obs = some(4)
    keep = np.arange(len(obs.owner)) % 2 == 0
    part = obs.select_points(keep)
    assert part.values.tolist() == obs.values[:, keep].tolist()
    assert part.owner.tolist() == obs.owner[keep].tolist()
    assert len(part) == 4
    grid = Observations.from_arrays(np.ones((2, 3)), t=[1, 2, 3]).select_points(
        np.ones(6) == [1, 0, 1, 1, 1, 1]
    )
    assert grid.points["t"].tolist() == [1, 3, 1, 2, 3]
    with pytest.raises(ValueError, match="keep must be 4 flags"):
        Observations.from_arrays(np.ones((2, 2))).select_points([1, 0, 1, 1])


@laws
@given(st.lists(st.integers(0, 30), min_size=0, max_size=20), st.integers(1, 60))
def test_buckets_hold_each_object_once_and_few_points(lengths, max_points):
    n = len(lengths)
    obs = Observations(
        values=np.zeros((1, sum(lengths))), errors=None, valid=np.ones((1, sum(lengths)), bool),
        offsets=np.cumsum([0, *lengths]), points={}, scalars={}, ids=np.arange(n),
        shared_grid=False, n_masked=np.zeros(n, int),
    )  # fmt: skip
    parts = list(obs.buckets(max_points))
    assert sorted(i for part in parts for i in part.tolist()) == list(range(n))
    for part in parts:
        assert len(part) == 1 or len(part) * obs.lengths[part].max() <= max_points
    longest = [obs.lengths[part].max() for part in parts]
    assert longest == sorted(longest, reverse=True)


def test_joint_data_sets_become_channels():
    light = Observations.from_table(
        {"id": ["a", "a", "b"], "t": [1.0, 2.0, 3.0], "flux": [1.0, 2.0, 3.0],
         "flux_err": [0.1] * 3, "band": ["r", "g", "r"]}, units={"x": "mJy", "t": "d"})  # fmt: skip
    spectra = Observations.from_arrays(
        [[7.0, np.nan], [9.0, 10.0]], 0.5, ids=["b", "a"], wavelength=[5.0, 6.0], units={"x": "Jy"}
    )
    both = Observations.joint({"light": light, "spectra": spectra})
    assert both.lengths.tolist() == [4, 3]
    assert both.values.tolist() == [[1, 2, 0, 0, 3, 0, 0], [0, 0, 9, 10, 0, 7, 0]]
    assert both.valid.tolist() == [[True, True, False, False, True, False, False],
                                   [False, False, True, True, False, True, False]]  # fmt: skip
    assert both.points["t"].tolist() == [1, 2, 2, 2, 3, 3, 3]
    assert both.points["wavelength"].tolist() == [6, 6, 5, 6, 6, 5, 6]
    assert both.points["band"].tolist() == [1, 0, 0, 0, 1, 1, 1]
    assert both.categories == {"band": ("g", "r")}
    assert both.units == {"t": "d"}
    assert both.n_masked.tolist() == [0, 1]
    assert equal(Observations.joint({"light": light}), light)
    swapped = Observations.joint({"spectra": spectra, "light": light})
    assert swapped.ids.tolist() == ["b", "a"]


def test_joint_data_sets_must_fit():
    obs = some(3)
    with pytest.raises(ValueError, match="2 ids are not in both 'other' and the first part"):
        Observations.joint({"one": obs[:2], "other": obs[1:]})
    with pytest.raises(ValueError, match="must count their times from the same origins"):
        Observations.joint({"one": obs, "other": obs.relative_to("first")})
    with pytest.raises(ValueError, match=r"must all have errors or none, but \['bare'\]"):
        Observations.joint(
            {"one": obs, "bare": Observations.from_arrays(np.ones((3, 2)), ids=obs.ids)}
        )
    empty = obs[[]]
    with pytest.raises(ValueError, match="ids are not in both"):
        Observations.joint({"one": obs, "none": empty})
