"""P15: a config runs no code and fails clearly: one line with file, line and key."""

import os
import threading
import time

import pytest

from res2net_dense.config import load_config
from res2net_dense.errors import ConfigError

TEXT = """\
task: detection
backbone: {name: res2net50_26w_4s}
model: {arch: mask_rcnn}
train:
  iterations: 100
  batch_size: 4
  optimizer:
    lr: 0.02
"""


@pytest.fixture
def write(tmp_path):
    """Write a configuration; returns its path."""

    def write(text, name="x.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def message(path, *overrides):
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/object/apply:os.mkdir {{args: ['{mark}']}}",
        "!!python/name:os.system ''",
        "!!python/tuple [1, 2]",
        "!!binary aGVsbG8=",
        "!!set {{a, b}}",
        "!!timestamp 2020-01-01",
        "!own x",
        "!!int x",
        "!!map {{}}",
    ],
)
def test_tags_are_refused_and_never_run(value, write, tmp_path):
    value = value.format(mark=tmp_path / "mark")
    path = write(f"{TEXT}runtime:\n  output_dir: {value}\n")
    assert message(path).startswith(f"{path}:10: the tag ")
    assert "the tag " in message(write(TEXT), f"runtime.output_dir={value}")
    assert not (tmp_path / "mark").exists()


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 10000 values"),
        ("a: &a [*a, *a]", "nested deeper|more than 10000 values"),
        ("a: " + "[" * 100 + "]" * 100, "nested deeper than 50"),
        ("a: " + "[" * 100_000, "nested deeper than 50"),
        ("\n".join(" " * n + "a:" for n in range(100)), "nested deeper than 50"),
        ("- " * 100_000, "nested deeper than 50"),
        ("a: [" + "1, " * 300_000 + "1]", "more than 10000 values"),
        ("a: " + "x" * 1_100_000, "larger than 1000000 bytes"),
        ("a: " + "9" * 900_000, "the number is too long"),
        ("a: " + "x y\n  " * 150_000, "is missing|unknown key"),
        ("? [a]\n: 1\n", "a key must be a word"),
        ("task:\tdetection\n\tbackbone: 1\n", "'\\\\t'|tab"),
        ("a: [1, 2\n", "expected"),
        ("a: *absent\n", "undefined alias"),
        ('a: "\\UFFFFFFFF"\n', "not valid YAML"),
        ('a: "\\ud800"\n', "surrogate"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "not valid YAML"),
        ("a: \x07\n", "not allowed"),
    ],
)
def test_hostile_texts_are_refused_at_once(text, said, write):
    path = write(text)
    start = time.process_time()
    with pytest.raises(ConfigError, match=said):
        load_config(path)
    assert time.process_time() - start < (1 if text == BOMB else 2)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "  batch_size: 4",
            "  batch_size: 4\n  batch_size: 8",
            "{path}:7: duplicate key 'train.batch_size', first on line 6",
        ),
        (
            "batch_size",
            "batchsize",
            "{path}:6: unknown key 'train.batchsize'; did you mean 'train.batch_size'?",
        ),
        ("batch_size: 4", "batch_size: no", "{path}:6: train.batch_size = 'no': should be a valid integer"),
        ("lr: 0.02", "lr: much", "{path}:8: train.optimizer.lr = 'much': should be a valid number"),
    ],
)
def test_mistakes_have_file_line_and_key(old, new, said, write):
    path = write(TEXT.replace(old, new))
    assert message(path).startswith(said.format(path=path))


def test_numbers_and_words(write):
    assert load_config(write(TEXT.replace("0.02", "1e-4"))).train.optimizer.lr == 1e-4
    assert load_config(write(TEXT + "runtime: {output_dir: no}\n")).runtime.output_dir == "no"


FOREIGN = (
    "hunter2:$6$abc:19000:0:99999:7:::\ndaemon:*:1\nfoo: [bar\n",
    "hunter2 word\n", "password: hunter2\n", "hunter2: {a: b}\n", "- hunter2\n", "a: hunter2 b: c\n",
    "a: !hunter2 x\n", "hunter2: 1\nhunter2: 2\n", "a: *hunter2\n", "%hunter2 x\n--- a\n",
    '"hunter2\n', "'hunter2\n",
    "? [hunter2]\n: 1\n", "hunter2: &hunter2 [*hunter2]\n", "hunter2\0\n", "a: {hunter2\n",
    "[hunter2: 3, hunter2\n",
    "- !<hunter2> x\n", "hunter2: |x\n", "@hunter2\n", "`hunter2`: 2\n", "hunter2:\n\t- x\n",
)  # fmt: skip


@pytest.mark.parametrize("text", FOREIGN)
def test_a_foreign_file_is_not_quoted(text, write):
    """A configuration of somebody else may name any file in `_base_`, and the message goes to a log."""
    foreign = write(text, "foreign")
    for path in (foreign, write("_base_: foreign\ntask: detection\n")):
        said = message(path)
        assert "hunter2" not in said
        assert str(foreign) in said


def test_bases_have_an_end(write):
    for number in range(150):
        write(f"_base_: {number + 1}.yaml\n", f"{number}.yaml")
    assert "builds on at most 100 files" in message(write(TEXT, "150.yaml").with_name("0.yaml"))
    for number in range(30):
        write(f"_base_: [{number + 1}.yaml, {number + 1}.yaml]\n", f"{number}.yaml")
    assert "builds on at most 100 files" in message(write(TEXT, "30.yaml").with_name("0.yaml"))
    assert load_config(write(f"_base_: [{', '.join(['30.yaml'] * 99)}]\n")).task == "detection"


def test_overrides_have_an_end(write):
    path = write(TEXT)
    for text in (".".join("a" * 5000) + "=1", "train=" + "[" * 5000, "train." + "a" * 5000 + "=1"):
        assert len(message(path, text)) < 1000


def test_a_pipe_or_device_is_never_opened(write, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, kind in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device")):
        path = write(f"_base_: {name}\ntask: detection\n")
        for config in (name, path):
            said: list[str] = []
            thread = threading.Thread(target=add_message, args=(config, said), daemon=True)
            thread.start()
            thread.join(5)
            assert kind in said[0]


def add_message(config, said):
    said.append(message(config))
