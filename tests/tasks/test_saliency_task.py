"""Salient objects from a config: what is wrong first, then what the task builds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, assert_one_line

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.data.layouts.saliency_sets import KNOWN_SETS
from res2net_dense.engine.inference import evaluate
from res2net_dense.errors import Res2NetDenseError
from res2net_dense.evaluation.saliency import METRICS
from res2net_dense.tasks import get_task

saliency = get_task("saliency")
CONFIG = "quick/sod_res2net50"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.train={root: nowhere}"], ["nowhere", "looked in", "res2net-dense toy --layout duts"]),
        (["data.train=null"], ["data.train is not set"]),
        (["data.train.list=train.txt"], ["train.txt"]),
        (["data.train.masks=gt", "data.train.images=images"], ["gt", "mask folder"]),
        (["train.best_metric=mIoU"], ["mIoU", "max_F"]),
    ],
)
def test_what_does_not_fit_is_reported_before_training(load, arguments, words):
    with pytest.raises(Res2NetDenseError) as error:
        saliency.prepare(load(*arguments))
    assert_one_line(error, *words)


def spoil_missing(mask):
    mask.unlink()
    return ["1 of 8 masks are not in", mask.stem]


def spoil_size(mask):
    Image.open(mask).resize((50, 40)).save(mask)
    return ["50 x 40", mask.name]


def spoil_range(mask):
    Image.fromarray(np.array(Image.open(mask)) // 255).save(mask)
    return ["255", mask.name]


def spoil_colour(mask):
    grey = np.array(Image.open(mask))
    Image.fromarray(np.stack([grey, grey // 2, grey // 3], axis=2)).save(mask)
    return ["colour", mask.name]


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_size, spoil_range, spoil_colour])
@pytest.mark.parametrize("part", ["train", "val"])
def test_wrong_masks_are_named_in_one_line(load, broken, spoil, part):
    masks = sorted((broken / part / "masks").iterdir())
    mask = next(mask for mask in masks if np.array(Image.open(mask)).max() == 255)
    words = [word.replace("1 of 8", f"1 of {len(masks)}") for word in spoil(mask)]
    with pytest.raises(Res2NetDenseError) as error:
        saliency.prepare(load(root=broken))
    assert_one_line(error, *words)


class Oracle(torch.nn.Module):
    """Predicts the mask of each image."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def forward(self, batch):
        return [{"saliency": torch.from_numpy(self.dataset.mask(s["image_id"]).astype("f4"))} for s in batch]


def test_the_masks_themselves_have_no_error(load):
    config = load()
    oracle = Oracle(saliency.open_source(config, train=False))
    scores = evaluate(
        oracle, saliency.build_eval_loader(config), saliency.build_evaluator(config), device="cpu"
    )
    assert set(scores) == set(METRICS)
    for name in ("max_F", "adaptive_F", "weighted_F", "S", "max_E", "max_IoU"):
        # E is divided by one pixel less than there are, as published
        assert scores[name] == pytest.approx(1, abs=1e-3 if name == "max_E" else 1e-6), name
    assert scores["MAE"] == 0


def test_several_sets_are_scored_apart(load, toy_set):
    """Each as if it were alone, and the first one's score chooses the best model."""
    several = load(f"data.val=[{{root: {toy_set}/val}}, {{root: {toy_set}/train, name: seen}}]")
    assert saliency.best_metric(several).name == "val/max_F"
    assert saliency.best_metric(load()).name == "max_F"
    assert saliency.best_metric(load("train.best_metric=MAE")).direction == "min"
    assert saliency.prepare(several, training=False) == several
    model = saliency.build_model(several, load_weights=False)

    def scored(config):
        evaluator = saliency.build_evaluator(config)
        return evaluate(model, saliency.build_eval_loader(config), evaluator, device="cpu"), evaluator.table()

    together, table = scored(several)
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["val", "seen"]
    for name, config in (("val", load()), ("seen", load(f"data.val={{root: {toy_set}/train}}"))):
        alone, _ = scored(config)
        assert {key: together[f"{name}/{key}"] for key in METRICS} == alone


