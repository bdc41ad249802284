"""Semantic segmentation: networks of segmentation_models_pytorch (smp) on backbones of ours, behind the
contract of `res2net_dense.types`.

DeepLabv3+ (Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611) is the one with published Res2Net
figures; `arch` also takes the name of any other architecture of smp.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from res2net_dense.backbones.registry import canonical_name
from res2net_dense.errors import ConfigError, one_line
from res2net_dense.integrations.smp import (
    PREFIX,
    build_encoder,
)  # first: a clear message where smp is missing
from res2net_dense.models.base import ImageModel, check_class_weights, warn_if_not_finite
from res2net_dense.models.norms import replace_norms
from res2net_dense.models.resizing import fitted, resized, rounded_up
from res2net_dense.models.segmentation_losses import SegmentationCriterion
from res2net_dense.models.semantic_inference import class_probabilities, resized_argmax
from res2net_dense.types import IGNORE_INDEX, ClassRows, Losses, Prediction, Sample, is_part

# isort: split
import segmentation_models_pytorch as smp

_log = logging.getLogger(__name__)

OUTPUT_STRIDES = {arch: (32,) for arch in smp.MODEL_ARCHITECTURES_MAPPING if arch != "dpt"} | {
    "deeplabv3plus": (16, 8),
    "deeplabv3": (16, 8),
    "pan": (16, 32),
}
"""By architecture, the default first: the last three dilate their backbone. DPT is for transformers."""
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""The DeepLabs' dilation rates by output stride."""
AUX_CHANNELS = 256
LOSS_NAMES = {"cross_entropy": "loss_sem_seg"}
"""What the losses of the criterion are called where it is not `loss_` and their name."""

OWNED = {
    "encoder_name": "backbone.name",
    "encoder_weights": "backbone.weights",
    "encoder_output_stride": "model.output_stride",
    "decoder_atrous_rates": "model.atrous_rates",
    "decoder_use_norm": "model.norm",
    "classes": "model.num_classes",
    "in_channels": "data.channels",
    "activation": "the network, which gives logits",
    "aux_params": "model.aux_weight, another head",
}
"""smp's arguments that have a name of ours, so that a setting has one place."""


