"""P20: the same seed gives the same run, whatever the number of workers; another seed gives another run.

And no two epochs augment an image alike: at least 99 % of the random draws differ, with any worker.
"""

import itertools

import pytest
from running import TRAIN, assert_same_runs
from tiny_runs import TINY_RUNS

from res2net_dense.config import load_config
from res2net_dense.engine.checkpointer import open_checkpoint
from res2net_dense.tasks import get_task

every_task = pytest.mark.parametrize("task", TINY_RUNS)


@pytest.mark.slow
@every_task
def test_the_same_seed_twice(task, tiny, trained, run_tool, tmp_path):
    """With two workers and with none; the quick test of P4 says the same of each task."""
    for name, changes in (("again", ["data.workers=0"]), ("other", ["runtime.seed=1"])):
        process = run_tool(TRAIN, "--config", tiny(task), "--output-dir", tmp_path / name, *changes)
        assert process.returncode == 0, process.stderr
    assert_same_runs(tmp_path / "again", trained(task), end=8)
    ours, theirs = (
        open_checkpoint(folder / "checkpoints/iter_0000008.pt").content["model"]
        for folder in (tmp_path / "other", trained(task))
    )
    trainable = [name for name, value in ours.items() if value.is_floating_point()]
    assert any(not ours[name].equal(theirs[name]) for name in trainable)
    logs = [(folder / "metrics.jsonl").read_bytes() for folder in (tmp_path / "other", trained(task))]
    assert logs[0] != logs[1]


@every_task
def test_no_two_epochs_augment_alike(task, tiny, monkeypatch):
    """The numbers that the steps of a transform would draw, over five epochs and two workers."""
    config = load_config(tiny(task), ["train.batch_size=4", "train.accumulate=1", "data.workers=2"])
    task = get_task(task)
    config = task.prepare(config)

    def draw(sample, rng):
        return {**sample, "file_name": f"{sample['file_name']} {rng.random(8).tobytes().hex()}"}

    monkeypatch.setattr(task, "train_transform", lambda config: draw)
    loader = task.build_train_loader(config)
    batches = itertools.islice(loader, 5 * loader.images // 4)
    drawn = [sample["file_name"] for batch in batches for sample in batch]
    assert len(drawn) >= 5 * loader.images - 4
    assert len({name.split()[-1] for name in drawn}) >= 0.99 * len(drawn)
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("task", ["semantic_segmentation", "saliency", "classification"])
def test_no_two_epochs_show_the_same_pixels(task, tiny):
    """Of the tasks whose crops are drawn: at least 99 % of the images differ in each epoch."""
    config = load_config(tiny(task), ["train.batch_size=4", "train.accumulate=1", "data.workers=2"])
    task = get_task(config.task)
    loader = task.build_train_loader(task.prepare(config))
    batches = itertools.islice(loader, 5 * loader.images // 4)
    seen = [sample["image"].numpy().tobytes() for batch in batches for sample in batch]
    assert len(set(seen)) >= 0.99 * len(seen)
