"""Classifiers by name, with published weights or your own, and what they find in an image.

model = get_model("res2net50_26w_4s.in1k")
predict_image(model, "bird.jpg")       # [{"label": "jay", "score": 0.93, "index": 17}, ...]
model.extract_features(images)         # {"res2": ..., "res3": ..., "res4": ..., "res5": ...}
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.backbones import create_classifier, list_backbones
from res2net_dense.backbones.registry import ARCHITECTURES, Classifier, canonical_name, find_architecture
from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.convert.checkpoint import inspect
from res2net_dense.convert.load import check_structure, load_backbone_weights, open_named_weights
from res2net_dense.convert.report import Checkpoint
from res2net_dense.convert.structure import structure_of
from res2net_dense.data.images import to_pixels
from res2net_dense.data.pixels import PixelFormat
from res2net_dense.data.transforms import Pipeline, ResizeAndCenterCrop
from res2net_dense.engine.inference import evaluation_mode
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.network_options import check_num_classes
from res2net_dense.types import Sample
from res2net_dense.weight_files import WeightFile, is_path


@dataclass(frozen=True)
class Preprocessing:
    """How an image enters a network: its shorter edge is resized (bilinear, with antialiasing), the middle
    square is cropped, each channel is normalized. Sizes are in pixels, mean and std of R, G, B from 0 to 255;
    for `value_range` see `data.value_range` of a configuration.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    resize_size: int = 256
    crop_size: int = 224
    value_range: tuple[float, float] | None = None


class ClassPrediction(TypedDict):
    """One of the classes that a network finds in an image; the score is its softmax, between 0 and 1."""

    label: str
    score: float
    index: int


def list_models(pattern: str | None = None, *, pretrained: bool = False) -> list[str]:
    """List what `get_model` can build, sorted.

    Args:
        pattern: keep the names that contain it; `*`, `?` and `[...]` are wildcards.
        pretrained: list the published weights, such as `res2net50_26w_4s.in1k`, instead of the networks.
    """
    names = sorted(WEIGHTS) if pretrained else list_backbones()
    return [name for name in names if pattern is None or fnmatchcase(name, f"*{pattern}*")]


def get_model(
    name: str,
    weights: str | Path | WeightFile | None = None,
    *,
    num_classes: int | None = None,
    trust_pickle: bool = False,
    **options: Any,
) -> Classifier:
    """Build a classifier, in evaluation mode, with `class_names` (None where unknown) and `preprocessing`.

    The number of classes and channels and the form of the block are set from the file. What makes another
    network (depth, width, scale, ...) is not: give it by `name` and the options.

    Args:
        name: one of `list_models()`, an alias, or one of `list_models(pretrained=True)`, which names the
            weights too.
        weights: a tag such as "in1k", "imagenet" for the first published file of the network, the path of a
            file in any of the dialects `read_checkpoint` knows, or None for random weights.
        num_classes: size of the head; by default that of the weights, 1000 without any. Where it differs from
            the weights', the head is randomly initialized.
        trust_pickle: read files that may run code while they are read (.pkl, .pdparams).
        **options: see `create_backbone`; where `in_channels` differs from the file's 3, the first convolution
            is adapted.

    Raises:
        ConfigError: unknown name or option, a file instead of the name, or weights named twice.
        CheckpointError: the weights cannot be downloaded or read, are another network's, or have no head
            where `num_classes` is not given.
    """
    if is_path(name) and name not in ARCHITECTURES:
        raise ConfigError(
            f"{name} is a file, and get_model takes the name of a network first: get_model(NAME, "
            f"{str(name)!r}); `res2net-dense convert` tells which network a file is of"
        )
    name, _, tag = name.partition(".")
    if tag and weights is not None:
        raise ConfigError(f"weights are named twice, {tag!r} and {str(weights)!r}: leave one of them out")
    if num_classes is not None:
        check_num_classes(num_classes)
    name, weights = canonical_name(name), tag or weights
    cifar = find_architecture(name).options.get("stem") == "3x3"
    usual = Preprocessing(resize_size=32, crop_size=32) if cifar else Preprocessing()
    if weights is None:
        model = create_classifier(name, num_classes or 1000, **options)
        vars(model).update(class_names=None, preprocessing=usual)
        return model.eval()

    found = inspect(open_named_weights(name, weights, trust_pickle=trust_pickle))
    theirs = found.report.structure
    with torch.device("meta"):
        ours = structure_of(create_classifier(name, 1, **options).state_dict())
    # Norm and deformable stages are set from the file.
    check_structure(name, replace(ours, norm=theirs.norm, dcn_stages=theirs.dcn_stages), found.report)
    needs: Any = {key: value for key, value in found.options.items() if key not in ours.shape()}
    classes = theirs.num_classes if num_classes is None else num_classes
    if classes is None:
        raise CheckpointError(
            f"{found.report.file} has no classifier head: give num_classes, and train what is built"
        )
    model = create_classifier(name, classes, **needs | options)
    load_backbone_weights(model, name, found)
    vars(model).update(
        class_names=_class_names(found) if classes == theirs.num_classes else None,
        preprocessing=_preprocessing(found) or usual,
    )
    return model.eval()


