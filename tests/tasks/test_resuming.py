"""A resumed run with another length or schedule: it goes on without a jump, or is refused with both rates."""

import json
import shutil

import pytest
import torch
from running import assert_one_line, assert_same_runs
from tiny_tasks import classification, write_config

from res2net_dense import train
from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.engine.optim import Anchor
from res2net_dense.errors import ConfigError
from res2net_dense.tasks.resuming import changes, check_same_run, continued_schedule, curve
from res2net_dense.tasks.training import with_iterations


def config_of(*, iterations=100, lr=1.0, **schedule):
    """A config whose peak learning rate is `lr`."""
    length = {"batch_size": 4, "reference_batch": 4, "iterations": iterations}
    sections = {"task": "saliency", "backbone": {"name": "res2net50_26w_4s"}}
    return parse_config({**sections, "train": {**length, "optimizer": {"lr": lr}, "schedule": schedule}})


def go_on(before, after, iteration, *, extend=False, anchor=None):
    """What `continued_schedule` returns for the settings of a checkpoint and new ones."""
    content = {"iteration": iteration, "anchor": anchor and anchor._asdict()}
    return continued_schedule(config_to_dict(before), after, content, extend=extend)


STEPS = {"name": "multistep", "milestones": [30]}


@pytest.mark.parametrize(
    ("before", "after", "iteration"),
    [
        ({"name": "constant"}, {"name": "constant", "iterations": 200}, 40),
        ({"name": "constant"}, {"name": "constant", "iterations": 60}, 40),
        (STEPS, {**STEPS, "iterations": 200}, 40),
        (STEPS, {"name": "multistep", "milestones": [30, 150], "iterations": 200}, 40),
        (STEPS, {"name": "multistep", "milestones": [60]}, 20),
        (STEPS, {**STEPS, "gamma": 0.5}, 20),
        ({"name": "constant"}, {"name": "multistep", "milestones": [70]}, 40),
        (STEPS, {"name": "multistep", "milestones": [10]}, 40),  # the same rate by another milestone
        ({"name": "cosine", "warmup_iterations": 5}, {"name": "cosine"}, 40),
    ],
)
def test_what_goes_on_at_the_same_rate(before, after, iteration, capsys):
    assert go_on(config_of(**before), config_of(**after), iteration) is None
    said = capsys.readouterr().out
    rate = 0.1 if before == STEPS and iteration >= 30 else curve(config_of(**before), None)(iteration)
    assert f": the learning rate goes on at {rate:.3g}" in said
    assert ("have passed" in said) == (after.get("milestones") == [10])
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["poly", "cosine", "onecycle"])
def test_a_falling_curve_of_another_length_is_refused_or_extended(name, capsys):
    before, after = config_of(name=name), config_of(name=name, iterations=200)
    now, then = (curve(one, None)(60) for one in (before, after))
    with pytest.raises(ConfigError) as error:
        go_on(before, after, 60)
    rates = f"after 60 iterations the learning rate is {now:.3g}, by the new settings {then:.3g}"
    changed = "train.iterations was 100 and is 200"
    assert_one_line(error, rates, changed, "--extend", "model.weights", "--output-dir")
    assert capsys.readouterr().out == ""
    anchor = go_on(before, after, 60, extend=True)
    assert anchor == Anchor(60, now)
    last = curve(after, anchor)(199)
    words = f"goes on at {now:.3g} and ends at {last:.3g}"
    assert words in str(error.value)
    assert f"{words} over 140 more iterations (--extend)" in capsys.readouterr().out
    # From now on both are the settings of the run: resuming changes nothing, extended or not.
    for extend in (False, True):
        assert go_on(after, after, 90, anchor=anchor, extend=extend) == anchor
    longer = config_of(name=name, iterations=300)
    with pytest.raises(ConfigError, match="--extend"):
        go_on(after, longer, 90, anchor=anchor)
    second = go_on(after, longer, 90, anchor=anchor, extend=True)
    assert second == Anchor(90, curve(after, anchor)(90))
    assert curve(longer, second)(90) == curve(after, anchor)(90)


@pytest.mark.parametrize(
    ("before", "after", "iteration"),
    [
        (STEPS, {"name": "multistep", "milestones": [60]}, 40),  # one that has passed is taken back
        (STEPS, {**STEPS, "gamma": 0.5}, 40),
        (STEPS, {"name": "multistep", "milestones": [10]}, 20),
        ({"name": "constant"}, {"name": "cosine"}, 40),
        ({"name": "cosine"}, {"name": "cosine", "final_factor": 0.1}, 40),
        ({"name": "constant"}, {"name": "constant", "warmup_iterations": 60}, 40),
        ({"name": "cosine"}, {"name": "constant"}, 40),
        ({"name": "poly"}, STEPS, 20),
        ({"name": "poly"}, {"name": "cosine", "final_factor": 0.9}, 60),
    ],
)
def test_a_jump_is_refused_or_avoided(before, after, iteration, capsys):
    before, after = config_of(**before), config_of(**after)
    with pytest.raises(ConfigError, match="by the new settings.*train.schedule.*--extend"):
        go_on(before, after, iteration)
    anchor = go_on(before, after, iteration, extend=True)
    now = curve(before, None)(iteration)
    assert curve(after, anchor)(iteration) == now
    last = curve(after, anchor)(99)
    said = f"goes on at {now:.3g}" + (f" and ends at {last:.3g}" if last != now else "") + " over "
    assert said in capsys.readouterr().out


