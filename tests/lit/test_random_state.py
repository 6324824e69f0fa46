import io
import random

import numpy as np
import torch

from lspread.lit.random_state import RandomState


def draws():
    return torch.randn(3).tolist(), np.random.standard_normal(3).tolist(), [random.gauss(0, 1) for _ in range(3)]  # noqa: NPY002


def test_a_state_that_went_through_a_checkpoint_repeats_the_draws():
    before = RandomState().state_dict()
    try:
        draws()  # leaves a cached normal number in NumPy and Python: it belongs to the state
        file = io.BytesIO()
        torch.save(RandomState().state_dict(), file)
        expected = draws()
        draws()
        file.seek(0)
        RandomState().load_state_dict(torch.load(file, weights_only=True))
        assert draws() == expected
    finally:
        RandomState().load_state_dict(before)
