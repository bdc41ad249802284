"""A training that starts from a whole model: what fits is taken, class by class, and a table says so."""

import argparse
import json
import shutil
from itertools import product

import pytest
import torch
from networks import TINY
from running import assert_one_line

import res2net_dense
from res2net_dense.cli import train as train_command
from res2net_dense.config import config_to_dict, load_config
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.tasks import get_task, training
from res2net_dense.tasks.starting import check_start, open_model, start_model
from res2net_dense.trained import open_job
from res2net_dense.weight_files import load_weights_into, open_weights, save_weights

RCNN, FASTER, RETINANET, DEEPLAB, SALIENCY, CLASSIFIER = (
    "quick/mask_rcnn_res2net50", "quick/faster_rcnn_res2net50", "retinanet_res2net50",
    "quick/deeplabv3plus_res2net50", "quick/sod_res2net50", "quick/classification_res2net50",
)  # fmt: skip
SMALL = {
    RCNN: ["model.fpn_channels=32", "model.box_head_dim=64", "model.mask_head_dim=32"],
    FASTER: ["model.fpn_channels=32", "model.box_head_dim=64"],
    RETINANET: ["model.fpn_channels=32", "backbone.weights=null"],
    DEEPLAB: ["model.smp={decoder_channels: 16}", "model.aux_weight=0.4"],
    SALIENCY: ["model.channels=16"],
    CLASSIFIER: [],
}
CLASS_LAYERS = {
    RCNN: {
        "roi_heads.box_predictor.cls_score": (1, 1, 1),
        "roi_heads.box_predictor.bbox_pred": (4, 0, 1),
        "roi_heads.mask_head.predictor": (1, 0, 1),
    },
    RETINANET: {"head.cls_score": (1, 0, 9)},
    DEEPLAB: {"segmentation_head.0": (1, 0, 1), "aux_head.4": (1, 0, 1)},
    SALIENCY: {},
    CLASSIFIER: {"backbone.fc": (1, 0, 1)},
}
"""Rows of a class, those of none, and how often the classes come."""


def config_of(name, classes, *overrides):
    names = [f"data.class_names={json.dumps(list(classes))}", f"model.num_classes={len(classes)}"]
    names = [] if name == SALIENCY else names
    return load_config(name, [f"backbone.name={TINY}", *SMALL[name], *names, *overrides])


def model_of(config, seed=0):
    torch.manual_seed(seed)
    model = get_task(config.task).build_model(config)
    for name, buffer in model.named_buffers():  # as after a training
        if "running_" in name:
            buffer += torch.rand_like(buffer)
    return model.eval()


def write(path, config, model=None, *, named=True):
    """A file of a model as a run writes it; returns the opened file and its tensors."""
    state = (model or model_of(config)).state_dict()
    about = {"metadata": json.dumps({"config": config_to_dict(config)})} if named else {}
    return open_weights(save_weights(path, state, about)), state


def started(config, file, seed=1):
    """A model that starts from a file, and the table of it."""
    model = model_of(config, seed)
    return model, start_model(config, model, file).text()


def classes_of(name):
    return ["salient object"] if name == SALIENCY else ["date", "fig", "nut"]


@pytest.mark.parametrize("name", CLASS_LAYERS)
def test_the_same_classes_give_the_same_model(name, tmp_path):
    config = config_of(name, classes_of(name))
    file, state = write(tmp_path / "w.safetensors", config)
    model, text = started(config, file)
    for key, value in model.state_dict().items():
        assert value.equal(state[key]), key
    assert not any(word in text for word in ("random", "left out", "adapted")), text


