"""Semantic segmentation from a config: what the task builds, and which weights fit it."""

import json

import numpy as np
import pytest
import torch
from running import assert_one_line
from safetensors.torch import save_file

from res2net_dense.config import config_to_dict
from res2net_dense.engine import distributed
from res2net_dense.errors import ConfigError
from res2net_dense.tasks import get_task
from res2net_dense.trained import Job
from res2net_dense.weight_files import open_weights

segmentation = get_task("semantic_segmentation")
CONFIG = "quick/deeplabv3plus_res2net50"


@pytest.fixture
def prepared(load):
    """The config with what its data say."""
    return lambda *overrides: segmentation.prepare(load(*overrides))


def test_prepare_fills_in_the_classes(prepared):
    config = prepared()
    assert config.data.class_names == ["background", "circle", "rectangle", "triangle", "star"]
    assert config.model.num_classes == 5


def test_the_masks_themselves_score_100(prepared):
    config = prepared()
    evaluator = segmentation.build_evaluator(config)
    for batch in segmentation.build_eval_loader(config):
        for sample in batch:
            assert "sem_seg" not in sample  # the evaluator reads the truth itself
            mask = evaluator._read_mask(sample["image_id"]).astype(np.int64)
            mask[mask == 255] = 0
            evaluator.process([sample], [{"sem_seg": torch.from_numpy(mask)}])
    results = evaluator.evaluate()
    assert all(value == 100 or np.isnan(value) for value in results.values()), results
    assert results["mIoU"] == 100
    assert "mIoU" in evaluator.table()


def test_training_takes_batches_of_crops_the_same_every_time(prepared):
    config = prepared()
    first, second = (next(iter(segmentation.build_train_loader(config))) for _ in range(2))
    assert len(first) == 4
    for one, two in zip(first, second, strict=True):
        assert one["image"].shape == (3, 64, 64)
        assert one["sem_seg"].shape == (64, 64)
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["sem_seg"], two["sem_seg"])


def test_accumulated_parts_of_one_image_train(load, train, tmp_path):
    """One image at a time, batch norm in the decoder: finite weights at the end."""
    train(load("train.accumulate=4", "model.norm=BN", "train.precision=fp32", "data.val=null"))
    state = torch.load(tmp_path / "run/checkpoints/iter_0000002.pt")["model"]
    assert all(bool(torch.isfinite(value.float()).all()) for value in state.values())


def test_records_are_the_areas_of_the_labels():
    assert segmentation.to_records({"sem_seg": torch.tensor([[0, 0, 2]])}, 7) == [
        {"image_id": 7, "category_id": 0, "area": 2},
        {"image_id": 7, "category_id": 2, "area": 1},
    ]


def test_views_of_the_evaluation_reach_the_model(prepared):
    views = ["eval.scales=[0.5,1.0]", "eval.flip=true", "eval.window=64", "eval.window_stride=32"]
    config = prepared(*views)
    model = segmentation.build_model(config)
    batch = next(iter(segmentation.build_eval_loader(config)))
    with torch.no_grad():
        seen = model.eval()(batch)[0]["sem_seg"]
    assert model.views == {"scales": [0.5, 1.0], "flip": True, "window": 64, "window_stride": 32}
    assert seen.shape == (96, 96)


@pytest.fixture
def weights(prepared, tmp_path):
    """A weight file of the quick config, as a run leaves it."""
    config = prepared()
    metadata = {"metadata": json.dumps({"config": config_to_dict(config)})}
    save_file(segmentation.build_model(config).state_dict(), tmp_path / "w.safetensors", metadata)
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


def test_sync_batch_norm_without_gpus_is_refused(prepared, monkeypatch):
    model = segmentation.build_model(prepared("model.norm=SyncBN"))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError) as error:
        distributed.wrap(model)
    assert_one_line(error, "SyncBN needs GPUs", "2 processes", "model.norm")
