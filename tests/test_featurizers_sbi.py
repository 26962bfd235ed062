"""Our featurizers serve as embedding networks of the sbi package."""

from __future__ import annotations

import math

import pytest
import torch

import featurizers

sbi_inference = pytest.importorskip("sbi.inference")
pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

N_TRAIN, N_STEPS, NOISE = 1000, 20, 0.5


def simulate(theta, generator):
    """Draw a constant series in noise, of which a random number of points is observed."""
    shape = (len(theta), N_STEPS)
    values = theta + NOISE * torch.randn(shape, generator=generator)
    n_points = torch.randint(N_STEPS // 2, N_STEPS + 1, (len(theta), 1), generator=generator)
    mask = (torch.arange(N_STEPS) < n_points).float()
    return torch.stack([values * mask, mask], dim=1)


@pytest.mark.parametrize("name", featurizers.available())
def test_sbi_learns_a_mean_through_our_embedding(name, tmp_path, monkeypatch):
    from sbi.neural_nets import posterior_nn

    monkeypatch.chdir(tmp_path)  # sbi writes its logs to the working directory
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rng = torch.Generator().manual_seed(1)
        theta = torch.randn(N_TRAIN, 1, generator=rng)
        x = simulate(theta, rng)
        net = featurizers.make(name, n_channels=2, length=N_STEPS, n_params=1)
        # sbi's own z-scoring would move the mask away from 0 and 1
        estimator = posterior_nn("maf", embedding_net=net, z_score_x="none")
        prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        inference = sbi_inference.NPE(prior, density_estimator=estimator, show_progress_bars=False)
        inference.append_simulations(theta, x)
        inference.train(training_batch_size=50, max_num_epochs=12, learning_rate=2e-3)
        posterior = inference.build_posterior()
        truth = torch.linspace(-1.5, 1.5, 7)[:, None]
        observed = simulate(truth, rng)
        draws = [
            posterior.sample((500,), x=one[None], show_progress_bars=False) for one in observed
        ]
    precision = 1 + observed[:, 1].sum(1) / NOISE**2  # of the exact posterior
    mean = observed[:, 0].sum(1) / NOISE**2 / precision
    error = torch.stack([d.mean() for d in draws]) - mean
    assert error.square().mean().sqrt() < 0.25  # 1 is the spread of the prior
    spread = torch.stack([d.std() for d in draws])
    assert spread.max() < 0.5
    assert spread.min() > 0.3 / math.sqrt(precision.max())
