"""What the tests of the tools share."""

import json

import pytest


@pytest.fixture
def predict(trained, run_tool, tmp_path):
    """Run `predict` with a task's tiny run on the folder `in`; returns the finished process and its JSON."""

    def run(task, *arguments):
        folder = trained(task)
        process = run_tool(
            "tools/predict.py", "--config", folder / "config.yaml",
            "--weights", folder / "model_best.safetensors", "--input", tmp_path / "in",
            "--output", tmp_path / "out", *arguments,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process, json.loads((tmp_path / "out/predictions.json").read_text())

    return run
