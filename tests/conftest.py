"""One torch thread for all tests: small networks lose by more where cores are shared."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_folder():
    """Return the folder of published data and posteriors, or skip."""
    folder = os.environ.get("NBI_PLUS_REFERENCE_DATA")
    if folder is None:
        pytest.skip("NBI_PLUS_REFERENCE_DATA does not name a folder of reference data")
    return Path(folder)
