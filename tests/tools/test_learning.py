"""What is trained learns: on real images, and with the shipped recipes, which take minutes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from running import TRAIN

from res2net_dense.data.layouts.voc_boxes import VOC_CLASSES


def results_of(run_tool, folder, config, *overrides):
    """Train; returns the scores and the finished process."""
    process = run_tool(TRAIN, "--config", config, "--output-dir", folder, *overrides, timeout=2400)
    assert process.returncode == 0, process.stderr
    return json.loads((Path(folder) / "results.json").read_text()), process


@pytest.mark.slow
def test_real_images_train_evaluate_and_predict(tiny, shared_data, run_tool, tmp_path):
    data = shared_data / "coco_tiny"
    names = f"{data}/annotations/instances"
    splits = [
        f"data.{part}={{images: {data}/{part}2017, annotations: {names}_{part}2017.json}}"
        for part in ("train", "val")
    ]
    results_of(run_tool, tmp_path / "run", tiny("detection"), *splits, "model.detections_per_image=20")
    assert len(yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["class_names"]) == 80
    (tmp_path / "in").mkdir()
    for photo in sorted((data / "val2017").iterdir())[::16]:
        shutil.copy(photo, tmp_path / "in")
    process = run_tool(
        "tools/predict.py",
        "--weights",
        tmp_path / "run",
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
    )
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize(
    ("config", "layout", "data", "bounds"),
    [
        ("mask_rcnn_res2net50", "coco",
         "{{images: {toy}/{part}, annotations: {toy}/annotations/{part}.json}}",
         {"bbox/AP": 50, "segm/AP": 50}),
        ("retinanet_res2net50", "coco",
         "{{images: {toy}/{part}, annotations: {toy}/annotations/{part}.json}}", {"bbox/AP": 45}),
        ("deeplabv3plus_res2net50", "voc", "{{root: {toy}, split: {part}}}", {"mIoU": 80}),
        ("deeplabv3plus_res2net50_warm", "warm", "{{root: {toy}, split: {part}}}", {"mIoU": 80}),
        ("sod_res2net50", "duts", "{{root: {toy}/{part}}}", {"max_F": 0.95}),
        ("classification_res2net50", "imagenet", "{toy}/{part}", {"top1": 95}),
        ("classification_res2net50 backbone.name=resnet50", "imagenet", "{toy}/{part}", {"top1": 95}),
    ],
)  # fmt: skip
def test_toy_training_learns(config, layout, data, bounds, run_tool, tmp_path):
    """Shapes that the network has not seen, from scratch; the first is `make demo`."""
    run_tool("datasets/make_toy.py", "--layout", layout, "--output", tmp_path / "toy")
    config, *overrides = config.split()
    overrides += [
        f"data.{part}={data.format(toy=tmp_path / 'toy' / layout, part=part)}" for part in ("train", "val")
    ]
    scores, _ = results_of(run_tool, tmp_path / "run", f"configs/quick/{config}.yaml", *overrides)
    assert all(scores[name] >= bound for name, bound in bounds.items()), scores


@pytest.mark.slow
def test_eight_photos_are_learnt_by_heart(shared_data, run_tool, tmp_path):
    """VOC's photos and masks, from scratch, scored on themselves."""
    source, mine = shared_data / "voc2012_seg", tmp_path / "mine"
    names = (source / "ImageSets/Segmentation/our_train.txt").read_text().split()[:8]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClassAug", "png")):
        (mine / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(source / folder / f"{name}.{suffix}", mine / folder)
    split, classes = f"{{root: {mine}, split: null, masks: SegmentationClassAug}}", ", ".join(VOC_CLASSES)
    scores, _ = results_of(
        run_tool, tmp_path / "run", "configs/small/deeplabv3plus_res2net50.yaml",
        f"data.train={split}", f"data.val={split}", f"data.class_names=[background, {classes}]",
        "data.scale=[1.0, 1.0]", "data.photometric=none",
    )  # fmt: skip
    assert scores["mIoU"] >= 85


@pytest.mark.slow
def test_blood_cells_are_learnt(shared_data, run_tool, tmp_path):
    """VOC's layout and score: 205 photos of a microscope, from scratch, scored on 72 others."""
    splits = [
        f"data.{part}=[{{root: {shared_data}/bccd/BCCD, split: {split}}}]"
        for part, split in (("train", "train"), ("val", "test"))
    ]
    scores, process = results_of(
        run_tool, tmp_path / "run", "configs/small/faster_rcnn_res2net50_voc.yaml", *splits
    )
    assert "1 object left out: empty box" in process.stderr
    assert scores["bbox/AP50"] >= 88
