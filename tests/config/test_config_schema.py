"""The schema: documented, bounded, strict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from res2net_dense.backbones import create_backbone
from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.config.schema import BackboneConfig
from res2net_dense.errors import ConfigError


def minimal(**sections: Any) -> dict[str, Any]:
    return {
        "task": "detection",
        "backbone": {"name": "res2net50_26w_4s"},
        "model": {"arch": "mask_rcnn"},
        "train": {"iterations": 10, "batch_size": 4, "optimizer": {"lr": 0.1}},
        **sections,
    }


def classification(**sections: Any) -> dict[str, Any]:
    shared = {key: value for key, value in minimal().items() if key != "model"}
    return {**shared, "task": "classification", **sections}


def train(**changes: Any) -> dict[str, Any]:
    return {"iterations": 10, "batch_size": 4, "optimizer": {"lr": 0.1}, **changes}


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


ALL_SECTIONS = sorted(
    {section for config in CONFIGS.values() for section in sections(config)}, key=lambda s: s.__name__
)


def test_every_section_is_found() -> None:
    names = {section.__name__ for section in ALL_SECTIONS}
    assert {"SegmentationConfig", "BackboneConfig", "CocoPart", "VocBoxesPart"} <= names
    assert len(names) == 29


@pytest.mark.parametrize("section", ALL_SECTIONS)
def test_every_field_is_described(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert field.description.endswith("."), f"{section.__name__}.{name}"


def test_every_default_is_allowed() -> None:
    data = config_to_dict(parse_config(minimal()))
    assert config_to_dict(parse_config(data)) == data


def segmentation(**sections: Any) -> dict[str, Any]:
    return {**minimal(), "task": "semantic_segmentation", "model": {"arch": "unet"}, **sections}


def test_defaults_of_segmentation() -> None:
    config = parse_config(segmentation())
    assert (config.data.crop_size, config.data.scale, config.data.base_size) == (513, (0.5, 2.0), None)
    assert (config.eval.scales, config.eval.window) == ([1.0], None)
    assert parse_config(config_to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"arch": "dpt"}}, "model.arch = 'dpt'"),
        ({"model": {"arch": "unet", "output_stride": 4}}, "model.output_stride = 4"),
        ({"model": {"arch": "unet", "num_classes": 2, "class_weights": [1.0]}}, "one for each of 2 classes"),
        ({"model": {"arch": "unet", "class_weights": [0.0, 0.0]}}, "at least one must be above 0"),
        ({"data": {"scale": [2.0, 0.5]}}, "data.scale"),
        ({"data": {"min_size_test": 4000}}, "data.min_size_test = 4000"),
        ({"eval": {"scales": []}}, "eval.scales"),
        ({"eval": {"window_stride": 3}}, "eval.window_stride = 3"),
        ({"eval": {"window": 3, "window_stride": 4}}, "must not exceed eval.window"),
    ],
)
def test_segmentation_that_has_no_meaning(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(segmentation(**changes))
    assert said in str(error.value)


def test_defaults_of_the_classifier() -> None:
    config = parse_config(classification())
    assert (config.model.arch, config.model.num_classes) == ("classifier", None)
    assert (config.data.crop_size, config.data.resize_size) == (224, 256)
    assert parse_config(config_to_dict(config)) == config


def test_the_backbone_has_a_field_for_each_semantics_of_the_networks() -> None:
    """A checkpoint that needs one could not be loaded otherwise."""
    fields = BackboneConfig.model_fields
    for name in ("res2net50_26w_4s", "resnet50", "dla60"):
        for option, default in create_backbone(name, out_features=["res2"]).semantics.items():
            assert fields[option].default == default, option


def test_defaults_of_the_detector() -> None:
    config = parse_config(minimal())
    assert config.model.arch == "mask_rcnn"
    assert config.model.anchor_sizes == [32, 64, 128, 256, 512]
    assert config.train.optimizer.betas == (0.9, 0.999)
    assert config.data.train is None
    assert config.runtime.output_dir == "output/run"


def test_config_is_frozen() -> None:
    config = parse_config(minimal())
    with pytest.raises(ValidationError):
        config.train.batch_size = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("backbone", {"name": ""}, "backbone.name"),
        ("backbone", {"name": "x", "freeze_at": 6}, "backbone.freeze_at"),
        ("backbone", {"name": "x", "freeze_at": True}, "backbone.freeze_at"),
        ("backbone", {"name": "x", "norm": "bn"}, "'FrozenBN'"),
        ("model", {"arch": "faster_rcnn", "mask_head_convs": 2}, "unknown key 'model.mask_head_convs'"),
        ("model", {"arch": "yolo"}, "model.arch = 'yolo': expected one of 'mask_rcnn', 'faster_rcnn'"),
        ("model", {}, "model.arch is missing; expected one of 'mask_rcnn', 'faster_rcnn'"),
        ("model", {"arch": "mask_rcnn", "anchor_sizes": [1, 2]}, "model.anchor_sizes"),
        ("model", {"arch": "mask_rcnn", "anchor_sizes": [1, 2, 3, 4, -5]}, "model.anchor_sizes[4] = -5"),
        ("model", {"arch": "mask_rcnn", "pixel_mean": [1.0, 2.0]}, "model.pixel_mean"),
        ("data", {"min_size_train": []}, "data.min_size_train"),
        ("data", {"min_size_train": [160], "max_size_train": 100}, "must not exceed max_size_train = 100"),
        ("data", {"min_size_test": 160, "max_size_test": 100}, "must not exceed max_size_test = 100"),
        ("data", {"class_names": ["a", "a"]}, "data.class_names"),
        ("data", {"train": {"images": "x"}}, "data.train.annotations is missing"),
        ("train", train(iterations=0), "train.iterations = 0"),
        ("train", train(accumulate=3), "train.accumulate = 3: must divide batch_size = 4"),
        ("train", train(optimizer={}), "train.optimizer.lr is missing"),
        ("train", train(optimizer={"lr": float("nan")}), "finite"),
        ("train", train(optimizer={"lr": 10**400}), "train.optimizer.lr"),
        ("train", train(optimizer={"lr": 0.1, "betas": [0.9]}), "train.optimizer.betas"),
        ("train", train(optimizer={"lr": 0.1, "betas": [0.9, True]}), "train.optimizer.betas[1]"),
        (
            "train",
            train(schedule={"milestones": [3, 3]}),
            "train.schedule.milestones = [3, 3]: must increase",
        ),
        ("train", train(schedule={"milestones": [10]}), "must be below train.iterations = 10"),
        ("train", train(clip_grad_norm="x"), "train.clip_grad_norm = 'x'"),
        ("eval", {"expected": {"segm/AP": [35.6]}}, "eval.expected.segm/AP"),
        ("runtime", {"device": "cuda:x"}, "runtime.device"),
        ("runtime", {"seed": -1}, "runtime.seed"),
        ("task", "detecton", "task = 'detecton'"),
        ("task", None, "task = None"),
    ],
)
def test_wrong_values_are_named(section: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(minimal(**{section: value}), source="here")
    assert str(error.value).startswith("here: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("model", {"arch": "mask_rcnn"}, "model.arch = 'mask_rcnn': should be 'classifier'"),
        ("model", {"label_smooth": 0.1}, "did you mean 'model.label_smoothing'?"),
        ("model", {"label_smoothing": 1.0}, "model.label_smoothing = 1.0"),
        ("model", {"num_classes": "ten"}, "model.num_classes = 'ten': should be a valid integer > 0"),
        ("data", {"format": "zip"}, "'folder', 'cifar10' or 'cifar100'"),
        ("data", {"train": {"images": "x"}}, "data.train"),
        ("data", {"crop_size": 300}, "data.crop_size = 300: must not exceed resize_size = 256"),
        ("data", {"crop_scale": [0.5, 0.1]}, "data.crop_scale = [0.5, 0.1]"),
        ("data", {"crop_scale": [0.0, 1.0]}, "data.crop_scale"),
        ("data", {"crop_ratio": [2.0, 1.0]}, "data.crop_ratio"),
        ("data", {"crop_ratio": [1.0]}, "data.crop_ratio"),
        ("data", {"min_size_train": [5]}, "unknown key 'data.min_size_train'"),
        ("eval", {"backend": "auto"}, "unknown key 'eval.backend'"),
        ("backbone", {"name": "x", "dcn_stages": ["layer3"]}, "backbone.dcn_stages[0] = 'layer3'"),
        ("backbone", {"name": "x", "stage_split": "never"}, "backbone.stage_split"),
        (
            "train",
            train(optimizer={"lr": 1.0, "backbone_lr_factor": 0.1}),
            "train.optimizer.backbone_lr_factor",
        ),
        ("task", "classifcation", "task = 'classifcation': expected one of 'detection', 'classification'"),
        ("task", ["classification"], "task = ['classification']: expected one of"),
    ],
)
def test_wrong_values_of_a_classifier_are_named(section: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(classification(**{section: value}), source="here")
    assert str(error.value).startswith("here: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_task_key_is_named_first() -> None:
    data = minimal(taks="detection")
    del data["task"], data["train"]
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert "unknown key 'taks'; did you mean 'task'?" in str(error.value)
    assert str(error.value).endswith("(and 2 more: task, train)")


def test_class_names_and_num_classes_agree() -> None:
    names = {"class_names": ["a", "b"]}
    parse_config(minimal(data=names, model={"arch": "mask_rcnn", "num_classes": 2}))
    with pytest.raises(ConfigError, match=r"model\.num_classes = 3: must equal the number .* 2"):
        parse_config(minimal(data=names, model={"arch": "mask_rcnn", "num_classes": 3}))


def test_keys_that_are_not_words() -> None:
    with pytest.raises(ConfigError):
        parse_config(minimal() | {3: 4})  # type: ignore[operator]
