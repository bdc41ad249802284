"""What is reported of the data before a run: errors, warnings, classes, the score of the ground truth."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from running import assert_one_line

from res2net_dense.config import load_config
from res2net_dense.errors import DatasetError
from res2net_dense.tasks import get_task
from res2net_dense.tasks.sanity import class_table, describe_data, score_truth

FASTER, MASK = "quick/faster_rcnn_res2net50", "quick/mask_rcnn_res2net50"
BOX = {"category_id": 3, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}


@pytest.fixture
def coco(tmp_path):
    """Writes sets in COCO's layout, each given by the annotations of its images; returns a config."""

    def write(config=FASTER, *overrides, **sets):
        settings = ["data.train=null", "data.val=null", "runtime.device=cpu", "data.workers=0"]
        for name, annotations in sets.items():
            folder = tmp_path / name
            folder.mkdir()
            for number in range(len(annotations)):
                noise = np.random.default_rng([number, len(name)]).integers(
                    0, 256, (48, 64, 3), dtype=np.uint8
                )
                Image.fromarray(noise).save(folder / f"{number}.png")
            entries = [{**one, "image_id": n + 1} for n, own in enumerate(annotations) for one in own]
            content = {
                "images": [
                    {"id": n + 1, "file_name": f"{n}.png", "height": 48, "width": 64}
                    for n in range(len(annotations))
                ],
                "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
                "annotations": [{**one, "id": n} for n, one in enumerate(entries, 1)],
            }
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
            settings.append(f"data.{name}={{images: {folder}, annotations: {tmp_path}/{name}.json}}")
        return load_config(config, [*settings, *overrides])

    return write


def prepared(config, **options):
    task = get_task(config.task)
    return task, task.prepare(config, **options)


def test_errors_of_both_sets_are_one_line(coco, tmp_path):
    config = coco(train=[[BOX]] * 3, val=[[BOX]] * 3)
    (tmp_path / "train/1.png").unlink()
    Image.new("RGB", (30, 48)).save(tmp_path / "val/0.png")
    (tmp_path / "val/2.png").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        prepared(config)
    assert_one_line(error, "train/1.png: image not found", "2 more errors", "res2net-dense check --config")
    with pytest.raises(DatasetError) as error:
        prepared(config, training=False)
    assert_one_line(error, "val/0.png: the image is 30 x 48", "says 64 x 48", "1 more error:")
    prepared(config, training=False, inspect=False)  # as a Predictor does


