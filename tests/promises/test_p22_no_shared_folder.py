"""P22: two runs do not share a folder. A folder with results is used again by `--resume` alone, and a second
process is refused while the first one lives.
"""

import os
import subprocess
import sys

import pytest
from saved_runs import small_config

from res2net_dense import train
from res2net_dense.engine.run_folder import own_folder
from res2net_dense.errors import ConfigError

OWNER = """
import os, sys, time
from res2net_dense.engine.run_folder import own_folder
with own_folder(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_the_second_run_is_refused(tmp_path):
    config, run = small_config(tmp_path), tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", OWNER, run], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "mine\n"
        for resume in (False, True):
            with pytest.raises(ConfigError, match=f"in use by process {first.pid} on ") as caught:
                train(config, resume=resume)
            assert "\n" not in str(caught.value)
        assert os.listdir(run) == ["run.lock"]
    finally:
        first.kill()
        first.communicate()
    train(config)  # the lock of a dead process is no lock
    with pytest.raises(ConfigError, match=r"is not empty .*--resume.*--output-dir"):
        train(config)
    train(config, resume=True)
    with own_folder(run):
        assert (run / "run.lock").exists()