@pytest.mark.parametrize("name", [name for name in CLASS_LAYERS if name != SALIENCY])
@pytest.mark.parametrize("new", [["nut", "date", "fig"], ["walnut", "fig"], ["a", "nut", "b", "date", "c"]])
def test_rows_go_by_the_names_of_classes(name, new, tmp_path):
    old = classes_of(name)
    file, state = write(tmp_path / "w.safetensors", config_of(name, old))
    model, text = started(config_of(name, new), file)
    fresh = model_of(config_of(name, new), 1).state_dict()
    rows = CLASS_LAYERS[name]
    assert dict(model.class_layers) == rows
    for key, value in model.state_dict().items():
        layer = key.rpartition(".")[0]
        if layer not in rows:
            assert value.equal(state[key]), key
            continue
        each, background, times = rows[layer]
        for time, (label, one) in product(range(times), enumerate(new)):
            source, row, count = (state, old.index(one), len(old)) if one in old else (fresh, label, len(new))
            expected = source[key][(time * count + row) * each :][:each]
            assert value[(time * len(new) + label) * each :][:each].equal(expected), (key, one)
        assert value[len(value) - background :].equal(state[key][times * len(old) * each :]), key
    kept = [one for one in new if one in old]
    others = [one for one in new if one not in old]
    assert f"adapted: {', '.join(kept)} " in text
    assert f"randomly initialized: {', '.join(others)}" in text if others else "random" not in text
    assert "trained on date, fig, nut" in text


def test_logits_agree_by_name(tmp_path):
    old, new = ["date", "fig", "nut"], ["nut", "acorn", "date"]
    images = torch.rand(2, 3, 64, 64)
    for name in (CLASSIFIER, DEEPLAB):
        file, _ = write(tmp_path / "w.safetensors", config_of(name, old))
        compute = {
            CLASSIFIER: lambda model: model.backbone(images),
            DEEPLAB: lambda model: model.logits(images),
        }
        before = compute[name](model_of(config_of(name, old)))
        after = compute[name](started(config_of(name, new), file)[0])
        torch.testing.assert_close(after[:, [2, 0]], before[:, [0, 2]])


def test_boxes_and_masks_agree_by_name(tmp_path):
    old, new = ["date", "fig", "nut"], ["nut", "acorn", "date"]
    settings = ["model.score_threshold=0.0", "model.nms_threshold=1.0", "model.detections_per_image=3000"]
    configs = [config_of(RCNN, names, *settings) for names in (old, new)]
    file, _ = write(tmp_path / "w.safetensors", configs[0])
    sample = {"image": torch.rand(3, 64, 64) * 255, "original_height": 64, "original_width": 64}
    found = []
    for config, model in zip(configs, (model_of(configs[0]), started(configs[1], file)[0]), strict=True):
        prediction = model([sample])[0]
        is_nut = prediction["labels"] == config.data.class_names.index("nut")
        found.append([prediction[key][is_nut] for key in ("boxes", "masks")])
    assert len(found[0][0]) > 10
    # Scores are shares among all classes, which differ: so does the order.
    order = [sorted(range(len(boxes)), key=boxes.tolist().__getitem__) for boxes, _ in found]
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after[order[1]], before[order[0]])


def test_the_table(tmp_path):
    file, _ = write(tmp_path / "w.safetensors", config_of(RCNN, ["date", "fig"]))
    text = started(config_of(FASTER, ["fig", "nut"], "model.anchor_sizes=[8,16,32,64,128]"), file)[1]
    assert text.splitlines() == [
        f"model.weights: {tmp_path}/w.safetensors, trained on date, fig",
        "part                               tensors  what became of them",
        "backbone                               150  loaded",
        "backbone.fpn_lateral                    12  loaded",
        "backbone.fpn_output                     12  loaded",
        "proposal_generator.rpn_head              6  loaded",
        "roi_heads.box_head                       4  loaded",
        "roi_heads.box_predictor.cls_score        2  "
        "adapted: fig and the background copied; randomly initialized: nut",
        "roi_heads.box_predictor.bbox_pred        2  adapted: fig copied; randomly initialized: nut",
        "roi_heads.mask_head                     10  left out: the model has no such tensors",
        "not as in the file: model.anchor_sizes [16.0, 32.0, 64.0, 128.0, 256.0] -> "
        "[8.0, 16.0, 32.0, 64.0, 128.0], model.arch mask_rcnn -> faster_rcnn, model.roi_batch 64 -> 128",
    ]


