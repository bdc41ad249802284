"""What a training watches is there, or is refused before any data are read."""

import pytest
from running import assert_one_line

from res2net_dense import train
from res2net_dense.config import parse_config
from res2net_dense.errors import ConfigError
from res2net_dense.tasks import get_task
from res2net_dense.tasks.watching import build_evaluation, check_metrics, idle_stop


def config_of(data_val="absent", **sections):
    length = {"batch_size": 4, "iterations": 100, "optimizer": {"lr": 1.0}}
    given = {"task": "saliency", "backbone": {"name": "res2net50_26w_4s"}, "runtime": {"device": "cpu"}}
    given["data"] = {"train": {"root": "absent"}, "val": data_val and {"root": data_val}}
    given["train"] = length | sections.pop("train", {})
    return parse_config(given | sections)


EARLY = {"early_stop": {"patience": 3}, "eval_every": 10}
LOSS = {"eval": {"loss": True}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            config_of(train={"best_metric": "val_loss"}),
            ["train.best_metric is val_loss", "set eval.loss=true"],
        ),
        (
            config_of(train={**EARLY, "early_stop": {"patience": 1, "metric": "val_loss"}}),
            ["train.early_stop.metric is val_loss", "set eval.loss=true"],
        ),
    ],
)
def test_what_is_not_computed_is_refused_first(config, words):
    with pytest.raises(ConfigError) as error:
        train(config)
    assert_one_line(error, *words)


def test_a_metric_that_does_not_exist_is_refused_with_the_nearest():
    stop = {"patience": 1, "metric": "max_Q"}
    for options, key in (
        (EARLY | {"early_stop": stop}, "train.early_stop.metric"),
        ({"best_metric": "max_Q"}, "train.best_metric"),
    ):
        with pytest.raises(ConfigError) as error:
            check_metrics(config_of(train=options), ["MAE", "max_F", "max_E"])
        assert_one_line(error, f"{key} is 'max_Q'", "did you mean max_F", "there are MAE, ")


@pytest.mark.parametrize(
    ("metric", "best", "name", "lower"),
    [
        (None, None, "max_F", False),
        (None, "val_loss", "val_loss", True),
        ("MAE", None, "MAE", True),
        ("val_loss", None, "val_loss", True),
    ],
)
def test_the_metric_and_its_direction(metric, best, name, lower, monkeypatch):
    """That of `early_stop`, else the one that chooses the best model."""
    task = get_task("saliency")
    monkeypatch.setattr(task, "open_source", lambda config, *, train: type("Source", (), {"parts": []}))
    options = {
        **EARLY,
        "early_stop": {"patience": 3, "min_delta": 0.5, "metric": metric},
        "best_metric": best,
    }
    config = config_of(train=options, **LOSS)
    evaluation = build_evaluation(task, config, "cpu", None)
    assert task.score_metric(config).name == "max_F"
    rule = evaluation.early_stop
    assert (rule.metric, rule.patience, rule.min_delta, rule.lower_is_better) == (name, 3, 0.5, lower)
    assert (evaluation.best_metric, evaluation.lower_is_better) == (best or "max_F", best == "val_loss")


def test_a_stop_that_cannot_act_is_said():
    for iterations, patience, acts in (
        (100, 3, True),
        (41, 3, True),
        (40, 3, False),
        (9, 1, False),
        (21, 1, True),
    ):
        config = config_of(train={**EARLY, "early_stop": {"patience": patience}, "iterations": iterations})
        assert (idle_stop(config) == "") == acts, iterations
    assert "do not fit into 21 iterations with train.eval_every=10" in idle_stop(
        config_of(train={**EARLY, "iterations": 21})
    )
    assert idle_stop(config_of()) == ""
