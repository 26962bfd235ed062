"""One torch thread for all tests: small networks lose by more where cores are shared."""

import os
import signal
from pathlib import Path

import pytest
import torch

from nbi_plus.learn import training

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_folder():
    """Return the folder of published data and posteriors, or skip."""
    folder = os.environ.get("NBI_PLUS_REFERENCE_DATA")
    if folder is None:
        pytest.skip("NBI_PLUS_REFERENCE_DATA does not name a folder of reference data")
    return Path(folder)


@pytest.fixture
def turning(monkeypatch):
    """Return a list that each training, which ends at once, tells whether matrices would turn."""
    seen = []

    def kept(*given, muon):
        seen.append(muon)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "FlatOptimizer", kept)
    return seen


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard():
    """A shell starts what runs in the background deaf to it, and tests send it to themselves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
