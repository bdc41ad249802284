"""Salient objects from a config: what the task builds, and the recipes."""

from pathlib import Path

import pytest
import torch

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.data.layouts.saliency_sets import KNOWN_SETS
from res2net_dense.engine.inference import evaluate
from res2net_dense.evaluation.saliency import METRICS
from res2net_dense.tasks import get_task

saliency = get_task("saliency")
CONFIG = "quick/sod_res2net50"


def score(model, config):
    """The scores of a model, and their table."""
    evaluator = saliency.build_evaluator(config)
    return evaluate(model, saliency.build_eval_loader(config), evaluator, device="cpu"), evaluator.table()


class Oracle(torch.nn.Module):
    """Predicts the mask of each image."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def forward(self, batch):
        return [{"saliency": torch.from_numpy(self.dataset.mask(s["image_id"]).astype("f4"))} for s in batch]


def test_the_masks_themselves_have_no_error(load):
    config = load()
    scores, _ = score(Oracle(saliency.open_source(config, train=False)), config)
    assert set(scores) == set(METRICS)
    for name in ("max_F", "adaptive_F", "weighted_F", "S", "max_E", "max_IoU"):
        # E is divided by one pixel less than there are, as published
        assert scores[name] == pytest.approx(1, abs=1e-3 if name == "max_E" else 1e-6), name
    assert scores["MAE"] == 0


def test_several_sets_are_scored_apart(load, toy_folder):
    """Each as if it were alone, and the first one's score chooses the best model."""
    several = load(f"data.val=[{{root: {toy_folder}/val}}, {{root: {toy_folder}/train, name: seen}}]")
    assert saliency.best_metric(several).name == "val/max_F"
    assert saliency.best_metric(load()).name == "max_F"
    assert saliency.best_metric(load("train.best_metric=MAE")).direction == "min"
    assert saliency.prepare(several, training=False) == several
    model = saliency.build_model(several, load_weights=False)
    together, table = score(model, several)
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["val", "seen"]
    for name, config in (("val", load()), ("seen", load(f"data.val={{root: {toy_folder}/train}}"))):
        alone, _ = score(model, config)
        assert {key: together[f"{name}/{key}"] for key in METRICS} == alone


def test_sets_to_train_on_are_joined(load, toy_folder, capsys):
    parts = f"data.train=[{{root: {toy_folder}/train}}, {{root: {toy_folder}/val}}]"
    config = load(parts, "data.size=null", "data.keep_aspect=true")
    batch = next(iter(saliency.build_train_loader(config)))
    assert len(saliency.open_source(config, train=True)) == 12
    said = capsys.readouterr().out
    assert said.startswith("data.train: 12 images of ")
    assert said.endswith(", 1 class: salient object\n")
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
    config = load_config(name)
    optimizer, data, epoch = config.train.optimizer, config.data, KNOWN_SETS["DUTS-TR"] / 10
    assert (optimizer.name, optimizer.lr) == ("adam", 5e-5)
    # next to a loss summed over the pixels of an image of DUTS, 300 x 400; ours is their mean
    assert optimizer.weight_decay == pytest.approx(5e-4 / (300 * 400), rel=0.01)
    assert optimizer.norm_weight_decay is None
    assert config.train.batch_size == config.train.reference_batch == 10
    assert config.train.iterations == round(24 * epoch)
    assert config.train.schedule.milestones == [round(15 * epoch)]
    assert (data.size, data.flip, data.crop, data.rotate) == (None, 0.5, (1, 1), 0)
    assert (config.backbone.norm, config.backbone.weights) == ("FrozenBN", "imagenet")
    sets = {Path(split.root).name for split in data.val}
    assert sets <= KNOWN_SETS.keys()
    assert len(sets) == (6 if "test_sets" in name else 1)


def test_the_twins_differ_in_their_backbone_alone():
    ours, theirs = (config_to_dict(load_config(f"sod_{name}_duts")) for name in ("res2net50", "resnet50"))
    assert (ours["backbone"].pop("name"), theirs["backbone"].pop("name")) == ("res2net50_26w_4s", "resnet50")
    assert ours["runtime"].pop("output_dir") != theirs["runtime"].pop("output_dir")
    assert ours == theirs
