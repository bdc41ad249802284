"""P18: when a worker dies, or its code fails, the run is saved and ends at once, with the name of the image
and of the worker.
"""

import pytest
from running import assert_error_line

DEATHS = {
    "exit": ["worker ", "exit code 3 while it read"],
    "quiet exit": ["worker ", "exit code 0 while it read"],
    "system exit": ["worker ", "exit code 4 while it read"],
    "kill": ["worker ", "killed by SIGKILL while it read", "memory", "data.workers"],
    "crash": ["worker ", "killed by SIGSEGV while it read", "check the file"],
    "raise": ["ValueError: a fault of the code (worker ", "--debug"],
    "memory": ["MemoryError: Unable to allocate", "(worker ", "take fewer workers (data.workers"],
}


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "kill" else pytest.param(kind, marks=pytest.mark.slow) for kind in DEATHS],
)
def test_a_training_is_saved_and_ends_with_the_name(kind, learn):
    run = learn(kind, "data.workers=2")
    assert_error_line(run.process, "train/one/image.png", *DEATHS[kind])
    assert run.seconds < 10
    assert run.saved_after == run.iterations_done > 0
    assert not run.orphans()