def test_layers_of_another_shape_are_random_and_reported(tmp_path):
    file, state = write(tmp_path / "w.safetensors", config_of(RCNN, ["date"]))
    model, text = started(config_of(RCNN, ["date"], "model.fpn_channels=64"), file)
    assert "randomly initialized: of another shape in the file (32x16x1x1 for 64x16x1x1)" in text
    assert "model.fpn_channels 32 -> 64" in text
    assert model.roi_heads.mask_head.deconv.weight.equal(state["roi_heads.mask_head.deconv.weight"])
    # A layer is taken whole or not at all: its bias would fit.
    assert not model.roi_heads.box_head.fc1.bias.equal(state["roi_heads.box_head.fc1.bias"]) or (
        not state["roi_heads.box_head.fc1.bias"].any()
    )


@pytest.mark.parametrize("name", [RCNN, DEEPLAB, CLASSIFIER])
def test_a_file_without_names_of_classes(name, tmp_path):
    file, state = write(tmp_path / "w.safetensors", config_of(name, ["date", "fig", "nut"]), named=False)
    model, text = started(config_of(name, ["x", "y", "z"]), file)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert text.count("loaded in the order of the file") == len(CLASS_LAYERS[name])
    assert "trained on" not in text
    model, text = started(config_of(name, ["x", "y"]), file)
    assert text.count("whose classes have no names") == len(CLASS_LAYERS[name])
    fresh = model_of(config_of(name, ["x", "y"]), 1).state_dict()
    for layer in CLASS_LAYERS[name]:
        assert model.state_dict()[f"{layer}.weight"].equal(fresh[f"{layer}.weight"])


def test_names_that_are_not_those_of_the_rows_are_reported(tmp_path):
    """Such as OpenMMLab's of a set whose head was changed."""
    config = config_of(CLASSIFIER, ["date", "fig"])
    own = model_of(config).state_dict()
    torch.save({"meta": {"CLASSES": ["fig", "date", "nut"]}, "state_dict": own}, tmp_path / "w.pth")
    model, text = started(config, open_model(tmp_path / "w.pth"))
    assert "loaded in the order of the file: its 3 names are not those of the rows" in text
    assert model.backbone.fc.weight.equal(own["backbone.fc.weight"])


def test_layers_that_serve_all_classes_are_taken_as_they_are(tmp_path):
    one_for_all = "model.detectron2={MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: true}"
    file, state = write(tmp_path / "w.safetensors", config_of(RCNN, ["date", "fig"], one_for_all))
    key = "roi_heads.box_predictor.bbox_pred.weight"
    for classes in (["fig"], ["nut", "fig", "date"]):
        model, _ = started(config_of(RCNN, classes, one_for_all), file)
        assert model.state_dict()[key].equal(state[key])
    text = started(config_of(RCNN, ["nut", "fig", "date"]), file)[1]
    assert "bbox_pred        2  randomly initialized: of another shape" in text


@pytest.mark.parametrize(("name", "other"), [(RCNN, DEEPLAB), (DEEPLAB, SALIENCY), (CLASSIFIER, RCNN)])
def test_another_task_takes_the_backbone_alone(name, other, tmp_path):
    classes = ["date", "fig"]
    config = config_of(other, ["salient object"] if other == SALIENCY else classes)
    source = config_of(name, classes)
    state = model_of(source).state_dict()
    # What has the name of a layer of the model is not that layer.
    alike = {key: value + 1 for key, value in model_of(config).state_dict().items() if "backbone" not in key}
    content = {"model": {**alike, **state}, "metadata": {"config": config_to_dict(source)}}
    torch.save(content, tmp_path / "w.pth")
    model, text = started(config, open_model(tmp_path / "w.pth"))
    place = getattr(model, "backbone_path", "backbone")
    theirs = {RCNN: "backbone.bottom_up.net"}.get(name, "backbone")
    for key, value in model.get_submodule(place).state_dict().items():
        assert value.equal(state[f"{theirs}.{key}"]), key
    fresh = model_of(config, 1).state_dict()
    others = {key: value for key, value in model.state_dict().items() if not key.startswith(f"{place}.")}
    assert others
    assert all(value.equal(fresh[key]) for key, value in others.items())
    task = get_task(config_of(name, classes).task).name
    assert f"the file is of task {task}: its backbone alone is taken" in text
    assert "randomly initialized: not in the file" in text
    assert "left out: " in text


