"""`res2net-dense check`: how sets are named, what is printed and written, exit codes."""

import json
import re
import shutil

import pytest
from reading import snapshot
from tiny_tasks import detection, write_config

from res2net_dense import cli
from res2net_dense.cli._check_parts import layouts, part_of
from res2net_dense.data.layouts import Part
from res2net_dense.errors import ConfigError


@pytest.fixture
def coco(draw_toy, tmp_path):
    """A copy of a toy set in COCO's layout that a test may change."""
    shutil.copytree(draw_toy("coco", train=12, val=4), tmp_path / "set")
    return tmp_path / "set"


def paths(root):
    return ["--layout", "coco", str(root / "annotations/train.json"), str(root / "train")]


def change(root, edit):
    """Apply a change to the annotation file of the validation set."""
    file = root / "annotations/train.json"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("coco a.json images", {"layout": "coco", "annotations": "a.json", "images": "images"}),
        ("voc root", {"layout": "voc-boxes", "root": "root", "split": None}),
        ("voc root train images=photos", {"split": "train", "images": "photos"}),
        ("voc-masks root val", {"layout": "voc-masks", "split": "val"}),
        ("pairs root list=train.txt", {"layout": "image-masks", "list": "train.txt"}),
        ("yolo data.yaml", {"layout": "yolo", "yaml": "data.yaml", "split": "train"}),
        ("yolo data.yaml val", {"split": "val"}),
        ("folders root", {"layout": "class-folders", "root": "root"}),
        ("cifar10 root", {"layout": "cifar10", "root": "root"}),
    ],
)
def test_a_set_is_named_by_its_layout_and_paths(words, expected):
    name, *rest = words.split()
    found = part_of(name, rest)[0].model_dump()
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("cocoa a b", ["unknown layout", "coco"]),
        ("coco a.json", ["IMAGES is missing", "check --layout coco ANNOTATIONS IMAGES"]),
        ("voc a b c", ["'c' is too much", "check --layout voc ROOT [SPLIT] [images=...] [annotations=...]"]),
        ("voc a split=[1]", ["split = [1]"]),
    ],
)
def test_what_is_named_wrongly_is_explained(words, parts):
    name, *rest = words.split()
    with pytest.raises(ConfigError) as error:
        part_of(name, rest)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), error.value


def test_class_names_and_channels_may_be_given_to_any_layout():
    words = ["root", "class_names=[sky, tree]", "channels=4", "value_range=[0, 4095]"]
    reading = part_of("voc-masks", words)[1]
    assert (reading.class_names, reading.channels, reading.value_range) == (["sky", "tree"], 4, (0, 4095))
    with pytest.raises(ConfigError, match="channels = 99"):
        part_of("voc-masks", ["root", "channels=99"])


