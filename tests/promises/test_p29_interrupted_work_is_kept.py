"""P29: an interrupted prediction, evaluation or export keeps what is done: finished images are in the
results, the same command with `--continue` adds the rest and equals an undisturbed run, an export leaves
nothing but whole files.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
from networks import TINY
from PIL import Image
from tiny_runs import TINY_RUNS
from tiny_tasks import classification, detection, saliency, segmentation

from res2net_dense import exporting
from res2net_dense.backbones import create_classifier
from res2net_dense.cli import main
from res2net_dense.errors import ConfigError
from res2net_dense.journal import Journal
from res2net_dense.outputs import LEDGER, Outputs
from res2net_dense.tasks.classification import Classification
from res2net_dense.toy import layouts
from res2net_dense.weight_files import open_weights, save_weights

SAVED = {detection: "coco,voc,yolo,png,polygons", classification: "csv"}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture
def predict(weights, draw_toy, tmp_path, capsys):
    """Run `predict` on six images, one of them broken; returns (exit code, errors)."""
    images = tmp_path / "in"

    def run(task, output, *arguments):
        if not images.exists():
            shutil.copytree(draw_toy(**TINY_RUNS[task].toy) / TINY_RUNS[task].images, images)
            for path in sorted(images.rglob("*.*"))[5:]:
                path.unlink()
            (images / "broken.png").write_bytes(b"none")
        words = ["--weights", weights(task), "--input", images, "--output", output, "eval.batch_size=2"]
        saved = ["--save", SAVED[task]] if task in SAVED else []
        try:
            code = main(["predict", *map(str, [*words, *saved, *arguments])])
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().err

    return run


def results(folder):
    """All files with their content, but for the ledger, which is in the order of writing."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LEDGER
    }


def signal_at(monkeypatch, number, call):
    """Signal this process when the `call`-th file or line is about to be in its place."""
    calls = 0

    def before(function):
        def count(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), number)
            return function(*arguments, **keywords)

        return count

    for owner, name in ((os, "replace"), (Journal, "add")):
        monkeypatch.setattr(owner, name, before(getattr(owner, name)))


@pytest.mark.parametrize(
    ("task", "number", "last"),
    [
        (classification, signal.SIGTERM, 3),
        pytest.param(segmentation, signal.SIGINT, 4, marks=pytest.mark.slow),
        pytest.param(saliency, signal.SIGHUP, 5, marks=pytest.mark.slow),
        pytest.param(detection, signal.SIGTERM, 7, marks=pytest.mark.slow),
    ],
)
def test_what_is_done_stays_and_the_rest_is_added(task, number, last, predict, tmp_path, monkeypatch):
    """Stopped at five moments, one run after the other."""
    assert predict(task, tmp_path / "whole")[0] == 0
    rng, output, done = random.Random(0), tmp_path / "out", 0
    for _ in range(5):
        with monkeypatch.context() as patch:
            signal_at(patch, number, rng.randint(1, last))
            code, said = predict(task, output, "--continue")
        assert code == CODES[number]
        lines = (output / "predictions.jsonl").read_text().splitlines()[1:]
        assert len(lines) >= done
        assert re.search(
            rf"^{len(lines)} of \d images done, in .*: the same command with --continue", said, re.M
        )
        assert not (output / "predictions.json").exists()
        for line in lines:
            place = f"{json.loads(line)['image']['file_name'].rpartition('.')[0]}.png"
            assert list(output.rglob(place)), place
        done = len(lines)
        with open(output / "predictions.jsonl", "a") as file:  # as a full disk leaves it
            file.write('{"number": 5, "image": {"id"')
    assert done > 0
    assert predict(task, output, "--continue")[0] == 0
    assert results(output) == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["data.resize_size=80"], "data.resize_size was 72, is 80"),
        (["--score", "0.4"], "--score was 0.5, is 0.4"),
        (["train.precision=bf16"], "precision was"),
        (["another image"], "files was"),
        (["other weights"], "weights was"),
    ],
)
def test_another_run_is_not_continued(change, words, predict, weights, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 6)
        assert predict(classification, tmp_path / "out")[0] == 143
    if change == ["another image"]:
        shutil.copy(next((tmp_path / "in").glob("0*.png")), tmp_path / "in/more.png")
        change = []
    if change == ["other weights"]:
        file = open_weights(weights(classification))
        state = {name: value + 1 for name, value in file.state_dict.items()}
        save_weights(tmp_path / "other.safetensors", state, {"metadata": json.dumps({"config": file.config})})
        change = ["--weights", tmp_path / "other.safetensors"]
    before = results(tmp_path / "out")
    for state in ("interrupted", "complete"):
        code, said = predict(classification, tmp_path / "out", "--continue", *change)
        assert code == 1
        assert (
            words if state == "interrupted" else "of a run with other weights, settings or images"
        ) in said
        assert results(tmp_path / "out") == before
        if state == "interrupted":
            more = tmp_path / "in/more.png"
            kept = more.exists() and more.rename(tmp_path / "more.png")
            assert predict(classification, tmp_path / "out", "--continue")[0] == 0
            if kept:
                kept.rename(more)
            before = results(tmp_path / "out")


