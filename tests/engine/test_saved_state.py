"""Checkpoints whose entries are rubbish, and weight files that claim more than they hold: one line each."""

import copy
import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from saved_runs import network, small_config, small_run, state_of

from res2net_dense import train
from res2net_dense.averaging import _check_fits
from res2net_dense.config import config_to_dict, load_config
from res2net_dense.engine.checkpointer import Checkpointer, open_checkpoint, restore
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.engine.optim import Ema, build_optimizer
from res2net_dense.errors import CheckpointError, Res2NetDenseError
from res2net_dense.files import sha256_of
from res2net_dense.tasks.resuming import continued_schedule
from res2net_dense.trained import open_job
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights
from res2net_dense.weight_files.whole import BLANK, SEAL, seal

DEEP = None
for _ in range(3000):
    DEEP = {"a": DEEP}
CIRCLE = {}
CIRCLE["config"] = CIRCLE
LAUGHS = {"a": 1}
for _ in range(60):
    LAUGHS = {"a": LAUGHS, "b": LAUGHS}
RUBBISH = {
    "none": None, "true": True, "zero": 0, "minus": -1, "huge": 10**30, "endless": 10**6000,
    "nan": float("nan"), "inf": float("inf"), "text": "x\nmodel", "bytes": b"x", "list": [1, "a"],
    "empty list": [], "empty": {},
    "numbers": {1: 2}, "nested": {"a": {"b": [1]}}, "tuple": (1, 2), "deep": DEEP, "circle": CIRCLE,
    "laughs": LAUGHS, "scalar": torch.tensor(1.0), "long": torch.zeros(3, 3, dtype=torch.int64),
    "half": torch.zeros(4, dtype=torch.float16), "complex": torch.zeros(2, dtype=torch.complex64),
    "bool tensor": torch.zeros(4, dtype=torch.bool), "no numbers": torch.zeros(0), "wide": torch.zeros(1, 99),
    "sparse": torch.zeros(4).to_sparse(), "meta": torch.zeros(4, device="meta"),
    "expanded": torch.zeros(1).expand(1 << 20),
}  # fmt: skip


def state(kind):
    torch.manual_seed(0)
    model = network()
    made = state_of(model, 5, ema=Ema(model), scaler=torch.amp.GradScaler("cpu"))
    if kind == "adamw":
        made.optimizer = build_optimizer(model, name="adamw", lr=0.1)
    made.best = {"metric": "a", "value": 1.0, "iteration": 3}
    made.early_stop = {"metric": "a", "value": 1.0, "iteration": 3, "waited": 1}
    return made


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def content(request, tmp_path_factory):
    """A kind of optimizer, and the content of a checkpoint with it."""
    made = state(request.param)
    made.model(torch.rand(2, 3, 8, 8)).sum().backward()
    made.optimizer.step()
    made.ema.update(made.model)
    path = Checkpointer(tmp_path_factory.mktemp("run"), metadata={"config": {"task": "x"}}).save(made)
    return request.param, torch.load(path)


def places(value, path=()):
    """The way to each entry."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def with_rubbish(content, place, rubbish):
    """The same content with another value at a place, or without the entry."""
    changed = copy.copy(content)
    inner = changed
    for key in place[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if rubbish == "missing":
        del inner[place[-1]]
    else:
        inner[place[-1]] = RUBBISH[rubbish]
    return changed


IN_PYTHON = SimpleNamespace(__name__="pickle", Pickler=pickle._Pickler)


def save(content, path):
    """As `torch.save`, of content that is nested deeply."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        torch.save(content, path)
    except RecursionError:  # of the pickler in C, which from Python 3.12 on has a limit of its own
        torch.save(content, path, pickle_module=IN_PYTHON)
    finally:
        sys.setrecursionlimit(limit)


def assert_refused_or_as_good(kind, content, path):
    """A checkpoint is refused in one line, or the training goes on from it without an error."""
    save(content, path)
    made, refusal = state(kind), ""
    try:
        file = open_checkpoint(path)
        assert isinstance(file.config, dict)
        restore(file.content, made)
    except CheckpointError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert len(refusal) < 700
        return True
    made.model(torch.rand(2, 3, 8, 8)).sum().backward()
    made.optimizer.step()
    made.ema.update(made.model)
    made.scaler.scale(torch.ones(1))
    return False


def test_every_entry_as_rubbish(content, tmp_path):
    """Some hundred of them; the slow test has all."""
    kind, whole = content
    every = [(place, rubbish) for place in places(whole) for rubbish in [*RUBBISH, "missing"]]
    chosen = random.Random(0).sample(every, 300)
    kinds = ("none", "deep", "nested", "minus", "endless")
    chosen += [((key,), rubbish) for key in whole for rubbish in kinds]
    refused = sum(
        assert_refused_or_as_good(kind, with_rubbish(whole, place, rubbish), tmp_path / "iter_0000005.pt")
        for place, rubbish in chosen
    )
    assert refused > len(chosen) // 2


