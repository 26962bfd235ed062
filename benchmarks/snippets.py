"""Small jobs that are timed in two states of the code: ``python - NAME < benchmarks/snippets.py``.

Each prints CPU seconds as JSON: the median of some runs, after a first one that pays for what is
made once, or those of the only run where it is long or its first is what counts; null where the
package on ``PYTHONPATH`` does not have what the job needs. ``benchmarks`` may be another one
there: only its problems of one object are imported, which have not changed, and everything of the
package within the job.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

clock = time.process_time
MISSING = (ImportError, AttributeError, TypeError)  # what older code says of what it does not have


def beyond_torch(code):
    """Return what some code costs once torch is there."""
    import torch  # noqa: F401

    began = clock()
    exec(code)  # noqa: S102 - one of the lines below
    return clock() - began


def imported():
    """`import nbi_plus` and all of its public names, beyond torch."""
    return beyond_torch("from nbi_plus import *")


def imported_by_a_worker():
    """What a process imports that simulates for others, beyond torch."""
    return beyond_torch("import nbi_plus.problem.simulator.workers")


def imported_to_sample():
    """What a sampler imports (`nbi_plus.infer.hmc`), beyond torch."""
    return beyond_torch("from nbi_plus.infer.samplers import hmc")


def wave(theta, t):
    import torch

    phase, amplitude, omega = theta.T[..., None]
    return amplitude * torch.sin(omega * t + phase)


def prior():
    from scipy.stats import uniform

    return {"phase": uniform(0, 6), "amplitude": uniform(1, 4), "omega": uniform(10, 20)}


def sines(n, seed=0):
    """Return the grid, parameters (n, 3) and noise-free curves (n, 50) of the prior."""
    import numpy as np
    import torch

    t, low, width = np.linspace(0, 1, 50), [0, 1, 10], [6, 4, 20]
    theta = low + width * np.random.default_rng(seed).random((n, 3))
    return t, theta, wave(torch.as_tensor(theta), torch.as_tensor(t)).numpy()


def noisy(n, seed=1):
    import numpy as np

    import nbi_plus as nbi

    t, _, x = sines(n, seed)
    return nbi.Observations.from_arrays(x + np.random.default_rng(seed).normal(size=x.shape), t=t)


def engine(simulator=wave, **options):
    """Return an engine with a small network; without a simulator it answers without weights."""
    import nbi_plus as nbi

    t, theta, x = sines(2000)
    made = nbi.Engine(simulator, prior(), noise=1.0, device="cpu", **options)
    return made.fit(theta=theta, x=x, n_epochs=2, t=t)


def again(job):
    """Return what a job usually costs when it runs again, in a second or so of trying."""
    job()
    spent = []
    while not spent or (sum(spent) < 1.0 and len(spent) < 20):
        began = clock()
        job()
        spent.append(clock() - began)
    return median(spent)


def unweighted():
    """`predict_many` without weights: 200 objects, 100 draws."""
    network, objects = engine(None), noisy(200)
    return again(lambda: network.predict_many(objects, n_samples=100))


def weighted():
    """`predict_many` with weights: 32 objects, the network's own draws alone."""
    import nbi_plus as nbi

    try:
        ladder = nbi.Ladder(escalate="never", audit=None)
    except TypeError:  # from before there were audits
        ladder = nbi.Ladder(escalate="never")
    network, objects = engine(ladder=ladder), noisy(32)
    return again(lambda: network.predict_many(objects))


def lens(n_nights, n=8):
    """Return a target of n point-lens events."""
    from nbi_plus import GaussianNoise
    from nbi_plus.models.microlensing import Season, point_lens
    from nbi_plus.problem.binding import bind_simulator
    from nbi_plus.problem.target import Target

    season = Season(n_nights=n_nights)
    batch = season.observe(n)[0].batch()
    simulator = bind_simulator(point_lens, season.prior, batch)
    noise = GaussianNoise().bind(True, season.prior.names)
    return Target(season.prior, simulator, noise, batch)


