"""What `predict` leaves: ids that join to a user's file, formats of other tools, pseudo labels."""

import json
import shutil

import numpy as np
import pytest
from noisy import noisy
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_tasks import classification, detection, segmentation

from res2net_dense.cli import main
from res2net_dense.cli._known_ids import read_ids
from res2net_dense.cli._outcome import Outcome
from res2net_dense.data.layouts import CocoPart, YoloPart, open_source
from res2net_dense.errors import ConfigError
from res2net_dense.evaluation.coco import CocoEvaluator
from res2net_dense.journal import Journal
from res2net_dense.outputs import Outputs
from res2net_dense.tasks import get_task

SAVED = "coco,voc,yolo,png,polygons"


@pytest.fixture
def toy(draw_toy, tmp_path):
    """A copy of the toy set in COCO's layout that a test may change."""
    return shutil.copytree(draw_toy("coco", train=12, val=4), tmp_path / "toy")


@pytest.fixture
def predict(weights, tmp_path):
    """Run the command; returns predictions.json."""

    def run(kind, images, *arguments, code=0):
        words = ["predict", "--weights", weights(kind), "--input", images, "--output", tmp_path / "out"]
        assert main([*map(str, [*words, *arguments])]) == code
        return json.loads((tmp_path / "out/predictions.json").read_text()) if code == 0 else None

    return run


def change_ids(toy, **names):
    """Give the validation file ids as people have them; returns its path."""
    file = toy / "annotations/val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["id"] = f"img-{image['id']}"
        image["file_name"] = names.get(image["file_name"].removesuffix(".png"), image["file_name"])
    for one in content["annotations"]:
        one["image_id"] = f"img-{one['image_id']}"
    file.write_text(json.dumps(content))
    return file


def test_without_a_file_images_are_numbered_and_named_as_in_their_folder(predict, toy):
    shutil.copytree(toy / "val", toy / "in/deep")
    document = predict(detection, toy / "in")
    assert [one["id"] for one in document["images"]] == [1, 2, 3, 4]
    assert document["images"][0]["file_name"] == "deep/000000.png"
    assert [one["id"] for one in document["categories"]] == [1, 2, 3, 4]
    one = document["annotations"][0]
    assert (one["iscrowd"], one["id"]) == (0, 1)
    assert one["area"] >= 0


def test_predictions_are_annotations_of_the_input_folder(predict, toy, tmp_path):
    """Pseudo labels: as they are, and from a score on with polygons."""
    document = predict(detection, toy / "val", "--save", "polygons", "--score", "0.3")
    assert all(one["segmentation"]["counts"] for one in document["annotations"])
    for name in ("predictions.json", "annotations.json"):
        part = CocoPart(images=str(toy / "val"), annotations=str(tmp_path / "out" / name))
        source = open_source([part], train=True, needs=["boxes", "masks"])
        source.check()
        assert list(source.class_names) == ["circle", "rectangle", "triangle", "star"]
        assert source.indices_with_objects().size
    scores = [one["score"] for one in document["annotations"]]
    kept = json.loads((tmp_path / "out/annotations.json").read_text())["annotations"]
    assert min(scores) < 0.3 <= min(one["score"] for one in kept)


def test_the_ids_of_an_annotation_file_are_kept(predict, toy, tmp_path):
    file = change_ids(toy)
    document = predict(detection, toy / "val", "--annotations", file, "--save", SAVED, "--score", "0.2")
    assert [one["id"] for one in document["images"]] == ["img-1", "img-2", "img-3", "img-4"]
    assert [one["id"] for one in document["categories"]] == [1, 3, 7, 12]
    assert {one["category_id"] for one in document["annotations"]} <= {1, 3, 7, 12}
    truth = COCO(str(file))
    results = truth.loadRes(str(tmp_path / "out/coco_results.json"))
    assert len(results.anns) == len(document["annotations"])
    kept = json.loads((tmp_path / "out/annotations.json").read_text())
    assert {one["image_id"] for one in kept["annotations"]} <= {f"img-{n}" for n in range(1, 5)}
    assert {one["category_id"] for one in kept["annotations"]} <= {1, 3, 7, 12}


def test_the_ids_of_the_validation_set_are_kept_by_themselves(predict, toy, tmp_path):
    file = change_ids(toy)
    part = f"data.val={{images: {toy}/val, annotations: {file}}}"
    document = predict(detection, toy / "val", part, "--save", "coco")
    assert [one["id"] for one in document["images"]] == ["img-1", "img-2", "img-3", "img-4"]
    COCO(str(file)).loadRes(str(tmp_path / "out/coco_results.json"))
    document = predict(detection, toy / "train", part)  # other images
    assert [one["id"] for one in document["images"]] == list(range(1, 13))


def test_names_that_are_near_are_matched_and_said(predict, toy, capsys):
    file = change_ids(toy, **{"000000": "photos/000000.png", "000001": "000001.JPG", "000002": "x.png"})
    document = predict(detection, toy / "val", "--annotations", file)
    said = capsys.readouterr().err
    assert (
        "2 names differ from the images': photos/000000.png for 000000.png, 000001.JPG for 000001.png" in said
    )
    assert "1 input images are not in it" in said
    assert [one["id"] for one in document["images"]] == ["img-1", "img-2", 1, "img-4"]
    assert [one["file_name"] for one in document["images"]][1:3] == ["000001.JPG", "000002.png"]


