"""P30: an existing file that this tool did not write is refused without `--overwrite`; links are not followed
out of the output folder; what is read is never written over, by whatever name.
"""

import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from networks import TINY
from PIL import Image
from tiny_runs import TINY_RUNS

from res2net_dense import export
from res2net_dense.backbones import create_classifier
from res2net_dense.cli import main
from res2net_dense.cli._predict import output_names
from res2net_dense.config import is_saved_config, load_config, save_config
from res2net_dense.convert import read_checkpoint, write_checkpoint
from res2net_dense.engine.run_folder import own_folder
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


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_a_ledger_that_is_not_a_file_is_refused_at_once(kind, tmp_path):
    make = {"folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda path: path.symlink_to("x")}[kind]
    make(tmp_path / ".res2net_dense.sha256")
    with pytest.raises(ConfigError, match="sha256 is "):
        Outputs(tmp_path).claim([tmp_path / "a"])


@pytest.mark.parametrize("text", ["", "x", "\xff" * 999, "0" * 64 + "  a\n"])
def test_an_edited_ledger_knows_nothing_more(text, tmp_path):
    (tmp_path / ".res2net_dense.sha256").write_text(text, encoding="latin1")
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        Outputs(tmp_path).claim([tmp_path / "a"])
    Outputs(tmp_path).write(tmp_path / "b", b"ours")
    Outputs(tmp_path).write(tmp_path / "b", b"ours again")


def test_names_of_outputs_are_not_those_of_others(tmp_path):
    """On no file system: some tell no upper from lower case, and no file is in the place of a folder."""
    names = [
        "a.png",
        "a.jpg",
        "a_png.jpg",
        "A.png",
        "x.png/1.png",
        "x.jpg",
        "\xe9.png",
        "e\u0301.png",
        "b.c.png",
    ]
    files = [tmp_path / name for name in names]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (tmp_path / "link.png").symlink_to("b.c.png")  # one more name of the same image
    places = output_names([*files, tmp_path / "link.png"])
    folded = [unicodedata.normalize("NFC", place.as_posix()).casefold() for place in places]
    assert len({*folded, "x.png"}) == len(names) + 2
    assert places[names.index("x.png/1.png")] == Path("x.png/1.png")
    assert output_names([tmp_path / "a.png", tmp_path / "b.c.png"]) == [Path("a.png"), Path("b.c.png")]


def test_what_an_evaluation_reads_is_not_written_over(weights, draw_toy, tmp_path):
    """Nor its annotations and configuration, whose names are free."""
    config = weights("detection").with_name("config.yaml")
    annotations = draw_toy(**TINY_RUNS["detection"].toy) / "annotations/val.json"
    words = ["evaluate", "--weights", weights("detection"), "--output-dir", tmp_path, "--overwrite"]
    for source, name, more in (
        (annotations, "predictions.json", ["--save-predictions"]),
        (annotations, "results.json", []),
        (config, "thresholds.json", ["--precision", "0.5", "--config", tmp_path / "thresholds.json"]),
    ):
        shutil.copy(source, tmp_path / name)
        more += [f"data.val.annotations={tmp_path / name}"] if source == annotations else []
        assert main([*map(str, [*words, *more])]) == 1
        assert (tmp_path / name).read_bytes() == source.read_bytes()
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "data.json", "run.lock"])
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_training_replaces_nothing_of_others(name, more, weights, tmp_path, capsys):
    """Its configuration may be in its run folder, with notes."""
    config = weights("classification").with_name("config.yaml")
    text = "# notes\n" + config.read_text()
    (tmp_path / name).write_text(text)
    words = ["train", "--config", config, "--output-dir", tmp_path]
    assert main([*map(str, words), *more]) == 1
    assert "no run has written" in (said := capsys.readouterr().err)
    assert name in said
    assert (tmp_path / name).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).rename(tmp_path.with_suffix(".other"))
    (tmp_path / name).symlink_to(tmp_path.with_suffix(".other"))
    assert main([*map(str, words), *more]) == 1
    assert (tmp_path / name).read_text() == text


def test_a_configuration_as_a_run_saves_it_is_known(weights, tmp_path):
    path = tmp_path / "config.yaml"
    save_config(load_config(weights("detection").with_name("config.yaml")), path)
    assert is_saved_config(path)
    for change in ("# notes\n{}", "{}\n", "_base_: x.yaml\n{}"):
        path.with_name("other").write_text(change.format(path.read_text()))
        assert not is_saved_config(path.with_name("other"))


def test_two_predictions_do_not_share_a_folder(run, tmp_path):
    with own_folder(tmp_path / "out"):
        assert "is in use by process" in refused(run("predict"), "out")
    assert run("predict")[0] == 0


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
