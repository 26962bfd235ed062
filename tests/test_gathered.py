"""Laws of simulations in several files: one set of rows, read when needed, named errors."""

from __future__ import annotations

import os
import shutil

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import norm, uniform

import nbi_plus as nbi
from nbi_plus.io.store import SimulationStore
from nbi_plus.problem.gathered import GatheredFiles, files_of

PRIOR = nbi.Prior({"a": norm(0, 1), "b": uniform(-2, 4)})
DESIGN = np.linspace(-1, 1, 10).reshape(2, 5)
QUICK = {"n_epochs": 2, "truth_test": False, "progress": False}


def simulations(n, seed):
    theta = PRIOR.sample(n, seed)
    return theta, theta @ DESIGN


def write(path, theta, x):
    with h5py.File(path, "w") as file:
        file["theta"], file["x"] = theta, x


def engine(**changes):
    small = {"noise": 0.3, "featurizer": "mlp", "flow": {"n_blocks": 2, "hidden": 16}}
    return nbi.Engine(None, PRIOR, **small, **changes)


def weights(fitted):
    return torch.cat([v.flatten().double() for v in fitted.model_.network.state_dict().values()])


@pytest.fixture
def folder(tmp_path):
    """Return a folder of three files, whose rows together are returned, too."""
    parts = [simulations(n, seed) for seed, n in enumerate((60, 1, 90))]
    for name, part in zip("abc", parts, strict=True):
        write(tmp_path / f"{name}.h5", *part)
    return tmp_path, *map(np.concatenate, zip(*parts, strict=True))


def test_files_are_one_set_of_rows_however_they_are_named(folder):
    path, theta, x = folder
    whole = engine().fit(theta, x, **QUICK)
    names = [path / f"{name}.h5" for name in "cab"]
    for given in (f"{path}/*.h5", path / "*.h5", names, [str(path / "[ab].h5"), names[0]]):
        assert torch.equal(weights(engine().fit(x=given, **QUICK)), weights(whole))


def test_more_than_the_memory_holds_is_streamed_and_comes_once_an_epoch(folder, caplog):
    path, theta, x = folder
    caplog.set_level("INFO", "nbi_plus")
    fitted = engine(memory=5e-6).fit(x=f"{path}/*.h5", batch_size=15, **QUICK)
    assert "streaming" in caplog.text
    assert fitted.model_.n_sims == len(theta)
    files = GatheredFiles.open(f"{path}/*.h5", PRIOR)
    pools = list(files.stream(slice(None), ("theta", "x"), buffer_bytes=2000, seed=1))
    assert max(len(pool["x"]) for pool in pools) < 30
    found = np.concatenate([pool["theta"] for pool in pools])
    order = np.argsort(found[:, 0])
    np.testing.assert_array_equal(found[order], theta[np.argsort(theta[:, 0])])
    np.testing.assert_allclose(np.concatenate([pool["x"] for pool in pools])[:, 0], found @ DESIGN)


def test_rows_are_read_in_any_order(folder):
    path, theta, x = folder
    files = GatheredFiles.open(f"{path}/*.h5", PRIOR)
    rows = np.random.default_rng(0).permutation(len(theta))[:70]
    found = files.read(rows)
    np.testing.assert_array_equal(found["theta"], theta[rows])
    np.testing.assert_array_equal(found["x"][:, 0], x[rows])
    np.testing.assert_allclose(found["z"], PRIOR.to_latent(theta[rows]))


def test_stores_and_files_of_others_go_together(tmp_path):
    theta, x = simulations(40, 0)
    write(tmp_path / "b.h5", theta[20:], x[20:])
    columns = {"theta": (2,), "x": (1, 5)}
    with SimulationStore.open(tmp_path / "a.h5", {}, columns, 30) as store:
        store.write(0, np.zeros(20, np.uint8), theta=theta[:20], x=x[:20, None])
        store.write(20, np.ones(5, np.uint8), theta=theta[:5], x=x[:5, None])  # failed
    with pytest.raises(ValueError, match=r"a row of .*a.h5 has \(1, 5\), of .*b.h5 \(5,\)"):
        GatheredFiles.open(tmp_path / "*.h5", PRIOR)
    write(tmp_path / "b.h5", theta[20:], x[20:, None])
    files = GatheredFiles.open(tmp_path / "*.h5", PRIOR)
    np.testing.assert_array_equal(files.read(slice(None))["theta"], theta)


def test_the_store_of_a_fit_is_read_again(tmp_path):
    own = {"noise": 0.3, "featurizer": "mlp", "path": tmp_path / "runs"}
    made = nbi.Engine(lambda theta: theta @ DESIGN, PRIOR, **own).fit(50, **QUICK)
    files = GatheredFiles.open(tmp_path / "runs" / "simulations-*.h5", PRIOR)
    assert files.n_rows == made.model_.n_sims == 50


