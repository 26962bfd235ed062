"""Laws of the container of observations and of its padded batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nbi_plus import Observations
from nbi_plus.problem.binding import is_one_object, many_objects, one_object, with_grid

laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from([np.nan, np.inf, -np.inf])
sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))


@st.composite
def tables(draw):
    """Return x, x_err and mask (N, C, L), and times (L,) or (N, L)."""
    n, c, length = draw(sizes)
    x = draw(arrays(np.float64, (n, c, length), elements=numbers))
    err = draw(arrays(np.float64, (n, c, length), elements=st.floats(0.1, 10) | st.just(np.nan)))
    mask = draw(arrays(np.bool_, (n, c, length)))
    t = draw(arrays(np.float64, draw(st.sampled_from([(length,), (n, length)])),
                    elements=st.floats(-1e7, 1e7)))  # fmt: skip
    return x, err, mask, t


def some(n=4, **extra):
    x = np.arange(3.0 * n).reshape(n, 3)
    return Observations.from_arrays(x, 0.5, scalars={"redshift": np.arange(n) / 10}, **extra)


def ragged(lengths=(2, 0, 3)):
    """Return objects of several lengths, as a reader of tables will make them."""
    total = sum(lengths)
    return Observations(
        values=np.arange(1.0, total + 1)[None],
        errors=np.full((1, total), 0.1),
        valid=np.arange(total)[None] != 1,
        offsets=np.cumsum([0, *lengths]),
        points={"t": 10.0 + np.arange(total)},
        scalars={"z": np.arange(float(len(lengths)))},
        ids=np.array(["a", "b", "c"]),
        shared_grid=False,
        n_masked=np.array([1, 0, 0]),
    )


@laws
@given(tables())
def test_batch_returns_what_from_arrays_was_given(table):
    x, err, mask, t = table
    obs = Observations.from_arrays(x, err, mask=mask, t=t)
    batch = obs.batch()
    real = mask & np.isfinite(x) & np.isfinite(err)
    assert np.array_equal(batch.mask.numpy(), real)
    assert np.array_equal(batch.x.numpy(), np.where(real, x, 0.0))
    assert np.array_equal(batch.x_err.numpy(), np.where(real, err, 1.0))
    assert np.array_equal(batch.coords["t"].numpy(), t)
    assert np.array_equal(obs.n_masked, (mask & ~real).sum((1, 2)))
    assert np.array_equal(obs.x, batch.x.numpy())
    assert np.array_equal(obs.mask, batch.mask.numpy())
    assert {v.dtype for v in (batch.x, batch.x_err, batch.coords["t"])} == {torch.float64}


@laws
@given(tables(), st.data())
def test_indexing_commutes_with_batching(table, data):
    x, err, mask, t = table
    n = len(x)
    obs = Observations.from_arrays(x, err, mask=mask, t=t, ids=[f"id {i}" for i in range(n)])
    whole = obs.batch()
    rows = st.integers(-n, n - 1)
    index = data.draw(
        rows | st.slices(n) | st.lists(rows, max_size=6).map(lambda i: np.array(i, int))
    )
    chosen = np.atleast_1d(np.arange(n)[index]).copy()
    assert obs[index].ids.tolist() == obs.ids[chosen].tolist()
    for part in (obs[index].batch(), obs.batch(index)) if len(chosen) else ():
        assert torch.equal(part.mask, whole.mask[chosen])
        assert torch.equal(part.x, whole.x[chosen])
        assert torch.equal(part.x_err, whole.x_err[chosen])
        own = whole.coords["t"] if t.ndim == 1 else whole.coords["t"][chosen]
        assert torch.equal(part.coords["t"], own)


def test_indexing_gives_observations_of_the_same_objects():
    obs = some()
    for index, expected in ((1, [1]), (-1, [3]), (slice(1, 3), [1, 2]), ([3, 0], [3, 0]),
                            (np.array([True, False, True, False]), [0, 2])):  # fmt: skip
        part = obs[index]
        assert isinstance(part, Observations)
        assert part.ids.tolist() == expected
        assert part.x[:, 0].tolist() == obs.x[expected, 0].tolist()
        assert part.scalars["redshift"].tolist() == obs.scalars["redshift"][expected].tolist()
    with pytest.raises(IndexError):
        obs[4]


def test_keys_depend_on_ids_alone():
    obs = some(ids=["a", "b", "c", "d"])
    assert len(set(obs.keys.tolist())) == 4
    assert obs[[2, 0]].keys.tolist() == obs.keys[[2, 0]].tolist()
    other = Observations.from_arrays(np.zeros((2, 7)), ids=["c", "a"])
    assert other.keys.tolist() == obs.keys[[2, 0]].tolist()
    assert some().keys.tolist() == Observations.from_arrays(np.ones((4, 9))).keys.tolist()


def test_ragged_objects_are_padded_masked_and_kept_apart():
    batch = ragged().batch()
    assert batch.mask[:, 0].tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert batch.x[:, 0].tolist() == [[1, 0, 0], [0, 0, 0], [3, 4, 5]]
    assert batch.x_err[0, 0].tolist() == [0.1, 1, 1]
    assert batch.coords["t"][0].tolist() == [10, 11, 11]  # padding repeats the last point
    assert batch.coords["t"][2].tolist() == [12, 13, 14]
    alone = ragged()[[2, 0]]
    assert alone.lengths.tolist() == [3, 2]
    assert alone.batch().x[:, 0].tolist() == [[3, 4, 5], [1, 0, 0]]
    assert alone.n_masked.tolist() == [0, 1]
    assert ragged()[0].batch().x.shape == (1, 1, 2)
    assert ragged()[1].batch().mask.shape == (1, 1, 0)
    assert ragged((2, 3, 0))[2].batch().x.shape == (1, 1, 0)
    assert ragged((2, 3, 0)).batch().mask[2].sum() == 0


def test_nothing_and_no_objects_make_empty_batches():
    none = some()[[]]
    assert len(none) == 0
    assert none.batch().x.shape == (0, 1, 0)
    assert none.keys.shape == (0,)


def test_two_dimensional_mask_holds_for_all_channels():
    mask = np.array([[True, False, True], [False, True, True]])
    obs = Observations.from_arrays(np.ones((2, 4, 3)), mask=mask)
    assert np.array_equal(obs.mask, np.repeat(mask[:, None], 4, 1))
    assert obs.n_masked.tolist() == [0, 0]  # masked by the user, not for being bad


def test_bad_values_are_masked_and_counted():
    x = np.ones((2, 2, 3))
    x[0, 0, 0], x[1, 1] = np.nan, np.inf
    err = np.ones((2, 2, 3))
    err[0, 0, :2] = np.nan
    obs = Observations.from_arrays(x, err)
    assert obs.n_masked.tolist() == [2, 3]
    assert obs.mask.sum() == 12 - 5
    assert np.isfinite(obs.x).all()
    assert np.isfinite(obs.x_err).all()


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_errors_must_be_positive_unless_masked(bad):
    err = np.array([[1.0, bad, 1.0]])
    with pytest.raises(ValueError, match=r"x_err must be positive, but has values down to"):
        Observations.from_arrays(np.ones((1, 3)), err)
    for x, mask in (([[1.0, 1.0, 1.0]], [[True, False, True]]), ([[1.0, np.nan, 1.0]], None)):
        obs = Observations.from_arrays(x, err, mask=mask)
        assert obs.mask[0, 0].tolist() == [True, False, True]
        assert (obs.x_err > 0).all()


def test_the_callers_arrays_stay_as_they_were():
    x, err, t = np.array([[1.0, np.nan]]), np.array([[1.0, 2.0]]), np.array([3.0, 4.0])
    before = x.copy(), err.copy(), t.copy()
    obs = Observations.from_arrays(x, err, t=t)
    obs.batch().coords["t"] += 1
    obs.batch().x.add_(1)
    for now, then in zip((x, err, t), before, strict=True):
        assert np.array_equal(now, then, equal_nan=True)
    x[:], t[:] = 9, 9
    assert obs.x[0, 0].tolist() == [1, 0]
    assert obs.coords["t"].tolist() == [3, 4]


def test_batch_moves_and_selects_without_its_coordinates_losing_digits():
    batch = some(t=2.46e6 + np.arange(3) / 86400).batch()
    half = batch.to(dtype=torch.float32)
    assert half.x.dtype == half.x_err.dtype == torch.float32
    assert half.coords["t"].dtype == half.scalars["redshift"].dtype == torch.float64
    part = batch.select(torch.tensor([3, 1]))
    assert torch.equal(part.x, batch.x[[3, 1]])
    assert torch.equal(part.coords["t"], batch.coords["t"])
    assert part.scalars["redshift"].tolist() == pytest.approx([0.3, 0.1])
    assert batch.per_object() == {"redshift"}
    assert set(batch.arguments()) == {"t", "redshift"}
    assert ragged().batch().per_object() == {"t", "z"}
    noisy = ragged().batch().with_data(torch.full((3, 1, 3), np.nan, dtype=torch.float64))
    assert not noisy.x[~noisy.mask].any()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Observations.from_arrays([1.0, 2.0]), r"x must have shape \(N, L\).*has \(2,\)"),
    (lambda: Observations.from_arrays(np.zeros((2, 0))), "no empty axis"),
    (lambda: Observations.from_arrays([[1.0], [1.0, 2.0]], t=[[1.0], [1.0]]),
     r"t must be one array for each object with the lengths of x, \[1, 2\]..., but"),
    (lambda: Observations.from_arrays([[1.0], [1.0, 2.0]], [[1.0, 2.0], [1.0]]),
     "x_err must have the lengths of x"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), band=["g", "r", "u"],
                                      categories={"band": ["g", "r"]}), "band must be one of"),
    (lambda: Observations.from_arrays([["a"]]), "x must hold real numbers"),
    (lambda: Observations.from_arrays([[1.0 + 1j]]), "x must hold real numbers"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), np.ones((2, 4))),
     r"x_err must have a shape that fits x \(2, 1, 3\), but has \(2, 4\)"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), mask=np.ones((3, 3))), "mask must have"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), t=np.ones(4)),
     r"t must have shape \(3,\) or \(2, 3\), but has \(4,\)"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), t=[0, np.nan, 1]),
     "t must be finite, but 1"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), scalars={"z": [1.0]}),
     "z must be 2 finite numbers"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), scalars={"z": [1.0, np.nan]}),
     "z must be 2 finite numbers"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), ids=["a", "a"]), "ids must be 2 different"),
    (lambda: Observations.from_arrays(np.ones((2, 3)), ids=["a"]), "ids must be 2 different"),
    (lambda: one_object(np.ones((2, 3, 4)), None, None, {}), r"x_obs must have shape \(L,\)"),
    (lambda: one_object("abc", None, None, {}), "x_obs must be an array of numbers"),
    (lambda: one_object(np.ones(3), np.ones(4), None, {}), r"x_err must have a shape that fits"),
])  # fmt: skip
def test_bad_observations_are_refused_with_a_reason(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_one_object_takes_channels_masks_coordinates_and_scalars():
    x = np.arange(6.0).reshape(2, 3)
    obs = one_object(x, 0.1, [True, False, True], {"t": [0, 1, 2], "redshift": 0.3})
    assert (len(obs), obs.n_channels) == (1, 2)
    assert np.array_equal(obs.mask, np.tile([True, False, True], (1, 2, 1)))
    assert obs.coords["t"].tolist() == [0, 1, 2]
    assert obs.scalars["redshift"].tolist() == [0.3]
    both = many_objects(np.ones((4, 3)), 0.1, None, {"t": [0, 1, 2], "redshift": 0.3})
    assert both.scalars["redshift"].tolist() == [0.3] * 4


def test_one_object_and_many_are_told_apart():
    assert is_one_object(np.ones(5), (1, 5), 7)
    assert is_one_object(np.ones((2, 5)), (2, 5), 7)
    assert is_one_object(np.ones((1, 5)), (1, 5), 7)
    assert not is_one_object(np.ones((7, 5)), (1, 5), 7)
    assert not is_one_object(np.ones((7, 2, 5)), (2, 5), 7)


def test_known_grid_fills_in_only_what_is_missing():
    grid = {"t": np.arange(3.0), "x_err": np.ones(3), "redshift": np.array(1.0)}
    assert with_grid(some(), grid).coords["t"].tolist() == [0, 1, 2]
    assert with_grid(some(t=[5.0, 6.0, 7.0]), grid).coords["t"].tolist() == [5, 6, 7]
    assert "x_err" not in with_grid(some(), grid).points
    with pytest.raises(TypeError, match="observations must be Observations"):
        with_grid(np.ones((2, 3)), grid)


def test_designs_need_no_data():
    one = Observations.from_arrays(t=[0.0, 1.0, 3.0])
    several = Observations.from_arrays(t=[[0.0, 1.0], [2.0, 5.0]], n=[3.0, 4.0])
    ragged = Observations.from_arrays(t=[np.arange(2.0), np.arange(3.0)])
    assert [own.lengths.tolist() for own in (one, several, ragged)] == [[3], [2, 2], [2, 3]]
    assert all((own.batch().x == 0).all() and own.batch().mask.any() for own in (one, several))
    with pytest.raises(ValueError, match="x must be given where there is no coordinate"):
        Observations.from_arrays()
