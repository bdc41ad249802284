"""A model and its exported file side by side: what the file loses, and when that is too much."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from running import assert_one_line
from torch import nn

from res2net_dense.errors import ExportError
from res2net_dense.tasks import Metric, scoring
from res2net_dense.tasks.scoring import MAX_DROP, score_both


class Says(nn.Module):
    """A model that stands for its scores."""

    def __init__(self, **scores):
        super().__init__()
        self.scores = scores

    def forward(self, batch):
        return [self.scores for _ in batch]


class Evaluator:
    """Gives back the scores that the model stands for."""

    def reset(self):
        self.scores = {}

    def process(self, inputs, outputs):
        self.scores = dict(outputs[0])

    def evaluate(self):
        return self.scores


@pytest.fixture
def compare(monkeypatch):
    """Score two models of a task whose metric is given."""

    def compare(task, metric, before, after, class_names=()):
        base = metric.rpartition("/")[2]
        kind = Metric(metric, "min" if base == "MAE" else "max", 1 if task == "saliency" else 100)
        stand_in = SimpleNamespace(
            build_evaluator=lambda config: Evaluator(),
            build_eval_loader=lambda config: [[{}]],
            best_metric=lambda config: kind,
            metrics=lambda config: [kind, Metric("top5")],
        )
        monkeypatch.setattr(scoring, "get_task", lambda name: stand_in)
        config = SimpleNamespace(
            task=task,
            train=SimpleNamespace(best_metric=None),
            data=SimpleNamespace(class_names=class_names),
        )
        return score_both(config, torch.device("cpu"), Says(**before), Says(**after))

    return compare


@pytest.mark.parametrize(
    ("task", "metric", "before", "after", "drop"),
    [
        ("semantic_segmentation", "mIoU", 80.0, 79.9, 0.001),
        ("semantic_segmentation", "mIoU", 80.0, 80.1, -0.001),
        ("saliency", "max_F", 0.8, 0.799, 0.001),
        ("saliency", "DUTS-TE/MAE", 0.05, 0.051, 0.001),
        ("detection", "bbox/AP", math.nan, math.nan, 0.0),
        ("detection", "bbox/AP", 30.0, math.nan, math.inf),
        ("detection", "bbox/AP", math.nan, 30.0, math.inf),
    ],
)
def test_the_drop_is_on_a_scale_from_0_to_1(compare, task, metric, before, after, drop):
    scores = compare(task, metric, {metric: before}, {metric: after})
    assert scores.metric == metric
    assert scores.drop == pytest.approx(drop)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["metric"] == metric
    assert plain["exported"] == {metric: None if math.isnan(after) else after}


def test_half_a_thousandth_may_be_lost(compare):
    compare("classification", "top1", {"top1": 80.0}, {"top1": 79.96}).check(MAX_DROP["fp32"])
    worse = compare("classification", "top1", {"top1": 80.0}, {"top1": 79.9})
    worse.check(MAX_DROP["int8"])
    with pytest.raises(ExportError) as error:
        worse.check(MAX_DROP["fp32"])
    assert_one_line(error, "top1 79.9000", "the model 80.0000", "0.0010 of 1, and 0.0005", "--max-drop")
    with pytest.raises(ExportError):
        compare("detection", "AP", {"AP": 30.0}, {"AP": math.nan}).check(1.0)


def test_the_table_shows_both_but_no_single_classes(compare):
    before = {"top1": 50.0, "top5": 90.0, "top1/cat": 10.0, "top1/dog": 90.0}
    scores = compare("classification", "top1", before, {**before, "top5": 89.5}, ["cat", "dog"])
    lines = [line.split() for line in scores.table().splitlines()]
    assert lines == [
        ["metric", "model", "exported", "difference"],
        ["top1", "50.0000", "50.0000", "0.0000"],
        ["top5", "90.0000", "89.5000", "-0.5000"],
    ]