def test_statistics_are_printed_as_settings(coco, capsys):
    assert cli.main(["check", *paths(coco), "--statistics"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "measured on" in line)
    assert line.startswith("data: measured on 12 images: model.pixel_mean=[")
    assert "model.pixel_std=[" in line


def test_a_new_layout_appears_by_itself():
    class NewPart(Part):
        """A layout of somebody."""

        layout: str = "new"

    known = set(layouts())
    assert {"coco", "voc-boxes", "voc-masks", "image-masks", "class-folders", "cifar10"} <= known
    assert "new" not in known  # only a literal names a layout


@pytest.mark.parametrize("arguments", [[], ["--config", "x", "--layout", "coco"]])
def test_a_configuration_or_a_layout_is_needed(arguments, capsys):
    assert cli.main(["check", *arguments]) == 1
    assert "either --config CONFIG, or --layout LAYOUT" in capsys.readouterr().err


def test_a_clean_set_has_exit_code_0_and_its_classes_are_listed(coco, capsys):
    assert cli.main(["check", *paths(coco)]) == 0
    out = capsys.readouterr().out
    assert "12 images of" in out
    assert "0 errors, 0 warnings" in out
    labels = [line.split() for line in out.splitlines() if line.lstrip().startswith(tuple("0123"))]
    assert [row[-1] for row in labels if len(row) == 4] == ["circle", "rectangle", "triangle", "star"]


def test_both_sets_of_a_configuration_are_checked(draw_toy, tmp_path, capsys):
    config = write_config(detection, lambda **keys: draw_toy("coco", train=12, val=4), tmp_path)
    assert cli.main(["check", "--config", str(config), "data.workers=0"]) == 0
    out = capsys.readouterr().out
    assert "data.train  12 images of" in out
    assert "data.val    4 images of" in out


def test_an_error_has_exit_code_1_and_is_in_every_output(coco, tmp_path, capsys):
    (coco / "train").joinpath(sorted(p.name for p in (coco / "train").iterdir())[1]).write_bytes(
        b"not an image"
    )
    outputs = ["--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html")]
    for _ in range(2):  # its own files may be written again
        assert cli.main(["check", *paths(coco), *outputs]) == 1
    out = capsys.readouterr().out
    assert "image-unreadable  error" in out
    assert "to do: Replace or remove the file" in out
    document = json.loads((tmp_path / "found.json").read_text())
    assert document["totals"]["error"] == 1
    (finding,) = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert (finding["set"], finding["code"], finding["place"]) == ("data", "image-unreadable", 1)
    assert document["sets"]["data"]["counts"]["image-unreadable"] == 1
    assert 'id="image-unreadable"' in (tmp_path / "found.html").read_text()


def test_a_file_of_another_format_is_a_finding_too(coco, tmp_path, capsys):
    (coco / "annotations/train.json").write_text("[]")
    assert cli.main(["check", *paths(coco), "--json", str(tmp_path / "found.json")]) == 1
    assert "file-format" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["totals"]["error"] == 1


def test_a_folder_that_is_not_there_is_missing(draw_toy, capsys):
    root = str(draw_toy("voc", train=2, val=1))
    assert cli.main(["check", "--layout", "voc-masks", root, "train", "masks=no"]) == 1
    assert re.search(r"^file-missing +error +1 ", capsys.readouterr().out, re.MULTILINE)


def test_missing_data_is_one_line(tmp_path, capsys):
    assert cli.main(["check", "--layout", "folders", str(tmp_path / "no")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no data set at" in line


def test_the_fix_list_has_what_is_left_out_and_clipped(coco, capsys):
    def edit(document):
        first, second = document["annotations"][:2]
        first["bbox"] = [10.0, 10.0, 0.0, 20.0]
        second["bbox"] = [-5.0, 10.0, 30.0, 20.0]

    change(coco, edit)
    assert cli.main(["check", *paths(coco), "--fix-list"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines() if line.count("\t") == 4][1:]
    assert [row[2:] for row in rows] == [
        ["drop", "box-zero-area", "10 10 10 30"],
        ["clip", "box-partly-outside", "-5 10 25 30 -> 0 10 25 30"],
    ]
    assert all(row[0].endswith("train.json") and row[1].startswith("annotation ") for row in rows)


@pytest.mark.parametrize(
    "place", ["train/found.html", "annotations/found.html", "train/../annotations/x.html"]
)
def test_outputs_in_the_data_are_refused(coco, place, capsys):
    before = snapshot(coco)
    assert cli.main(["check", *paths(coco), "--html", str(coco / place)]) == 1
    assert "into which nothing is written" in capsys.readouterr().err
    assert snapshot(coco) == before


def test_a_file_of_somebody_else_is_not_written_over(coco, tmp_path, capsys):
    (tmp_path / "mine.json").write_text("{}")
    assert cli.main(["check", *paths(coco), "--json", str(tmp_path / "mine.json")]) == 1
    assert "mine.json exists already, and no earlier run left it like that" in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_the_data_is_only_read(coco, tmp_path):
    before = snapshot(coco)
    outputs = ["--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html")]
    assert cli.main(["check", *paths(coco), *outputs, "--fix-list", "--notes"]) == 0
    assert snapshot(coco) == before
