"""P35: a write that fails and memory that is missing are one line with the path or the sizes and what to
change; a training is saved where a checkpoint can still be written.
"""

import json
import os
import resource
import threading
from types import SimpleNamespace

import pytest
from networks import TINY
from PIL import Image
from running import TRAIN, assert_error_line
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from res2net_dense.backbones import create_classifier
from res2net_dense.cli import _explain_error, main
from res2net_dense.convert import write_checkpoint
from res2net_dense.data.check import _start_threads
from res2net_dense.deploy import torchscript_format
from res2net_dense.deploy.export import export as write_export
from res2net_dense.engine.metric_log import MetricLog
from res2net_dense.errors import CheckpointError, ExportError, OutOfMemoryError, is_out_of_memory
from res2net_dense.files import write_atomically
from res2net_dense.journal import Journal
from res2net_dense.outputs import LEDGER, Outputs

MAIN = "res2net_dense/cli/__main__.py"
LIMITED = """
import os, resource, runpy, sys
from pathlib import Path
import torch, torchvision, cv2
kind, more, script = sys.argv[1:4]
limit = int(more)
if kind == "RLIMIT_AS":
    limit += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
number = getattr(resource, kind)
resource.setrlimit(number, (limit, resource.getrlimit(number)[1]))
sys.argv = sys.argv[3:]
sys.path[0] = os.path.dirname(script)
runpy.run_path(script, run_name="__main__")
"""
"""A script under a limit of its files, or of what it needs besides the libraries."""


@pytest.fixture
def run_limited(run_code, request):
    def run(kind, limit, script, *arguments, **keywords):
        return run_code(LIMITED, kind, limit, request.config.rootpath / script, *arguments, **keywords)

    return run


