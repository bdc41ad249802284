"""`train --auto` and `--auto-batch`: what is chosen, what stays, and that it can be trained."""

import re

import pytest
import torch
from running import TRAIN, assert_error_line
from tiny_runs import TINY_RUNS

from res2net_dense.config import load_config
from res2net_dense.tasks import get_task
from res2net_dense.tasks.automatic import fit_batch, suit_little_data

COCO = "mask_rcnn_res2net50"  # 180,000 steps of 16 images


def suited(images, *overrides, config=COCO):
    config, choices = suit_little_data(load_config(config, overrides), images, overrides)
    return config.train, {choice.key: choice for choice in choices}


@pytest.mark.parametrize("images", [200, 118287])
def test_enough_images_change_nothing(images):
    train, choices = suited(images)
    assert not choices
    assert train == load_config(COCO).train


def test_a_recipe_for_coco_becomes_one_for_25_images():
    train, choices = suited(25)
    assert train.batch_size == 6
    assert train.optimizer.lr == pytest.approx(0.01)  # half, as in the public report
    assert train.iterations == 100 * 25 // 6
    assert train.schedule.warmup_iterations == train.iterations // 10
    assert train.schedule.milestones == [int(train.iterations * 2 / 3), int(train.iterations * 8 / 9)]
    assert set(choices) == {
        f"train.{key}"
        for key in (
            "batch_size",
            "optimizer.lr",
            "iterations",
            "schedule.warmup_iterations",
            "schedule.milestones",
        )
    }


def test_a_recipe_for_few_images_keeps_its_rate():
    """It is AdamW's: with the lower rate of SGD 14 images were learned worse in the same time."""
    train, choices = suited(14, config="small/mask_rcnn_res2net50")
    assert train.optimizer == load_config("small/mask_rcnn_res2net50").train.optimizer
    assert set(choices) == {"train.batch_size"}


@pytest.mark.parametrize("images", range(1, 200, 13))
def test_nothing_becomes_larger(images):
    before, after = load_config(COCO).train, suited(images)[0]
    assert 1 <= after.batch_size <= before.batch_size
    assert 0 < after.optimizer.lr <= before.optimizer.lr
    assert 0 < after.iterations <= before.iterations
    assert after.schedule.warmup_iterations <= before.schedule.warmup_iterations
    assert all(0 < one < after.iterations for one in after.schedule.milestones)


def test_what_the_user_sets_stays():
    train, choices = suited(25, "train.batch_size=8", "train.optimizer={name: sgd, lr: 0.03}")
    assert train.batch_size == 8
    assert train.optimizer.lr == 0.03
    assert {"train.batch_size", "train.optimizer.lr"}.isdisjoint(choices)
    assert "train.iterations" in choices


@pytest.fixture(scope="module", params=sorted(TINY_RUNS))
def prepared(request, tiny):
    config = load_config(tiny(request.param))
    task = get_task(config.task)
    return task, task.prepare(config)


def with_free_memory(monkeypatch, size):
    monkeypatch.setattr("res2net_dense.tasks.automatic.free_memory", lambda device: size)


def test_the_largest_part_of_a_batch_that_fits_is_found(prepared, monkeypatch):
    task, config = prepared
    with_free_memory(monkeypatch, 10**12)
    whole, line = fit_batch(task, config, torch.device("cpu"))
    assert whole.train.accumulate == 1
    assert whole.train.batch_size == config.train.batch_size
    each, fixed = (
        1e9 * float(re.search(rf"([\d.e-]+) GB for {what}", line)[1]) for what in ("an image", "the model")
    )
    with_free_memory(monkeypatch, int((fixed + 1.5 * each) / 0.8))
    part, _ = fit_batch(task, config, torch.device("cpu"))
    assert part.train.batch_size == config.train.batch_size
    assert part.train.optimizer == config.train.optimizer
    assert part.train.accumulate > 1
    with_free_memory(monkeypatch, 1000)
    with pytest.raises(Exception, match="not even one image fits into memory") as error:
        fit_batch(task, config, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_run_says_what_was_chosen_and_why(tiny, run_tool, tmp_path):
    run = run_tool(
        *(TRAIN, "--config", tiny("saliency"), "--output-dir", tmp_path / "run", "--auto", "--auto-batch"),
        *("train.iterations=2", "train.accumulate=1", "train.optimizer.name=sgd"),
    )
    assert run.returncode == 0, run.stderr
    assert "--auto: 16 training images" in run.stdout
    assert "train.optimizer.lr=" in run.stdout
    assert "the rate stays" in run.stdout
    saved = load_config(tmp_path / "run/config.yaml")
    assert saved.train.iterations == 2
    again = run_tool(
        TRAIN, "--config", tiny("saliency"), "--output-dir", tmp_path / "run", "--auto-batch", "--resume"
    )
    assert_error_line(again, "--auto-batch", "config.yaml of the run")
