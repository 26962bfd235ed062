"""Adapters: priors, models and cadences of other packages, held against these packages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from astropy.table import Table
from scipy.stats import kstest, norm

import nbi_plus as nbi
from nbi_plus.adapters import (
    LightCurveLynxSimulator,
    SncosmoSimulator,
    cadences_of,
    prior_of_bilby,
    prior_of_torch,
)

others = pytest.mark.filterwarnings("ignore")  # what other packages warn of among themselves


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


D = torch.distributions
TORCH = {
    "uniform": D.Uniform(tensor(1.0), tensor(4.0)), "normal": D.Normal(tensor(2.0), tensor(3.0)),
    "lognormal": D.LogNormal(tensor(0.5), tensor(0.7)), "halfnormal": D.HalfNormal(tensor(2.0)),
    "cauchy": D.Cauchy(tensor(1.0), tensor(2.0)), "halfcauchy": D.HalfCauchy(tensor(2.0)),
    "laplace": D.Laplace(tensor(1.0), tensor(2.0)), "exponential": D.Exponential(tensor(2.0)),
    "gamma": D.Gamma(tensor(3.0), tensor(2.0)), "chi2": D.Chi2(tensor(3.0)),
    "beta": D.Beta(tensor(2.0), tensor(3.0)),
    "t": D.StudentT(tensor(5.0), tensor(1.0), tensor(2.0)),
    "gumbel": D.Gumbel(tensor(1.0), tensor(2.0)), "pareto": D.Pareto(tensor(2.0), tensor(3.0)),
    "weibull": D.Weibull(tensor(2.0), tensor(3.0)),
}  # fmt: skip


def test_priors_of_torch_have_its_densities():
    prior = prior_of_torch({**TORCH, "fixed": 3}, units={"normal": "d"})
    assert (prior.fixed, prior.units) == ({"fixed": 3.0}, {"normal": "d"})
    theta = prior.sample(400, 0)
    each = [d.log_prob(torch.from_numpy(theta[:, i])) for i, d in enumerate(TORCH.values())]
    np.testing.assert_allclose(prior.log_prob(theta), sum(each).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "given", [D.Bernoulli(0.5), D.Normal(torch.zeros(2), torch.ones(2)), norm(0, 1), "normal"]
)
def test_what_is_no_single_distribution_of_torch_is_refused(given):
    with pytest.raises(TypeError, match="must be one of"):
        prior_of_torch({"a": given})


@others
def test_priors_of_bilby_have_its_densities_and_draws():
    p = pytest.importorskip("bilby", reason="bilby is not installed").core.prior
    given = p.PriorDict({
        "m": p.Uniform(1, 2, unit="Msun", latex_label="$m$"), "d": p.PowerLaw(2, 10, 500),
        "h": p.LogUniform(0.1, 10), "i": p.Sine(), "dec": p.Cosine(), "g": p.Gaussian(1, 2),
        "tg": p.TruncatedGaussian(1, 2, 0, 3), "e": p.Exponential(2), "be": p.Beta(2, 3),
        "ln": p.LogNormal(0.5, 0.7), "t": p.Triangular(0.5, 0, 1), "c": 4.0,
        "phase": p.Uniform(0, 2 * math.pi, boundary="periodic"), "delta": p.DeltaFunction(5),
    })  # fmt: skip
    prior = prior_of_bilby(given, derived={"twice": lambda theta: 2 * theta[:, 0]})
    assert prior.fixed == {"c": 4.0, "delta": 5.0}
    assert (prior.units, prior.labels[0]) == ({"m": "Msun"}, "$m$")
    assert dict(zip(prior.names, prior.periods, strict=True))["phase"] == pytest.approx(2 * math.pi)
    theta = prior.sample(2000, 0)
    each = {name: theta[:, k] for k, name in enumerate(prior.names)}
    exact = sum(given[name].ln_prob(values) for name, values in each.items())
    np.testing.assert_allclose(prior.log_prob(theta), exact, rtol=1e-4, atol=1e-4)
    for name, values in each.items():
        assert kstest(values, given[name].cdf).pvalue > 1e-4, name
    z = torch.from_numpy(prior.to_latent(theta[:50]))
    np.testing.assert_allclose(prior.from_latent(z).numpy(), theta[:50], rtol=1e-6)


@others
def test_priors_of_bilby_that_are_no_distribution_are_refused():
    p = pytest.importorskip("bilby", reason="bilby is not installed").core.prior
    for given in (p.Constraint(0, 1), "uniform"):
        with pytest.raises(TypeError, match="must be a prior of bilby of one parameter"):
            prior_of_bilby({"a": given})


@pytest.fixture
def model():
    """Return a model of sncosmo, of a burst in bands of its own: nothing is fetched."""
    sncosmo = pytest.importorskip("sncosmo", reason="sncosmo is not installed")
    phase, wave = np.linspace(-20, 60, 81), np.linspace(2500.0, 12000.0, 96)
    flux = np.exp(-0.5 * (phase[:, None] / 12) ** 2) * (6000 / wave) ** 2
    for name, centre in (("aband", 4800.0), ("bband", 6200.0)):
        own = np.linspace(centre - 500, centre + 500, 101)
        band = sncosmo.Bandpass(own, np.exp(-(((own - centre) / 300) ** 2)), name=name)
        sncosmo.register(band, force=True)
    burst = sncosmo.Model(source=sncosmo.TimeSeriesSource(phase, wave, flux))
    burst.set(z=0.1)
    return burst


@others
def test_models_of_sncosmo_are_simulators_of_tables_of_sncosmo(model):
    rng, tables = np.random.default_rng(0), []
    for _ in range(3):
        own = Table({"time": np.sort(rng.uniform(-10, 50, 12))})
        own["flux"], own["fluxerr"], own["zp"], own["zpsys"] = 1.0, 1.0, 25.0, "ab"
        own["band"] = rng.choice(["aband", "bband"], 12)
        tables.append(own)
    seen = nbi.Observations.from_survey("sncosmo", tables)
    bands = tuple(seen.categories["band"])
    one = SncosmoSimulator(model, ("t0", "amplitude"), bands)
    engine = nbi.Engine(
        one.simulator(), {"t0": norm(5, 2), "amplitude": norm(3, 0.3)}, noise=nbi.GaussianNoise()
    )
    theta, own = np.array([5.0, 3.0]), seen[0]
    batch = own.batch()
    t, band = batch.coords["t"][0].numpy(), batch.coords["band"][0].numpy()
    model.set(t0=5.0, amplitude=3.0)
    named = np.array(bands)[band.astype(int)]
    exact = model.bandflux(named, t, zp=25.0, zpsys="ab")
    np.testing.assert_allclose(one.fluxes(theta, t, band), exact)
    model.set(z=0.3)
    other = one.at_redshift(theta, t, band, np.array([0.1]))
    np.testing.assert_allclose(other, exact)
    assert model["z"] == 0.3  # the user's model is as it was
    errors = own.batch().x_err[0, 0].numpy()
    told = engine.log_likelihood(theta[None], exact, errors, t=t, band=band)
    assert np.isfinite(told).all()
    with pytest.raises(ValueError, match="'x9'"):
        SncosmoSimulator(model, ("x9",), bands).simulator()


@others
def test_sources_and_pointings_of_lightcurvelynx_are_simulators_and_cadences():
    pytest.importorskip("lightcurvelynx", reason="LightCurveLynx is not installed")
    from lightcurvelynx.astro_utils.passbands import Passband, PassbandGroup
    from lightcurvelynx.models.basic_models import SinWaveModel
    from lightcurvelynx.noise_models.base_noise_models import ConstantFluxNoiseModel
    from lightcurvelynx.obstable.fake_obs_table import FakeObsTable

    wave = np.arange(4000, 6000, 5.0)
    centres = {"g": 4800, "r": 5300}
    passbands = PassbandGroup([
        Passband(np.stack([wave, np.exp(-(((wave - c) / 300) ** 2))], 1), "S", name)
        for name, c in centres.items()
    ])  # fmt: skip
    table = FakeObsTable(
        {"time": np.arange(20.0) + 59000, "ra": np.repeat([1.0, 50.0], 10), "dec": np.zeros(20),
         "filter": np.array(list("gr" * 10))}, bandflux_error=2.0, radius=1.5,
    )  # fmt: skip
    seen = cadences_of(table, ConstantFluxNoiseModel(2.0), [1.0, 50.0, 100.0], [0.0, 0.1, 0.0])
    assert seen.ids.astype(str).tolist() == ["0", "1"]
    assert seen.lengths.tolist() == [10, 10]
    batch = seen.batch()
    assert (batch.x_err == 2.0).all()
    assert seen.scalars["ra"].tolist() == [1.0, 50.0]
    with pytest.raises(ValueError, match="it looks at none"):
        cadences_of(table, ConstantFluxNoiseModel(2.0), [100.0], [0.0])
    source = SinWaveModel(brightness=100.0, amplitude=5.0, frequency=0.1, t0=59000.0, ra=1.0,
                          dec=0.0, redshift=0.0)  # fmt: skip
    bands = tuple(seen.categories["band"])
    one = LightCurveLynxSimulator(source, passbands, ("amplitude", "frequency"), bands)
    engine = nbi.Engine(one.simulator(), {"amplitude": norm(5, 1), "frequency": norm(0.1, 0.01)},
                        noise=nbi.GaussianNoise(), featurizer="resnet")  # fmt: skip
    theta = np.array([[7.0, 0.1], [3.0, 0.12]])
    engine.fit(60, n_epochs=1, observations=seen, truth_test=False, progress=False)
    t, band = batch.coords["t"][0].numpy(), batch.coords["band"][0].numpy()
    found = engine.simulate(theta, t=t, band=band)[:, 0]
    exact = 100 + theta[:, :1] * np.sin(2 * np.pi * theta[:, 1:] * (t - 59000))
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    with pytest.raises(ValueError, match="'colour'"):
        LightCurveLynxSimulator(source, passbands, ("colour",), bands).simulator()
