"""One torch thread for all tests: small networks lose by more where cores are shared."""

import torch

torch.set_num_threads(1)
