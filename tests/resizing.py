"""What tests share that hold resized images against Pillow's: `from resizing import assert_as_pillow`."""

import numpy as np


def assert_as_pillow(done, expected, share):
    """No value is further than 1 from Pillow's, and at most this share of them differs."""
    differences = np.abs(np.asarray(done, dtype=int) - np.asarray(expected, dtype=int))
    assert differences.max() <= 1
    assert differences.mean() <= share
