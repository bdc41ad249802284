"""Semantic segmentation and VOC detection from a config: what is wrong first, then what the tasks build."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import assert_one_line
from safetensors.torch import save_file

from res2net_dense.config import config_to_dict
from res2net_dense.engine import distributed
from res2net_dense.engine.inference import evaluate
from res2net_dense.errors import ConfigError, DatasetError, Res2NetDenseError
from res2net_dense.jobs import Job
from res2net_dense.palette import voc_palette
from res2net_dense.tasks import get_task, training
from res2net_dense.weight_files import load_weights_into, open_weights

detection, semantic_segmentation = get_task("detection"), get_task("semantic_segmentation")
CONFIG = "quick/deeplabv3plus_res2net50"
RCNN = "quick/faster_rcnn_res2net50"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.train.root=nowhere"], ["nowhere", "looked in", "res2net-dense toy --layout voc"]),
        (["data.train=null"], ["data.train is not set"]),
        (["data.train.split=trainval2"], ["trainval2.txt", "trainval"]),
        (["data.train.masks=Masks"], ["Masks", "mask folder"]),
        (["model.num_classes=7"], ["model.num_classes is 7", "5 classes"]),
        (["data.class_names=[one]"], ["only the class one", "background"]),
        (["data.class_names=[background, circle]"], ["labels", "class names"]),
        (["train.best_metric=bbox/AP"], ["bbox/AP", "mIoU"]),
    ],
)
def test_what_does_not_fit_is_reported_before_training(load, arguments, words):
    with pytest.raises(Res2NetDenseError) as error:
        semantic_segmentation.prepare(load(*arguments))
    assert_one_line(error, *words)


def spoil_rgb(root, name):
    Image.open(root / f"SegmentationClass/{name}.png").convert("RGB").save(
        root / f"SegmentationClass/{name}.png"
    )
    return ["RGB", "palette", f"{name}.png"]


def spoil_labels(root, name):
    labels = np.array(Image.open(root / f"SegmentationClass/{name}.png"))
    labels[0, 0] = 9
    Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
    return ["labels 9", "5 classes", f"{name}.png"]


def spoil_size(root, name):
    Image.open(root / f"SegmentationClass/{name}.png").resize((50, 40)).save(
        root / f"SegmentationClass/{name}.png"
    )
    return ["50 x 40", "96 x 96", f"{name}.png", f"{name}.jpg"]


def spoil_palette(root, name):
    mask = Image.open(root / f"SegmentationClass/{name}.png")
    colours = voc_palette()
    colours[[0, 1]] = colours[[1, 0]]
    mask.putpalette(colours.tobytes())
    mask.save(root / f"SegmentationClass/{name}.png")
    return ["palette", "colour", f"{name}.png"]


def spoil_list(root, name):
    with open(root / "ImageSets/Segmentation/train.txt", "a") as file:
        file.write("gone\n")
    return ["1 of 13 images", "gone", "train.txt"]


def spoil_masks(root, name):
    (root / f"SegmentationClass/{name}.png").unlink()
    return ["1 of 12 masks", name]


def spoil_white(root, name):
    for file in (root / "SegmentationClass").iterdir():
        labels = np.array(Image.open(file))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(file)
    return ["0 and 255", "write 1"]


@pytest.mark.parametrize(
    "spoil",
    [spoil_rgb, spoil_labels, spoil_size, spoil_palette, spoil_list, spoil_masks, spoil_white],
)
def test_wrong_masks_and_lists_are_named_in_one_line(load, broken, spoil):
    words = spoil(broken, "000003")
    with pytest.raises(Res2NetDenseError) as error:
        semantic_segmentation.prepare(load(root=broken))
    assert_one_line(error, *words)


def test_prepare_fills_in_the_classes(load):
    config = semantic_segmentation.prepare(load())
    assert config.data.class_names == ["background", "circle", "rectangle", "triangle", "star"]
    assert config.model.num_classes == 5


def test_the_masks_themselves_score_100(load):
    config = semantic_segmentation.prepare(load())
    evaluator = semantic_segmentation.build_evaluator(config)
    for batch in semantic_segmentation.build_eval_loader(config):
        for sample in batch:
            assert "sem_seg" not in sample  # the evaluator reads the truth itself
            mask = evaluator._read_mask(sample["image_id"]).astype(np.int64)
            mask[mask == 255] = 0
            evaluator.process([sample], [{"sem_seg": torch.from_numpy(mask)}])
    results = evaluator.evaluate()
    assert all(value == 100 or np.isnan(value) for value in results.values()), results
    assert results["mIoU"] == 100
    assert "mIoU" in evaluator.table()


def test_training_takes_batches_of_crops_the_same_every_time(load):
    config = semantic_segmentation.prepare(load())
    first, second = (next(iter(semantic_segmentation.build_train_loader(config))) for _ in range(2))
    assert len(first) == 4
    for one, two in zip(first, second, strict=True):
        assert one["image"].shape == (3, 64, 64)
        assert one["sem_seg"].shape == (64, 64)
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["sem_seg"], two["sem_seg"])


def test_accumulated_parts_of_one_image_train(load):
    """One image at a time, batch norm in the decoder: finite weights at the end."""
    config = load("train.accumulate=4", "model.norm=BN", "train.precision=fp32", "data.val=null")
    config = semantic_segmentation.prepare(config)
    folder = Path(config.runtime.output_dir)
    folder.mkdir()
    training.train_and_evaluate(config, CPU, folder)
    state = torch.load(folder / "checkpoints/iter_0000002.pt")["model"]
    assert all(bool(torch.isfinite(value.float()).all()) for value in state.values())


def test_records_are_the_areas_of_the_labels():
    prediction = {"sem_seg": torch.tensor([[0, 0, 2]])}
    assert semantic_segmentation.to_records(prediction, 7) == [
        {"image_id": 7, "category_id": 0, "area": 2},
        {"image_id": 7, "category_id": 2, "area": 1},
    ]


def test_views_of_the_evaluation_reach_the_model(load):
    config = semantic_segmentation.prepare(
        load("eval.scales=[0.5,1.0]", "eval.flip=true", "eval.window=64", "eval.window_stride=32")
    )
    model = semantic_segmentation.build_model(config)
    batch = next(iter(semantic_segmentation.build_eval_loader(config)))
    with torch.no_grad():
        seen = model.eval()(batch)[0]["sem_seg"]
    assert model.views == {"scales": [0.5, 1.0], "flip": True, "window": 64, "window_stride": 32}
    assert seen.shape == (96, 96)


@pytest.fixture
def weights(load, tmp_path):
    """A weight file of the quick config, as a run leaves it."""
    config = semantic_segmentation.prepare(load())
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    save_file(semantic_segmentation.build_model(config).state_dict(), tmp_path / "w.safetensors", metadata)
    return open_weights(tmp_path / "w.safetensors")


def test_another_output_stride_is_reported(load, weights, caplog):
    """DeepLab is trained at 16 and scored at 8: allowed, but never by mistake."""
    Job(load(), weights).with_classes()
    assert caplog.text == ""
    Job(load("model.output_stride=8", "data.crop_size=32"), weights).with_classes()
    assert "model.output_stride=16, now it is 8" in caplog.text
    assert "data.crop_size=64, now it is 32" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.smp.decoder_aspp_dropout=0.5", ["model.smp.decoder_aspp_dropout=0.1", "has 0.5"]),
        ("model.smp.decoder_extra=1", ["model.smp.decoder_extra=None", "has 1"]),
        ("model.arch=unet", ["model.arch=deeplabv3plus", "has unet"]),
    ],
)
def test_another_network_of_equal_tensors_is_refused(load, weights, change, words):
    with pytest.raises(ConfigError) as error:
        Job(load(change), weights).with_classes()
    assert_one_line(error, "w.safetensors", "config.yaml of its run", *words)


def test_sync_batch_norm_without_gpus_is_refused(load, monkeypatch):
    config = semantic_segmentation.prepare(load("model.norm=SyncBN"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError) as error:
        distributed.wrap(semantic_segmentation.build_model(config))
    assert_one_line(error, "SyncBN needs GPUs", "2 processes", "model.norm")


# VOC detection


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.train={root: nowhere, split: x}"], ["nowhere", "looked in"]),
        (["data.train.split=other"], ["other.txt", "trainval"]),
        (["model.num_classes=3"], ["model.num_classes is 3", "4 classes"]),
        (["data.class_names=[circle, star]"], ["rectangle", "triangle"]),
        (["train.best_metric=bbox/APs"], ["bbox/APs", "bbox/AP50/star"]),
        (["data.train.annotations=Labels"], ["Labels", "annotation folder"]),
    ],
)
def test_voc_detection_says_what_does_not_fit(load, arguments, words):
    with pytest.raises(Res2NetDenseError) as error:
        detection.prepare(load(*arguments, config=RCNN))
    assert_one_line(error, *words)


def test_voc_has_no_masks_for_mask_rcnn(load):
    with pytest.raises(ConfigError) as error:
        detection.prepare(load(config="quick/mask_rcnn_res2net50"))
    assert_one_line(error, "voc-boxes, which has no masks", "faster_rcnn")


def test_parts_are_joined(load, toy_set):
    parts = f"[{{root: {toy_set}, split: train}}, {{root: {toy_set}, split: val}}]"
    config = detection.prepare(load(f"data.train={parts}", config=RCNN))
    loader = detection.build_train_loader(config)
    assert len(loader.loader.dataset.source) == 16
    parts = f"[{{root: {toy_set}, split: train, images: A}}, {{root: {toy_set}, split: val}}]"
    with pytest.raises(DatasetError, match="A: image folder not found"):
        detection.prepare(load(f"data.train={parts}", config=RCNN))


def test_the_boxes_themselves_score_100(load):
    config = detection.prepare(load(config=RCNN))
    assert config.data.class_names == ["circle", "rectangle", "star", "triangle"]
    assert detection.best_metric(config).name == "bbox/AP50"
    evaluator = detection.build_evaluator(config)
    for batch in detection.build_eval_loader(config):
        for sample in batch:
            boxes, labels = sample["boxes"], sample["labels"]
            evaluator.process(
                [sample], [{"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes))}]
            )
    results = evaluator.evaluate()
    assert all(value == pytest.approx(100) or np.isnan(value) for value in results.values()), results
    assert results["bbox/AP50"] == 100


def test_faster_rcnn_learns_from_voc_and_is_scored_again_the_same(load, tmp_path):
    config = detection.prepare(load("model.score_threshold=0.0", config=RCNN))
    folder = tmp_path / "run"
    folder.mkdir()
    before = training.train_and_evaluate(config, CPU, folder)
    model = detection.build_model(config)
    load_weights_into(model, folder / "model_best.safetensors")
    evaluator = detection.build_evaluator(config)
    after = evaluate(
        model, detection.build_eval_loader(config), evaluator, device=CPU, precision=config.train.precision,
        channels_last=True,
    )  # fmt: skip
    assert after == pytest.approx(before, nan_ok=True, abs=0)
    assert "bbox/AP50/circle" in after


def test_the_configuration_chooses_the_protocol(load):
    for method in ("area", "11point"):
        config = detection.prepare(load(f"eval.method={method}", config=RCNN))
        assert detection.build_evaluator(config).method == method


def test_boxes_left_out_of_the_truth_are_reported(load, broken, caplog):
    xml = broken / "Annotations/000012.xml"
    text = xml.read_text()
    left = text.split("<xmin>")[1].split("<")[0]
    right = text.split("<xmax>")[1].split("<")[0]
    xml.write_text(text.replace(f"<xmax>{right}<", f"<xmax>{left}<", 1))
    detection.prepare(load(root=broken, config=RCNN), training=False)
    assert "val.txt: 1 objects left out: empty box" in caplog.text


def test_difficult_objects_can_be_left_out(load, caplog):
    with_all = detection.prepare(load(config=RCNN))
    without = detection.prepare(load("data.difficult=false", config=RCNN))
    counts = [
        sum(len(s.sample(i)["boxes"]) for i in range(len(s)))
        for s in (detection.open_source(config, train=True) for config in (with_all, without))
    ]
    assert counts[1] < counts[0]
    truths = [detection.build_evaluator(config) for config in (with_all, without)]
    assert len(truths[0]._labels) == len(truths[1]._labels)