def test_settings_of_the_optimizer_are_those_of_the_run(content, tmp_path):
    """A checkpoint can neither change nor lack them."""
    kind, whole = content
    place, own = ("optimizer", "param_groups", 0), state(kind).optimizer.state_dict()["param_groups"]
    for key in own[0].keys() - {"params", "lr"}:
        for changed in ("missing", "true", "minus"):
            save(with_rubbish(whole, (*place, key), changed), path := tmp_path / "iter_0000005.pt")
            if not assert_refused_or_as_good(kind, torch.load(path), path):
                restore(open_checkpoint(path).content, made := state(kind))
                assert made.optimizer.state_dict()["param_groups"] == own


@pytest.mark.slow
def test_every_entry_as_any_rubbish(content, tmp_path):
    kind, whole = content
    every = [(place, rubbish) for place in places(whole) for rubbish in [*RUBBISH, "missing"]]
    for place, rubbish in every:
        assert_refused_or_as_good(kind, with_rubbish(whole, place, rubbish), tmp_path / "iter_0000005.pt")
    print(len(every))


@pytest.mark.parametrize(("place", "rubbish"), [
    (("iteration",), "nan"), (("iteration",), "true"), (("iteration",), "minus"), (("iteration",), "huge"),
    (("iteration",), "text"), (("iteration",), "scalar"), (("model",), "list"),
    (("model", "0.weight"), "long"),
    (("model", "0.weight"), "meta"), (("model", "0.bias"), "half"), (("model", "1.running_mean"), "sparse"),
    (("best",), "nested"), (("best", "value"), "text"), (("early_stop", "waited"), "text"),
    (("optimizer",), "numbers"), (("optimizer", "param_groups"), "empty list"),
    (("optimizer", "param_groups", 0, "lr"), "text"), (("optimizer", "param_groups", 0, "lr"), "nan"),
    (("optimizer", "param_groups", 0, "params"), "list"), (("optimizer", "state", 0), "list"),
    (("ema", "model"), "empty"), (("ema", "updates"), "minus"), (("ema", "model", "0.weight"), "wide"),
    (("scaler", "scale"), "text"), (("model", "0.weight"), "missing"), (("optimizer",), "missing"),
    (("format",), "text"), (("format",), "huge"), (("format",), "zero"),
])  # fmt: skip
def test_what_is_surely_refused(content, tmp_path, place, rubbish):
    kind, whole = content
    assert assert_refused_or_as_good(kind, with_rubbish(whole, place, rubbish), tmp_path / "iter_0000005.pt")


@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_a_run_does_not_go_on_with_rubbish(tmp_path):
    """The first line that a user sees, whatever entry it is."""
    config = small_config(tmp_path)
    path = small_run(tmp_path) / "checkpoints/iter_0000004.pt"
    whole = torch.load(path)
    for other in path.parent.glob("iter_0000008*"):
        other.unlink()
    for place in [(key,) for key in whole if key not in ("version", "metrics")] + [("metadata", "config")]:
        for rubbish in ("text", "nested", "deep", "minus", "laughs"):
            save(with_rubbish(whole, place, rubbish), path)
            path.with_name(f"{path.name}.sha256").write_text(f"{sha256_of(path)}  {path.name}\n")
            if place in (("ema",), ("scaler",)):  # this run has none
                continue
            with pytest.raises(Res2NetDenseError) as caught:
                train(config, resume=True)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("iterations", None), ("iterations", "x"), ("iterations", 10**30), ("schedule", {"power": "x"})],
)
def test_a_run_does_not_go_on_with_another_length_of_rubbish(tmp_path, key, value):
    config = load_config(small_config(tmp_path))
    before = config_to_dict(config)
    before["train"][key] = value
    with pytest.raises(Res2NetDenseError, match="length or schedule"):
        continued_schedule(before, config, {"iteration": 4}, extend=False)


