"""The schema: documented, bounded, strict."""

from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from res2net_dense.backbones import create_backbone
from res2net_dense.config import config_to_dict, parse_config
from res2net_dense.config.load import CONFIGS
from res2net_dense.config.schema import BackboneConfig, Config
from res2net_dense.data.layouts import CocoPart
from res2net_dense.errors import ConfigError
from res2net_dense.network_options import DLAOptions, Res2NetOptions
from res2net_dense.sections import Section

TRAIN = {"iterations": 10, "batch_size": 4, "optimizer": {"lr": 0.1}}
MODELS = {"detection": {"arch": "mask_rcnn"}, "semantic_segmentation": {"arch": "unet"}}


def data_of(task="detection", **sections):
    """The shortest configuration of a task, with other sections."""
    shared = {"task": task, "backbone": {"name": "res2net50_26w_4s"}, "train": TRAIN}
    return {**shared, **({"model": MODELS[task]} if task in MODELS else {}), **sections}


def message(data, *overrides):
    with pytest.raises(ConfigError) as error:
        parse_config(data, source="here", overrides=overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def sections(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


def subclasses(base):
    return {one for child in base.__subclasses__() for one in {child, *subclasses(child)}}


ALL_SECTIONS = sorted(
    {section for config in CONFIGS.values() for section in sections(config)}, key=lambda s: s.__name__
)
NETWORK_OPTIONS = {Res2NetOptions, DLAOptions}


def test_every_section_is_found():
    ours = {section for section in subclasses(Section) if section.__module__.startswith("res2net_dense.")}
    leaves = {section for section in ours if not ours & set(section.__subclasses__())}
    assert {CocoPart, BackboneConfig} <= leaves
    assert leaves - NETWORK_OPTIONS <= set(ALL_SECTIONS)


@pytest.mark.parametrize("section", [*ALL_SECTIONS, Res2NetOptions, DLAOptions])
def test_every_field_is_described(section):
    assert section.__doc__
    for name, field in section.model_fields.items():
        if issubclass(section, Config) and (name == "task" or not field.is_required()):
            field = Config.model_fields[name]  # a task narrows what is described there
        assert (field.description or "").endswith("."), f"{section.__name__}.{name}"


@pytest.mark.parametrize("task", CONFIGS)
def test_every_default_is_allowed(task):
    config = parse_config(data_of(task))
    assert parse_config(config_to_dict(config)) == config


def test_defaults_of_each_task():
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


def test_the_backbone_has_a_field_for_each_semantics_of_the_networks():
    """A checkpoint that needs one could not be loaded otherwise."""
    fields = BackboneConfig.model_fields
    for name in ("res2net50_26w_4s", "resnet50", "dla60"):
        for option, default in create_backbone(name, out_features=["res2"]).semantics.items():
            assert fields[option].default == default, option


def test_config_is_frozen():
    with pytest.raises(ValidationError):
        parse_config(data_of()).train.batch_size = 5


BOXES, CLASSES, MAPS, SALIENT = "detection", "classification", "semantic_segmentation", "saliency"


@pytest.mark.parametrize(
    ("task", "setting", "said"),
    [
        (BOXES, "backbone.name=''", "backbone.name"),
        (BOXES, "backbone.freeze_at=6", "backbone.freeze_at"),
        (BOXES, "backbone.freeze_at=true", "backbone.freeze_at"),
        (BOXES, "backbone.norm=bn", "'FrozenBN'"),
        (BOXES, "backbone.dcn_stages=[layer3]", "backbone.dcn_stages[0] = 'layer3'"),
        (BOXES, "backbone.dcn_stages=res3", "backbone.dcn_stages = 'res3': should be a valid list"),
        (BOXES, "backbone.norm_eps=1.0", "backbone.norm_eps = 1.0: should be less than 1"),
        (BOXES, "backbone.stage_split=never", "backbone.stage_split"),
        (
            BOXES,
            "model={arch: faster_rcnn, mask_head_convs: 2}",
            "unknown key 'model.mask_head_convs': only mask_rcnn or cascade_mask_rcnn has it",
        ),
        (BOXES, "model.arch=yolo", "model.arch = 'yolo': expected one of 'mask_rcnn', 'faster_rcnn'"),
        (BOXES, "model.anchor_sizes=[1, 2]", "model.anchor_sizes"),
        (BOXES, "model.anchor_sizes=[1, 2, 3, 4, -5]", "model.anchor_sizes[4] = -5"),
        (BOXES, "model.pixel_mean=[1.0, 2.0]", "one number for each of data.channels = 3, or be null"),
        (BOXES, "data.channels=0", "data.channels = 0: should be greater than or equal to 1"),
        (BOXES, "data.channels=17", "data.channels = 17: should be less than or equal to 16"),
        (BOXES, "data.value_range=[5, 5]", "data.value_range = [5, 5]: must be two rising numbers"),
        (BOXES, "data.value_range=[0, .inf]", "data.value_range[1] = inf"),
        (
            BOXES,
            "backbone.in_channels=4",
            "unknown key 'backbone.in_channels'; did you mean 'data.channels'?",
        ),
        (BOXES, "data.flip=1.5", "data.flip = 1.5"),
        (BOXES, "data.flip=.nan", "data.flip = nan"),
        (BOXES, "data.photometric=wild", "data.photometric = 'wild': should be 'none', 'light'"),
        (BOXES, "data.on_error=ignore", "data.on_error = 'ignore'"),
        (BOXES, "data.min_size_train=[]", "data.min_size_train"),
        (BOXES, "data.min_size_train=[0]", "data.min_size_train[0] = 0"),
        (BOXES, "data={min_size_train: [160], max_size_train: 100}", "must not exceed max_size_train = 100"),
        (BOXES, "data={min_size_test: 160, max_size_test: 100}", "must not exceed max_size_test = 100"),
        (BOXES, "data.class_names=[a, a]", "data.class_names"),
        (BOXES, "data.train={images: x}", "data.train.annotations is missing"),
        (BOXES, "train.iterations=0", "train.iterations = 0"),
        (BOXES, "train.epochs=0", "train.epochs = 0: should be greater than 0"),
        (
            BOXES,
            "train={epochs: 3, iterations: 10}",
            "train.epochs = 3.0: leave it out, or train.iterations = 10",
        ),
        (BOXES, "train.iterations=null", "train.iterations = None: set it, or train.epochs"),
        (BOXES, "train.early_stop={patience: 2}", "train.eval_every = 0: train.early_stop needs evaluations"),
        (
            BOXES,
            "train.early_stop=3",
            "train.early_stop = 3: expected a mapping with the keys metric, patience, ",
        ),
        (BOXES, "train.early_stop={patience: 0}", "train.early_stop.patience = 0"),
        (BOXES, "train.early_stop={}", "train.early_stop.patience is missing: Evaluations in a row"),
        (
            BOXES,
            "train.early_stopping=3",
            "unknown key 'train.early_stopping'; did you mean 'train.early_stop'?",
        ),
        (BOXES, "train.accumulate=3", "train.accumulate = 3: must divide batch_size = 4"),
        (BOXES, "train.optimizer.lr=.nan", "finite"),
        (BOXES, f"train.optimizer.lr=1{'0' * 99}e400", "train.optimizer.lr"),
        (BOXES, "train.optimizer.betas=[0.9]", "train.optimizer.betas"),
        (BOXES, "train.optimizer.betas=[0.9, true]", "train.optimizer.betas[1]"),
        (BOXES, "train.schedule.milestones=[3, 3]", "schedule.milestones = [3, 3]: must increase"),
        (BOXES, "train.schedule.milestones=[10]", "must be below train.iterations = 10"),
        (BOXES, "train.clip_grad_norm=x", "train.clip_grad_norm = 'x'"),
        (BOXES, "eval.expected={segm/AP: [35.6]}", "eval.expected.segm/AP"),
        (BOXES, "eval.batch_size=0", "eval.batch_size = 0"),
        (BOXES, "runtime.device=cuda:x", "runtime.device"),
        (BOXES, "runtime.seed=-1", "runtime.seed"),
        (BOXES, "task=detecton", "task = 'detecton': expected one of 'detection', 'classification'"),
        (BOXES, "task=null", "task = None"),
        (BOXES, "task=[classification]", "task = ['classification']: expected one of"),
        (CLASSES, "model.arch=mask_rcnn", "model.arch = 'mask_rcnn': should be 'classifier'"),
        (CLASSES, "model.label_smooth=0.1", "did you mean 'model.label_smoothing'?"),
        (CLASSES, "model.label_smoothing=1.0", "model.label_smoothing = 1.0"),
        (
            CLASSES,
            "model.num_classes=ten",
            "model.num_classes = 'ten': should be a valid integer > 0, <= 100000",
        ),
        (CLASSES, "data.format=zip", "'folder', 'cifar10' or 'cifar100'"),
        (CLASSES, "data.train={images: x}", "data.train"),
        (CLASSES, "data.crop_size=300", "data.crop_size = 300: must not exceed resize_size = 256"),
        (CLASSES, "data.crop_size=0", "data.crop_size = 0"),
        (CLASSES, "data.train_crop=center", "data.train_crop = 'center'"),
        (CLASSES, "data.crop_scale=[0.5, 0.1]", "data.crop_scale = [0.5, 0.1]: must be two ascending"),
        (CLASSES, "data.crop_scale=[0.0, 1.0]", "data.crop_scale[0] = 0.0"),
        (CLASSES, "data.crop_scale=[0.5, 1.5]", "data.crop_scale[1] = 1.5"),
        (CLASSES, "data.crop_ratio=[2.0, 1.0]", "data.crop_ratio"),
        (CLASSES, "data.crop_ratio=[0.0, 1.0]", "data.crop_ratio[0] = 0.0"),
        (CLASSES, "data.crop_ratio=[1.0]", "data.crop_ratio"),
        (CLASSES, "data.padding=-1", "data.padding = -1"),
        (CLASSES, "data.min_size_train=[5]", "unknown key 'data.min_size_train'"),
        (CLASSES, "eval.backend=auto", "unknown key 'eval.backend'"),
        (CLASSES, "train.optimizer.backbone_lr_factor=0.1", "backbone_lr_factor"),
        (MAPS, "model.arch=dpt", "model.arch = 'dpt'"),
        (MAPS, "model.output_stride=4", "model.output_stride = 4"),
        (MAPS, "model={num_classes: 2, class_weights: [1.0]}", "each of 2 classes"),
        (MAPS, "model.class_weights=[0.0, 0.0]", "at least one must be above 0"),
        (MAPS, "data.crop_size=0", "data.crop_size = 0"),
        (MAPS, "data.base_size=0", "data.base_size = 0"),
        (MAPS, "data.scale=[2.0, 0.5]", "data.scale = [2.0, 0.5]"),
        (MAPS, "data.scale=[0.0, 0.5]", "data.scale[0] = 0.0"),
        (MAPS, "data.scale=[1.0, .inf]", "data.scale[1] = inf"),
        (MAPS, "data.min_size_test=4000", "data.min_size_test = 4000: must not exceed max_size_test"),
        (MAPS, "eval.scales=[]", "eval.scales"),
        (MAPS, "eval.window_stride=3", "eval.window_stride = 3"),
        (MAPS, "eval={window: 3, window_stride: 4}", "must not exceed eval.window"),
        (SALIENT, "model.losses={bce: 0.0, iou: 0.0}", "one of the losses must be above 0"),
        (SALIENT, "data.size=0", "data.size = 0"),
        (SALIENT, "data.size=40000", "data.size = 40000: should be less than or equal to 32766"),
        (SALIENT, "data.max_size=40000", "data.max_size = 40000"),
        (SALIENT, "data.keep_aspect=false", "data.keep_aspect = False: squares need data.size"),
        (SALIENT, "data.crop=[0.0, 1.0]", "data.crop[0] = 0.0"),
        (SALIENT, "data.crop=[0.9, 0.8]", "data.crop = [0.9, 0.8]"),
        (SALIENT, "data.crop=[0.9]", "data.crop"),
        (SALIENT, "data.rotate=-1.0", "data.rotate = -1.0"),
        (SALIENT, "data.rotate=.nan", "data.rotate = nan"),
    ],
)
def test_wrong_values_are_named(task, setting, said):
    assert said in message(data_of(task), setting)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (data_of(model={}), "here: model.arch is missing; expected one of 'mask_rcnn', 'faster_rcnn'"),
        (data_of(train={"optimizer": {}}), "here: train.batch_size is missing"),
        (data_of(train={**TRAIN, "optimizer": {"lr": 10**400}}), "here: train.optimizer.lr = 1000"),
        (data_of() | {3: 4}, "here: = 3: Keys should be strings"),
    ],
)
def test_data_without_places_are_named_by_their_source(data, said):
    assert message(data).startswith(said)


def test_a_misspelt_task_key_is_named_first():
    data = data_of(taks="detection")
    del data["task"], data["train"]
    said = message(data)
    assert "unknown key 'taks'; did you mean 'task'?" in said
    assert said.endswith("(and 2 more: task, train)")


def test_class_names_and_num_classes_agree():
    data = data_of(data={"class_names": ["a", "b"]})
    parse_config(data, overrides=["model.num_classes=2"])
    said = message(data, "model.num_classes=3")
    assert "model.num_classes = 3: must equal the number of data.class_names, 2" in said


def test_mean_and_deviation_of_other_channels_are_to_be_measured():
    raw = data_of()
    assert parse_config(raw).model.pixel_mean == [123.675, 116.28, 103.53]
    four = parse_config(raw, overrides=["data.channels=4"])
    assert (four.model.pixel_mean, four.model.pixel_std) == (None, None)
    given = parse_config(raw, overrides=["data.channels=2", "model.pixel_std=[1.0, 2.0]"])
    assert (given.model.pixel_mean, given.model.pixel_std) == (None, [1.0, 2.0])
    assert parse_config(config_to_dict(four)) == four
