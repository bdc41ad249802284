"""P34: reading that hangs ends with the name of the image and the worker, after `data.timeout` seconds; a
training is saved first, and what is not a file is never opened.
"""

import multiprocessing
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from running import assert_error_line, assert_one_line

from res2net_dense.cli._processes import in_processes
from res2net_dense.data.check import check_sources
from res2net_dense.data.images import image_size, read_image, sample_of
from res2net_dense.data.layouts import CocoPart, open_source
from res2net_dense.data.layouts.listing import read_lines
from res2net_dense.data.loaders import EvalSet, eval_loader
from res2net_dense.data.masks import Labels, read_labels, read_palette
from res2net_dense.data.pixels import RGB
from res2net_dense.data.regions import open_pixels
from res2net_dense.data.waiting import in_time
from res2net_dense.data.workers import WorkerBatches
from res2net_dense.errors import DatasetError, ReadingError
from res2net_dense.findings import Findings
from res2net_dense.opening import note


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


@pytest.mark.parametrize("name", ["pipe.png", "device.png", "socket.png"])
def test_what_is_not_a_file_is_never_opened(name, tmp_path):
    path = tmp_path / name
    if name == "pipe.png":
        os.mkfifo(path)
    elif name == "socket.png":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    kind = "a named pipe" if name == "pipe.png" else f"a {name[:-4]}"
    for read in (read_image, image_size, open_pixels, read_palette_or_labels):
        with pytest.raises(DatasetError) as error:
            read(path)
        assert_one_line(error, f"{path}: {kind}, not a file; replace or remove it")
    for read in (read_json, read_list):
        with pytest.raises(DatasetError) as error:
            read(path)
        assert_one_line(error, str(path), f"{kind}, not a file")


def read_palette_or_labels(path):
    assert read_palette(path) is None
    return read_labels(path, Labels(2), lambda: None)


def read_json(path):
    open_source([CocoPart(images=str(path.parent), annotations=str(path))], train=True, needs=["boxes"])


def read_list(path):
    return read_lines(path, "list")


class Hanging:
    """A source of four samples, the third of which never comes."""

    name = "the set"
    form = RGB

    def __len__(self):
        return 4

    def file(self, index):
        return Path(f"/data/{index}.png")

    def sample(self, index):
        if index == 2:
            time.sleep(1000)
        return sample_of(np.zeros((4, 4, 3), np.uint8), f"{index}.png", index)

    def inspect(self, index, *, thorough):
        self.sample(index)
        return []

    findings, looked_into = Findings(), ()

    def check(self):
        pass


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_ends_with_the_name(workers):
    loader = eval_loader(EvalSet(Hanging(), lambda sample: sample), batch_size=1, workers=workers, timeout=1)
    with ends_within(4), pytest.raises(ReadingError) as error:
        list(loader)
    assert_one_line(error, "/data/2.png: ", "after 1 seconds", "raise data.timeout")
    assert not multiprocessing.active_children()


def test_a_mask_that_an_evaluator_waits_for_is_named(tmp_path):
    def read(index):
        note(tmp_path / "mask.png")
        time.sleep(1000)

    with ends_within(4), pytest.raises(ReadingError, match=f"{tmp_path}/mask.png: this process"):
        in_time(read, 1)(0)


@pytest.mark.parametrize("thorough", [False, True])
def test_a_check_ends_with_the_name(thorough):
    with ends_within(4), pytest.raises(ReadingError) as error:
        check_sources({"data.train": Hanging()}, thorough=thorough, workers=1, timeout=1)
    assert_one_line(error, "/data/2.png: ", "after 1 seconds")
    assert not multiprocessing.active_children()


def work(number):
    note(f"/data/{number}.png")
    if number == 5:
        time.sleep(1000)
    return number


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_of_processes_ends_with_the_name(workers, monkeypatch):
    monkeypatch.setattr(WorkerBatches.__init__, "__kwdefaults__", {**KEYWORDS, "timeout": 1})
    done = []
    with ends_within(4), pytest.raises(ReadingError) as error:
        done.extend(in_processes(work, range(9), workers, "masks"))
    assert_one_line(error, "/data/5.png: ", "check the file and its disk")
    assert done == [0, 1, 2, 3]
    assert not multiprocessing.active_children()


KEYWORDS = dict(WorkerBatches.__init__.__kwdefaults__)


def test_a_worker_that_stops_while_it_sends_is_no_endless_wait():
    """Half of a batch is in the pipe: whoever reads it waits for the rest without a limit."""
    batches = iter(WorkerBatches(lambda key: bytes(1 << 21), [[0], [1]], workers=1, timeout=1))
    next(batches)
    [worker] = multiprocessing.active_children()
    time.sleep(0.5)
    os.kill(worker.pid, signal.SIGSTOP)
    with ends_within(4), pytest.raises(ReadingError) as error:
        next(batches)
    assert_one_line(error, "worker 0", "after 1 seconds")
    assert not multiprocessing.active_children()


def test_time_does_not_count_while_everything_is_stopped(run_code):
    """As after Ctrl-Z, or a closed lid."""
    done = run_code(STOPPED)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[0], [1]]\n"


STOPPED = """
import os, signal, subprocess, time
from res2net_dense.data.workers import WorkerBatches

def read(key):
    if key == 0:
        pids = [str(os.getppid()), str(os.getpid())]
        stop = "sleep 0.3; kill -STOP {0}; sleep 4; kill -CONT {0}".format(" ".join(pids))
        subprocess.Popen(["sh", "-c", stop])
        time.sleep(1)
    return key

print(list(WorkerBatches(read, [[0], [1]], workers=1, timeout=3)))
"""


def test_a_limit_of_0_is_none_and_alarms_of_others_stay():
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        slow = WorkerBatches(lambda key: time.sleep(1.2) or key, [[7]], workers=0, timeout=0)
        assert list(slow) == [[7]]
        assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.1)
        assert heard == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_outside_of_the_main_thread_pytorchs_limit_holds():
    def read():
        loader = WorkerBatches(Hanging().sample, [[2]], workers=1, timeout=1)
        with pytest.raises(ReadingError) as error:
            list(loader)
        errors.append(str(error.value))

    errors = []
    thread = threading.Thread(target=read)
    with ends_within(6):
        thread.start()
        thread.join()
    assert "sample 2: worker 0 (process " in errors[0]


@contextmanager
def ends_within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds
