"""P24: nothing phones home: import, train, evaluate, predict and export never ask for a connection."""

import pytest
from tiny_tasks import classification, segmentation, write_config

CODE = """
import sys
attempts = []

def watch(event, arguments):
    # a pair is an address of the internet, a text the socket of a process of this machine
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(arguments[1], tuple)):
        attempts.append((event, arguments[-1]))
        raise OSError("no network here")

sys.addaudithook(watch)
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
assert attempts, "the hook does not work"
attempts.clear()

from pathlib import Path
from res2net_dense import cli
config, images, folder = sys.argv[1:]
run = Path(folder)
for arguments in (
    ["train", "--config", config, "--output-dir", str(run / "run")],
    ["evaluate", "--weights", str(run / "run")],
    ["predict", "--weights", str(run / "run"), "--input", images, "--output", str(run / "predictions")],
    ["export", "--weights", str(run / "run"), "--output", str(run / "model.torchscript"), "--size", "64x64"],
):
    code = cli.main(arguments)
    assert code == 0, (arguments, code)
assert not attempts, attempts
"""


@pytest.mark.parametrize("task", [classification, pytest.param(segmentation, marks=pytest.mark.slow)])
def test_no_connection_is_asked_for(task, draw_toy, tmp_path, run_code):
    config = write_config(task, draw_toy, tmp_path)
    toy = (
        draw_toy("imagenet", train=40, val=20, size=64)
        if task == classification
        else draw_toy("voc", train=16, val=5)
    )
    images = toy / ("val/star" if task == classification else "JPEGImages")
    process = run_code(CODE, config, images, tmp_path)
    assert process.returncode == 0, process.stderr
