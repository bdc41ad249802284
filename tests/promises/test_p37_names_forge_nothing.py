"""P37: names cannot forge messages: what moves the cursor, breaks lines or turns the writing is escaped."""

import ast
import csv
import io
import json
import logging
import os
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from networks import TINY
from PIL import Image
from safetensors.torch import load_file
from tiny_tasks import classification, detection, write_config, write_weights

from res2net_dense import cli
from res2net_dense.backbones import create_classifier
from res2net_dense.cli import _PrintableFormatter
from res2net_dense.data.layouts import ClassFoldersPart, open_source
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.errors import DatasetError
from res2net_dense.evaluation.tables import align
from res2net_dense.outputs import Outputs
from res2net_dense.report.formats import Classes, ClassesTable, Predicted, Saved, VocXml
from res2net_dense.report.saliency_curves import plot_curves
from res2net_dense.report.training_curves import Curve, plot_training

EVIL = "x\x1b[2K\x1b[1A\nerror: forged\r\u202egnp\u2066<b>\x07\x9b2J"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text):
    assert not FORBIDDEN.search(text), FORBIDDEN.findall(text)
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", EVIL],
        ["train", "--config", "quick/sod_res2net50", f"{EVIL}=1"],
        ["train", "--config", "quick/sod_res2net50", f"data.train.root={json.dumps(EVIL)}"],
        ["train", "--config", "quick/sod_res2net50", f"backbone.name={json.dumps(EVIL)}"],
        ["predict", "--weights", EVIL, "--input", "x", "--output", "y"],
        ["classify", EVIL, "--model", "test_res2net"],
        ["convert", EVIL],
        ["export", "--weights", EVIL, "--output", "x.onnx"],
        ["evaluate", "--weights", EVIL],
        ["evaluate", "--config", EVIL],
        ["check", "--config", EVIL],
        ["lr-find", "--config", EVIL, "--output", "x.png"],
        ["export", "--config", EVIL, "--weights", EVIL, "--output", "x.onnx"],
        ["predict", "--config", EVIL, "--weights", EVIL, "--input", "x", "--output", "y"],
        ["average", EVIL, EVIL, "--output", "x.safetensors"],
        ["benchmark", "--config", EVIL],
        ["split", EVIL, "--val", "1", "--output", "x"],
        ["prepare-duts", "--root", EVIL],
        ["prepare-voc-aug", "--sbd", EVIL, "--voc", EVIL, "--output", "x"],
        ["score-saliency", "--predictions", EVIL, "--masks", EVIL],
    ],
)
def test_arguments(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b" in shown.err


@pytest.mark.parametrize(
    "arguments", [[EVIL], ["train", "--config", "x", f"--{EVIL}".replace(" ", "")], ["toy", "--seed", EVIL]]
)
def test_arguments_that_cannot_be_parsed(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.err


def test_commands_print_in_two_places_that_escape():
    """`say`, and `_tell` of `main`: whatever else a command would print goes through one of them."""
    found = [
        f"{file.name}: {ast.unparse(node)}"
        for file in sorted(Path(cli.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))  # calls alone: a text may name them
        if isinstance(node, ast.Call) and re.search(r"^print$|std(out|err)\.write$", ast.unparse(node.func))
    ]
    assert [line.partition(":")[0] for line in found] == ["__init__.py", "_shared.py"], found
    for file in sorted(Path(cli.__file__).parent.glob("*.py")):  # what a bar writes is escaped too
        written = re.findall(r"bar\.write\((.*)", file.read_text())
        assert all("printable(" in line for line in written), written


def test_log_messages():
    for name in ("res2net_dense", "py.warnings"):
        record = logging.LogRecord(name, logging.WARNING, "", 1, "%s: left out", (EVIL,), None)
        shown = _PrintableFormatter("%(levelname)s: %(message)s").format(record)
        assert_harmless(shown)
        assert "\n" not in shown


def test_tables_and_printed_text(capsys):
    table = align([["class", "AP"], [EVIL, "1.0"]])
    assert len(table.splitlines()) == 2
    assert_harmless(table)
    print_rank0("first", f"second {EVIL}")
    shown = capsys.readouterr().out
    assert shown.startswith("first\nsecond x\\x1b")
    assert len(shown.splitlines()) == 2


@pytest.fixture
def evil_run(draw_toy, tmp_path):
    """A configuration of detection whose class and file names are evil, and its weights."""
    path = write_config(detection, draw_toy, tmp_path)
    text = path.read_text()
    folder = next(part.split()[0].rstrip(",}") for part in text.split("annotations: ")[1:])
    document = json.loads(Path(folder).read_text())
    document["categories"][0]["name"] = EVIL
    (tmp_path / "evil.json").write_text(json.dumps(document))
    path.write_text(text.replace(folder, str(tmp_path / "evil.json")))
    return path


def test_class_names_of_a_data_set(evil_run, capsys, tmp_path, tmp_path_factory):
    html = tmp_path_factory.mktemp("page") / "page.html"
    code = cli.main(["check", "--config", str(evil_run), "--html", str(html)])
    assert code in (0, 1), capsys.readouterr()
    assert html.exists(), capsys.readouterr()
    cli.main(["train", "--config", str(evil_run), "data.val=null", "--output-dir", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.out
    page = html.read_text()
    assert_harmless(page)
    assert "<b>" not in page.replace("<b>", "", page.count("<b></b>"))
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)


def evil_images(folder):
    """Two images, one of them broken, with evil names."""
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 32), "red").save(folder / f"{EVIL}.png")
    (folder / f"{EVIL}2.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("task", [classification, detection])
def test_predictions_of_evil_files(task, draw_toy, capsys, tmp_path):
    images, out = evil_images(tmp_path / EVIL), tmp_path / f"{EVIL} out"
    write_weights(write_config(task, draw_toy, tmp_path), tmp_path / "model.safetensors", sure=True)
    weights = str(tmp_path / "model.safetensors")
    formats = "csv" if task == classification else "coco,voc,yolo"
    arguments = ["--weights", weights, "--input", str(images), "--output", str(out), "--save", formats]
    assert cli.main(["predict", *arguments]) == 0
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.out
    assert "skipped: " in shown.err
    found = json.loads((out / "predictions.json").read_text())
    assert found["images"][0]["file_name"] == f"{EVIL}.png"
    if task == classification:
        assert cli.main(["classify", str(images / f"{EVIL}.png"), "--weights", weights]) in (0, 1)
        shown = capsys.readouterr()
        assert_harmless(shown.out + shown.err)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_class_names_that_are_no_text_are_refused_at_once(tmp_path):
    """As an archive from a system of another encoding leaves them."""
    for name in (b"caf\xe9", b"tea"):
        os.makedirs(folder := os.path.join(os.fsencode(tmp_path), name))
        Image.new("RGB", (9, 9)).save(os.fsdecode(os.path.join(folder, b"a.png")))
    part = ClassFoldersPart(root=str(tmp_path))
    with pytest.raises(DatasetError, match=r"the class name 'caf\\udce9' is not UTF-8: rename"):
        open_source([part], train=True)
    assert len(open_source([part], train=True, strict=False).class_names) == 2


NAME = '\udcff\x1b[2J\r\n,"&<\ufffe.png'


def test_names_in_xml(tmp_path):
    """It is read, with what XML does not have written out."""
    prediction = {
        "boxes": torch.tensor([[0.0, 0, 9, 9]]), "scores": torch.ones(1), "labels": torch.zeros(1, dtype=int)
    }  # fmt: skip
    entry = {"id": 1, "file_name": NAME, "height": 9, "width": 9}
    writer = VocXml(Outputs(tmp_path), Classes([NAME], [1]), 0.5)
    writer.add(Predicted(Path("x"), entry, prediction, []))
    root = ElementTree.parse(tmp_path / "Annotations/x.xml")
    for place in ("filename", "object/name"):
        assert root.findtext(place) == '\\udcff\\x1b[2J\\r\n,"&<\\ufffe.png'


def test_names_in_a_table(tmp_path):
    """Each image has one line, in UTF-8."""
    writer = ClassesTable(Outputs(tmp_path), Classes(["a\rb"], [1]), 0.5)
    parts = [
        writer.add(Predicted(Path("x"), {"file_name": name}, {"logits": torch.zeros(1)}, []))
        for name in (NAME, "a\rb", "a\nb", "plain.png")
    ]
    writer.close(lambda: (Saved({}, [], part) for part in parts))
    content = (tmp_path / "classes.csv").read_bytes()
    assert content.endswith(b'plain.png,"a\rb",1.000000\n')
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    names = ['\\udcff\x1b[2J\n,"&<\ufffe.png', "a\rb", "a\nb", "plain.png"]
    assert [row[:2] for row in rows[1:]] == [[name, "a\rb"] for name in names]


def test_folders_that_are_scored(tmp_path, capsys):
    for folder in ("masks", f"{EVIL}/a", f"{EVIL}/{EVIL}"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (32, 24), 255).save(tmp_path / folder / f"{EVIL}.png")
    methods = [f"{EVIL}={tmp_path / EVIL / EVIL}", f"$x_1={tmp_path / EVIL / 'a'}"]
    Image.new("L", (32, 24)).save(tmp_path / EVIL / "a" / f"{EVIL} 2.png")
    arguments = ["--masks", str(tmp_path / "masks"), "--plot", str(tmp_path / "x.svg"), "--workers", "1"]
    code = cli.main(["score-saliency", "--predictions", *methods, *arguments])
    shown = capsys.readouterr()
    assert code == 0, shown
    assert_harmless(shown.out + shown.err)
    assert "have no mask" in shown.err
    assert_harmless((tmp_path / "x.svg").read_text())


def test_a_set_that_is_prepared(tmp_path, capsys):
    for folder in ("images", "masks"):
        evil_images(tmp_path / EVIL / folder)
    cli.main(["prepare-duts", "--root", str(tmp_path / EVIL), "--workers", "1"])
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.out + shown.err


def test_text_of_figures():
    """Names are one line and no formula, where `$` would start one or an error of its parser."""
    name = f"{EVIL} $\\frac$ $"
    points = {
        "precision": torch.ones(256).numpy(),
        "recall": torch.ones(256).numpy(),
        "f": torch.ones(256).numpy(),
    }
    figure = plot_curves({name: points})
    label = figure.legends[0].get_texts()[0].get_text()
    curve = Curve([1, 2], [0.5, 0.25])
    trained = plot_training(
        loss=curve, lr=curve, val_loss=None, metric=curve, metric_name=name, best=(2, 0.25)
    )
    for drawn, text in ((figure, label), (trained, trained.axes[1].get_title())):
        assert_harmless(text)
        assert "\n" not in text
        drawn.savefig(io.BytesIO(), format="svg")


def evil_layers(path):
    """A classifier whose file has a layer and other keys with names that forge messages."""
    state = create_classifier(TINY, 2).state_dict()
    torch.save({"state_dict": {**state, f"{EVIL}.{EVIL}.weight": torch.zeros(2)}, EVIL: 1}, path)
    return path


@pytest.mark.parametrize("options", [[], ["--partial"], ["--prefix", EVIL], ["--from", EVIL], ["--to", EVIL]])
def test_layers_of_a_converted_file(options, tmp_path, capsys):
    path = evil_layers(tmp_path / f"{EVIL}.pth")
    cli.main(["convert", str(path), str(tmp_path / f"{EVIL}new.pth"), *options])
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.out + shown.err
    assert all(len(line.split()) > 1 for line in shown.out.splitlines())


def test_layers_of_a_model_to_start_from(draw_toy, tmp_path, capsys):
    config = write_config(classification, draw_toy, tmp_path)
    write_weights(config, tmp_path / "good.safetensors")
    state = load_file(tmp_path / "good.safetensors")
    torch.save({"model": {**state, f"{EVIL}.{EVIL}.weight": torch.zeros(2)}}, tmp_path / f"{EVIL}.pth")
    weights = f"model.weights={json.dumps(str(tmp_path / f'{EVIL}.pth'))}"
    code = cli.main(["train", "--config", str(config), weights])
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert code == 0, shown
    assert "\\x1b[2K" in shown.out