def predict_image(
    model: nn.Module, image: str | Path | Image.Image | np.ndarray, *, top: int = 5
) -> list[ClassPrediction]:
    """Classify an image, on the model's device and in its precision.

    Args:
        model: of `get_model`, or any network with its `preprocessing` and `class_names`; without them
            ImageNet's preprocessing is used, and a label is "class 17".
        image: the path of an image, a PIL image of 8 bits a channel, or (H, W, 3) uint8 RGB; of other
            channels where the network takes them.
        top: how many classes to return at most, the likeliest first.

    Raises:
        DatasetError: the image cannot be read.
        ConfigError: `top` is below 1, or the network takes other channels than its preprocessing has.
    """
    if not isinstance(top, (int, np.integer)) or top < 1:
        raise ConfigError(f"top is {top!r}; it must be a positive integer")
    first = next(model.parameters())
    how: Preprocessing = getattr(model, "preprocessing", Preprocessing())
    channels = first.shape[1] if first.ndim == 4 else 3
    if len(how.mean) != channels:
        raise ConfigError(
            f"the network takes {channels} channels and its preprocessing has {len(how.mean)}: set "
            "model.preprocessing to a Preprocessing with mean and std of as many"
        )
    pixels = torch.from_numpy(to_pixels(image, PixelFormat(channels, how.value_range))).permute(2, 0, 1)
    square = Pipeline(ResizeAndCenterCrop(how.resize_size, how.crop_size))(Sample(image=pixels))["image"]
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (how.mean, how.std))
    batch = ((square - mean) / std)[None].to(first.device, first.dtype)
    with torch.inference_mode(), evaluation_mode(model):
        outputs = model(batch)
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ConfigError(f"a {type(model).__name__} gives no score of each class: pass one of get_model")
    scores = outputs[0].float().softmax(0)
    best = scores.topk(min(top, len(scores)))
    names = getattr(model, "class_names", None)
    return [
        ClassPrediction(label=names[index] if names else f"class {index}", score=score, index=index)
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


@cache
def imagenet_classes() -> dict[str, str]:
    """The 1000 classes of ImageNet: names by WordNet id, in the order of their labels."""
    text = files("res2net_dense").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    lines = (line.partition("\t") for line in text.splitlines() if not line.startswith("#"))
    return {wordnet_id: name for wordnet_id, _, name in lines}


def _class_names(found: Checkpoint) -> list[str] | None:
    """The classes of the file's head; where nothing else is known, 1000 classes are ImageNet's."""
    classes = found.report.structure.num_classes
    if found.class_names is not None and len(found.class_names) == classes:
        # ImageNet's folders, and Imagenette's row, have the ids for names.
        return [imagenet_classes().get(name, name) for name in found.class_names]
    return list(imagenet_classes().values()) if classes == 1000 else None


def _preprocessing(found: Checkpoint) -> Preprocessing | None:
    """That of the configuration in the file; None if it has none of a classifier."""
    if "resize_size" not in (found.config.get("data") or {}):
        return None
    try:
        model, data = found.config["model"], found.config["data"]
        mean, std = (tuple(map(float, model[key])) for key in ("pixel_mean", "pixel_std"))
        found_range = data.get("value_range")
        value_range = (float(found_range[0]), float(found_range[1])) if found_range else None
        return Preprocessing(mean, std, int(data["resize_size"]), int(data["crop_size"]), value_range)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{found.report.file} carries a damaged configuration (pixel_mean, pixel_std, resize_size or "
            f"crop_size: {error}); use another checkpoint of the run"
        ) from None
