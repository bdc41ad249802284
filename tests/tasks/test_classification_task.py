"""The classification task from a config: networks, weights, CIFAR, DCN, resuming."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from networks import TINY, TINY_CIFAR, TINY_RESNET
from running import score
from safetensors.torch import load_file

from res2net_dense.backbones import create_classifier
from res2net_dense.config.load import CONFIGS
from res2net_dense.data.layouts import cifar
from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.tasks import get_task
from res2net_dense.trained import open_job

classification = get_task("classification")
CONFIG = "quick/classification_res2net50"
REAL = ["resnet50", "se_res2net50_26w_4s", "res2next29_6c_24w_4s"]


def test_every_task_has_a_configuration():
    for name, config_class in CONFIGS.items():
        task = get_task(name)
        assert (task.name, task.config_class) == (name, config_class)


def test_the_top_five_of_four_classes_choose_no_checkpoint(load, toy_folder, tmp_path):
    for place in sorted((toy_folder / "train").iterdir())[:5]:
        shutil.copytree(place, tmp_path / "some" / place.name)
    both = f"data.train={tmp_path}/some", f"data.val={tmp_path}/some"
    classification.prepare(load(*both, "train.best_metric=top5"))
    shutil.rmtree(tmp_path / "some" / place.name)
    config = load(*(text.replace("/some", "/./some") for text in both), "train.best_metric=top5")
    said = "'top5'; did you mean top1.* there are top1, mean_class_accuracy, top1/"
    with pytest.raises(ConfigError, match=said):
        classification.prepare(config)


def test_training_says_what_it_learns_from(load, train, toy_folder, tmp_path, capsys, caplog):
    shutil.copytree(toy_folder / "train", tmp_path / "train")
    (tmp_path / "train/star/list.txt").write_text("x")
    train(load(f"data.train={tmp_path}/train"))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("data.train: ")]
    names = sorted(path.name for path in (toy_folder / "train").iterdir())
    folder = tmp_path / "train"
    assert said == [f"data.train: 20 images of {folder}, 10 classes: {', '.join(names[:5])}, ..."]
    assert caplog.text.count("left out: 1 files do not end as images do: star/list.txt") == 1


def test_a_class_without_validation_images_is_not_scored(load, train, toy_folder, tmp_path, caplog):
    shutil.copytree(toy_folder / "val", tmp_path / "val")
    shutil.rmtree(tmp_path / "val/star")
    with caplog.at_level(logging.WARNING):
        metrics = train(load(f"data.val={tmp_path / 'val'}"))
    assert "1 of 10 classes have no image, such as star" in caplog.text
    assert json.loads((tmp_path / "run/results.json").read_text())["top1/star"] is None
    assert np.isnan(metrics["top1/star"])


@pytest.mark.parametrize(
    "name",
    [
        TINY_RESNET, TINY_CIFAR, "res2net_dla60",
        *(pytest.param(name, marks=pytest.mark.slow) for name in REAL),
    ],
)  # fmt: skip
def test_every_kind_of_network_trains_by_the_same_config(name, load, train, capsys, monkeypatch):
    for method in ("save", "save_best"):  # checkpoints of large networks, which other tests read
        monkeypatch.setattr(Checkpointer, method, lambda *arguments: None)
    metrics = train(load(f"backbone.name={name}", "data.crop_size=16", "train.precision=fp32"))
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100
    printed = capsys.readouterr().out
    assert f"classifier on {name}" in printed
    assert f"best top1: {metrics['top1']:.4g} after iteration " in printed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deformable_stages_train_save_load_and_evaluate(load, train, tmp_path, precision):
    dcn = "backbone.dcn_stages=[res4, res5]"
    options = [dcn, f"train.precision={precision}", "train.channels_last=false"]
    metrics = train(load(*options))
    weights = load_file(tmp_path / "run/model_best.safetensors")
    offsets = [key for key in weights if key.endswith("conv_offset.weight")]
    assert any("layer3" in key for key in offsets)
    assert any(weights[key].any() for key in offsets)  # they start at 0 and have learnt
    assert score(classification.prepare(load(*options), training=False)) == pytest.approx(
        metrics, nan_ok=True
    )
    with pytest.raises(CheckpointError, match="does not fit"):
        score(classification.prepare(load(), training=False))


def test_published_weights_are_evaluated_with_their_head(load, tmp_path, caplog):
    with pytest.raises(CheckpointError, match="no checkpoint under"):
        open_job(load())
    torch.manual_seed(0)
    net, path = create_classifier(TINY, 10), tmp_path / "plain.pth"
    torch.save(net.state_dict(), path)
    config = load(f"backbone.weights={path}", "train.precision=fp32")
    assert not open_job(config)[0].is_whole
    config = classification.prepare(config, training=False)
    metrics = score(config)
    assert "randomly initialized" not in caplog.text

    torch.save({f"backbone.{key}": value for key, value in net.state_dict().items()}, path)
    assert score(load("train.precision=fp32", "model.num_classes=10"), path) == metrics

    torch.save(create_classifier(TINY, 1000).state_dict(), path)
    with pytest.raises(CheckpointError, match="a head of 1000 classes, the config has 10"):
        score(config)


def test_cifar_is_trained_and_scored(load, train, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "TRAIN_SIZE", 20)
    monkeypatch.setattr(cifar, "TEST_SIZE", 20)
    rng = np.random.default_rng(0)
    labels, pixels = rng.integers(0, 100, 20), rng.integers(0, 256, (20, 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records = np.concatenate([labels[:, None], labels[:, None], pixels], axis=1).astype(np.uint8)
    for part in ("train", "test"):
        (folder / f"{part}.bin").write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"thing_{n}" for n in range(100)))
    data = [f"data.train={folder}", f"data.val={folder}", "data.resize_size=32"]
    config = load(*data, "train.schedule.milestones=[]", config="classification_res2next29_cifar100")
    assert "top1/thing_99" in train(config)


def test_a_run_of_an_older_version_is_resumed(load, train, tmp_path):
    """Its configuration lacks what came later; another setting is still another run."""
    train(load())
    newest = tmp_path / "run/checkpoints/iter_0000002.pt"
    state = torch.load(newest)
    for section, key in (("backbone", "stage_split"), ("model", "keep_head"), ("data", "flip")):
        del state["metadata"]["config"][section][key]
    torch.save(state, newest)
    newest.with_suffix(".pt.sha256").write_text(f"{hashlib.sha256(newest.read_bytes()).hexdigest()}  x\n")
    train(load(), resume=True)
    with pytest.raises(ConfigError, match="data.flip was 0.5 and is 0.3"):
        train(load("data.flip=0.3"), resume=True)


def test_another_validation_set_may_be_given_on_resuming(load, train):
    train(load("data.val=null"))
    assert "top1" in train(load(), resume=True)


def test_a_dry_run_takes_two_steps(load, train, tmp_path):
    train(load("train.iterations=500", "train.save_every=1"), dry_run=True)
    checkpoints = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.pt"))
    assert checkpoints == ["iter_0000001.pt", "iter_0000002.pt"]


def test_records_are_the_likeliest_classes():
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0, -2.0, -3.0])
    records = classification.to_records({"logits": logits}, 9)
    assert [record["category_id"] for record in records] == [2, 4, 3, 1, 5]
    best = logits.softmax(0)[[1, 3, 2, 0, 4]].tolist()
    assert [record["score"] for record in records] == pytest.approx(best)
    assert {record["image_id"] for record in records} == {9}
    assert len(classification.to_records({"logits": logits[:2]}, 9)) == 2
