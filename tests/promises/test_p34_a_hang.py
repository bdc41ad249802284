"""P34: reading that hangs ends with the name of the image and the worker, after `data.timeout` seconds; a
training is saved first, and what is not a file is never opened.
"""

import pytest
from running import assert_error_line


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
