"""P18: when a worker dies, or its code fails, the run is saved and ends at once, with the name of the image
and of the worker.
"""

import time
from multiprocessing.util import Finalize

import pytest
from running import assert_error_line

from res2net_dense.data.workers import WorkerBatches

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


def leave_slowly(key):
    """Read; the worker that reads 1 takes longer to end than others."""
    if key == 1:
        Finalize(None, time.sleep, (2.5,), exitpriority=1)
    return key


def test_workers_may_end_one_after_the_other():
    """What has ended by itself after the last batch did not die, however long others need for it."""
    assert list(WorkerBatches(leave_slowly, [[0], [1]], workers=2)) == [[0], [1]]