@pytest.mark.parametrize(
    "line", [b"", b"mine", b"[1]", b'{"res2net_dense": "1", "about": 3}', b'{"about": "\xff"}', b"[" * 99_999]
)
def test_a_file_that_says_nothing_is_not_continued(line, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ConfigError, match=r"a\.jsonl does not say.* leave --continue out"):
        Journal(tmp_path / "a.jsonl", Outputs(tmp_path, overwrite=True), {}, resume=True)


@pytest.mark.parametrize(
    "line", [b'{"number": [1]}', b'{"number": "1"}', b'{"number": true}', b"[" * 99_999, b"3", b"\xff", b"{}"]
)
def test_lines_of_rubbish_do_not_count(line, tmp_path):
    path = tmp_path / "a.jsonl"
    journal = Journal(path, Outputs(tmp_path), {"a": 1})
    journal.add(0, {"x": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n")
    again = Journal(path, Outputs(tmp_path), {"a": 1}, resume=True)
    assert [*again.entries()] == [{"number": 0, "x": 1}]
    assert path.read_bytes() == whole


def test_a_complete_run_is_not_repeated(predict, tmp_path):
    assert predict(classification, tmp_path / "out", "--continue")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert predict(classification, tmp_path / "out", "--continue")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_an_image_that_cannot_be_drawn_loses_nothing(predict, tmp_path, monkeypatch):
    """Nor does one that a format cannot hold."""
    assert predict(classification, tmp_path / "whole")[0] == 0
    drawn, number = Classification.draw, iter(range(99))

    def draw(*arguments):
        if next(number) == 1:
            raise Image.DecompressionBombError("so many pixels")
        return drawn(*arguments)

    monkeypatch.setattr(Classification, "draw", draw)
    code, said = predict(classification, tmp_path / "out")
    assert code == 0
    assert "not drawn: " in said
    assert "so many pixels" in said
    whole, out = (json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("whole", "out"))
    assert out == whole
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "whole").glob("*.png"))) - 1


