"""P30: an existing file that this tool did not write is refused without `--overwrite`; links are not followed
out of the output folder; what is read is never written over, by whatever name.
"""

import json
import os
import re
import shutil

import pytest
import torch
from networks import TINY
from PIL import Image

from res2net_dense import export
from res2net_dense.backbones import create_classifier
from res2net_dense.cli import main
from res2net_dense.convert import read_checkpoint, write_checkpoint
from res2net_dense.errors import ConfigError
from res2net_dense.outputs import Outputs

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def made(draw_toy, tmp_path_factory):
    """A folder of what is read."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    torch.save(create_classifier(TINY, 2).state_dict(), folder / "net.pth")
    shutil.copytree(draw_toy("duts", train=1, val=2) / "val", folder / "duts")
    shutil.copytree(folder / "duts/masks", folder / "maps")
    shutil.copytree(draw_toy("coco", train=3, val=3), folder / "coco")
    return folder


PREDICT = "predict --input {}/coco/val --output out --weights"
COMMANDS = {
    "predict": (
        f"{PREDICT} {{classification}} --save csv",
        "predictions.json 000001.png classes.csv predictions.jsonl",
    ),
    "predict, saliency": (f"{PREDICT} {{saliency}}", "cutouts/000001.png"),
    "predict, detection": (
        f"{PREDICT} {{detection}} --save yolo,voc,png",
        "labels/000001.txt data.yaml Annotations/000002.xml instances/000000.png instances.json",
    ),
    "evaluate": ("evaluate --weights {classification} --output-dir out", "results.json"),
    "evaluate, saved": (
        "evaluate --weights {semantic_segmentation} --output-dir out --save-predictions",
        "predictions.json predictions.jsonl predictions/000017.png",
    ),
    "export": (
        "export --weights {classification} --output out/m.torchscript",
        "m.torchscript m.torchscript.json",
    ),
    "convert": ("convert {}/net.pth out/new.safetensors --report out/r.json", "new.safetensors r.json"),
    "toy": ("toy --layout coco --train 1 --val 1 --output out", "coco"),
    "split": ("split {}/coco/annotations/train.json --val 1 --output out", "train.json val.json"),
    "check": (
        "check --layout coco {}/coco/annotations/val.json {}/coco/val --json out/a.json --html out/a.html",
        "a.json a.html",
    ),
    "prepare-duts": ("prepare-duts --root {}/duts --output out/duts.json --workers 1", "duts.json"),
    "score-saliency": (
        "score-saliency --predictions {}/maps --masks {}/duts/masks --images {}/duts/images --workers 1 "
        "--json out/s.json --sheet out/s.png",
        "s.json s.png",
    ),
    "classify": ("classify {}/coco/val --weights {classification} --json out/c.json", "c.json"),
    "benchmark": (
        f"benchmark --model {TINY} --size 32 --batch 1 --formats eager --against --repeats 1 --warmup 1 "
        "--json out/b.json",
        "b.json",
    ),
    "doctor": ("doctor --models --json out/d.json", "d.json"),
}
"""What is run, and files that it writes into `out`."""
WRITTEN = {name: [f"out/{file}" for file in files.split()] for name, (_, files) in COMMANDS.items()}
ALWAYS_KEPT = ("convert", "split", "prepare-duts")
"""Commands that do not replace their own files either without `--overwrite`."""
SLOW = ("benchmark", "doctor", "export", "predict, detection", "predict, saliency", "evaluate, saved")
each_command = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS]
)


@pytest.fixture
def run(made, weights, tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, which has the folder `out`; returns the exit code and the errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()

    def call(name, *more):
        line = re.sub(
            r"{(\w*)}", lambda found: str(weights(found[1]) if found[1] else made), COMMANDS[name][0]
        )
        code = main([*line.split(), *more])
        return code, capsys.readouterr().err

    return call


def refused(outcome, name):
    """A command ended with one line that names the file."""
    code, said = outcome
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 1, said
    assert len(errors) == 1
    assert os.path.basename(name) in errors[0], said
    return errors[0]


@each_command
def test_a_file_of_someone_else_is_refused_and_replaced_when_told(name, run, tmp_path):
    """Before any long work: nothing else is written."""
    for file in WRITTEN[name]:
        mine = tmp_path / file
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        refused(run(name), file)
        assert mine.read_text() == "mine"
        if name != "evaluate, saved":  # the names of maps are known when their images are
            assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {mine.name, "run.lock"}
        if name != "toy":
            code, said = run(name, "--overwrite")
            assert code == 0, said
            assert file.endswith("jsonl") or mine.read_bytes() != b"mine"
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").mkdir()


@each_command
def test_the_same_again_replaces_its_own_files_but_not_what_was_changed(name, run, tmp_path):
    assert run(name)[0] == 0
    if name in ALWAYS_KEPT:
        refused(run(name), WRITTEN[name][0])
        return
    code, said = run(name)
    assert code == 0, said
    if name in ("evaluate", "toy"):  # a score can be had again
        return
    for file in WRITTEN[name]:
        if (tmp_path / file).exists():
            with open(tmp_path / file, "ab") as stream:
                stream.write(b"corrected")
            refused(run(name), file)
            assert (tmp_path / file).read_bytes().endswith(b"corrected")
            assert run(name, "--overwrite")[0] == 0


@each_command
def test_links_are_not_followed(name, run, tmp_path):
    """Neither at the place of a file, to a file or to nothing, nor at that of a folder."""
    (tmp_path / "elsewhere").mkdir()
    for file in WRITTEN[name]:
        for target in ("mine", "nothing"):
            shutil.rmtree(tmp_path / "out")
            path = tmp_path / file
            path.parent.mkdir(parents=True)
            (tmp_path / "elsewhere/mine").write_text("mine")
            path.symlink_to(tmp_path / "elsewhere" / target)
            for more in ([], ["--overwrite"]):
                assert "is a link" in refused(run(name, *more), file)
            assert path.is_symlink()
            assert [one.name for one in (tmp_path / "elsewhere").iterdir()] == ["mine"]
            assert (tmp_path / "elsewhere/mine").read_text() == "mine"
        (tmp_path / "elsewhere/mine").unlink()
        if file.count("/") > 1:
            shutil.rmtree(tmp_path / "out")
            (tmp_path / "out").mkdir()
            (tmp_path / file).parent.symlink_to(tmp_path / "elsewhere")
            refused(run(name), os.path.dirname(file))
            assert not list((tmp_path / "elsewhere").iterdir())


INPUTS = {
    "predict": [
        ("coco/val/000001.png", "out/000001.png"),
        ("classification", "out/classes.csv"),
    ],
    "evaluate": [("classification", "out/results.json")],
    "export": [("classification", "out/m.torchscript")],
    "convert": [("net.pth", "out/new.safetensors"), ("net.pth", "out/r.json")],
    "split": [("coco/annotations/train.json", "out/val.json")],
    "classify": [("coco/val/000001.png", "out/c.json")],
    "score-saliency": [("duts/masks/000000.png", "out/s.png"), ("maps/000001.png", "out/s.json")],
    "prepare-duts": [("duts/masks/000000.png", "out/duts.json")],
    "check": [("coco/annotations/val.json", "out/a.html"), ("coco/val/000001.png", "out/a.json")],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in INPUTS]
)
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_is_read_is_not_written_over(name, link, run, made, weights, tmp_path):
    for source, file in INPUTS[name]:
        source = weights(source) if source == "classification" else made / source
        before = source.read_bytes()
        link(source, tmp_path / file)
        for more in ([], ["--overwrite"]):
            refused(run(name, *more), file)
        assert source.read_bytes() == before
        (tmp_path / file).unlink()


def test_a_folder_that_the_user_names_may_be_a_link(run, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run("split")[0] == 0
    assert (tmp_path / "disk/train.json").is_file()


@pytest.mark.slow
def test_functions_take_the_word_too(made, weights, tmp_path):
    for call in (
        lambda **words: export(weights("classification"), tmp_path / "m.torchscript", **words),
        lambda **words: write_checkpoint(read_checkpoint(made / "net.pth"), tmp_path / "n.pth", **words),
    ):
        for name in ("m.torchscript", "n.pth"):
            (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match="exists already"):
            call()
        call(overwrite=True)


def test_a_file_that_a_disk_lost_is_written_again(tmp_path):
    """The ledger has its line first; a line that was cut off counts for nothing."""
    outputs = Outputs(tmp_path)
    outputs.write(tmp_path / "a\nb.txt", b"1")
    with open(tmp_path / ".res2net_dense.sha256", "ab") as ledger:
        ledger.write(b"0123  c.t")
    again = Outputs(tmp_path)
    again.write(tmp_path / "a\nb.txt", b"2")
    again.write(tmp_path / "c.txt", b"3")
    Outputs(tmp_path).claim([tmp_path / "a\nb.txt", tmp_path / "c.txt"])
    (tmp_path / "c.txt").write_bytes(b"4")
    with pytest.raises(ConfigError, match=r"c\.txt exists already"):
        Outputs(tmp_path).claim([tmp_path / "c.txt"])


@pytest.mark.parametrize("value", [[], {}, [1, 2], {"a": [{"b": 1}, {}], "c": "x"}])
def test_json_is_written_in_pieces(tmp_path, value):
    content = iter(value) if isinstance(value, list) else {
        key: iter(one) if isinstance(one, list) else one for key, one in value.items()
    }  # fmt: skip
    Outputs(tmp_path).write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == json.dumps(value)


def test_images_are_whole(tmp_path, run, made):
    assert run("predict")[0] == 0
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()
