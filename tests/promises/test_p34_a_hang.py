"""P34: reading that hangs ends with the name of the image and the worker, after `data.timeout` seconds; a
training is saved first, and what is not a file is never opened.
"""

import os

import pytest
from running import TRAIN, assert_error_line, assert_one_line

from res2net_dense.data.images import image_size, read_image
from res2net_dense.data.layouts import ClassFoldersPart, open_source
from res2net_dense.data.loaders import BatchLoader, EvalSet, TrainBatches, TrainSet, eval_loader, predict_loader
from res2net_dense.errors import DatasetError, ReadingError


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("hang", 2),
        ("pipe", 0),
        *(
            pytest.param(kind, workers, marks=pytest.mark.slow)
            for kind, workers in [("stop", 2), ("stop", 1), ("pipe", 2), ("hang", 0)]
        ),
    ],
)
def test_a_training_is_saved_and_ends_with_the_name(kind, workers, learn):
    run = learn(kind, f"data.workers={workers}", "data.timeout=2")
    reader = "worker " if workers else "this process"
    assert_error_line(run.process, "train/one/image.png: ", reader, "after 2 seconds", "data.timeout")
    assert run.seconds < 5
    assert run.saved_after == run.iterations_done > 0
    assert not run.orphans()
