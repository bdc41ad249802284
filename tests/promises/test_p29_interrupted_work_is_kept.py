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
import sys

import pytest
from tiny_runs import TINY_RUNS
from tiny_tasks import classification, detection, saliency, segmentation, write_config, write_weights

from res2net_dense.cli import main
from res2net_dense.journal import Journal
from res2net_dense.outputs import LEDGER

SAVED = {detection: "coco,voc,yolo,png,polygons", classification: "csv"}
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


@pytest.fixture(scope="module")
def weights(draw_toy, tmp_path_factory):
    """A weight file of a task, as if trained."""
    made = {}

    def make(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            made[task] = folder / "model.safetensors"
            write_weights(write_config(task, draw_toy, folder), made[task], sure=True)
        return made[task]

    return make


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


@pytest.fixture(autouse=True)
def leave():
    """Signals become exceptions, as in the program."""
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda number, frame: sys.exit(128 + number))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
        (detection, signal.SIGTERM, 7),
        (segmentation, signal.SIGINT, 4),
        (saliency, signal.SIGHUP, 5),
        (classification, signal.SIGTERM, 3),
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
    assert done > 0
    with open(output / "predictions.jsonl", "a") as file:  # as a full disk leaves it
        file.write('{"number": 5, "image": {"id"')
    assert predict(task, output, "--continue")[0] == 0
    assert results(output) == results(tmp_path / "whole")
