"""Our COCO scores are the true ones: equal to published numbers, raw pycocotools and detectron2."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import sys

import numpy as np
import pytest
import torch

mask_utils = pytest.importorskip("pycocotools.mask")
from coco_cases import (  # noqa: E402
    HEIGHT,
    IDS,
    NAMES,
    STATS,
    WIDTH,
    assert_same,
    build,
    mask_of,
    predict,
    prediction,
    random_truth,
    rle_of,
    run,
)  # fmt: skip

from res2net_dense.data.layouts.coco import read_coco  # noqa: E402
from res2net_dense.errors import ConfigError, DatasetError, MissingDependencyError  # noqa: E402
from res2net_dense.evaluation.coco import CocoEvaluator, prediction_to_records  # noqa: E402
from res2net_dense.types import MaskPart  # noqa: E402

BACKENDS = ["pycocotools", "hotcoco"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers(backend, iou_type, shared_data):
    reference = shared_data / "reference" / "coco_val2014_fake100"
    expected = json.loads((reference / "expected.json").read_text())[iou_type]
    path = reference / "instances_val2014_100.json"
    truth = json.loads(path.read_text())
    names = [category["name"] for category in truth["categories"]]
    label = {category["id"]: i for i, category in enumerate(truth["categories"])}
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    by_image = {i: [] for i in sizes}
    for record in json.loads((reference / expected["detections"]).read_text()):
        by_image[record["image_id"]].append(record)

    evaluator = build(path, class_names=names, iou_types=(iou_type,), backend=backend)
    for image_id, records in by_image.items():
        # float64 boxes: the published detections have no float32 rounding
        xywh = torch.tensor([r.get("bbox", [0, 0, 1, 1]) for r in records], dtype=torch.float64).reshape(
            -1, 4
        )
        output = {
            "boxes": torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1),
            "labels": torch.tensor([label[r["category_id"]] for r in records], dtype=torch.int64),
            "scores": torch.tensor([r["score"] for r in records], dtype=torch.float64),
        }
        if iou_type == "segm":
            masks = [mask_utils.decode(r["segmentation"]) for r in records]
            output["masks"] = torch.from_numpy(np.asarray(masks, dtype=bool).reshape(-1, *sizes[image_id]))
        evaluator.process([{"image_id": image_id}], [output])
    results = evaluator.evaluate()
    got = [results[f"{iou_type}/{name}"] / 100 for name in STATS]
    np.testing.assert_allclose(got, list(expected["stats"].values()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("empty", [False, True], ids=["predictions", "no predictions"])
def test_equals_detectron2(empty, tmp_path):
    detectron2_data = pytest.importorskip("detectron2.data")
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    truth = {"info": {}, **random_truth(1)}
    found = predict(truth, noise=0.08)
    if empty:
        found = {i: prediction() for i in found}
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    name = f"coco_evaluator_test_{empty}"
    detectron2_data.DatasetCatalog.register(name, list)
    try:
        detectron2_data.MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=NAMES,
            thing_dataset_id_to_contiguous_id={category: label for label, category in enumerate(IDS)},
        )
        theirs = COCOEvaluator(
            name, tasks=("bbox", "segm"), distributed=False, use_fast_impl=False, allow_cached_coco=False
        )
        theirs.reset()
        for image_id, output in found.items():
            instances = Instances(
                (HEIGHT, WIDTH),
                pred_boxes=Boxes(output["boxes"].clone()),
                scores=output["scores"],
                pred_classes=output["labels"],
                pred_masks=output["masks"],
            )
            theirs.process([{"image_id": image_id}], [{"instances": instances}])
        with contextlib.redirect_stdout(io.StringIO()):
            expected = theirs.evaluate()
    finally:
        detectron2_data.DatasetCatalog.remove(name)
        detectron2_data.MetadataCatalog.remove(name)

    _, results = run(path, found)
    for iou_type in ("bbox", "segm"):
        for metric, value in expected[iou_type].items():
            ours = results[f"{iou_type}/{metric.replace('AP-', 'AP/')}"]
            # detectron2 calls the scores of a model without predictions NaN, we call them 0
            assert ours == (0 if empty else pytest.approx(value, abs=1e-10, nan_ok=True)), metric


def test_label_order_is_by_name():
    truth = random_truth(7)
    found = predict(truth, noise=0.05)
    _, expected = run(truth, found)
    order = [2, 0, 3, 1]
    new_label = torch.tensor([order.index(label) for label in range(4)])
    shuffled = {i: {**p, "labels": new_label[p["labels"]]} for i, p in found.items()}
    _, results = run(truth, shuffled, class_names=[NAMES[i] for i in order])
    assert_same(expected, {key: results[key] for key in expected})


def test_objects_of_unknown_classes_count_as_missed(caplog):
    truth = random_truth(8, crowd=False)
    found = predict(truth)
    kept = {i: {k: v[p["labels"] < 3] for k, v in p.items()} for i, p in found.items()}
    with caplog.at_level(logging.WARNING):
        _, results = run(truth, kept, class_names=NAMES[:3])
    assert "fox" in caplog.text
    assert results["bbox/AP/fox"] == 0
    assert results["bbox/AP"] == 75


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sized", [True, False])
def test_boxes_only(backend, sized):
    truth = random_truth(12)
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    for image in truth["images"] if not sized else []:
        del image["height"]
        image["width"] = None
    found = predict(random_truth(12))
    boxes = {i: {k: v for k, v in p.items() if k != "masks"} for i, p in found.items()}
    _, results = run(truth, boxes, iou_types=("bbox",), backend=backend)
    assert results["bbox/AP"] == 100


def test_masks_that_are_missing_are_named():
    truth = random_truth(12)
    found = predict(truth)
    boxes = {i: {k: v for k, v in p.items() if k != "masks"} for i, p in found.items()}
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    with pytest.raises(ConfigError, match="gives none"):
        run(random_truth(12), boxes)
    with pytest.raises(ConfigError, match="has objects without a mask; evaluate boxes only"):
        run(truth, boxes)


def test_wrong_mask_size():
    masks = torch.ones(1, 8, 9, dtype=torch.bool)
    with pytest.raises(DatasetError, match="200x160 but its predicted masks are 9x8"):
        run(random_truth(0), {5: {**prediction([[0, 0, 9, 8]], [0], [0.5], []), "masks": masks}})


def test_records_are_coco_results():
    mask = mask_of((10, 20, 30, 40), False)
    output = prediction([[10, 20, 40, 60], [0, 0, 1, 1]], [1, 0], [0.75, 0.5], [mask, mask])
    records = prediction_to_records(output, "x", [None, 9])
    assert records == [
        {
            "image_id": "x",
            "category_id": 9,
            "bbox": [10.0, 20.0, 30.0, 40.0],
            "score": 0.75,
            "segmentation": rle_of(mask),
        }
    ]
    assert json.loads(json.dumps(records)) == records
    assert prediction_to_records(prediction(), 1, [1]) == []
    with pytest.raises(ConfigError, match="labels 0 to 1"):
        prediction_to_records(output, 1, [4])


def test_prints_nothing(capfd):
    truth = random_truth(0)
    for backend in BACKENDS:
        run(truth, predict(truth), backend=backend)
    assert capfd.readouterr() == ("", "")


def test_table():
    truth = random_truth(2)
    evaluator, _ = run(truth, predict(truth))
    lines = evaluator.table().splitlines()
    assert lines[0].split() == ["bbox", "segm"]
    assert lines[1].split() == ["AP", "100.0", "100.0"]
    assert [line.split()[0] for line in lines[-4:]] == NAMES
    evaluator.reset()
    assert evaluator.table() == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_scoring_does_not_read_have_no_effect(backend):
    plain = read_coco(random_truth(images=3), masks=True).ground_truth()
    odd = copy.deepcopy(plain)
    for image in odd["images"]:
        image.update(license="CC BY", file_name=7, coco_url=None)
    for entry in odd["annotations"]:
        entry.update(score="?", num_keypoints=None, ignore=1)
    for category in odd["categories"]:
        category.update(supercategory=7, skeleton="none")
    found = predict(random_truth(images=3))
    scores = []
    for truth in (plain, odd):
        evaluator = CocoEvaluator(truth, class_names=NAMES, backend=backend)
        for image_id, output in found.items():
            evaluator.process([{"image_id": image_id}], [output])
        scores.append(evaluator.evaluate())
    np.testing.assert_equal(*scores)


@pytest.mark.parametrize("text", ["raise ImportError('GLIBC_2.99 not found')", "import no_such_module"])
def test_a_scorer_that_cannot_be_loaded_is_reported_before_anything_is_scored(
    text, tmp_path, monkeypatch, caplog
):
    (tmp_path / "hotcoco.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "hotcoco", raising=False)
    truth = random_truth(images=2)
    with pytest.raises(
        MissingDependencyError, match=r"hotcoco cannot be loaded \((GLIBC|No module)"
    ) as error:
        build(truth, backend="hotcoco")
    assert "\n" not in str(error.value)
    assert build(truth).backend == "pycocotools"
    assert "pycocotools scores instead" in caplog.text


def test_the_faster_scorer_need_not_be_installed(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert build(random_truth(images=2)).backend == "pycocotools"
    assert not caplog.text
    with pytest.raises(MissingDependencyError, match="hotcoco is not installed"):
        build(random_truth(images=2), backend="hotcoco")


def test_masks_in_parts_are_the_same_records_as_whole_ones():
    rng = np.random.default_rng(0)
    masks, parts = torch.zeros(5, 23, 31, dtype=torch.bool), []
    for mask, (top, left, height, width) in zip(
        masks, [(0, 0, 23, 31), (3, 4, 9, 7), (22, 30, 1, 1), (0, 5, 23, 3), (4, 4, 0, 0)], strict=True
    ):
        part = torch.from_numpy(rng.random((height, width)) < 0.6)
        mask[top : top + height, left : left + width] = part
        parts.append(MaskPart(top, left, part, (23, 31)))
    boxes = torch.tensor([[0.0, 0, 31, 23]] * 5)
    found = {"boxes": boxes, "labels": torch.zeros(5, dtype=torch.int64), "scores": torch.full((5,), 0.5)}
    found["boxes"][1, 0] = float("nan")  # is left out
    whole = prediction_to_records({**found, "masks": masks}, 1, [1])
    in_parts = prediction_to_records({**found, "mask_parts": parts}, 1, [1])
    assert len(whole) == len(in_parts) == 4
    for one, other in zip(whole, in_parts, strict=True):
        assert one.keys() == other.keys()
        assert one["segmentation"]["size"] == other["segmentation"]["size"] == [23, 31]
        decoded = [mask_utils.decode(record["segmentation"]) for record in (one, other)]
        assert np.array_equal(*decoded)
