"""Runs scripts as a person starts them, without the seconds that each would spend on importing libraries.

`Launcher` keeps a process that has imported the libraries and nothing of ours, and forks it for each script.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

LIBRARIES = (
    "torch", "torchvision", "albumentations", "cv2", "matplotlib", "pycocotools.mask", "safetensors.torch",
    "scipy.ndimage", "segmentation_models_pytorch", "detectron2.modeling",
)  # fmt: skip


class Launcher:
    """A process with the libraries, from its first script on."""

    def __init__(self):
        self._process = None

    def run(self, command, *, cwd, timeout):
        """Run `[script, *arguments]`; returns what `subprocess.run` does, with the output as text."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/stdout", f"{folder}/stderr"]
            request = {"command": command, "cwd": str(cwd), "files": files, "environment": dict(os.environ)}
            late = threading.Timer(timeout, self.close)
            late.daemon = True
            late.start()
            try:
                print(json.dumps(request), file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            finally:
                late.cancel()
            if not answer:
                self.close()
                raise RuntimeError(
                    f"{timeout} s have gone by, or the libraries cannot be imported: {command}"
                )
            texts = [Path(file).read_text() for file in files]
        return subprocess.CompletedProcess(command, int(answer), *texts)

    def close(self):
        """End the process, and the script that runs."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.communicate()


def serve():
    """Fork for every request; returns it in the fork, and None when there are no more."""
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is not looked at is not copied in a fork
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def become(request):
    """Make this process what Python would be when it starts the script."""
    opened = [os.open(os.devnull, os.O_RDONLY)]
    opened += [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in request["files"]]
    for number, file in enumerate(opened):
        os.dup2(file, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = request["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def run_to_the_end(script):
    """Run a script in this process, and end it as Python would, but for the second of taking it to pieces."""
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__" and (request := serve()):
    become(request)
    run_to_the_end(sys.argv[0])
