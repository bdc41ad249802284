"""Classifiers by name, with published weights or your own, and what they say of a picture.

model = get_model("res2net50_26w_4s.in1k")
predict_image(model, "bird.jpg")       # [{"label": "jay", "score": 0.93, "index": 17}, ...]
model.extract_features(images)         # {"res2": ..., "res3": ..., "res4": ..., "res5": ...}
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import nn

from res2net_dense.backbones.registry import (
    ARCHITECTURES,
    Classifier,
    canonical_name,
    create_classifier,
    find_architecture,
    list_backbones,
)
from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.convert.checkpoint import inspect
from res2net_dense.convert.describe import ParsedCheckpoint
from res2net_dense.convert.load import load_found, open_named_weights
from res2net_dense.convert.structure import structure_of
from res2net_dense.data.images import to_pixels
from res2net_dense.data.transforms import ClassificationEvalTransform
from res2net_dense.engine.inference import evaluation_mode
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.types import Sample
from res2net_dense.weight_files import WeightFile, is_path


@dataclass(frozen=True)
class Preprocessing:
    """How a picture enters a network: its shorter edge is resized (bilinear, with antialiasing), the middle
    square cut out, each channel normalised.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """Of the channels R, G, B, for pixels from 0 to 255."""
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    resize_size: int = 256
    """The shorter edge in pixels."""
    crop_size: int = 224
    """Side of the square in pixels."""


class ClassPrediction(TypedDict):
    """One of the classes that a network names for a picture."""

    label: str
    score: float
    """Softmax, between 0 and 1."""
    index: int


def list_models(pattern: str | None = None, *, pretrained: bool = False) -> list[str]:
    """List what `get_model` can build.

    Args:
        pattern: keep the names that contain it; `*`, `?` and `[...]` are wildcards.
        pretrained: list the published weights, such as `res2net50_26w_4s.in1k`, instead of the networks.

    Returns:
        The names, sorted.
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
    """Build a classifier, in evaluation mode.

    What the file needs is set from the file: number of classes and channels, and the form of the block. What
    makes another network (depth, width, scale, ...) is not: `name` and the options say it.

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

    Returns:
        The network, with two attributes more: `class_names` (a list, or None where they are unknown) and
        `preprocessing`.

    Raises:
        ConfigError: unknown name or option, a file in the place of the name, or weights named twice.
        CheckpointError: the weights cannot be had or read, are another network's, or have no head where
            `num_classes` is not given.
    """
    if is_path(name) and name not in ARCHITECTURES:
        raise ConfigError(
            f"{name} is a file, and get_model takes the name of a network first: get_model(NAME, "
            f"{str(name)!r}); `res2net-dense convert {shlex.quote(str(name))}` says which it is"
        )
    name, _, tag = name.partition(".")
    if tag and weights is not None:
        raise ConfigError(f"weights are named twice, {tag!r} and {str(weights)!r}: leave one of them out")
    if num_classes is not None and num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; a classifier has at least one")
    name, weights = canonical_name(name), tag or weights
    if weights is None:
        model = create_classifier(name, 1000 if num_classes is None else num_classes, **options)
        vars(model).update(class_names=None, preprocessing=_usual_preprocessing(name))
        return model.eval()

    file = open_named_weights(name, weights, trust_pickle=trust_pickle)
    path, found = file.path, inspect(file)
    needs = _check_network(name, path, found, options)
    published = found.structure.num_classes
    classes = published if num_classes is None else num_classes
    if classes is None:
        raise CheckpointError(f"{path} has no classifier head: give num_classes, and train what is built")
    model = create_classifier(name, classes, **needs | options)
    load_found(model, name, found)
    names = _class_names(found) if classes == published else None
    vars(model).update(class_names=names, preprocessing=_preprocessing(name, path, found.config))
    return model.eval()


def predict_image(
    model: nn.Module, image: str | Path | Image.Image | np.ndarray, *, top: int = 5
) -> list[ClassPrediction]:
    """Say what is on a picture, on the model's device and in its precision.

    Args:
        model: of `get_model`, or any network with its `preprocessing` and `class_names`; without them
            ImageNet's preprocessing is used, and a label is "class 17".
        image: the path of a picture, a PIL image of 8 bits a channel, or (H, W, 3) uint8 RGB.
        top: how many classes to return at most.

    Returns:
        The likeliest classes, best first.

    Raises:
        DatasetError: the picture cannot be read, or is none.
        ConfigError: `top` is below 1, or the network does not take RGB.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; at least one class can be returned")
    first = next(model.parameters())
    if first.ndim == 4 and first.shape[1] != 3:
        raise ConfigError(f"the network takes {first.shape[1]} channels and a picture has 3: RGB")
    how: Preprocessing = getattr(model, "preprocessing", Preprocessing())
    pixels = torch.from_numpy(to_pixels(image)).permute(2, 0, 1)
    square = ClassificationEvalTransform(how.resize_size, how.crop_size)(Sample(image=pixels))["image"]
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (how.mean, how.std))
    batch = ((square - mean) / std)[None].to(first.device, first.dtype)
    with torch.inference_mode(), evaluation_mode(model):
        scores = model(batch)[0].float().softmax(0)
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


def _check_network(name: str, path: Path, found: ParsedCheckpoint, options: dict[str, Any]) -> dict[str, Any]:
    """The options that the file needs where it is of the network `name`, built with `options`.

    Raises:
        CheckpointError: it is another network's.
    """
    with torch.device("meta"):
        wanted = structure_of(create_classifier(name, 1, **options).state_dict())
    form = found.structure.shape()
    if wanted.shape() != form:
        extra = [f"{key}={value!r}" for key, value in found.report.options.items() if key in form]
        described = found.structure.describe()
        what = described if extra else f"{found.report.name} ({described})"
        call = ", ".join([repr(found.report.name), repr(str(path)), *extra])
        raise CheckpointError(
            f"{path} is {what}, not {name} ({wanted.describe()}): get_model({call}) builds it"
        )
    return {key: value for key, value in found.report.options.items() if key not in form}


def _class_names(found: ParsedCheckpoint) -> list[str] | None:
    """What the outputs of the file's head mean; everybody's 1000 classes are ImageNet's."""
    classes = found.structure.num_classes
    if found.class_names is not None and len(found.class_names) == classes:
        # ImageNet's folders, and Imagenette's row, have the ids for names.
        return [imagenet_classes().get(name, name) for name in found.class_names]
    return list(imagenet_classes().values()) if classes == 1000 else None


def _preprocessing(name: str, path: Path, config: dict[str, Any]) -> Preprocessing:
    if "resize_size" not in (config.get("data") or {}):  # not of a classifier
        return _usual_preprocessing(name)
    try:
        model, data = config["model"], config["data"]
        return Preprocessing(
            tuple(map(float, model["pixel_mean"])),
            tuple(map(float, model["pixel_std"])),
            int(data["resize_size"]),
            int(data["crop_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} carries a damaged configuration (pixel_mean, pixel_std, resize_size or crop_size: "
            f"{error}); use another checkpoint of the run"
        ) from None


def _usual_preprocessing(name: str) -> Preprocessing:
    small = find_architecture(name).options.get("stem") == "3x3"  # made for the 32x32 pictures of CIFAR
    return Preprocessing(resize_size=32, crop_size=32) if small else Preprocessing()
