"""Laws of how a simulator is bound and run, one block at a time."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from nbi_plus import SimulationError, Simulator
from nbi_plus.problem.random import preserved_random_state
from nbi_plus.problem.simulator.calling import CallRows
from nbi_plus.problem.simulator.probing import _row_counts
from nbi_plus.problem.simulator.simulator import FAILED, NONFINITE, OK, bind

T = np.linspace(0.0, 1.0, 50)
THETA = np.random.default_rng(1).uniform(0.5, 1.5, (16, 3))
COORDS = {"t": T}
needs_alarm = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")


def vectorised(theta, t):
    return np.exp(-((t - theta[:, :1]) ** 2)) * theta[:, 1:2] + theta[:, 2:]


def row_wise(theta, t):
    a, b, c = theta
    return np.exp(-((t - a) ** 2)) * b + c


def in_torch(theta, t):
    return torch.exp(-((t - theta[:, :1]) ** 2)) * theta[:, 1:2] + theta[:, 2:]


def row_wise_torch(theta, t):
    a, b, c = theta
    return torch.exp(-((t - a) ** 2)) * b + c


def global_states():
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002
    return pickle.dumps((random.getstate(), legacy, torch.get_rng_state().numpy().tobytes()))


# ------------------------------------------------------------------------------ detection


@pytest.mark.parametrize(
    ("f", "backend", "is_vectorized", "differentiable"),
    [
        (vectorised, "numpy", True, False),
        (row_wise, "numpy", False, False),
        (in_torch, "torch", True, True),
        (row_wise_torch, "torch", False, True),
    ],
)
def test_bind_finds_how_a_function_is_called(f, backend, is_vectorized, differentiable):
    bound = bind(f, THETA, COORDS)
    assert (bound.backend, bound.vectorized) == (backend, is_vectorized)
    assert bound.differentiable is differentiable
    assert bound.shape == (1, 50)
    assert bound.arguments == ("t",)
    assert not bound.stochastic
    np.testing.assert_allclose(bound.run(THETA, COORDS).x[:, 0], vectorised(THETA, T), rtol=1e-12)


@pytest.mark.parametrize("n_parameters", [1, 2, 3, 5, 7, 16])
@pytest.mark.parametrize("length", [1, 2, 5, 7, 16])
@pytest.mark.parametrize("k", [1, 5, 16])
def test_bind_is_not_confused_by_equal_sizes(n_parameters, length, k):
    theta = np.random.default_rng(2).uniform(0.5, 1.5, (k, n_parameters))
    t = np.linspace(0.0, 1.0, length)
    last = -1
    rows = bind(lambda theta, t: theta[0].item() + theta[last].item() * t, theta, {"t": t})
    block = bind(lambda theta, t: theta[:, :1] + np.asarray(theta[:, last:]) * t, theta, {"t": t})
    truth = theta[:, :1] + theta[:, last:] * t
    assert not rows.vectorized
    assert block.vectorized
    np.testing.assert_allclose(rows.run(theta, {"t": t}).x[:, 0], truth, rtol=1e-14)
    np.testing.assert_allclose(block.run(theta, {"t": t}).x[:, 0], truth, rtol=1e-14)


def test_bind_takes_a_function_that_mixes_rows_one_row_at_a_time():
    bound = bind(lambda theta: np.asarray(theta - theta.mean()), THETA)
    assert not bound.vectorized
    truth = THETA - THETA.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(bound.run(THETA).x[:, 0], truth, rtol=1e-12)


def test_bind_refuses_vectorised_code_whose_rows_depend_on_each_other():
    with pytest.raises(SimulationError, match="changes with the rows beside it"):
        bind(Simulator(lambda theta: theta - theta.mean(0), vectorized=True), THETA)


def test_vectorised_code_that_squeezes_single_rows_is_called_with_two():
    bound = bind(lambda theta, t: np.squeeze(vectorised(np.asarray(theta), t)), THETA, COORDS)
    assert bound.vectorized
    np.testing.assert_array_equal(bound.run(THETA[:1], COORDS).x, bound.run(THETA, COORDS).x[:1])


@pytest.mark.parametrize(
    ("f", "shape"),
    [
        (lambda theta: np.asarray(theta).sum(1), (1, 1)),
        (lambda theta: float(theta[0]), (1, 1)),
        (lambda theta: np.asarray(theta), (1, 3)),
        (lambda theta: np.asarray(theta)[:, :, None] * T, (3, 50)),
        (lambda theta: np.outer(np.asarray(theta), T), (3, 50)),
        (lambda theta: [float(theta[0]), 2.0], (1, 2)),
        (lambda theta: (np.asarray(theta) > 1).astype(int), (1, 3)),
        (lambda theta: np.asarray(theta) > 1, (1, 3)),
        (lambda theta: np.asarray(theta, dtype=np.float32), (1, 3)),
    ],
    ids=["n", "number", "n-l", "n-c-l", "c-l", "list", "integer", "boolean", "float32"],
)
def test_every_shape_and_real_dtype_of_output_becomes_float64_blocks(f, shape):
    bound = bind(f, THETA)
    block = bound.run(THETA)
    assert bound.shape == shape
    assert block.x.shape == (16, *shape)
    assert block.x.dtype == np.float64
    assert (block.state == OK).all()


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda theta: np.asarray(theta).astype(str), "real numbers"),
        (lambda theta: np.asarray(theta).astype(object), "real numbers"),
        (lambda theta: np.asarray(theta) * 1j, "complex"),
        (lambda _: None, "real numbers"),
        (lambda _: [[1.0, 2.0], [3.0]], "array"),
        (lambda theta: np.asarray(theta)[..., None, None] * T, "shape"),
        (lambda _: np.ones(0), "shape"),
        (lambda theta: np.ones(3 + int(theta[0] > 1.0)), "one shape"),
        (lambda _: np.full(4, np.nan), "NaN"),
        (lambda theta: np.ones((theta.shape[0], theta[:, 0].size)), "gave shape"),
    ],
    ids=["str", "object", "complex", "none", "ragged", "4-d", "empty", "lengths", "nan", "grows"],
)
def test_bind_says_what_is_wrong_with_an_output(f, reason):
    with pytest.raises(SimulationError, match=reason):
        bind(f, THETA)


def test_bind_reports_the_error_of_every_probe_row():
    def broken(theta, t):
        raise ValueError(f"t0 = {float(theta[0]):.3f} < {len(t)}")

    with pytest.raises(SimulationError, match=r"ValueError\('t0 = ") as caught:
        bind(broken, THETA, COORDS)
    failed = caught.value.failed
    assert [one["row"] for one in failed] == list(range(16))
    np.testing.assert_array_equal([one["theta"] for one in failed], THETA)
    assert all(f"{one['theta'][0]:.3f}" in one["error"] for one in failed)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(again) == str(caught.value)
    assert len(again.failed) == 16


@pytest.mark.parametrize("f", [vectorised, row_wise, in_torch, row_wise_torch])
def test_bind_looks_past_probe_rows_that_raise_or_are_nan(f):
    def touchy(theta, t):
        first = theta[..., 0]
        if bool((first > 1.0).any()):
            raise ValueError("too large")
        return f(theta, t)

    def undefined(theta, t):
        x = f(theta, t)
        bad = (theta[..., 0] > 1.0)[..., None]
        return torch.where(bad, torch.nan, x) if torch.is_tensor(x) else np.where(bad, np.nan, x)

    clean, large = bind(f, THETA, COORDS), THETA[:, 0] > 1.0
    assert large[0]
    assert not large.all()
    for spoiled, state in ((touchy, FAILED), (undefined, NONFINITE)):
        bound = bind(spoiled, THETA, COORDS)
        assert (bound.backend, bound.vectorized, bound.differentiable, bound.shape) == (
            clean.backend,
            clean.vectorized,
            clean.differentiable,
            clean.shape,
        )
        np.testing.assert_array_equal(
            bound.run(THETA, COORDS).state, np.where(large, state, OK).astype(np.uint8)
        )


def test_forced_choices_are_respected_and_verified():
    assert bind(Simulator(in_torch, differentiable=False), THETA, COORDS).differentiable is False
    assert not bind(Simulator(lambda theta: np.sort(theta), vectorized=False), THETA).vectorized
    with pytest.raises(SimulationError, match="vectorised"):
        bind(Simulator(row_wise, vectorized=True), THETA, COORDS)
    with pytest.raises(SimulationError, match="no gradient"):
        bind(Simulator(vectorised, differentiable=True), THETA, COORDS)
    with pytest.raises(SimulationError, match="row by row"):
        bind(Simulator(vectorised, vectorized=False), THETA, COORDS)


def test_differentiable_means_that_an_output_requires_grad():
    def detached(theta, t):
        return in_torch(theta.detach(), t)

    bound = bind(detached, THETA, COORDS)
    assert (bound.backend, bound.differentiable) == ("torch", False)


def test_a_gradient_that_is_not_of_theta_or_cannot_be_computed_is_none():
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def of_a_weight(theta):
        return theta.detach()[:, :1] * weight

    def overwritten(theta):
        x = torch.exp(theta)
        return x.mul_(2.0)

    for f in (of_a_weight, overwritten):
        bound = bind(f, THETA)
        assert (bound.backend, bound.differentiable) == ("torch", False)


def test_probes_have_row_counts_that_no_other_axis_has():
    for k in (1, 5, 16):
        for p in range(1, 20):
            coords = {"t": np.ones(k + 1), "m": np.ones((k, 2, k + 2))}
            rows = CallRows.of(np.ones((k, p)), coords, {"m"})
            many, few = _row_counts(rows)
            assert many != few
            assert many >= k
            assert min(many, few) > 1
            assert not {many, few} & {p, k + 1, 2, k + 2}


def test_torch_is_preferred_only_where_it_gives_the_answer_of_numpy():
    def two_faced(theta):
        return theta * 2 if torch.is_tensor(theta) else theta * 3

    assert bind(lambda theta: theta * 2, THETA).backend == "torch"
    bound = bind(two_faced, THETA)
    assert bound.backend == "numpy"
    np.testing.assert_array_equal(bound.run(THETA).x[:, 0], THETA * 3)


def test_bind_calls_a_slow_row_wise_function_rarely():
    calls = []

    def slow(theta, t):
        a, b, c = theta
        calls.append(a)
        time.sleep(0.6)
        return np.asarray(t) * float(a)

    bound = bind(slow, THETA, COORDS)
    assert len(calls) <= 4
    assert 0.5 < bound.seconds_per_row < 1.0


@pytest.mark.parametrize("vectorized", [False, True])
def test_one_slow_moment_of_the_machine_makes_no_simulation_dear(vectorized):
    n_calls = [0]

    def simulator(theta):
        n_calls[0] += 1
        time.sleep(0.05 if n_calls[0] == held_up else 0.0)
        return theta[..., :1] * np.ones(3)

    for held_up in range(2, 9 if vectorized else 40):
        n_calls[0] = 0
        bound = bind(Simulator(simulator, vectorized=vectorized), THETA)
        assert bound.seconds_per_row < 1e-3, held_up


@pytest.mark.parametrize(("each", "fewest", "most"), [(0.0, 512, 512), (0.006, 6, 40)],
                         ids=["as long for any number", "so long for each"])  # fmt: skip
def test_what_a_row_costs_is_told_by_calls_of_more_rows(each, fewest, most):
    sizes = []

    def steps(theta):
        sizes.append(len(theta))
        time.sleep(0.03 + each * len(theta))
        return theta[:, :1] * np.ones(3)

    bound = bind(Simulator(steps, vectorized=True, differentiable=False), THETA)
    assert fewest <= max(sizes) <= most
    assert bound.seconds_per_row < 0.03 / 200 + 3 * each
    assert bound.seconds_per_row > each


# ------------------------------------------------------------------------------ arguments


def test_arguments_are_looked_up_by_name():
    coords = {"t": T, "band": np.arange(50), "z": np.linspace(0, 1, 16), "unused": np.ones(2)}
    seen = {}

    def f(theta, band, /, z, *, t, gain=2.0):
        seen.update(band=band, z=z, t=t, gain=gain)
        return theta[:, :1] * t + gain * z + band

    bound = bind(Simulator(f, differentiable=False), THETA, coords, {"z"})
    assert set(bound.arguments) == {"t", "band", "z"}
    truth = THETA[:, :1] * T + 2 * coords["z"][:, None] + np.arange(50)
    np.testing.assert_allclose(bound.run(THETA, coords, {"z"}).x[:, 0], truth, rtol=1e-14)
    assert seen["z"].shape == (16, 1)
    assert seen["band"].dtype.kind == "i"
    assert seen["gain"] == 2.0


def test_a_missing_argument_is_named_together_with_what_there_is():
    with pytest.raises(TypeError, match=r"'flux0'.*\('t', 'band'\)"):
        bind(lambda theta, t, flux0: theta * t * flux0, THETA, {"t": T, "band": T})
    bound = bind(vectorised, THETA, COORDS)
    with pytest.raises(TypeError, match=r"'t'.*\('time',\)"):
        bound.run(THETA, {"time": T})


def test_one_number_per_row_broadcasts_or_arrives_as_a_number():
    z = np.linspace(0.1, 1.0, 16)
    per_row_t = np.sort(np.random.default_rng(0).uniform(size=(16, 50)), axis=1)
    coords, per_row = {"t": per_row_t, "z": z}, {"t", "z"}
    block = bind(lambda theta, t, z: theta[:, :1] * t + np.asarray(z), THETA, coords, per_row)
    rows = bind(lambda theta, t, z: t * float(theta[0]) + float(z), THETA, coords, per_row)
    truth = THETA[:, :1] * per_row_t + z[:, None]
    assert block.vectorized
    assert not rows.vectorized
    np.testing.assert_allclose(block.run(THETA, coords, per_row).x[:, 0], truth, rtol=1e-14)
    np.testing.assert_allclose(rows.run(THETA, coords, per_row).x[:, 0], truth, rtol=1e-14)


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 4)

    def forward(self, theta, z):
        return self.net(theta) + z


class Callable:
    def __call__(self, theta, t):
        return vectorised(theta, t)

    def method(self, theta, t):
        return vectorised(theta, t)


@pytest.mark.parametrize(
    "f",
    [
        np.sin,
        np.array,
        functools.partial(vectorised, t=T),
        functools.partial(lambda gain, theta, t: gain * vectorised(theta, t), 2.0),
        Callable(),
        Callable().method,
        lambda *args, **kwargs: vectorised(*args, **kwargs),
        lambda theta, *_, **kwargs: vectorised(theta, kwargs["t"]),
        Line(),
    ],
    ids=[
        "ufunc",
        "builtin",
        "partial",
        "partial-theta",
        "object",
        "method",
        "star",
        "kwargs",
        "nn",
    ],
)
def test_every_kind_of_callable_can_be_bound(f):
    coords = {"t": T, "z": 1.0} if isinstance(f, Line) else COORDS
    bound = bind(f, THETA, coords)
    assert bound.vectorized
    assert (bound.run(THETA, coords).state == OK).all()


def test_a_partial_keeps_what_it_has_bound():
    bound = bind(functools.partial(vectorised, t=T[:7]), THETA, COORDS)
    assert bound.arguments == ()
    assert bound.shape == (1, 7)


def test_what_cannot_take_theta_is_refused():
    with pytest.raises(TypeError, match="callable"):
        bind(3.0, THETA)
    with pytest.raises(TypeError, match="first positional argument"):
        bind(lambda: 1.0, THETA)
    with pytest.raises(TypeError, match="first positional argument"):
        bind(lambda *, theta: theta, THETA)
    with pytest.raises(ValueError, match="timeout must be positive"):
        Simulator(vectorised, timeout=0)


def test_other_coordinates_change_the_length_of_the_output():
    bound = bind(vectorised, THETA, COORDS)
    assert bound.run(THETA, {"t": T[:7]}).x.shape == (16, 1, 7)
    own_grid = bind(
        lambda theta, t: np.asarray(theta[:, :1]) * np.linspace(t[0], 1, 9), THETA, COORDS
    )
    assert own_grid.run(THETA, {"t": T[:7]}).x.shape == (16, 1, 9)


def test_big_endian_and_single_precision_coordinates_arrive_as_native_doubles():
    for f in (vectorised, in_torch):
        bound = bind(f, THETA, {"t": T.astype(">f8")})
        want = bound.run(THETA, COORDS).x
        np.testing.assert_array_equal(bound.run(THETA, {"t": T.astype(">f8")}).x, want)
        np.testing.assert_allclose(bound.run(THETA, {"t": T.astype("f4")}).x, want, rtol=1e-6)


def test_the_callers_arrays_are_never_edited():
    def edits(theta, t):
        theta[..., 0] -= 10.0
        t *= 0.0
        return theta[..., :1] + t

    for backend in ("numpy", "torch"):
        f = edits if backend == "torch" else lambda theta, t: np.asarray(edits(theta, t))
        theta, t = THETA.copy(), T.copy()
        bound = bind(f, theta, {"t": t})
        assert bound.backend == backend
        first = bound.run(theta, {"t": t}).x
        np.testing.assert_array_equal(bound.run(theta, {"t": t}).x, first)
        np.testing.assert_array_equal(theta, THETA)
        np.testing.assert_array_equal(t, T)


# ------------------------------------------------------------------------------ randomness


def noisy_numpy(theta):
    return np.asarray(theta) + np.random.standard_normal(np.shape(theta))  # noqa: NPY002


def noisy_python(theta):
    return [float(value) + random.gauss(0.0, 1.0) for value in theta]


def noisy_torch(theta):
    return theta.clone() + torch.randn(theta.shape)


@pytest.mark.parametrize("f", [noisy_numpy, noisy_python, noisy_torch])
def test_user_code_leaves_the_global_generators_as_they_were(f):
    before = global_states()
    bound = bind(f, THETA)
    assert global_states() == before
    bound.run(THETA)
    assert global_states() == before
    if bound.backend == "torch":
        bound.torch(torch.tensor(THETA))
        assert global_states() == before


@pytest.mark.parametrize("f", [noisy_numpy, noisy_python, noisy_torch])
def test_a_simulator_with_two_answers_is_stochastic_and_seeded_by_theta(f):
    bound = bind(f, THETA)
    assert bound.stochastic
    assert bound.seedable
    x = bound.run(THETA).x
    np.testing.assert_array_equal(bound.run(THETA).x, x)
    other = bound.run(THETA[::-1] + 1.0).x
    assert len(np.unique(np.concatenate([x[:, 0] - THETA, other[:, 0] - THETA[::-1] - 1.0]))) == 96


def test_a_generator_of_its_own_cannot_be_seeded():
    rng = np.random.default_rng(0)
    bound = bind(lambda theta: np.asarray(theta) + rng.normal(size=np.shape(theta)), THETA)
    assert bound.stochastic
    assert not bound.seedable


def test_rounding_is_not_taken_for_randomness():
    rng = np.random.default_rng(0)
    for size, stochastic in ((1e-15, False), (1e-9, True)):
        bound = bind(lambda theta, s=size: np.asarray(theta) * (1.0 + s * rng.uniform()), THETA)
        assert bound.stochastic is stochastic


def test_preserved_random_state_spans_nested_and_overlapping_threads():
    before = global_states()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with preserved_random_state():
            inside.set()
            leave.wait(10)
            random.random()

    with preserved_random_state():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait(10)
        with preserved_random_state():
            np.random.standard_normal(3)  # noqa: NPY002
            torch.randn(3)
    leave.set()
    thread.join()
    assert global_states() == before


# ------------------------------------------------------------------------------ bad rows


@pytest.mark.parametrize("f", [vectorised, row_wise, in_torch, row_wise_torch])
@pytest.mark.parametrize("bad", [[], [3], [0, 1, 15], list(range(16))])
def test_only_bad_rows_fail_each_after_a_second_try(f, bad):
    calls = []

    def fails(theta, t):
        first = np.atleast_1d(
            theta.detach().numpy()[..., 0] if torch.is_tensor(theta) else theta[..., 0]
        )
        calls.extend(first.tolist() if len(set(first)) == 1 else [])
        if np.isin(first, THETA[bad, 0]).any() and armed:
            raise ValueError("bad luck")
        return f(theta, t)

    armed = False
    bound = bind(fails, THETA, COORDS)
    armed = True
    clean = bind(f, THETA, COORDS).run(THETA, COORDS).x
    calls.clear()
    block = bound.run(THETA, COORDS)
    good = np.setdiff1d(np.arange(16), bad)
    np.testing.assert_array_equal(np.flatnonzero(block.state == FAILED), bad)
    assert block.errors == [(i, "ValueError('bad luck')") for i in bad]
    np.testing.assert_allclose(block.x[good], clean[good], rtol=1e-14)
    assert np.isnan(block.x[bad]).all()
    each = 4 if bound.vectorized else 2  # a vectorised call never sees a single row
    assert all(calls.count(THETA[i, 0]) == each for i in bad)


def test_a_row_that_fails_once_is_saved_by_the_second_try():
    def flaky(theta, t):
        if next(failures, False):
            raise OSError("try again")
        return row_wise(theta, t)

    failures = iter([])
    bound = bind(flaky, THETA, COORDS)
    failures = iter([False, True, False, False, True])
    assert (bound.run(THETA, COORDS).state == OK).all()
    assert next(failures, None) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_its_own_state(value):
    def f(theta, t):
        x = vectorised(np.asarray(theta), t)
        x[np.asarray(theta)[:, 0] > 1.0, 3] = value
        return x

    block = bind(f, THETA, COORDS).run(THETA, COORDS)
    np.testing.assert_array_equal(block.state == NONFINITE, THETA[:, 0] > 1.0)
    assert (block.state != FAILED).all()
    assert block.errors == []


def test_complex_and_masked_values_are_not_finite():
    roots = bind(lambda theta: [(float(theta[0]) - 0.6) ** 0.5], THETA)
    block = roots.run(np.array([[1.6, 0, 0], [0.5, 0, 0]]))
    assert block.state.tolist() == [OK, NONFINITE]
    assert block.x[0, 0, 0] == 1.0
    masked = bind(lambda theta: np.ma.masked_less(np.asarray(theta), 0.0), THETA)
    assert masked.run([[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]).state.tolist() == [OK, NONFINITE]


def test_a_row_of_another_shape_fails_and_says_so():
    bound = bind(lambda theta: np.ones(3 if theta[0] > 0 else 4), THETA)
    block = bound.run([[1.0, 0, 0], [-1.0, 0, 0]])
    assert block.state.tolist() == [OK, FAILED]
    assert "(1, 3)" in block.errors[0][1]
    assert "(1, 4)" in block.errors[0][1]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_is_no_exception_fails_a_row_all_the_same(error):
    def legacy(theta):
        if theta[0] < 0:
            raise error("fatal")
        return float(theta[0])

    block = bind(legacy, THETA).run([[-1.0, 0, 0], [3.0, 0, 0]])
    assert block.state.tolist() == [FAILED, OK]
    assert block.errors == [(0, f"{error.__name__}('fatal')")]


def test_no_rows_give_an_empty_block():
    for f in (vectorised, row_wise, in_torch):
        bound = bind(f, THETA, COORDS)
        assert bound.run(np.empty((0, 3)), COORDS).x.shape == (0, 1, 50)
    assert bound.torch(torch.empty((0, 3)), {"t": torch.tensor(T)}).shape == (0, 1, 50)


def test_wrong_blocks_are_the_callers_error():
    bound = bind(vectorised, THETA, COORDS)
    with pytest.raises(ValueError, match=r"shape \(n, P\), but has \(3,\)"):
        bound.run(THETA[0], COORDS)
    with pytest.raises(ValueError, match="one entry for each of the 16 rows"):
        bound.run(THETA, {"t": np.ones((4, 50))}, {"t"})
    with pytest.raises(TypeError, match="must be torch code"):
        bound.torch(torch.tensor(THETA), {"t": torch.tensor(T)})


# ------------------------------------------------------------------------------ time limits


@needs_alarm
@pytest.mark.parametrize("swallow", [False, True])
def test_a_slow_row_fails_alone_and_the_alarm_is_put_back(swallow):
    def slow(theta, t):
        if theta[0] > 2.0:
            try:
                time.sleep(20.0)
            except Exception:
                if not swallow:
                    raise
        return row_wise(theta, t)

    handler = signal.getsignal(signal.SIGALRM)
    theta = THETA.copy()
    theta[5, 0] = 3.0
    bound = bind(Simulator(slow, timeout=0.2), THETA, COORDS)
    start = time.perf_counter()
    block = bound.run(theta, COORDS)
    assert time.perf_counter() - start < 5.0
    assert block.errors == [(5, "TimeoutError('took longer than 0.2 s a row')")]
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@needs_alarm
def test_a_vectorised_block_that_is_late_is_run_row_by_row():
    sizes = []

    def slow(theta, t):
        sizes.append(len(theta))
        if (theta[:, 0] > 2.0).any():
            time.sleep(20.0)
        return vectorised(np.asarray(theta), t)

    theta = THETA.copy()
    theta[5, 0] = 3.0
    bound = bind(Simulator(slow, timeout=0.1), THETA, COORDS)
    sizes.clear()
    block = bound.run(theta, COORDS)
    np.testing.assert_array_equal(np.flatnonzero(block.state == FAILED), [5])
    assert sizes == [16] + 17 * [2]  # each row alone, one of them again


def test_a_time_limit_is_ignored_outside_the_main_thread():
    bound = bind(lambda theta: time.sleep(0.02) or float(theta[0]), THETA[:2])
    hurried = dataclasses.replace(bound, timeout=0.001)
    blocks = []
    thread = threading.Thread(target=lambda: blocks.append(hurried.run(THETA[:2])))
    thread.start()
    thread.join()
    assert (blocks[0].state == OK).all()


# ------------------------------------------------------------------------------ torch


@pytest.mark.parametrize("f", [in_torch, row_wise_torch])
@pytest.mark.parametrize("n", [1, 2, 16])
def test_torch_agrees_with_run_and_carries_gradients(f, n):
    bound = bind(f, THETA, COORDS)
    theta = torch.tensor(THETA[:n], requires_grad=True)
    coords = {"t": torch.tensor(T)}
    x = bound.torch(theta, coords)
    np.testing.assert_array_equal(x.detach().numpy(), bound.run(THETA[:n], COORDS).x)
    (gradient,) = torch.autograd.grad(x.sum(), theta)
    step = torch.zeros_like(theta)
    step[:, 0] = 1e-6
    with torch.no_grad():
        central = (bound.torch(theta + step, coords) - bound.torch(theta - step, coords)) / 2e-6
    torch.testing.assert_close(gradient[:, 0], central.sum((1, 2)), rtol=1e-6, atol=1e-8)
    with torch.no_grad():
        assert not bound.torch(theta, coords).requires_grad


def test_run_needs_no_gradient_and_does_not_build_one():
    seen = []

    def f(theta):
        seen.append((theta.requires_grad, torch.is_grad_enabled()))
        return theta * 2

    bound = bind(f, torch.tensor(THETA))
    seen.clear()
    bound.run(THETA)
    assert seen == [(False, False)]


def test_a_network_is_called_in_its_own_precision():
    net = Line()
    bound = bind(net, THETA, {"z": 0.0})
    assert bound.differentiable
    want = net(torch.tensor(THETA, dtype=torch.float32), torch.tensor(0.0)).detach().numpy()
    np.testing.assert_array_equal(bound.run(THETA, {"z": 0.0}).x[:, 0], want)
    out = bound.torch(torch.tensor(THETA), {"z": torch.tensor(0.0)})
    assert out.dtype == torch.float64