WRAPPERS = {
    "DataParallel": lambda own: {f"module.{key}": value for key, value in own.items()},
    "compiled": lambda own: {f"_orig_mod.{key}": value for key, value in own.items()},
    "both": lambda own: {"model": {f"module._orig_mod.{key}": value for key, value in own.items()}},
    "Lightning": lambda own: {"state_dict": {f"model.{key}": value for key, value in own.items()}},
    "with a loss": lambda own: {
        "state_dict": {f"net.{key}": value for key, value in own.items()} | {"loss.weight": torch.zeros(3)}
    },
    "model_state_dict": lambda own: {"model_state_dict": own, "epoch": 3},
    "net": lambda own: {"net": own},
    "moving average": lambda own: {
        "model": {key: value + 1 for key, value in own.items()},
        "model_ema": {f"module.{key}": value for key, value in own.items()} | {"n_averaged": torch.tensor(3)},
    },
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("name", [RCNN, CLASSIFIER])
def test_wrappers_of_whole_models_are_understood(name, wrap, tmp_path):
    config = config_of(name, ["date", "fig"])
    own = model_of(config).state_dict()
    torch.save(WRAPPERS[wrap](own), tmp_path / "w.pth")
    model, text = started(config, open_model(tmp_path / "w.pth"))
    for key, value in model.state_dict().items():
        assert value.equal(own[key]), key
    assert "random" not in text
    assert ("left out" in text) == (wrap == "with a loss")
    other = model_of(config, 2)
    if wrap == "with a loss":
        with pytest.raises(CheckpointError, match=r"1 unexpected: loss\.weight: .*model\.weights starts"):
            load_weights_into(other, tmp_path / "w.pth")
    else:
        load_weights_into(other, tmp_path / "w.pth")
        assert all(value.equal(own[key]) for key, value in other.state_dict().items())


def test_weights_for_rgb_start_a_model_of_other_channels(tmp_path):
    file, state = write(tmp_path / "w.safetensors", config_of(CLASSIFIER, ["date", "fig"]))
    four = ["data.channels=4", "model.pixel_mean=[1,1,1,1]", "model.pixel_std=[1,1,1,1]"]
    model, text = started(config_of(CLASSIFIER, ["date", "fig"], *four), file)
    assert "loaded; conv1.weight adapted from 3 to 4 input channels" in text
    torch.testing.assert_close(model.backbone.conv1.weight[:, 0], 0.75 * state["backbone.conv1.weight"][:, 0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["backbone.name=test_res2net_v1b"], ["test_res2net_v1b"]),
        (["backbone.stage_pool=strided"], ["backbone.stage_pool="]),
        (["backbone.norm=GN"], ["batch norm", "group norm"]),
        (["model.pixel_mean=[0,0,0]", "model.pixel_std=[1,1,1]"], ["'model.pixel_mean=[123.675, "]),
        (["model.norm=BN"], ["model.norm=BN", "'model.norm=GN'"]),
    ],
    ids=str,
)
def test_another_network_of_the_same_tensors_is_refused(changes, words, tmp_path):
    file, _ = write(tmp_path / "w.safetensors", config_of(RCNN, ["date"]))
    with pytest.raises(CheckpointError) as caught:
        started(config_of(RCNN, ["date"], *changes), file)
    assert_one_line(caught, str(tmp_path / "w.safetensors"), *words)


