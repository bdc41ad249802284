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


class Scored(nn.Module):
    """A model that has these scores."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores


@pytest.fixture
def compare(monkeypatch):
    """Score two models of a task whose metric is given."""

    def compare(metric, before, after):
        kind = metric.rpartition("/")[2]
        best = Metric(metric, "min" if kind == "MAE" else "max", 1 if kind in ("MAE", "max_F") else 100)
        task = SimpleNamespace(
            build_evaluator=lambda config: None,
            build_eval_loader=lambda config: None,
            merger=lambda config, first: None,
            score_metric=lambda config: best,
            metrics=lambda config: [best, Metric("top5")],
        )
        monkeypatch.setattr(scoring, "get_task", lambda name: task)
        monkeypatch.setattr(scoring, "evaluate", lambda model, *_, **__: model.scores)
        return score_both(SimpleNamespace(task=""), torch.device("cpu"), Scored(before), Scored(after))

    return compare


@pytest.mark.parametrize(
    ("metric", "before", "after", "drop"),
    [
        ("mIoU", 80.0, 79.9, 0.001),
        ("mIoU", 80.0, 80.1, -0.001),
        ("max_F", 0.8, 0.799, 0.001),
        ("DUTS-TE/MAE", 0.05, 0.051, 0.001),
        ("bbox/AP", math.nan, math.nan, 0.0),
        ("bbox/AP", 30.0, math.nan, math.inf),
        ("bbox/AP", math.nan, 30.0, math.inf),
    ],
)
def test_the_drop_is_on_a_scale_from_0_to_1(compare, metric, before, after, drop):
    scores = compare(metric, {metric: before}, {metric: after})
    assert scores.metric == metric
    assert scores.drop == pytest.approx(drop)
    plain = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert plain["metric"] == metric
    assert plain["exported"] == {metric: None if math.isnan(after) else after}


def test_half_a_thousandth_may_be_lost(compare):
    compare("top1", {"top1": 80.0}, {"top1": 79.96}).check(MAX_DROP["fp32"])
    worse = compare("top1", {"top1": 80.0}, {"top1": 79.9})
    worse.check(MAX_DROP["int8"])
    with pytest.raises(ExportError) as error:
        worse.check(MAX_DROP["fp32"])
    assert_one_line(error, "top1 79.9000", "the model 80.0000", "0.0010 of 1, and 0.0005", "--max-drop")
    with pytest.raises(ExportError):
        compare("AP", {"AP": 30.0}, {"AP": math.nan}).check(1.0)


def test_the_table_shows_both_but_no_single_classes(compare):
    before = {"top1": 50.0, "top5": 90.0, "top1/cat": 10.0, "top1/dog": 90.0}
    lines = compare("top1", before, {**before, "top5": 89.5}).table().splitlines()
    assert [line.split() for line in lines] == [
        ["metric", "model", "exported", "difference"],
        ["top1", "50.0000", "50.0000", "0.0000"],
        ["top5", "90.0000", "89.5000", "-0.5000"],
    ]
