"""The schema: documented, bounded, strict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from res2net_dense.backbones import create_backbone
from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.config.schema import BackboneConfig, Config
from res2net_dense.data.layouts import CocoPart
from res2net_dense.errors import ConfigError
from res2net_dense.sections import Section

MODELS: dict[str, Any] = {"detection": {"arch": "mask_rcnn"}, "semantic_segmentation": {"arch": "unet"}}


def data_of(task: str = "detection", **sections: Any) -> dict[str, Any]:
    """The shortest configuration of a task, with other sections."""
    model = {"model": MODELS[task]} if task in MODELS else {}
    shared = {"task": task, "backbone": {"name": "res2net50_26w_4s"}, "train": train()}
    return {**shared, **model, **sections}


def train(**changes: Any) -> dict[str, Any]:
    return {"iterations": 10, "batch_size": 4, "optimizer": {"lr": 0.1}, **changes}


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


def subclasses(base: type[Any]) -> set[type[Any]]:
    return {one for child in base.__subclasses__() for one in {child, *subclasses(child)}}


ALL_SECTIONS = sorted(
    {section for config in CONFIGS.values() for section in sections(config)}, key=lambda s: s.__name__
)


def test_every_section_is_found() -> None:
    ours = {section for section in subclasses(Section) if section.__module__.startswith("res2net_dense.")}
    leaves = {section for section in ours if not ours & set(section.__subclasses__())}
    assert {CocoPart, BackboneConfig} <= leaves
    assert leaves <= set(ALL_SECTIONS)


@pytest.mark.parametrize("section", ALL_SECTIONS)
def test_every_field_is_described(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        if issubclass(section, Config) and (name == "task" or not field.is_required()):
            field = Config.model_fields[name]  # a task narrows what is described there
        assert (field.description or "").endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize("task", CONFIGS)
def test_every_default_is_allowed(task: str) -> None:
    config = parse_config(data_of(task))
    assert parse_config(config_to_dict(config)) == config


def test_defaults_of_each_task() -> None:
    config = parse_config(data_of())
    assert config.model.anchor_sizes == [32, 64, 128, 256, 512]
    assert config.train.optimizer.betas == (0.9, 0.999)
    assert (config.data.train, config.runtime.output_dir) == (None, "output/run")
    config = parse_config(data_of("classification"))
    assert (config.model.arch, config.model.num_classes) == ("classifier", None)
    assert (config.data.crop_size, config.data.resize_size) == (224, 256)
    config = parse_config(data_of("semantic_segmentation"))
    assert (config.data.crop_size, config.data.scale, config.data.base_size) == (513, (0.5, 2.0), None)
    assert (config.eval.scales, config.eval.window) == ([1.0], None)
    config = parse_config(data_of("saliency"))
    assert (config.model.arch, config.data.crop, config.data.max_size) == ("poolnet", (1.0, 1.0), 1024)


def test_the_backbone_has_a_field_for_each_semantics_of_the_networks() -> None:
    """A checkpoint that needs one could not be loaded otherwise."""
    fields = BackboneConfig.model_fields
    for name in ("res2net50_26w_4s", "resnet50", "dla60"):
        for option, default in create_backbone(name, out_features=["res2"]).semantics.items():
            assert fields[option].default == default, option


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        parse_config(data_of()).train.batch_size = 5  # type: ignore[misc]


ANY, CLASSES, MAPS, SALIENT = "detection", "classification", "semantic_segmentation", "saliency"


@pytest.mark.parametrize(
    ("task", "section", "value", "said"),
    [
        (ANY, "backbone", {"name": ""}, "backbone.name"),
        (ANY, "backbone", {"name": "x", "freeze_at": 6}, "backbone.freeze_at"),
        (ANY, "backbone", {"name": "x", "freeze_at": True}, "backbone.freeze_at"),
        (ANY, "backbone", {"name": "x", "norm": "bn"}, "'FrozenBN'"),
        (ANY, "backbone", {"name": "x", "dcn_stages": ["layer3"]}, "backbone.dcn_stages[0] = 'layer3'"),
        (ANY, "backbone", {"name": "x", "stage_split": "never"}, "backbone.stage_split"),
        (ANY, "model", {"arch": "faster_rcnn", "mask_head_convs": 2}, "unknown key 'model.mask_head_convs'"),
        (ANY, "model", {"arch": "yolo"}, "model.arch = 'yolo': expected one of 'mask_rcnn', 'faster_rcnn'"),
        (ANY, "model", {}, "model.arch is missing; expected one of 'mask_rcnn', 'faster_rcnn'"),
        (ANY, "model", {"arch": "mask_rcnn", "anchor_sizes": [1, 2]}, "model.anchor_sizes"),
        (ANY, "model", {"arch": "mask_rcnn", "anchor_sizes": [1, 2, 3, 4, -5]}, "model.anchor_sizes[4] = -5"),
        (ANY, "model", {"arch": "mask_rcnn", "pixel_mean": [1.0, 2.0]}, "model.pixel_mean"),
        (ANY, "data", {"flip": 1.5}, "data.flip = 1.5"),
        (ANY, "data", {"flip": float("nan")}, "data.flip = nan"),
        (ANY, "data", {"photometric": "wild"}, "data.photometric = 'wild': should be 'none', 'light'"),
        (ANY, "data", {"on_error": "ignore"}, "data.on_error = 'ignore'"),
        (ANY, "data", {"min_size_train": []}, "data.min_size_train"),
        (ANY, "data", {"min_size_train": [0]}, "data.min_size_train[0] = 0"),
        (
            ANY,
            "data",
            {"min_size_train": [160], "max_size_train": 100},
            "must not exceed max_size_train = 100",
        ),
        (ANY, "data", {"min_size_test": 160, "max_size_test": 100}, "must not exceed max_size_test = 100"),
        (ANY, "data", {"class_names": ["a", "a"]}, "data.class_names"),
        (ANY, "data", {"train": {"images": "x"}}, "data.train.annotations is missing"),
        (ANY, "train", train(iterations=0), "train.iterations = 0"),
        (ANY, "train", train(accumulate=3), "train.accumulate = 3: must divide batch_size = 4"),
        (ANY, "train", train(optimizer={}), "train.optimizer.lr is missing"),
        (ANY, "train", train(optimizer={"lr": float("nan")}), "finite"),
        (ANY, "train", train(optimizer={"lr": 10**400}), "train.optimizer.lr"),
        (ANY, "train", train(optimizer={"lr": 0.1, "betas": [0.9]}), "train.optimizer.betas"),
        (ANY, "train", train(optimizer={"lr": 0.1, "betas": [0.9, True]}), "train.optimizer.betas[1]"),
        (ANY, "train", train(schedule={"milestones": [3, 3]}), "schedule.milestones = [3, 3]: must increase"),
        (ANY, "train", train(schedule={"milestones": [10]}), "must be below train.iterations = 10"),
        (ANY, "train", train(clip_grad_norm="x"), "train.clip_grad_norm = 'x'"),
        (ANY, "eval", {"expected": {"segm/AP": [35.6]}}, "eval.expected.segm/AP"),
        (ANY, "eval", {"batch_size": 0}, "eval.batch_size = 0"),
        (ANY, "runtime", {"device": "cuda:x"}, "runtime.device"),
        (ANY, "runtime", {"seed": -1}, "runtime.seed"),
        (ANY, "task", "detecton", "task = 'detecton': expected one of 'detection', 'classification'"),
        (ANY, "task", None, "task = None"),
        (ANY, "task", ["classification"], "task = ['classification']: expected one of"),
        (CLASSES, "model", {"arch": "mask_rcnn"}, "model.arch = 'mask_rcnn': should be 'classifier'"),
        (CLASSES, "model", {"label_smooth": 0.1}, "did you mean 'model.label_smoothing'?"),
        (CLASSES, "model", {"label_smoothing": 1.0}, "model.label_smoothing = 1.0"),
        (
            CLASSES,
            "model",
            {"num_classes": "ten"},
            "model.num_classes = 'ten': should be a valid integer > 0",
        ),
        (CLASSES, "data", {"format": "zip"}, "'folder', 'cifar10' or 'cifar100'"),
        (CLASSES, "data", {"train": {"images": "x"}}, "data.train"),
        (CLASSES, "data", {"crop_size": 300}, "data.crop_size = 300: must not exceed resize_size = 256"),
        (CLASSES, "data", {"crop_size": 0}, "data.crop_size = 0"),
        (CLASSES, "data", {"train_crop": "center"}, "data.train_crop = 'center'"),
        (CLASSES, "data", {"crop_scale": [0.5, 0.1]}, "data.crop_scale = [0.5, 0.1]: must be two ascending"),
        (CLASSES, "data", {"crop_scale": [0.0, 1.0]}, "data.crop_scale[0] = 0.0"),
        (CLASSES, "data", {"crop_scale": [0.5, 1.5]}, "data.crop_scale[1] = 1.5"),
        (CLASSES, "data", {"crop_ratio": [2.0, 1.0]}, "data.crop_ratio"),
        (CLASSES, "data", {"crop_ratio": [0.0, 1.0]}, "data.crop_ratio[0] = 0.0"),
        (CLASSES, "data", {"crop_ratio": [1.0]}, "data.crop_ratio"),
        (CLASSES, "data", {"padding": -1}, "data.padding = -1"),
        (CLASSES, "data", {"min_size_train": [5]}, "unknown key 'data.min_size_train'"),
        (CLASSES, "eval", {"backend": "auto"}, "unknown key 'eval.backend'"),
        (CLASSES, "train", train(optimizer={"lr": 1.0, "backbone_lr_factor": 0.1}), "backbone_lr_factor"),
        (MAPS, "model", {"arch": "dpt"}, "model.arch = 'dpt'"),
        (MAPS, "model", {"arch": "unet", "output_stride": 4}, "model.output_stride = 4"),
        (MAPS, "model", {"arch": "unet", "num_classes": 2, "class_weights": [1.0]}, "each of 2 classes"),
        (MAPS, "model", {"arch": "unet", "class_weights": [0.0, 0.0]}, "at least one must be above 0"),
        (MAPS, "data", {"crop_size": 0}, "data.crop_size = 0"),
        (MAPS, "data", {"base_size": 0}, "data.base_size = 0"),
        (MAPS, "data", {"scale": [2.0, 0.5]}, "data.scale = [2.0, 0.5]"),
        (MAPS, "data", {"scale": [0.0, 0.5]}, "data.scale[0] = 0.0"),
        (MAPS, "data", {"scale": [1.0, float("inf")]}, "data.scale[1] = inf"),
        (MAPS, "data", {"min_size_test": 4000}, "data.min_size_test = 4000: must not exceed max_size_test"),
        (MAPS, "eval", {"scales": []}, "eval.scales"),
        (MAPS, "eval", {"window_stride": 3}, "eval.window_stride = 3"),
        (MAPS, "eval", {"window": 3, "window_stride": 4}, "must not exceed eval.window"),
        (SALIENT, "model", {"losses": {"bce": 0.0, "iou": 0.0}}, "one of the losses must be above 0"),
        (SALIENT, "data", {"size": 0}, "data.size = 0"),
        (SALIENT, "data", {"size": 40000}, "data.size = 40000: should be less than or equal to 32766"),
        (SALIENT, "data", {"max_size": 40000}, "data.max_size = 40000"),
        (SALIENT, "data", {"keep_aspect": False}, "data.keep_aspect = False: squares need data.size"),
        (SALIENT, "data", {"crop": [0.0, 1.0]}, "data.crop[0] = 0.0"),
        (SALIENT, "data", {"crop": [0.9, 0.8]}, "data.crop = [0.9, 0.8]"),
        (SALIENT, "data", {"crop": [0.9]}, "data.crop"),
        (SALIENT, "data", {"rotate": -1.0}, "data.rotate = -1.0"),
        (SALIENT, "data", {"rotate": float("nan")}, "data.rotate = nan"),
    ],
)
def test_wrong_values_are_named(task: str, section: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config(data_of(task) | {section: value}, source="here")
    assert str(error.value).startswith("here: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_misspelt_task_key_is_named_first() -> None:
    data = data_of(taks="detection")
    del data["task"], data["train"]
    with pytest.raises(ConfigError) as error:
        parse_config(data)
    assert "unknown key 'taks'; did you mean 'task'?" in str(error.value)
    assert str(error.value).endswith("(and 2 more: task, train)")


def test_class_names_and_num_classes_agree() -> None:
    names = {"class_names": ["a", "b"]}
    parse_config(data_of(data=names, model={"arch": "mask_rcnn", "num_classes": 2}))
    with pytest.raises(ConfigError, match=r"model\.num_classes = 3: must equal the number .* 2"):
        parse_config(data_of(data=names, model={"arch": "mask_rcnn", "num_classes": 3}))


def test_keys_that_are_not_words() -> None:
    with pytest.raises(ConfigError):
        parse_config(data_of() | {3: 4})  # type: ignore[operator]
