"""Weights that are scored: those of this network, with its classes, or a reason why not."""

import json

import pytest
import torch
from networks import TINY

from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.tasks import get_task
from res2net_dense.tasks.training import check_same_run
from res2net_dense.trained import Job, open_job
from res2net_dense.weight_files import open_weights, save_weights

CLASSES = ["circle", "square", "star"]


def config_of(**changes):
    """A classifier's configuration; `backbone__norm_eps=...` changes one setting."""
    data = {
        "task": "classification",
        "backbone": {"name": TINY},
        "model": {"arch": "classifier"},
        "data": {"val": "val", "crop_size": 32, "resize_size": 36},
        "train": {"iterations": 1, "batch_size": 2, "optimizer": {"lr": 0.1}},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data[section][name] = value
    return parse_config(data)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a run, with its configuration."""
    config = config_of(data__class_names=CLASSES, model__num_classes=3)
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    return open_weights(save_weights(path, {"a": torch.zeros(1)}, metadata))


def test_classes_come_from_the_weights(weights):
    config = Job(config_of(), weights).with_classes()
    assert config.data.class_names == CLASSES
    assert config.model.num_classes == 3
    with pytest.raises(ConfigError, match="trained on the classes circle, square, star, but"):
        Job(config_of(data__class_names=CLASSES[::-1]), weights).with_classes()
    with pytest.raises(ConfigError, match="trained on 3 classes, but model.num_classes is 1000"):
        Job(config_of(model__num_classes=1000), weights).with_classes()


@pytest.mark.parametrize(
    "change",
    [
        {"backbone__stride_in_1x1": True},
        {"backbone__norm_eps": 0.1},
        {"backbone__stage_pool": "strided"},
        {"backbone__name": "res2net50_26w_4s"},
        {"model__pixel_mean": [0.0, 0.0, 0.0]},
    ],
    ids=str,
)
def test_another_network_of_the_same_tensors_is_refused(weights, change):
    key = next(iter(change)).replace("__", ".")
    with pytest.raises(ConfigError, match=f"trained with {key}=.*use the config.yaml of its run"):
        Job(config_of(**change), weights).with_classes()


def test_another_task_is_refused_before_all_other_differences(weights):
    detector = parse_config(
        {
            "task": "detection",
            "backbone": {"name": TINY},
            "model": {"arch": "faster_rcnn"},
            "train": {"iterations": 1, "batch_size": 2, "optimizer": {"lr": 0.1}},
        }
    )
    with pytest.raises(ConfigError, match="trained with task=classification, the config has detection"):
        Job(detector, weights).with_classes()
    with pytest.raises(ConfigError, match="but task was 'classification' and is 'detection'; "):
        check_same_run(weights.config, detector)


def test_a_run_folder_and_published_weights_are_not_confused(tmp_path, monkeypatch):
    config = config_of(data__class_names=CLASSES, model__num_classes=3)
    model = get_task("classification").build_model(config)
    checkpoint = tmp_path / "iter_1.pt"
    torch.save({"model": model.state_dict(), "metadata": {"config": config_to_dict(config)}}, checkpoint)
    monkeypatch.setattr(Checkpointer, "open_latest", lambda self: open_weights(checkpoint))
    assert open_job(config)[0].weights.path == checkpoint
    other = config_of(backbone__weights="imagenet")
    with pytest.raises(CheckpointError, match="did not start from imagenet: give --weights"):
        open_job(other)
    assert open_job(other, checkpoint)[0].weights.path == checkpoint


def test_one_image_and_batch_norm():
    config = config_of(data__class_names=CLASSES, model__num_classes=3)
    model = get_task("classification").build_model(config).train()
    sample = {"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "label": 1}
    with pytest.raises(ConfigError, match="raise train.batch_size"):
        model([sample])
    assert model([sample, sample])["loss_cls"].isfinite()