@pytest.mark.parametrize("about", [
    {"data": None}, {"model": "x"}, {"backbone": [1]}, {"data": {"value_range": 0}},
    {"data": {"class_names": 3}}, {"data": {"class_names": []}},
    {"model": {"pixel_mean": "x"}, "data": {"channels": 4}},
])  # fmt: skip
def test_a_configuration_of_rubbish_in_weights(tmp_path, about):
    """It is none, or refused in one line."""
    config = load_config(small_config(tmp_path))
    metadata = {"metadata": json.dumps({"config": config_to_dict(config) | about})}
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)}, metadata)
    more = ["data.channels=4", "model.pixel_mean=null"] if "pixel_mean" in str(about) else []

    def use():
        job, _ = open_job(tmp_path / "small.yaml", path, more)
        job.model(job.with_classes())

    for call in (use, lambda: _check_fits(open_weights(path), open_weights(path))):
        with pytest.raises(Res2NetDenseError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_format_of_thousands_of_digits(tmp_path):
    path = save_weights(tmp_path / "w.safetensors", {"a": torch.ones(1)}, {"version": "1\nx"})
    for number, said in (("9" * 5000, "no version of us"), ("2", r"version 1\\nx in format 2")):
        metadata = {"format": number, "version": "1\nx", SEAL: BLANK}
        path.write_bytes(b"".join(seal(safetensors.torch.save({"a": torch.ones(1)}, metadata))))
        with pytest.raises(CheckpointError, match=said):
            open_weights(path)


def test_nested_headers_logs_and_metadata(tmp_path):
    headers = {"object": '{"a":' * 50_000, "list": "[" * 99_999, "metadata": '{"__metadata__":' * 999}
    for name, text in headers.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + bytes(4))
        with pytest.raises(CheckpointError, match="damaged"):
            open_weights(path)
    deep = None
    for _ in range(100_000):
        deep = [deep]
    path = tmp_path / "deep.pt"
    buffer = b"\x80\x02}X\x05\x00\x00\x00model" + b"]" * 100_000 + b"a" * 99_999 + b"s."
    path.write_bytes(buffer)
    with pytest.raises(CheckpointError):
        open_weights(path)
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1}\n' + "[" * 99_999 + '\n{"iteration": 2}\n')
    MetricLog(tmp_path, iterations=9).truncate(5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1}\n{"iteration": 2}\n'


def zipped(path, pickled, data=b"", *, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", data)


def bomb(kind, path):
    """A file of at most 2 MB that claims 2 GB or more."""
    huge = 1 << 31
    if kind == "expanded":
        torch.save({"model": {"a": torch.zeros(1).expand(huge)}}, path)
    elif kind == "old expanded":
        torch.save({"a": torch.zeros(1).expand(huge)}, path, _use_new_zipfile_serialization=False)
    elif kind == "compressed":
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(10)}, buffer)
        pickled = zipfile.ZipFile(buffer).read("archive/data.pkl")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            archive.writestr("archive/data.pkl", pickled)
            with archive.open("archive/data/0", "w", force_zip64=True) as record:
                for _ in range(64):
                    record.write(bytes(huge // 64))
    elif kind == "storage":
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(1000)}, buffer)
        pickled = zipfile.ZipFile(buffer).read("archive/data.pkl")
        zipped(path, pickled.replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"), bytes(4000))
    elif kind == "old storage":
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(1000)}, buffer, _use_new_zipfile_serialization=False)
        path.write_bytes(buffer.getvalue().replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f"))
    elif kind == "bytearray":
        call = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85Rs."
        assert len(pickle.dumps(1)) > 1
        zipped(path, call)
    elif kind == "tensor":
        zipped(path, b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85Rs.")
    else:
        header = {"a": {"dtype": "F32", "shape": [huge // 4], "data_offsets": [0, huge]}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(800_000))


BOMBS = [
    *("expanded", "old expanded", "compressed", "storage", "old storage", "bytearray", "tensor"),
    "safetensors",
]
LOADS = """
import resource, sys, torch
from res2net_dense.errors import CheckpointError
from res2net_dense.weight_files import open_weights
import res2net_dense.weight_files.models, safetensors.torch
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
try:
    open_weights(sys.argv[1])
    sys.exit("not refused")
except CheckpointError as error:
    assert "\\n" not in str(error)
    print(peak() - before, error)
"""


@pytest.mark.parametrize("kind", [
    *BOMBS[:1], *(pytest.param(one, marks=pytest.mark.slow) for one in BOMBS[1:])
])  # fmt: skip
def test_a_small_file_takes_little_memory(tmp_path, kind):
    bomb(kind, path := tmp_path / "w.pt")
    assert path.stat().st_size < 2_500_000
    process = subprocess.run([sys.executable, "-c", LOADS, path], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    print(kind, process.stdout)
    assert int(process.stdout.split()[0]) < 64, process.stdout  # MiB


def test_tensors_that_are_not_plain_numbers_load_nowhere(tmp_path):
    """A weight file may hold any kind; a model takes none of these."""
    plain = torch.zeros(1, 4)
    for weight in (plain.to_sparse(), plain.to("meta"), plain.to(torch.complex64)):
        torch.save({"weight": weight, "bias": torch.zeros(1)}, tmp_path / "w.pt")
        model = torch.nn.Linear(4, 1)
        with pytest.raises(CheckpointError) as caught:
            load_weights_into(model, tmp_path / "w.pt")
        assert "\n" not in str(caught.value)
