"""P9: nothing is ever written into the user's data, which may be read-only."""

import pytest
from reading import snapshot
from tiny_runs import TINY_RUNS
from tiny_tasks import write_config

from res2net_dense import evaluate, train
from res2net_dense.cli import main
from res2net_dense.data import header_sizes


@pytest.mark.parametrize("task", TINY_RUNS)
def test_check_training_and_evaluation_leave_the_tree_as_it_is(task, draw_toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RES2NET_DENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(header_sizes, "MIN_ENTRIES", 1)
    root = draw_toy(**TINY_RUNS[task].toy)
    config = write_config(task, draw_toy, tmp_path)
    folders = [path for path in (root, *root.rglob("*")) if path.is_dir()]
    before, modes = snapshot(root), [path.stat().st_mode for path in folders]
    monkeypatch.chdir(tmp_path)
    for path in folders:
        path.chmod(0o500)
    try:
        assert main(["check", "--config", str(config)]) == 0, capsys.readouterr()
        train(config, dry_run=True)
        train(config)
        evaluate(tmp_path / "run")
    finally:
        for path, mode in zip(folders, modes, strict=True):
            path.chmod(mode)
    assert snapshot(root) == before