def test_what_cannot_be_extended(capsys):
    for name, iteration, words in (
        ("cosine", 100, ["after 100 iterations", "at 0 of its peak nothing would be learned"]),
        ("onecycle", 100, ["nothing would be learned"]),
        ("onecycle", 5, ["it is still rising"]),
    ):
        for extend in (False, True):
            with pytest.raises(ConfigError) as error:
                go_on(config_of(name=name), config_of(name=name, iterations=200), iteration, extend=extend)
            assert_one_line(
                error, "--extend cannot help, as ", "take the settings back", "model.weights", *words
            )
    with pytest.raises(ConfigError, match="extend .* goes with resume"):
        train(config_to_dict(config_of()), extend=True)
    assert go_on(config_of(name="cosine"), config_of(name="cosine", iterations=40), 40) is None
    assert "train.iterations was 100 and is 40: no iteration is left after 40" in capsys.readouterr().out


def test_settings_of_an_older_version():
    """Without keys that came later, and with some that are gone."""
    before = config_to_dict(config_of(**STEPS))
    del before["train"]["epochs"], before["train"]["early_stop"], before["eval"]["loss"]
    assert changes(before, config_of(**STEPS)) == {}
    before["train"]["schedule"] = {"name": "cosine", "gone": 1}
    with pytest.raises(
        ConfigError, match="after 50 iterations the learning rate is 0.5, by the new settings 0.724"
    ):
        continued_schedule(before, config_of(name="cosine", iterations=142), {"iteration": 50}, extend=False)


def test_what_else_changes_is_another_run():
    with pytest.raises(ConfigError) as error:
        check_same_run(config_to_dict(config_of()), config_of(lr=2.0))
    assert_one_line(error, "train.optimizer.lr was 1.0 and is 2.0", "--output-dir", "model.weights")


@pytest.mark.parametrize("change", ["data.value_range=[0, 4095]", "data.train_crop=padded"])
def test_a_name_that_starts_as_a_free_one_is_not_free(change):
    """`data.val` and, where the data are known to be the same, `data.train` are free."""
    sections = {"task": "classification", "backbone": {"name": "res2net50_26w_4s"}}
    train = {"iterations": 8, "batch_size": 4, "optimizer": {"lr": 0.1}}
    before, after = (parse_config({**sections, "train": train}, overrides=o) for o in ([], [change]))
    with pytest.raises(ConfigError, match=f"{change.partition('=')[0]} was"):
        check_same_run(config_to_dict(before), after, ("data.train", "data.class_names"))
    other = parse_config({**sections, "train": train}, overrides=["data.train=other", "data.val=other"])
    check_same_run(config_to_dict(before), other, ("data.train",))


@pytest.mark.parametrize(
    ("epochs", "images", "iterations"), [(3, 8, 6), (2.5, 10, 7), (0.01, 8, 1), (1.1, 40, 11), (1, 9, 3)]
)
def test_epochs_become_iterations(epochs, images, iterations, capsys):
    """The smallest number of batches of 4 that has all images."""
    given = config_to_dict(config_of())
    given["train"] |= {"iterations": None, "epochs": epochs}
    found = with_iterations(parse_config(given), images)
    assert (found.train.iterations, found.train.epochs) == (iterations, None)
    said = f"train.epochs={epochs} of {images} images, 4 at a time: {iterations} iteration"
    assert capsys.readouterr().out.startswith(said)
    given["train"]["schedule"] = {"milestones": [iterations]}
    with pytest.raises(
        ConfigError, match=rf"milestones = \[{iterations}\]: must be below {iterations}, the iter"
    ):
        with_iterations(parse_config(given), images)
    assert with_iterations(config_of(), images) == config_of()


def test_an_extended_run_resumes_as_never_stopped(draw_toy, tmp_path, capsys):
    """Extended from 4 of 6 iterations to 10, and killed after 8; another run goes without the kill."""
    config = write_config(classification, draw_toy, tmp_path)
    every = [
        "train.log_every=1", "train.save_every=2", "train.keep_checkpoints=9", "train.schedule.name=cosine",
        "data.val=null",
    ]  # fmt: skip

    def run(folder, *settings, **options):
        return train(config, overrides=[*every, *settings], output_dir=tmp_path / folder, **options).folder

    def cut(source, folder, iteration):
        """A copy of a run that was killed after the checkpoint of an iteration."""
        shutil.copytree(tmp_path / source, tmp_path / folder)
        for path in (tmp_path / folder / "checkpoints").glob("iter_*"):
            if int(path.name[5:12]) > iteration:
                path.unlink()

    run("short", "train.epochs=0.6")  # of 40 images, 4 at a time
    cut("short", "straight", 4)
    with pytest.raises(ConfigError, match="--resume continues the same run, but after 4 iterations"):
        run("straight", "train.iterations=10", resume=True)
    run("straight", "train.iterations=10", resume=True, extend=True)
    entries = [json.loads(line) for line in (tmp_path / "straight/metrics.jsonl").read_text().splitlines()]
    rates = [entry["lr"] for entry in entries]
    assert len(rates) == 10
    assert rates == sorted(rates, reverse=True)
    short = [json.loads(line) for line in (tmp_path / "short/metrics.jsonl").read_text().splitlines()]
    assert rates[:5] == [entry["lr"] for entry in short[:5]]
    for name, extend in (("again", False), ("told", True)):
        cut("straight", name, 8)
        run(name, "train.iterations=10", resume=True, extend=extend)
        assert_same_runs(tmp_path / name, tmp_path / "straight", end=10)
    state = torch.load(tmp_path / "again/checkpoints/iter_0000010.pt")
    assert state["anchor"] == {"iteration": 4, "factor": pytest.approx(0.25)}