def test_an_interrupted_evaluation_keeps_its_predictions(weights, tmp_path, monkeypatch, capsys):
    words = ["evaluate", "--weights", weights(classification), "--output-dir", tmp_path, "--save-predictions"]
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGTERM, 8)
        assert main([*map(str, words)]) == 143
    assert "images are in" in capsys.readouterr().err
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()[1:]
    assert lines
    records = [record for line in lines for record in json.loads(line)["records"]]
    assert main([*map(str, words)]) == 0
    whole = json.loads((tmp_path / "predictions.json").read_text())
    assert whole[: len(records)] == records
    assert len(whole) > len(records)
    assert not (tmp_path / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("gate", signal.SIGTERM),
        *(
            pytest.param(moment, number, marks=pytest.mark.slow)
            for moment in ("write_export", "gate", "publish")
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        ),
    ],
)
def test_an_interrupted_export_leaves_whole_files_alone(moment, number, weights, tmp_path, monkeypatch):
    words = ["export", "--weights", weights(classification), "--output", tmp_path / "out/model.torchscript"]
    words = [*map(str, words)]
    owner = Outputs if moment == "publish" else exporting
    plain = getattr(owner, moment)

    def signalled(*arguments, **keywords):
        result = plain(*arguments, **keywords)
        os.kill(os.getpid(), number)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, signalled)
        assert main(words) == CODES[number]
    names = {"model.torchscript", "model.torchscript.json", LEDGER} if moment == "publish" else set()
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_what_a_killed_process_left_goes_with_the_next(weights, tmp_path):
    words = [
        ["export", "--weights", weights(classification), "--output", tmp_path / "model.torchscript"],
        ["toy", "--layout", "coco", "--train", "1", "--val", "1", "--output", tmp_path],
    ]
    (tmp_path / ".model.torchscript.tmp-999999999-x").mkdir()
    (tmp_path / ".model.torchscript.tmp-999999999-x/model.torchscript").write_text("half")
    (tmp_path / ".model.torchscript.json.tmp-999999999").write_text("half")
    (tmp_path / ".coco.tmp-999999999").mkdir()
    (tmp_path / ".mine.tmp-999999999").write_text("of something else")
    alive = f".model.torchscript.tmp-{os.getppid()}-x"
    (tmp_path / alive).mkdir()
    for line in words:
        assert main([*map(str, line)]) == 0
    assert {path.name for path in tmp_path.glob(".*.tmp-*")} == {".mine.tmp-999999999", alive}


@pytest.mark.parametrize("kind", ["toy", "split", "convert"])
def test_other_interrupted_commands_leave_whole_files_alone(kind, draw_toy, tmp_path, monkeypatch):
    torch.save(create_classifier(TINY, 2).state_dict(), tmp_path / "net.pth")
    annotations, output = draw_toy("coco", train=3, val=3) / "annotations/train.json", tmp_path / "out"
    words = {
        "toy": ["toy", "--layout", "coco", "--train", "1", "--val", "1", "--output", output],
        "split": ["split", annotations, "--val", "1", "--output", output],
        "convert": ["convert", tmp_path / "net.pth", output / "new.pth"],
    }[kind]
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        if kind == "toy":
            patch.setattr(layouts, "_write_image", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        else:
            signal_at(patch, signal.SIGTERM, 1)
        assert main([*map(str, words)]) == 143
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"train.json", "new.pth"}
    if kind != "toy":
        words.append("--overwrite")
    assert main([*map(str, words)]) == 0
    assert len(list((tmp_path / "out").iterdir())) == {"toy": 1, "split": 2, "convert": 1}[kind]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_at_random_moments_with_workers(number, weights, draw_toy, tmp_path):
    """The program itself, its whole process group signalled, until five runs were stopped."""
    toy, images, rng = draw_toy(**TINY_RUNS[saliency].toy), tmp_path / "in", random.Random(int(number))
    images.mkdir()
    for copy in range(20):
        for path in (toy / TINY_RUNS[saliency].images).iterdir():
            shutil.copy(path, images / f"{copy:02}_{path.name}")
    line = [
        sys.executable,
        "-m",
        "res2net_dense",
        "predict",
        "--weights",
        weights(saliency),
        "--input",
        images,
    ]
    line = [*map(str, [*line, "data.workers=2", "eval.batch_size=3", "--output"])]
    subprocess.run([*line, str(tmp_path / "whole")], check=True, capture_output=True)
    stopped = 0
    while stopped < 5:
        process = subprocess.Popen(
            [*line, str(tmp_path / "out"), "--continue"], stderr=subprocess.PIPE, start_new_session=True
        )
        while process.poll() is None and not (tmp_path / "out/predictions.jsonl").exists():
            time.sleep(0.01)
        time.sleep(5 * (stopped > 0) + rng.uniform(0, 0.6))  # it imports for some seconds
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        stopped += 1
        assert process.returncode in (-number, 128 + number), said
        assert b"Traceback" not in said
    assert stopped
    subprocess.run([*line, str(tmp_path / "out"), "--continue"], check=True, capture_output=True)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