def test_parameters_in_another_order_are_refused(tmp_path):
    own = {"noise": 0.3, "featurizer": "mlp", "path": tmp_path / "runs"}
    nbi.Engine(lambda theta: theta @ DESIGN, PRIOR, **own).fit(50, **QUICK)
    turned = nbi.Prior({name: uniform(-1, 2) for name in reversed(PRIOR.names)})
    engines = [nbi.Engine(prior=turned, noise=0.3), nbi.RatioEngine(None, turned)]
    for one in engines:
        with pytest.raises(ValueError, match="theta of simulations-.* must be .* but is"):
            one.fit(x=tmp_path / "runs" / "simulations-*.h5", **QUICK)


def test_rows_that_are_of_no_use_are_left_out(folder, caplog):
    path, theta, x = folder
    theta[3, 1], x[4, 2] = 7.0, np.nan  # outside the prior; not finite
    write(path / "a.h5", theta[:60], x[:60])
    files = GatheredFiles.open(f"{path}/*.h5", PRIOR)
    assert "2 of 151 simulations are not finite or not inside the prior" in caplog.text
    good = np.delete(np.arange(151), [3, 4])
    np.testing.assert_array_equal(files.read(slice(None))["theta"], theta[good])


def test_parameters_may_stand_beside_the_files(folder):
    path, theta, x = folder
    for name, rows in zip("abc", (slice(60), slice(60, 61), slice(61, None)), strict=True):
        with h5py.File(path / f"{name}.h5", "w") as file:
            file["x"] = x[rows]
    whole = engine().fit(theta, x, **QUICK)
    assert torch.equal(weights(engine().fit(theta, x=f"{path}/*.h5", **QUICK)), weights(whole))
    with pytest.raises(ValueError, match="theta must have a row for each of the 151 .* has 150"):
        engine().fit(theta[1:], x=f"{path}/*.h5")


def test_ensembles_ratios_and_rounds_take_them(folder):
    path, theta, x = folder
    given = f"{path}/*.h5"
    both = nbi.Ensemble(engine(), 2).fit(x=given, n_epochs=1, truth_test=False, progress=False)
    assert len(both.members_) == 2
    own = nbi.RatioEngine(None, PRIOR).fit(x=given, n_epochs=1, progress=False)
    arrays = nbi.RatioEngine(None, PRIOR).fit(theta, x, n_epochs=1, progress=False)
    assert torch.equal(weights(own), weights(arrays))


WRONG = {
    "no match": (lambda p: f"{p}/none*.h5", FileNotFoundError, "'.*none.*h5' matches none in"),
    "no file": (lambda p: p / "none.h5", FileNotFoundError, "there is no file .*none.h5"),
    "a folder": (lambda p: p, ValueError, "must be a file, but is a folder"),
    "twice": (lambda p: [p / "a.h5", f"{p}/*.h5"], ValueError, "name each file once, .* the same"),
    "by a link": (lambda p: [p / "a.h5", link(p)], ValueError, "name each file once, .* the same"),
    "no theta": (lambda p: without(p), ValueError, "less.h5 must have a dataset 'theta'"),
    "width of x": (lambda p: wide(p), ValueError, r"row of .*a.h5 has \(5,\), of .*wide.h5 \(6,\)"),
    "width of theta": (lambda p: narrow(p), ValueError, r"theta of odd.h5 must have shape \(n"),
    "lengths": (lambda p: uneven(p), ValueError, "uneven.h5 must have as many rows in each"),
    "text": (lambda p: text(p), ValueError, "must be an HDF5 file, but starts with b'a,b'"),
}  # fmt: skip


def link(path):
    os.symlink(path / "a.h5", path / "link")
    return path / "link"


def without(path):
    with h5py.File(path / "less.h5", "w") as file:
        file["x"] = np.ones((3, 5))
    return f"{path}/*.h5"


def wide(path):
    write(path / "wide.h5", np.ones((3, 2)), np.ones((3, 6)))
    return f"{path}/*.h5"


def narrow(path):
    write(path / "odd.h5", np.ones((3, 1)), np.ones((3, 5)))
    return f"{path}/*.h5"


def uneven(path):
    write(path / "uneven.h5", np.ones((3, 2)), np.ones((4, 5)))
    return f"{path}/*.h5"


def text(path):
    (path / "d.h5").write_text("a,b")
    return f"{path}/*.h5"


@pytest.mark.parametrize("case", WRONG)
def test_files_that_do_not_fit_are_named(case, folder):
    given, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        engine().fit(x=given(folder[0]), **QUICK)


def test_a_file_that_shrinks_meanwhile_says_so(folder):
    path, theta, x = folder
    files = GatheredFiles.open(f"{path}/*.h5", PRIOR)
    write(path / "c.h5", theta[:2], x[:2])
    with pytest.raises(ValueError, match="c.h5 must stay as it was while it is read"):
        files.read(slice(None))


def test_a_name_with_signs_of_a_pattern_is_that_file(folder):
    path = folder[0]
    shutil.copy(path / "a.h5", path / "[a]1*.h5")
    assert files_of(path / "[a]1*.h5") == [path / "[a]1*.h5"]
