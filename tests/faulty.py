"""Run a script in which the process that reads one image hangs or dies: faulty.py KIND NAME FOLDER SCRIPT
[ARGUMENTS].

NAME is the name of the image's file, which is read well once. Each process that reads images leaves a file in
FOLDER, named by its id, and the one that meets NAME a file `met` with the time.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np

from res2net_dense.data import images

KIND, NAME, FOLDER = sys.argv[1], sys.argv[2], Path(sys.argv[3])
sample_of = images.sample_of


def fail():
    raise ValueError("a fault\nof the code")


def write_to_a_pipe():
    """Nobody reads it."""
    os.mkfifo(FOLDER / "pipe")
    with open(FOLDER / "pipe", "wb"):
        pass


FAULTS = {
    "hang": lambda: time.sleep(1000),
    "pipe": write_to_a_pipe,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "raise": fail,
    "exit": lambda: os._exit(3),
    "quiet exit": lambda: os._exit(0),
    "system exit": lambda: sys.exit(4),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "memory": lambda: np.ones(1 << 60, np.uint8),
}


def meet(pixels, file_name, image_id):
    (FOLDER / str(os.getpid())).touch()
    if Path(file_name).name == NAME and not (FOLDER / "met").exists():
        if (FOLDER / "first").exists():
            (FOLDER / "met").write_text(str(time.time()))
            FAULTS[KIND]()
        (FOLDER / "first").touch()
    return sample_of(pixels, file_name, image_id)


images.sample_of = meet
sys.argv = sys.argv[4:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