@pytest.fixture
def file_size(tmp_path):
    """Limit the size of files of this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def log_steps(log, steps):
    for step in steps:
        log.train(step, lr=0.1, losses={"loss_cls": step / 7}, grad_norm=1.0, image_ids=[1, 2])


@pytest.mark.parametrize(
    "write",
    [
        lambda path: Journal(path, Outputs(path.parent), {}).add(0, {"records": "x" * 200}),
        lambda path: Outputs(path.parent).write(path, bytes(200)),
        lambda path: Outputs(path.parent).write_json(path, ["x" * 200]),
    ],
    ids=["journal", "bytes", "json"],
)
def test_outputs_that_cannot_be_written_are_named(write, tmp_path, file_size):
    """The first part of a line may still fit, so that the first write raises nothing."""
    path = tmp_path / "out.json"
    file_size(100)
    with pytest.raises(OSError, match="File too large") as caught:
        write(path)
    file_size(resource.RLIM_INFINITY)
    message = _explain_error(caught.value)
    assert message.startswith(f"{path}: File too large; ")
    assert message.endswith(": make room, then run it again")


def test_the_log_that_cannot_be_written_is_one_line(tmp_path, file_size):
    log = MetricLog(tmp_path, iterations=100, tensorboard=False)
    log_steps(log, range(1, 3))
    file_size(400)
    with pytest.raises(CheckpointError, match=r"jsonl: File too large; it needs \d+ bytes.*make room"):
        log_steps(log, range(3, 9))
    log.close()
    file_size(10_000)
    log.truncate(2)  # what was cut is dropped
    log_steps(log, range(3, 5))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4]


def test_every_file_that_cannot_be_written_is_named(tmp_path, file_size):
    """The errors of the system do not have its name, and a part of it may be written."""
    outputs = Outputs(tmp_path)
    journal = Journal(tmp_path / "a.jsonl", outputs, {})
    outputs.write(tmp_path / "first", b"")
    full = len((tmp_path / LEDGER).read_bytes())
    writes = {
        "a": lambda path: outputs.write(path, bytes(9000)),
        "b": lambda path: outputs.write_json(path, {"a": iter(["x" * 9000])}),
        "a.jsonl": lambda path: journal.add(1, {"x": "y" * 9000}),
        LEDGER: lambda path: outputs.write(tmp_path / "c", b""),
        "d": lambda path: write_atomically(path, lambda file: file.write(bytes(9000))),
    }
    for name, write in writes.items():
        file_size(full + 20 if name == LEDGER else 1000)
        with pytest.raises(OSError, match="File too large") as caught:
            write(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "first", LEDGER}
    file_size(100_000)
    journal = Journal(tmp_path / "a.jsonl", outputs, {}, resume=True)
    assert not journal.done


@pytest.mark.parametrize("kind", ["html", "json"])
def test_a_report_that_cannot_be_written_is_named(kind, draw_toy, tmp_path, file_size, capsys):
    coco = draw_toy("coco", train=3, val=3)
    words = ["check", "--layout", "coco", coco / "annotations/val.json", coco / "val", "--workers", "1"]
    file_size(500)
    report = tmp_path / f"report.{kind}"
    assert main([*map(str, words), f"--{kind}", str(report)]) == 1
    assert f"error: {report}: File too large; " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_cannot_be_written_say_why(suffix, tmp_path, file_size):
    """`torch.save` hides it."""
    state = create_classifier(TINY, 2).state_dict()
    file_size(1000)
    with pytest.raises(CheckpointError, match=rf"w\{suffix}: File too large; it needs \d+ bytes.*make room"):
        write_checkpoint(state, tmp_path / f"w{suffix}")
    assert not list(tmp_path.iterdir())


def test_threads_that_cannot_be_started_are_one_line(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OutOfMemoryError, match=r"threads cannot be started.*ulimit"):
        _start_threads()
    assert is_out_of_memory(RuntimeError("can't start new thread"))


def test_an_export_that_lacks_memory_is_one_line(monkeypatch, tmp_path):
    graph, description = SimpleNamespace(by_tracing=False), SimpleNamespace(batch=1, format="torchscript")

    def write(*_):
        raise ExportError("this network cannot be traced (DefaultCPUAllocator: can't allocate memory)")

    monkeypatch.setattr(torchscript_format, "write", write)
    with pytest.raises(OutOfMemoryError, match=r"to export .*m\.torchscript; take a smaller --size"):
        write_export(graph, tmp_path / "m.torchscript", description)


def test_a_run_goes_on_without_tensorboard(tmp_path, file_size, caplog, capfd):
    log = MetricLog(tmp_path, iterations=100)
    log_steps(log, [1])
    events = next(tmp_path.glob("events*"))
    file_size(max(path.stat().st_size for path in tmp_path.iterdir()) + 100)
    log_steps(log, range(2, 4))
    log.close()
    assert "goes on without TensorBoard's events" in caplog.text
    assert caplog.text.count("File too large") == 1
    assert "Traceback" not in capfd.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert [one.step for one in scalars(events.parent, "train/loss_cls")] == [1]


def test_tensorboard_reads_what_a_resumed_run_writes(tmp_path):
    log = MetricLog(tmp_path, iterations=9)
    log_steps(log, range(1, 6))
    log.close()
    log = MetricLog(tmp_path, iterations=9)
    log.truncate(3)
    log_steps(log, range(4, 9))
    log.evaluation(8, {"top1": 50.0})
    log.close()
    found = scalars(tmp_path, "train/loss_cls")
    assert [one.step for one in found] == list(range(1, 9))
    assert [one.value for one in found] == pytest.approx([step / 7 for step in range(1, 9)])
    assert [(one.step, one.value) for one in scalars(tmp_path, "eval/top1")] == [(8, 50.0)]


def scalars(folder, name):
    return EventAccumulator(str(folder)).Reload().Scalars(name)


@pytest.mark.slow
def test_a_training_is_saved_when_its_log_is_full(class_folders, tiny_classifier, run_tool, run_limited):
    settings = ["data.workers=0", "train.schedule={name: constant}"]
    arguments = [TRAIN, *tiny_classifier, *settings, "--output-dir", class_folders / "run"]
    process = run_tool(*arguments, "train.iterations=2", "train.eval_every=0")
    assert process.returncode == 0, process.stderr
    log, (checkpoint,) = class_folders / "run/metrics.jsonl", (class_folders / "run/checkpoints").glob("*.pt")
    first, *others = log.read_text().splitlines()
    limit = 2 * checkpoint.stat().st_size
    filled = json.dumps({**json.loads(first), "filled": " " * (limit - len(log.read_text()) - 500)})
    log.write_text("\n".join([filled, *others, ""]))
    process = run_limited("RLIMIT_FSIZE", limit, *arguments, "--resume")
    assert_error_line(process, str(log), "File too large", "make room", "--resume")
    saved = max(int(path.stem[5:]) for path in checkpoint.parent.glob("*.pt"))
    assert 2 < saved < 30
    assert len(log.read_text().splitlines()) in (saved, saved + 1)  # the last one may be cut
    process = run_tool(*arguments, "--resume")
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "limit", "output"),
    [("evaluate", 100, "results.json"), ("predict", 3000, "out")],
)
def test_results_that_cannot_be_written_are_one_line(
    command, limit, output, class_folders, tiny_classifier, run_tool, run_limited
):
    run = class_folders / "run"
    process = run_tool(TRAIN, *tiny_classifier, "train.iterations=1", "data.workers=0", "--output-dir", run)
    assert process.returncode == 0, process.stderr
    new = class_folders / "new"
    arguments = {
        "evaluate": [MAIN, "evaluate", "--weights", run, "--output-dir", new, "data.workers=0"],
        "predict": [
            MAIN, "predict", "--weights", run, "--input", class_folders / "val", "--output", new / "out",
        ],
    }[command]  # fmt: skip
    process = run_limited("RLIMIT_FSIZE", limit, *arguments, env=dict(os.environ))  # its stdout is a pipe
    assert_error_line(process, output, "File too large", "make room")
    assert not list(class_folders.glob("**/.*tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "export"])
def test_memory_that_is_missing_is_one_line(command, class_folders, tiny_classifier, run_tool, run_limited):
    run, new = class_folders / "run", class_folders / "new"
    process = run_tool(TRAIN, *tiny_classifier, "train.iterations=1", "data.workers=0", "--output-dir", run)
    assert process.returncode == 0, process.stderr
    large = ["data.crop_size=1024", "data.resize_size=1024", "eval.batch_size=32", "data.workers=0"]
    Image.new("RGB", (6000, 6000)).save(class_folders / "val/one/large.png")
    arguments = {
        "train": [*tiny_classifier, *large, "train.batch_size=32"],
        "evaluate": ["--weights", run, *large],
        "predict": ["--weights", run, "--input", class_folders / "val/one/large.png"],
        "export": ["--weights", run, "--size", "2048"],
    }[command]
    output = {"predict": ["--output", new], "export": ["--output", new / "m.torchscript"]}
    arguments += output.get(command, ["--output-dir", new])
    process = run_limited("RLIMIT_AS", 100 << 20, MAIN, command, *arguments, env=dict(os.environ))
    assert_error_line(process, "memory")
