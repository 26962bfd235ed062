"""Laws of torch's state: whatever a caller switched on in torch, answers are the same."""

from __future__ import annotations

import threading
import warnings
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.infer import hmc, peaks

X = np.linspace(-0.4, 0.6, 6)
DESIGN = np.stack([np.ones(6), np.linspace(-1, 1, 6)])
THETA = np.array([[0.1, 0.2], [0.3, -0.1]])
# a slope of which the prior is a table of quantiles, and one in closed form
PRIOR = {"a": norm(0, 1), "b": uniform(-1, 2)}


def line(theta):
    return theta @ torch.as_tensor(DESIGN, dtype=theta.dtype, device=theta.device)


def engine(simulator=line, **options):
    small = {"flow": {"n_blocks": 2, "hidden": 16}, "featurizer": "mlp", "noise": 0.5}
    return nbi.Engine(simulator, PRIOR, **(small | options))


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def all_of(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


# several at once: each of them alone changes as little
MODES = {
    "float64, deterministic": lambda: all_of(default_dtype(torch.float64), deterministic()),
    "float16, device cpu, anomaly": lambda: all_of(
        default_dtype(torch.float16), default_device("cpu"), torch.autograd.set_detect_anomaly(True)
    ),
    "bfloat16, no gradients": lambda: all_of(default_dtype(torch.bfloat16), torch.no_grad()),
    "inference, device meta, autocast": lambda: all_of(
        torch.inference_mode(), default_device("meta"), torch.autocast("cpu", torch.bfloat16)
    ),
}


def state():
    """Return what a caller may have switched on."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_rng_state().tolist(),
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    made = engine().fit(n_sims=300, n_epochs=2)
    made.file = tmp_path_factory.mktemp("engine") / "engine.nbi"
    made.save(made.file)
    return made


def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nbi.UntrustedWarning)
        return f(*args, **kwargs)


def numbers_of(posterior):
    return [posterior.samples, posterior.log_weights, posterior.log_q, posterior.log_evidence]


def weights_of(network):
    return [p.detach().numpy() for p in network.state_dict().values()]


def amortized_fit(_):
    return weights_of(engine().fit(n_sims=200, n_epochs=1).model_.network)


def online_fit(_):
    return weights_of(engine().fit(n_sims=128, n_epochs=1, online=True).model_.network)


def series_fit(_):
    made = engine(featurizer="transformer", flow={"kind": "nsf", "n_mog": 1})
    made.fit(n_sims=64, n_epochs=1)
    return weights_of(made.model_.network)


def sequential_fit(_):
    made = engine(ladder=nbi.Ladder(audit=None))
    return numbers_of(quiet(made.fit, n_sims=400, n_rounds=6, x_obs=X, ess_target=300).posterior_)


def black_box_fit(_):
    made = engine(lambda theta: theta @ DESIGN, ladder=nbi.Ladder(audit=None))
    options = {"n_sims": 300, "n_rounds": 3, "x_obs": X, "n_epochs": 1, "locate": "network"}
    return numbers_of(quiet(made.fit, **options, ess_target=300).posterior_)


def load_and_predict(made):
    again = nbi.Engine.load(made.file, simulator=line)
    return numbers_of(quiet(again.predict, X))


def predict_many(made):
    many = nbi.Observations.from_arrays(np.stack([X, X + 0.1, 40 * X]))
    found = made.predict_many(many)
    return [found.mean, found.ess, found.log_evidence]


def sample_and_densities(made):
    posterior = quiet(made.predict, X)
    other = posterior.reweight(nbi.Prior({"a": norm(0, 0.9), "b": uniform(-1, 2)}))
    return [
        made.sample(X, n_samples=50),
        made.log_prob(THETA, X),
        made.score(THETA, np.stack([X, X])),
        made.log_likelihood(THETA, X),
        made.log_posterior(THETA, X),
        made.simulate(THETA),
        posterior.resample(50, 0),
        other.log_weights,
    ]


def check_of_noise(_):
    noise = nbi.StudentTNoise(sigma=0.3)
    table = nbi.check_noise(noise, line, PRIOR, nbi.Observations.from_arrays(np.zeros((2, 6))))
    return [np.asarray(table["passed"])]


def prior(_):
    made = nbi.Prior(PRIOR)
    fitted_to = nbi.EmpiricalPrior(np.random.default_rng(0).normal(size=(200, 2)), ["a", "b"])
    both = [[p.sample(9, 0), p.log_prob(THETA), p.to_latent(THETA)] for p in (made, fitted_to)]
    return both[0] + both[1]


def chains(_):
    z0 = STARTS.repeat_interleave(8, 1)
    found = hmc.sample(normal, z0, seed=1, config=hmc.HmcConfig(max_steps=200))
    return [found.samples.numpy(), found.ess.numpy()]


def tops(_):
    found = peaks.find(normal, STARTS, seed=2)
    return [found.z.numpy(), found.log_prob.numpy(), found.factor.numpy()]


STARTS = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0)).double()


def normal(z, index):
    return -0.5 * (z - index[:, None, None]).square().sum(-1)


DOORS = [
    amortized_fit, online_fit, series_fit, sequential_fit, black_box_fit, load_and_predict,
    predict_many, sample_and_densities, check_of_noise, prior, chains, tops,
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(fitted):
    return {work: work(fitted) for work in DOORS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("work", DOORS, ids=lambda work: work.__name__)
def test_no_state_of_torch_changes_an_answer(work, mode, fitted, plain):
    with MODES[mode]():
        before = state()
        found = work(fitted)
        assert state() == before
    for own, other in zip(found, plain[work], strict=True):
        np.testing.assert_array_equal(own, other)


class Forgetful(torch.nn.Module):
    """A network of one's own, whose dropout draws from the global generator."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 8)

    def forward(self, x):
        return torch.nn.functional.dropout(self.layer(x.flatten(1)), 0.3, self.training)


def test_fits_in_two_threads_give_what_each_gives_alone():
    nets = ["mlp", Forgetful()]

    def fit(seed):
        made = engine(featurizer=nets[seed % 2], seed=seed)
        return weights_of(made.fit(n_sims=200, n_epochs=3).model_.network)

    alone, together = [fit(seed) for seed in range(4)], [None] * 4
    before = state()

    def work(seed):
        together[seed] = fit(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state() == before
    for own, other in zip(together, alone, strict=True):
        for a, b in zip(own, other, strict=True):
            np.testing.assert_array_equal(a, b)
