"""P38: numbers have bounds: what no machine can do is refused at once, in one line that names the setting."""

import argparse
import math
import time

import pytest
from settings import around, every_key, merged, nested, smallest

import res2net_dense
from res2net_dense import cli
from res2net_dense.config import parse_config
from res2net_dense.errors import ConfigError, Res2NetDenseError, shown

KEYS = list(every_key())
NUMERIC = {"model.detectron2": None, "model.smp": None}
WRONG = (10**30, -(10**30), 10**5000, math.inf, -math.inf, math.nan, 1e300)


def with_number(value, number):
    """A value of a setting with another number in the place of each of its own; None if it has none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number
    if isinstance(value, list):
        items = [with_number(item, number) for item in value]
        return None if None in items else items
    if isinstance(value, dict):
        return {name: with_number(item, number) for name, item in value.items()}
    return None


def example(key):
    return next((value for value in key.values if with_number(value, 1) not in (None, value)), None)


NUMBERS = [key for key in KEYS if key.name not in NUMERIC and with_number(example(key), 1) is not None]


def refused(data, *overrides):
    start = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        parse_config(data, overrides=overrides)
    assert time.perf_counter() - start < 1
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def test_there_are_numbers_in_all_sections():
    names = {key.name for key in NUMBERS}
    assert {
        "train.iterations", "runtime.seed", "data.tiles.size", "train.schedule.milestones", "eval.scales",
        "eval.expected", "model.pixel_mean", "backbone.freeze_at", "data.crop", "model.losses.bce",
    } <= names  # fmt: skip
    assert len(names) > 80


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.name}-{'-'.join(key.tags.values())}")
def test_no_number_of_a_configuration_is_without_bounds(key):
    base, value = around(key, KEYS), example(key)
    for number in WRONG:
        said = refused(merged(base, nested(key.path, with_number(value, number))))
        assert key.name in said, said
    for text in ("1e400", "1" + "0" * 40, "-1e400"):
        assert key.name in refused(base, f"{key.name}={with_number(value, text)}".replace("'", ""))


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: f"{key.name}-{'-'.join(key.tags.values())}")
def test_no_list_is_endless(key):
    value = example(key)
    if isinstance(value, list):
        said = refused(merged(around(key, KEYS), nested(key.path, value[:1] * 200_000)))
        assert key.name in said


@pytest.mark.parametrize(
    ("task", "override"),
    [
        ("detection", f"runtime.threads={10**13}"),
        ("detection", f"train.batch_size={10**15}"),
        ("detection", f"eval.batch_size={10**15}"),
        ("detection", f"model.num_classes={10**9}"),
        ("detection", f"data.workers={10**30}"),
        ("detection", f"train.iterations={10**18}"),
        ("detection", f"data.min_size_train=[{10**9}]"),
        ("detection", f"data.max_size_test={10**9}"),
        ("semantic_segmentation", f"data.crop_size={10**9}"),
        ("semantic_segmentation", "eval.scales=[1e9]"),
        ("classification", f"data.padding={10**9}"),
        ("saliency", f"model.channels={10**9}"),
        ("saliency", f"data.tiles={{size: {10**9}}}"),
    ],
)
def test_what_no_machine_can_do(task, override):
    said = refused(smallest(task), override)
    assert override.partition("=")[0] in said
    assert "less than or equal to" in said


@pytest.mark.parametrize(
    "override", ["train.batch_size=0", "data.workers=-1", "runtime.threads=0", "train.optimizer.lr=-0.1"]
)
def test_below(override):
    assert "greater than" in refused(smallest("detection"), override)


# Commands


def numeric_arguments():
    for name in cli.COMMANDS:
        parser = cli.parser_of(name, cli.load(name))
        for action in parser._actions:
            of_text = action.type in (None, str) or action.type.__name__ in ("Path", "_formats")
            if not of_text and any(takes(parser, action, text) for text in ("1", "128")):
                yield pytest.param(parser, action, id=f"{name} {action.option_strings[0]}")


def takes(parser, action, text):
    try:
        parser._get_values(action, [text])
    except argparse.ArgumentError:
        return False
    return True


@pytest.mark.parametrize(("parser", "action"), numeric_arguments())
def test_no_number_of_a_command_is_without_bounds(parser, action, capsys):
    for text in ("1" + "0" * 30, "9" * 5000, "-1", "-1e30", "1e400", "nan", "inf", "", "x", "٣" * 30):
        assert not takes(parser, action, text), text


def test_commands_have_numbers():
    assert len(list(numeric_arguments())) > 12


# Python


@pytest.mark.parametrize(
    "number", [0, -1, 10**9, 10**30, 10**5000, math.nan, math.inf, 1.5, True, "3"], ids=shown
)
def test_arguments_of_functions(number):
    for option in ("base_width", "scale", "cardinality", "in_channels", "planes"):
        with pytest.raises(Res2NetDenseError, match=option):
            res2net_dense.create_backbone("test_res2net", **{option: number})
    with pytest.raises(Res2NetDenseError, match="depths"):
        res2net_dense.create_backbone("test_res2net", depths=(number,))
    with pytest.raises(Res2NetDenseError, match="num_classes"):
        res2net_dense.get_model("test_res2net", num_classes=number)
    with pytest.raises(Res2NetDenseError, match="num_classes"):
        res2net_dense.create_classifier("test_res2net", num_classes=number)
    with pytest.raises(Res2NetDenseError, match="batch"):
        res2net_dense.export(None, "x.onnx", batch=number)
    with pytest.raises(Res2NetDenseError, match="size"):
        res2net_dense.export(None, "x.onnx", size=(number, 64))
    with pytest.raises(Res2NetDenseError, match="max_drop"):
        res2net_dense.export(None, "x.onnx", evaluate=True, max_drop=number if number != 0 else -1)
