"""P26: evaluating a model later gives the numbers of the last evaluation in its training, to the last digit.

Scores and losses; by a process of its own, from the weight file or the newest checkpoint.
"""

import json
import shutil

import pytest
from running import TRAIN
from tiny_runs import TINY_RUNS

every_task = pytest.mark.parametrize("task", TINY_RUNS)


@every_task
def test_evaluating_later_repeats_the_numbers(task, trained, run_tool, tmp_path):
    """From the best model, and from the newest checkpoint, which is the same: one evaluation is enough."""
    folder = trained(task)
    before = (folder / "results.json").read_text()
    assert any(value for value in json.loads(before).values())
    process = run_tool(
        TRAIN, "--config", folder / "config.yaml", "--output-dir", tmp_path / "new", "--eval-only",
        "--weights", folder / "model_best.safetensors", "data.train=null", "data.workers=0",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "new/results.json").read_text() == before


def test_the_newest_checkpoint_is_evaluated_by_default(trained, run_tool, tmp_path):
    folder = shutil.copytree(trained("classification"), tmp_path / "run")
    before = (folder / "results.json").read_text()
    (folder / "results.json").unlink()
    process = run_tool(TRAIN, "--config", folder / "config.yaml", "--output-dir", folder, "--eval-only")
    assert process.returncode == 0, process.stderr
    assert "iter_0000008.pt" in process.stdout
    assert (folder / "results.json").read_text() == before