def test_images_and_classes_that_the_file_does_not_have_get_new_ids(predict, toy, tmp_path):
    file = toy / "annotations/val.json"
    content = json.loads(file.read_text())
    content["images"] = content["images"][:3]
    content["categories"] = [one for one in content["categories"] if one["name"] != "circle"]
    content["annotations"] = []
    file.write_text(json.dumps(content))
    document = predict(detection, toy / "val", "--annotations", file, "--save", "coco")
    assert [one["id"] for one in document["images"]] == [1, 2, 3, 4]
    assert {one["id"]: one["name"] for one in document["categories"]} == {
        1: "circle", 3: "rectangle", 7: "triangle", 12: "star",
    }  # fmt: skip
    results = json.loads((tmp_path / "out/coco_results.json").read_text())
    assert {one["image_id"] for one in results} <= {1, 2, 3}
    assert {one["category_id"] for one in results} <= {3, 7, 12}
    assert len(results) < len(document["annotations"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c.update(images=[{**one, "file_name": "z.png"} for one in c["images"]]),
            "none of the input images",
        ),
        (lambda c: c.update(categories=[{"id": 1, "name": "dog"}]), "none of the model's classes"),
        (lambda c: c.pop("images"), "not in COCO's format"),
    ],
)
def test_a_file_of_other_images_or_classes_is_refused(predict, toy, capsys, change, said):
    file = toy / "annotations/val.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    predict(detection, toy / "val", "--annotations", file, code=1)
    assert said in capsys.readouterr().err


def test_one_name_for_two_images_is_refused(toy):
    shutil.copytree(toy / "val", toy / "other/val")
    files = [toy / "val/000000.png", toy / "other/val/000000.png"]
    with pytest.raises(ConfigError, match=r"000000\.png may be .* or .*; give the folder"):
        read_ids(toy / "annotations/val.json", files, ["circle"])


def test_labels_for_yolo_are_read_with_the_images_where_they_are(predict, toy, tmp_path):
    predict(detection, toy / "val", "--save", "yolo", "--score", "0.3")
    part = YoloPart(yaml=str(tmp_path / "out"), images=str(toy / "val"))
    source = open_source([part], train=True, needs=["boxes", "masks"])
    assert len(source) == 4
    assert source.indices_with_objects().size


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        (
            classification,
            "coco",
            "--save coco needs boxes, but the model gives logits; formats for it are csv",
        ),
        (
            segmentation,
            "yolo",
            "--save yolo needs boxes, but the model gives sem_seg; formats for it are png",
        ),
        (
            detection,
            "csv",
            "--save csv needs logits, but the model gives boxes, labels, masks, scores; formats",
        ),
    ],
)
def test_a_format_that_does_not_fit_is_one_line(predict, toy, capsys, tmp_path, kind, name, said):
    predict(kind, toy / "val", "--save", name, code=1)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_score_for_a_model_without_scores_is_refused(predict, toy, capsys, tmp_path):
    predict(segmentation, toy / "val", "--score", "0.5", code=1)
    assert "--score has no effect: the model gives sem_seg alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_named(predict, toy, capsys):
    with pytest.raises(SystemExit):
        predict(detection, toy / "val", "--save", "coco,xml")
    assert "'xml' is not a format; there are coco, voc, yolo" in capsys.readouterr().err


def test_classes_of_images_are_saved(predict, toy, tmp_path):
    predict(classification, toy / "val", "--save", "csv")
    assert (tmp_path / "out/classes.csv").read_text().startswith("filename,label,score\n000000.png,")


def test_results_of_saved_predictions_score_as_our_evaluator(toy, tmp_path):
    """Objects moved and rated at random, through `loadRes` and pycocotools."""
    file = change_ids(toy)
    part = CocoPart(images=str(toy / "val"), annotations=str(file))
    source = open_source([part], train=False, needs=["boxes", "masks"])
    files = sorted((toy / "val").iterdir())
    names = list(source.class_names)
    outputs = Outputs(tmp_path / "out")
    journal = Journal(tmp_path / "out/predictions.jsonl", outputs, {})
    outcome = Outcome(get_task("detection"), names, read_ids(file, files, names), ["coco"], outputs, 0.5)
    evaluator = CocoEvaluator(source.ground_truth(), class_names=names, backend="pycocotools")
    rng = np.random.default_rng(0)
    for number in range(len(source)):
        sample, prediction = source.sample(number), noisy(source, number, rng)
        evaluator.process([sample], [prediction])
        journal.add(number, outcome.line(number, "unused", files[number], sample, prediction))
    outcome.close(journal, [], "")
    truth = COCO(str(file))
    for kind, prefix in (("bbox", "bbox/"), ("segm", "segm/")):
        scorer = COCOeval(truth, truth.loadRes(str(tmp_path / "out/coco_results.json")), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        expected = 100 * scorer.stats[0]
        assert 5 < expected < 95
        assert evaluator.evaluate()[f"{prefix}AP"] == pytest.approx(expected, abs=1e-9)