def test_warnings_are_one_line_for_each_kind(coco, caplog):
    outside = {**BOX, "bbox": [50, 6, 30, 10]}
    config = coco(train=[[BOX, {**BOX, "category_id": 7}, outside, outside]] * 3)
    with caplog.at_level(logging.WARNING):
        prepared(config)
    lines = [record.getMessage() for record in caplog.records if "box-partly-outside" in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(config.data.train[0].annotations)
    assert "and 5 more of it" in lines[0]


def test_skip_leaves_out_broken_images_and_wrong_annotations_alike(coco, tmp_path, caplog):
    wrong = {**BOX, "bbox": [5, 6, "x", 10]}
    config = coco(FASTER, "data.on_error=skip", train=[[BOX], [BOX], [wrong, BOX], [BOX], [BOX]])
    Image.new("RGB", (30, 48)).save(tmp_path / "train/0.png")
    (tmp_path / "train/3.png").unlink()
    with caplog.at_level(logging.WARNING):
        task, config = prepared(config)
    (line,) = [message for message in caplog.messages if "left out (data.on_error=skip)" in message]
    assert line.startswith("data.train: 3 of 5 images have errors")
    loader = task.build_train_loader(config)
    drawn = [sample["file_name"] for batch, _ in zip(loader, range(4), strict=False) for sample in batch]
    assert {name[-5:] for name in drawn} == {"1.png", "4.png"}
    assert loader.skipped == 0


def test_skip_ends_at_errors_of_the_validation_set_and_of_everything(coco, tmp_path):
    config = coco(FASTER, "data.on_error=skip", train=[[BOX]] * 2, val=[[BOX]] * 2)
    (tmp_path / "val/1.png").write_bytes(b"")
    with pytest.raises(DatasetError) as error:
        prepared(config)
    assert_one_line(error, "val/1.png")
    (tmp_path / "val/0.png").rename(tmp_path / "val/1.png")
    for number in range(2):
        (tmp_path / f"train/{number}.png").unlink()
    with pytest.raises(DatasetError) as error:
        prepared(config)
    assert_one_line(error, "0.png")


def test_the_classes_are_printed_with_their_ids_and_objects(coco, capsys):
    dog, crowd = {**BOX, "category_id": 7}, {**BOX, "iscrowd": 1}
    task, config = prepared(coco(train=[[BOX, dog, crowd], [BOX]], val=[[BOX]]))
    describe_data(task, config, training=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", "0", "3", "2", "1"] in rows
    assert ["dog", "1", "7", "1", "0"] in rows


def test_many_classes_are_printed_in_part():
    class Many:
        class_names = [f"class{n}" for n in range(20)]

        def classes(self):
            return [(None, n) for n in range(20)]

    lines = class_table({"data.train": Many()}, 12).splitlines()
    assert len(lines) == 14
    assert "8 more" in lines[-1]
    assert len(class_table({"data.train": Many()}).splitlines()) == 21


@pytest.mark.parametrize("config", [FASTER, MASK])
def test_the_truth_scores_100_with_crowds_gaps_and_empty_images(coco, config):
    square = {**BOX, "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]]}
    line_like = {**BOX, "bbox": [0.5, 0.25, 63.25, 2], "segmentation": [[0.5, 0.25, 63.75, 0.25, 63, 2.25]]}
    crowd = {**square, "iscrowd": 1, "segmentation": {"size": [48, 64], "counts": [100, 900, 2072]}}
    val = [[square, line_like], [], [square, crowd, square], [{**line_like, "category_id": 7}]]
    task, config = prepared(coco(config, train=val, val=val[::-1]))
    line, findings = score_truth(task, config)
    assert not findings
    assert set(Counter(line.split())) >= {"bbox/AP", "100.0"}


def test_a_truth_without_an_object_has_no_score(coco):
    square = {**BOX, "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]]}
    task, config = prepared(coco(MASK, train=[[square]], val=[[], []]))
    line, findings = score_truth(task, config)
    assert not findings
    assert line.endswith("bbox/AP n/a  segm/AP n/a")
    source = task.open_source(config, train=False)
    assert len(source.annotations(0)["masks"]) == 0
    assert len(task.loss_transform(config)(source.sample(0))["masks"]) == 0


def test_a_truth_below_100_says_why(coco):
    many = [{**BOX, "bbox": [n % 50, n % 37, 5 + n % 3, 6], "area": 30} for n in range(130)]
    task, config = prepared(coco(val=[many, [BOX]]), training=False)
    line, (finding,) = score_truth(task, config)
    assert finding.code == "score-below-100"
    assert "bbox/AP" in line
    for words in ("1 image with more than 100 objects (model.detections_per_image)", "cat", "no model can"):
        assert words in finding.text
    more = config.model_copy(update={"model": config.model.model_copy(update={"detections_per_image": 300})})
    assert "of which COCO scores 100" in score_truth(task, more)[1][0].text


def test_a_large_set_is_scored_in_part(coco, monkeypatch):
    task, config = prepared(coco(val=[[BOX]] * 9), training=False)
    monkeypatch.setattr(type(task), "truth_images", 4)
    line, findings = score_truth(task, config)
    assert "(4 of 9 images)" in line
    assert not findings


def test_what_a_remark_says_is_said_once(tmp_path, caplog):
    for place in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / place).mkdir(parents=True)
        noise = np.random.default_rng(len(place)).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / place / "0.png")
    data = [f"data.train={tmp_path}/train", f"data.val={tmp_path}/val", "runtime.device=cpu"]
    with caplog.at_level(logging.WARNING):
        prepared(load_config("quick/classification_res2net50", data))
    assert caplog.text.count("1 of 2 classes have no image") == 1


@pytest.mark.parametrize(("names", "rows"), [(["salient object"], 0), (["background", "cat"], 3)])
def test_classes_of_label_maps_are_printed_without_numbers(names, rows):
    class Maps:
        class_names = names

        def classes(self):
            return []

    table = class_table({"data.train": Maps()})
    assert len(table.splitlines()) == rows
    assert rows == 0 or [line.split() for line in table.splitlines()][2] == ["cat", "1"]