def densities(n_nights):
    import torch

    target, index = lens(n_nights), torch.arange(8)
    z = torch.randn(8, 2048, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def job():
        with torch.no_grad():
            target.log_prob(z, index)

    return again(job)


def target_117():
    """`Target.log_prob` of the point lens: 8 objects of 117 points, 2048 draws."""
    return densities(117)


def target_1000():
    """`Target.log_prob` of the point lens: 8 objects of 1000 points, 2048 draws."""
    return densities(1000)


def gradients():
    """Gradients of the point lens: 8 objects of 117 points, 2048 chains each."""
    import torch

    from nbi_plus.infer.samplers.gradients import Gradients
    from nbi_plus.infer.samplers.whitening import Whitening

    target, index = lens(117), torch.arange(8)
    z = torch.randn(8, 2048, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = Gradients(target.log_prob, 1024)
    return again(lambda: gradient(z, index, Whitening.none(z)))


def gradients_compiled():
    """Gradients of 16 point-lens events, 64 chains each; compiled, where that is known."""
    import torch

    from nbi_plus.infer.samplers.gradients import Gradients
    from nbi_plus.infer.samplers.whitening import Whitening

    target, index = lens(117, 16), torch.arange(16)
    z = torch.randn(16, 64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        from nbi_plus.infer.samplers.compiling import Compiler

        gradient = Gradients(target.log_prob, 1024, Compiler(target.log_prob, 0))
    except ImportError:  # from before gradients were compiled
        gradient = Gradients(target.log_prob, 1024)
    return again(lambda: gradient(z, index, Whitening.none(z)))


def chains():
    """HMC of 16 normals in 10 parameters, 64 chains each, to 1000 effective draws."""
    import torch

    from nbi_plus.infer.samplers import hmc

    starts = torch.randn(16, 8, 10, generator=torch.Generator().manual_seed(0)).double()
    scales = torch.logspace(-1, 1, 10, dtype=torch.float64)
    starts = (starts * scales).repeat_interleave(8, 1)
    return again(lambda: hmc.sample(lambda z, _: -0.5 * (z / scales).square().sum(-1), starts))


def mixtures(n_dim, n_components=4):
    import torch

    from nbi_plus.infer.proposals.mixture import MixtureConfig, fit_mixture

    rng = torch.Generator().manual_seed(0)
    z = torch.randn(16, 2000, n_dim, dtype=torch.float64, generator=rng)
    z[:, ::2] += 2
    weights, keys = torch.full((16, 2000), 1 / 2000, dtype=torch.float64), torch.arange(16)
    config = MixtureConfig(n_components=n_components)
    return again(lambda: fit_mixture(z, weights, keys, config, 0, "fit"))


def mixtures_3():
    """`fit_mixture`: 4 components, 16 objects of 2000 draws, D = 3."""
    return mixtures(3)


def mixtures_5():
    """`fit_mixture`: 4 components, 16 objects of 2000 draws, D = 5."""
    return mixtures(5)


def mixtures_10():
    """`fit_mixture`: 4 components, 16 objects of 2000 draws, D = 10."""
    return mixtures(10)


def mixtures_sized():
    """`fit_mixture`, which looks for the number of components: 16 objects of 2000 draws, D = 5."""
    return mixtures(5, None)


def flow():
    """The network's flow: 2048 draws and their densities for 8 objects."""
    import torch

    from nbi_plus.infer.proposals.base import FlowProposal

    network = engine(None).model_.network
    proposal = FlowProposal(network.flow, network.exact_flow())
    features, keys = network.features(noisy(8).batch()), torch.arange(8)
    return again(lambda: proposal.draw(features, keys, 2048, 0, "draws"))


def in_rounds(simulator):
    """Return what a sequential fit costs, to an effective sample size of 2000."""
    import numpy as np

    import nbi_plus as nbi

    t, truth = np.linspace(0, 1, 50), (2.0, 3.0, 5 * np.pi)
    x = truth[1] * np.sin(truth[2] * t + truth[0]) + np.random.default_rng(123).normal(size=50)
    own = nbi.Engine(simulator, prior(), noise=np.ones(50), device="cpu")
    began = clock()
    own.fit(n_sims=1000, n_rounds=40, x_obs=x, ess_target=2000, max_sims=30_000)
    return clock() - began


def rounds_torch():
    """A fit of one sine in rounds to 2000 effective draws, simulator in torch."""
    import torch

    t = torch.linspace(0, 1, 50, dtype=torch.float64)
    return in_rounds(lambda theta: wave(theta, t))


def rounds_numpy():
    """A fit of the same sine in rounds, simulator in numpy."""
    import numpy as np

    t = np.linspace(0, 1, 50)

    def simulate(theta):
        phase, amplitude, omega = np.asarray(theta).T[..., None]
        return amplitude * np.sin(omega * t + phase)

    return in_rounds(simulate)


def of_one_object(name):
    """Return what a fit in rounds costs, its simulator in numpy and angles known to be angles."""
    import math

    import nbi_plus as nbi
    from benchmarks.single_problems import load

    problem, circle = load(name), {"phi0": nbi.Circular(2 * math.pi)}
    noise = nbi.GaussianNoise(problem.sigma, jitter=problem.jitter)
    priors = {k: circle.get(k, v) for k, v in problem.priors.items()}
    own = nbi.Engine(problem.simulator, priors, noise=noise, device="cpu")
    began = clock()
    own.fit(n_sims=1000, n_rounds=40, x_obs=problem.x_obs, ess_target=2000, max_sims=30_000)
    return clock() - began


def rounds_bimodal():
    """A fit in rounds of nbi's bimodal demonstration, the same way."""
    return of_one_object("bimodal")


def rounds_microlensing():
    """A fit in rounds of a microlensing event of 117 points, the same way."""
    return of_one_object("microlensing")


def rounds_k2_24():
    """A fit in rounds of the velocities of K2-24, the same way."""
    return of_one_object("k2_24")


def epoch():
    """One epoch of training: 2000 simulations, batch 64."""
    import nbi_plus as nbi

    t, theta, x = sines(2000)
    ends = []
    own = nbi.Engine(None, prior(), noise=1.0, device="cpu")
    own.fit(
        theta=theta, x=x, n_epochs=4, batch_size=64, t=t, callback=lambda _: ends.append(clock())
    )  # fmt: skip
    return median(after - before for before, after in zip(ends, ends[1:], strict=False))


def trained_to(loss, batch_size):
    import nbi_plus as nbi

    t, theta, x = sines(6400)
    own, laps = nbi.Engine(None, prior(), noise=1.0, device="cpu"), []
    began = clock()
    own.fit(
        theta=theta, x=x, n_epochs=24, batch_size=batch_size, t=t,
        callback=lambda history: laps.append((history[-1]["val_nll"], clock() - began)),
    )  # fmt: skip
    return next(spent for found, spent in laps if found <= loss)


def to_a_loss():
    """Training of the sine's network, 6400 simulations, batch 64, to a held-out loss of -2.8."""
    return trained_to(-2.8, 64)


def to_a_low_loss():
    """The same, batch 128, to a held-out loss of -2.95."""
    return trained_to(-2.95, 128)


def first_try():
    """`fit(n_sims=64, n_epochs=1)`."""
    import numpy as np

    import nbi_plus as nbi

    own, t = nbi.Engine(wave, prior(), noise=1.0, device="cpu"), np.linspace(0, 1, 50)
    began = clock()
    own.fit(n_sims=64, n_epochs=1, t=t)
    return clock() - began


def ladder_48():
    """48 sines by a network of 12 epochs and the whole ladder, of each object."""
    import nbi_plus as nbi

    t, theta, x = sines(20_000)
    own = nbi.Engine(wave, prior(), noise=1.0, device="cpu").fit(theta=theta, x=x, n_epochs=12, t=t)
    objects = noisy(48)
    own.predict_many(objects[:2])
    began = clock()
    own.predict_many(objects)
    return (clock() - began) / 48


JOBS = (
    unweighted, weighted, target_117, target_1000, gradients, gradients_compiled, chains,
    mixtures_3, mixtures_5, mixtures_10, mixtures_sized, flow, rounds_torch, rounds_numpy,
    rounds_bimodal, rounds_microlensing, rounds_k2_24, ladder_48, epoch, to_a_loss, to_a_low_loss,
    first_try, imported, imported_by_a_worker, imported_to_sample,
)  # fmt: skip
NAMES = {job.__name__: job for job in JOBS}


def main(name):
    """Print one line of JSON."""
    try:
        print(json.dumps(NAMES[name]()))
    except MISSING as missing:
        print(repr(missing), file=sys.stderr)
        print(json.dumps(None))


if __name__ == "__main__":
    main(sys.argv[1])