def test_files_without_a_backbone_and_with_broken_numbers_are_refused(tmp_path):
    config = config_of(RCNN, ["date"])
    own = model_of(config).state_dict()
    heads = {key: value for key, value in own.items() if not key.startswith("backbone.bottom_up")}
    key = "roi_heads.box_head.fc1.bias"
    broken = {**own, key: torch.full_like(own[key], torch.nan)}
    files = ({"a": torch.zeros(1)}, []), (heads, []), ({}, []), (broken, [key, "not finite"])
    for content, words in files:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError) as caught:
            started(config, open_model(tmp_path / "w.pth"))
        assert_one_line(caught, str(tmp_path / "w.pth"), *words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is it a run folder"):
        open_model(tmp_path / "empty")


def test_what_model_weights_takes():
    for weights, words in (("in1k", ["backbone.weights"]), ("no/such.pth", ["does not exist"])):
        with pytest.raises(ConfigError) as caught:
            check_start(config_of(CLASSIFIER, ["date"], f"model.weights={weights}"))
        assert_one_line(caught, "model.weights", *words)
    check_start(config_of(CLASSIFIER, ["date"], "model.weights=.", "backbone.weights=no_such_tag"))
    with pytest.raises(CheckpointError, match="no weights of test_res2net"):
        check_start(config_of(CLASSIFIER, ["date"], "backbone.weights=no_such_tag"))


def test_detectron2s_key_names_both_settings():
    config = config_of(RCNN, ["date"], "model.detectron2={MODEL.WEIGHTS: x.pkl}")
    with pytest.raises(ConfigError, match=r"backbone\.weights, or model\.weights"):
        get_task(config.task).build_model(config)


CONFIG = SALIENCY


def test_a_training_starts_from_a_run_and_does_not_need_it_later(load, train, tmp_path, capsys):
    source, start = tmp_path / "source", f"model.weights={tmp_path / 'source'}"
    train(load("data.val=null"))
    (tmp_path / "run").rename(source)
    before = open_model(source).state_dict
    capsys.readouterr()
    config = load(start, "data.val=null", "backbone.weights=imagenet", "train.optimizer.backbone_lr_factor=0")
    train(config)
    printed = capsys.readouterr().out
    assert f"model.weights: {source}/" in printed
    assert printed.index("what became of them") < printed.index("2 iterations of 4 images")
    assert "backbone.weights=imagenet has no effect" in printed
    after = open_model(tmp_path / "run").state_dict
    same = {key for key, value in after.items() if value.equal(before[key])}
    assert {"backbone.conv1.weight", "backbone.layer4.0.conv3.weight"} <= same
    assert not any(key.startswith("decoder.") and key.endswith("weight") for key in same)

    shutil.rmtree(source)
    prepared = get_task(config.task).prepare(config, weights=False)  # as --resume does
    training.train_and_evaluate(prepared, torch.device("cpu"), tmp_path / "run", resume=True)
    assert "what became of them" not in capsys.readouterr().out
    job, _ = open_job(None, tmp_path / "run")
    assert job.config.model.weights == str(source)
    assert job.model(job.with_classes()).state_dict().keys() == after.keys()
    with pytest.raises(ConfigError, match=r"model\.weights: .*source does not exist"):
        get_task(config.task).prepare(config)


def test_weights_of_the_command_are_model_weights(monkeypatch):
    given = {}

    class Result:
        as_expected = True

    monkeypatch.setattr(res2net_dense, "train", lambda config, **settings: given.update(settings) or Result())
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    code = train_command.main(parser.parse_args(["--config", "x", "--weights", "a b/run", "train.seed=1"]))
    assert code == 0
    assert given["overrides"] == ["train.seed=1", 'model.weights="a b/run"']