class SegmentationModel(ImageModel):
    """An encoder, a decoder and a head of smp that take `Sample`s and return losses or `sem_seg`.

    In evaluation, images of one size go through the network together and others in turn, so that a prediction
    does not depend on the other images of the batch.

    Args:
        backbone: `(N, C, H, W)` normalized -> the list of its maps, the image itself first.
        decoder: that list -> a map.
        segmentation_head: that map -> `(N, num_classes, H, W)` logits.
        num_classes: of the head, including the background.
        divisor: heights and widths that the network takes are multiples of it.
        aux_head: the second deepest map of the backbone -> logits at its size; None for none.
        aux_weight: of its loss.
        criterion: the losses; None is cross-entropy.
        views: `scales`, `flip`, `window` and `window_stride` of `class_probabilities`, for evaluation.
        **pixels: `pixel_mean` and `pixel_std` of `ImageModel`.
    """

    size_setting = "data.crop_size"
    class_layers: ClassVar = {"segmentation_head.0": ClassRows(), "aux_head.4": ClassRows()}

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        segmentation_head: nn.Module,
        *,
        num_classes: int,
        divisor: int,
        aux_head: nn.Module | None = None,
        aux_weight: float = 0.0,
        criterion: SegmentationCriterion | None = None,
        views: Mapping[str, Any] | None = None,
        **pixels: Sequence[float],
    ) -> None:
        super().__init__(**pixels)
        self.views = views or {}
        self._window_is_checked = False
        self.backbone = backbone
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.aux_head = aux_head
        self.aux_weight = aux_weight
        self.num_classes = num_classes
        self.divisor = divisor
        self.criterion = SegmentationCriterion() if criterion is None else criterion

    def logits(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` normalized, H and W multiples of `divisor` -> `(N, num_classes, H, W)` logits."""
        return self._head(self.backbone(images), images)

    def _head(self, features: Sequence[Tensor], images: Tensor) -> Tensor:
        return resized(self.segmentation_head(self.decoder(features)), images.shape[-2:])

    def losses(self, batch: Sequence[Sample]) -> Losses:
        """The losses of a batch, whose images are padded right and below to one size."""
        size = [rounded_up(max(s["image"].shape[axis] for s in batch), self.divisor) for axis in (1, 2)]
        images = torch.stack([fitted(self.normalize(s["image"]), size) for s in batch])
        targets = torch.stack([fitted(s["sem_seg"], size, IGNORE_INDEX) for s in batch]).to(images.device)
        features = self.backbone(images)
        found = self.criterion(self._head(features, images), targets)
        losses = {LOSS_NAMES.get(name, f"loss_{name}"): loss for name, loss in found.items()}
        if self.aux_head is not None:
            aux = self.criterion(resized(self.aux_head(features[-2]), size), targets)
            losses["loss_aux"] = self.aux_weight * torch.stack([*aux.values()]).sum()
        return losses

    def predictions(self, batch: Sequence[Sample]) -> list[Prediction]:
        by_size: dict[torch.Size, list[int]] = {}
        for number, sample in enumerate(batch):
            by_size.setdefault(sample["image"].shape, []).append(number)
        predictions: list[Prediction] = [{} for _ in batch]
        self._check_window(batch)
        for numbers in by_size.values():
            images = torch.stack([self.normalize(batch[number]["image"]) for number in numbers])
            scores = class_probabilities(self.logits, images, divisor=self.divisor, **self.views)
            for number, score in zip(numbers, scores, strict=True):
                sample = batch[number]
                warn_if_not_finite(score, sample)
                if is_part(sample):
                    predictions[number]["probabilities"] = score
                    continue
                labels = resized_argmax(score, sample["original_height"], sample["original_width"])
                predictions[number]["sem_seg"] = labels
        return predictions

    def _check_window(self, batch: Sequence[Sample]) -> None:
        """Say once that images are made smaller before the window slides over them."""
        window = self.views.get("window")
        if window is None or self._window_is_checked:
            return
        for sample in batch:
            height, width = sample["image"].shape[-2:]
            before = sample["original_height"], sample["original_width"]
            if max(height, width) < max(before) and window < max(before):
                self._window_is_checked = True
                largest = round(max(self.views.get("scales") or [1.0]) * max(height, width))
                effect = "sees it whole and has no effect" if window >= largest else "slides over that"
                _log.warning(
                    "%s: the image of %d x %d is first resized to %d x %d (data.min_size_test, "
                    "data.max_size_test), eval.window=%d %s; raise data.max_size_test, or take tiles of "
                    "images as they are (data.tiles={size: %d})",
                    *(
                        sample.get("file_name", "an image"),
                        *before[::-1],
                        width,
                        height,
                        window,
                        effect,
                        window,
                    ),
                )
                return


def build_segmentation_model(
    *,
    backbone: Mapping[str, Any],
    arch: str,
    num_classes: int,
    output_stride: int | None = None,
    atrous_rates: Sequence[int] | None = None,
    norm: str = "BN",
    aux_weight: float = 0.0,
    losses: Mapping[str, float] | None = None,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    smp: Mapping[str, Any] | None = None,
    **options: Any,
) -> SegmentationModel:
    """Build an architecture of smp on a backbone of ours, and load the weights that `backbone` names, if any.

    `config/semantic_segmentation.py` explains the settings.

    Args:
        backbone: `name`, and optionally `weights` and the options of `create_backbone`.
        **options: `views`, `pixel_mean` and `pixel_std` of `SegmentationModel`.

    Raises:
        ConfigError: values do not fit each other, or smp cannot build the network.
        CheckpointError: the weights cannot be loaded.
    """
    check_class_weights(class_weights, num_classes)
    criterion = SegmentationCriterion(
        losses, class_weights=class_weights, label_smoothing=label_smoothing, focal_gamma=focal_gamma
    )
    arguments, stride = _arguments(arch, output_stride, atrous_rates, smp or {})
    name = canonical_name(backbone["name"])
    in_channels = backbone.get("in_channels", 3)
    network = _create(arch, name, num_classes, in_channels, arguments)
    # smp hands no options on to an encoder: this one takes the place of the plain one.
    depth: int = network.encoder._depth
    encoder = build_encoder(depth=depth, output_stride=stride, **{**backbone, "name": name})
    divisor = stride if "encoder_output_stride" in arguments else 2**depth
    if arch == "pan":  # it halves the last map three times more
        divisor *= 8
    aux_head = _aux_head(encoder._out_channels[-2], num_classes) if aux_weight else None
    replace_norms(nn.ModuleList([network.decoder, network.segmentation_head]), norm)
    if aux_head:
        replace_norms(aux_head, norm)
    return SegmentationModel(
        encoder,
        network.decoder,
        network.segmentation_head,
        num_classes=num_classes,
        divisor=divisor,
        aux_head=aux_head,
        aux_weight=aux_weight,
        criterion=criterion,
        **options,
    )


def _arguments(
    arch: str, output_stride: int | None, atrous_rates: Sequence[int] | None, own: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """The arguments of smp's class, and the output stride of the encoder."""
    strides = OUTPUT_STRIDES[arch]
    stride = output_stride or strides[0]
    if stride not in strides:
        raise ConfigError(f"model.output_stride is {stride}; {arch} has {' or '.join(map(str, strides))}")
    if atrous_rates is not None and not arch.startswith("deeplab"):
        raise ConfigError(f"model.atrous_rates is {list(atrous_rates)}; {arch} has none")
    names = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[arch].__init__).parameters.keys()
    allowed = sorted(names - OWNED.keys() - {"self", "kwargs"})
    for name in own:
        if name in OWNED:
            raise ConfigError(f"model.smp: {name} is set by {OWNED[name]}; remove it here")
        if name not in allowed:
            raise ConfigError(f"model.smp: {arch} has no {name}; it has {', '.join(allowed)}")
    arguments = dict(own)
    if len(strides) > 1:  # it can dilate
        arguments["encoder_output_stride"] = stride
    if arch.startswith("deeplab"):
        arguments["decoder_atrous_rates"] = tuple(atrous_rates or ATROUS_RATES[stride])
    return arguments, stride


def _create(arch: str, name: str, num_classes: int, in_channels: int, arguments: dict[str, Any]) -> Any:
    """smp's model, after a forward pass on the meta device: some values only fail there."""
    if PREFIX + name not in smp.encoders.encoders:
        raise ConfigError(
            f"backbone.name is {name}, a network for small images whose last map has stride 4: choose another"
        )

    def create() -> Any:
        return smp.create_model(
            arch,
            PREFIX + name,
            encoder_weights=None,
            in_channels=in_channels,
            classes=num_classes,
            **arguments,
        )

    try:
        with torch.device("meta"):
            create().eval()(torch.empty(1, in_channels, 256, 256))
        return create()
    except Exception as error:  # smp and PyTorch raise nearly every type
        raise ConfigError(
            f"segmentation_models_pytorch cannot build {arch} on {name} ({one_line(error)}); check model.smp"
        ) from error


def _aux_head(in_channels: int, num_classes: int) -> nn.Sequential:
    """As PSPNet's."""
    return nn.Sequential(
        nn.Conv2d(in_channels, AUX_CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(AUX_CHANNELS),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(AUX_CHANNELS, num_classes, 1),
    )