def test_sets_to_train_on_are_joined(load, toy_set):
    config = load(
        f"data.train=[{{root: {toy_set}/train}}, {{root: {toy_set}/val}}]",
        "data.size=null",
        "data.keep_aspect=true",
    )
    batch = next(iter(saliency.build_train_loader(config)))
    assert len(saliency.open_source(config, train=True)) == 12
    losses = saliency.build_model(config).train()(batch)
    assert {"loss_saliency", "loss_side"} <= set(losses)


@pytest.mark.parametrize("size", ["data.size=null", "data.size=48", "data.size=64"])
def test_batches_of_any_size_go_through(load, size):
    """Native images are grouped by their shape, padded, and come back at their own size."""
    config = load(size, "data.keep_aspect=true", "eval.batch_size=4")
    batch = next(iter(saliency.build_train_loader(config)))
    ratios = [sample["image"].shape[2] > sample["image"].shape[1] for sample in batch]
    assert len(set(ratios)) == 1
    model = saliency.build_model(config, load_weights=False)
    assert all(torch.isfinite(loss) for loss in model.train()(batch).values())
    dataset = saliency.open_source(config, train=False)
    with torch.no_grad():
        for batch in saliency.build_eval_loader(config):
            for sample, prediction in zip(batch, model.eval()(batch), strict=True):
                assert prediction["saliency"].shape == dataset.mask(sample["image_id"]).shape


def test_an_object_is_listed_by_its_box():
    assert saliency.to_records({"saliency": torch.full((4, 5), 0.5)}, 7) == []
    saliency_map = torch.zeros(6, 8)
    saliency_map[2:4, 3:6] = 0.75
    assert saliency.to_records({"saliency": saliency_map}, 7) == [
        {"image_id": 7, "category_id": 1, "bbox": [3, 2, 3, 2], "area": 6, "score": 0.75}
    ]


@pytest.mark.parametrize("name", ["sod_res2net50_duts", "sod_resnet50_duts", "sod_res2net50_test_sets"])
def test_the_recipe_is_the_published_one(name):
    """PoolNet's: Adam 5e-5, decay 5e-4, 24 epochs of ten images a step, a tenth after 15, native sizes."""
    config = load_config(ROOT / f"configs/{name}.yaml")
    optimizer, epoch = config.train.optimizer, KNOWN_SETS["DUTS-TR"] / 10
    assert (optimizer.name, optimizer.lr) == ("adam", 5e-5)
    # next to a loss summed over the pixels of an image of DUTS, 300 x 400; ours is their mean
    assert optimizer.weight_decay == pytest.approx(5e-4 / (300 * 400), rel=0.01)
    assert optimizer.norm_weight_decay is None
    assert config.train.batch_size == config.train.reference_batch == 10
    assert config.train.iterations == round(24 * epoch)
    assert config.train.schedule.milestones == [round(15 * epoch)]
    assert (config.data.size, config.data.flip, config.data.crop, config.data.rotate) == (
        None,
        0.5,
        (1, 1),
        0,
    )
    assert (config.backbone.norm, config.backbone.weights) == ("FrozenBN", "imagenet")
    sets = {Path(split.root).name for split in config.data.val}
    assert sets <= KNOWN_SETS.keys()
    assert len(sets) == (6 if "test_sets" in name else 1)


def test_the_twins_differ_in_their_backbone_alone():
    ours, theirs = (
        config_to_dict(load_config(ROOT / f"configs/sod_{name}_duts.yaml"))
        for name in ("res2net50", "resnet50")
    )
    assert (ours["backbone"].pop("name"), theirs["backbone"].pop("name")) == ("res2net50_26w_4s", "resnet50")
    assert ours["runtime"].pop("output_dir") != theirs["runtime"].pop("output_dir")
    assert ours == theirs
