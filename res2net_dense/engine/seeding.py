"""Random state as a function of numbers, such as a seed and an iteration; see docs/adr/0002."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(*numbers: int) -> None:
    """Set the random state of torch (CPU and GPUs), numpy and Python as a function of `numbers` (each at
    least 0).
    """
    words = np.random.SeedSequence(numbers).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
