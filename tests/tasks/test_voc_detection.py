"""Detection on VOC's layout from a config: what the task builds, and how it is scored."""

import numpy as np
import pytest
import torch

from res2net_dense.engine.inference import evaluate
from res2net_dense.errors import DatasetError
from res2net_dense.tasks import get_task
from res2net_dense.weight_files import load_weights_into

detection = get_task("detection")
CONFIG = "quick/faster_rcnn_res2net50"


def test_parts_are_joined(load, toy_folder):
    parts = f"[{{root: {toy_folder}, split: train}}, {{root: {toy_folder}, split: val}}]"
    config = detection.prepare(load(f"data.train={parts}"))
    assert len(detection.build_train_loader(config).dataset.source) == 16
    parts = parts.replace("train}", "train, images: A}")
    with pytest.raises(DatasetError, match="A: image folder not found"):
        detection.prepare(load(f"data.train={parts}"))


def test_the_boxes_themselves_score_100(load):
    config = detection.prepare(load())
    assert config.data.class_names == ["circle", "rectangle", "star", "triangle"]
    assert detection.best_metric(config).name == "bbox/AP50"
    evaluator = detection.build_evaluator(config)
    for batch in detection.build_eval_loader(config):
        for sample in batch:
            boxes, labels = sample["boxes"], sample["labels"]
            truth = {"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes))}
            evaluator.process([sample], [truth])
    results = evaluator.evaluate()
    assert all(value == pytest.approx(100) or np.isnan(value) for value in results.values()), results
    assert results["bbox/AP50"] == 100


def test_faster_rcnn_learns_from_voc_and_is_scored_again_the_same(load, train, tmp_path):
    config = detection.prepare(load("model.score_threshold=0.0"))
    before = train(config)
    model = detection.build_model(config)
    load_weights_into(model, tmp_path / "run/model_best.safetensors")
    evaluator, loader = detection.build_evaluator(config), detection.build_eval_loader(config)
    how = {"precision": config.train.precision, "channels_last": True}
    after = evaluate(model, loader, evaluator, device="cpu", **how)
    assert after == pytest.approx(before, nan_ok=True, abs=0)
    assert "bbox/AP50/circle" in after


def test_the_configuration_chooses_the_protocol(load):
    for method in ("area", "11point"):
        config = detection.prepare(load(f"eval.method={method}"))
        assert detection.build_evaluator(config).method == method


def test_boxes_left_out_of_the_truth_are_reported(load, spoilt, caplog):
    root = spoilt(CONFIG)
    xml = root / "Annotations/000012.xml"
    text = xml.read_text()
    left = text.split("<xmin>")[1].split("<")[0]
    right = text.split("<xmax>")[1].split("<")[0]
    xml.write_text(text.replace(f"<xmax>{right}<", f"<xmax>{left}<", 1))
    detection.prepare(load(root=root), training=False)
    assert "val.txt: 1 object left out: empty box" in caplog.text


def test_difficult_objects_can_be_left_out(load):
    configs = [detection.prepare(load(f"data.difficult={value}")) for value in ("true", "false")]
    sources = [detection.open_source(config, train=True) for config in configs]
    every, without = (sum(len(one.sample(i)["boxes"]) for i in range(len(one))) for one in sources)
    assert without < every
    truths = [detection.build_evaluator(config) for config in configs]
    assert len(truths[0]._labels) == len(truths[1]._labels)
