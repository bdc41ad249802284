"""Early stopping: when it ends a training, and that a resumed training ends at the same iteration."""

import itertools
import math

import pytest
from test_engine_trainer import IMPORTS, Net, samples, state

from res2net_dense.engine.checkpointer import Checkpointer, TrainState, restore
from res2net_dense.engine.early_stop import EarlyStop
from res2net_dense.engine.optim import build_optimizer
from res2net_dense.engine.trainer import Evaluation, LoopOptions, Trainer
from res2net_dense.errors import ConfigError

FALLING, NAN = [5.0, 4.0, 4.0, 3.0, 3.5, 3.2, 3.0, 2.9, 1.0, 1.0], math.nan


def stopped_at(values, *, metric="val_loss", **options):
    """The iteration that ends a training with an evaluation in each, and what was seen until then."""
    rule, seen = EarlyStop(metric, **{"lower_is_better": True, **options}), None
    for iteration, value in enumerate(values, start=1):
        seen = rule.after(seen, {"val_loss": value}, iteration)
        if rule.reason(seen):
            return iteration, seen
    return None, seen


@pytest.mark.parametrize(
    ("values", "options", "iteration", "best"),
    [
        (FALLING, {"patience": 3}, 7, (3.0, 4)),  # equal is no improvement
        (FALLING, {"patience": 4}, None, (1.0, 9)),
        (FALLING, {"patience": 2, "min_delta": 1.0}, 3, (5.0, 1)),  # nor is by exactly min_delta
        (FALLING, {"patience": 1, "lower_is_better": False}, 2, (5.0, 1)),
        ([NAN, NAN, 1.0], {"patience": 2}, 2, (None, None)),
        ([NAN, 2.0, NAN, 1.0, NAN, NAN], {"patience": 2}, 6, (1.0, 4)),
        ([math.inf, 2.0, 3.0], {"patience": 1}, 3, (2.0, 2)),
    ],
)
def test_when_it_stops(values, options, iteration, best):
    found, seen = stopped_at(values, **options)
    assert found == iteration
    assert (seen["value"], seen["iteration"]) == best


def test_why_in_one_line():
    rule = EarlyStop("val_loss", 1, 0.5, lower_is_better=True)
    seen = rule.after(rule.after(None, {"val_loss": 2.0}, 10), {"val_loss": 1.9}, 20)
    assert rule.reason(seen) == (
        "val_loss has not improved by more than 0.5 in 1 evaluation, the best was 2 after iteration 10; "
        "to go on, --resume with a larger train.early_stop.patience or with train.early_stop=null"
    )
    assert rule.after(seen, {"val_loss": 1.9}, 20) == seen  # a resumed run evaluates again
    assert "it never had a value" in rule.reason(rule.after(None, {"val_loss": NAN}, 10))
    assert rule.after({**seen, "metric": "mIoU"}, {"val_loss": 7.0}, 30)["value"] == 7.0  # another metric
    with pytest.raises(ConfigError, match="'val_loss' is not among the metrics: choose one of mIoU"):
        rule.after(None, {"mIoU": 1.0}, 1)


SCORES = dict(zip(range(2, 21, 2), FALLING, strict=False))


def train(folder, *, patience, until=20, iterations=20):
    """Train with an evaluation every 2 iterations and a checkpoint every 3, to a crash after `until`."""
    model = Net()
    state = TrainState(model, build_optimizer(model, lr=0.1))
    checkpointer = Checkpointer(folder, keep=9)
    if found := checkpointer.open_latest():
        restore(found.content, state)
    rule = EarlyStop("loss", patience, lower_is_better=True) if patience else None
    evaluation = Evaluation(lambda _: {"loss": SCORES[state.iteration]}, "loss", True, rule)
    loader = itertools.islice(samples(2, state.iteration), max(until - state.iteration, 0))
    options = LoopOptions(iterations, eval_every=2, save_every=3)
    Trainer(state, loader, lambda _: 1.0, options, evaluation=evaluation, checkpointer=checkpointer).run()
    return state


@pytest.mark.parametrize("until", range(4, 15))
def test_a_resumed_run_stops_at_the_same_iteration(until, tmp_path, capsys):
    """The seventh evaluation ends it, after iteration 14."""
    whole = train(tmp_path / "whole", patience=3)
    said = capsys.readouterr().out
    assert said.startswith("stopped early after iteration 14 of 20: loss has not improved in 3 evaluations")
    assert said.count("\n") == 1
    if until < 14:
        with pytest.raises(Exception, match="the training loader ended"):
            train(tmp_path / "parts", patience=3, until=until)
    parts = train(tmp_path / "parts", patience=3)
    assert (parts.iteration, parts.best, parts.early_stop) == (14, whole.best, whole.early_stop)
    assert capsys.readouterr().out == said
    assert (tmp_path / "parts/checkpoints/iter_0000014.pt").exists()


def test_an_ended_run_says_so_again_and_goes_on_when_told_to(tmp_path, capsys):
    train(tmp_path, patience=3)
    first = capsys.readouterr().out
    again = train(tmp_path, patience=3)
    assert (again.iteration, capsys.readouterr().out) == (14, first)
    assert train(tmp_path, patience=4).iteration == 20
    assert capsys.readouterr().out == ""


def test_the_last_iteration_ends_a_run_as_usual(tmp_path, capsys):
    assert train(tmp_path, patience=3, iterations=14).iteration == 14
    assert capsys.readouterr().out == ""


def test_it_does_not_change_what_is_learned(tmp_path):
    """The run that may end early is the one that may not, as long as it goes on."""
    runs = [train(tmp_path / str(patience), patience=patience) for patience in (0, 9)]
    assert runs[0].iteration == runs[1].iteration == 20
    for name, value in state(runs[0].model).items():
        assert value.equal(runs[1].model.state_dict()[name])


def test_two_processes_end_together(run_tool, tmp_path):
    """Even where only one of them has seen enough."""
    script = tmp_path / "script.py"
    script.write_text(
        IMPORTS
        + f"""
from res2net_dense.engine import distributed
from res2net_dense.engine.early_stop import EarlyStop
distributed.init_distributed("cpu")
model = Net(plain=True)
rule = EarlyStop("loss", 2 if distributed.rank() else 5, lower_is_better=True)
evaluation = Evaluation(lambda _: {{"loss": 1.0}}, "loss", True, rule)
checkpointer = Checkpointer(Path({str(tmp_path / "run")!r}))
try:
    learn(distributed.wrap(model), samples(2), optimizer=build_optimizer(model, lr=0.1), iterations=9,
          eval_every=1, evaluation=evaluation, checkpointer=checkpointer)
    distributed.barrier()
    assert checkpointer.open_latest().content["iteration"] == 3
finally:
    distributed.shutdown()
"""
    )
    process = run_tool("tests/twofold.py", script)
    assert process.returncode == 0, process.stderr
