"""Semantic segmentation: networks of segmentation_models_pytorch (smp) on backbones of ours, behind the
contract of `res2net_dense.types`.

DeepLabv3+ (Chen et al., ECCV 2018, https://arxiv.org/abs/1802.02611) is the one with published Res2Net
figures; any other architecture of smp is a name away.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from res2net_dense.backbones.registry import canonical_name
from res2net_dense.convert import load_backbone_weights
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.smp import PREFIX, build_encoder  # first: says clearly when smp is missing
from res2net_dense.models.norms import MIN_GROUP, group_norm, single_values_explained
from res2net_dense.models.semantic_inference import check_views, class_probabilities, resized_argmax
from res2net_dense.types import IGNORE_INDEX, Losses, Prediction, Sample

# isort: split
import segmentation_models_pytorch as smp

_log = logging.getLogger(__name__)

OUTPUT_STRIDES = {arch: (32,) for arch in smp.MODEL_ARCHITECTURES_MAPPING if arch != "dpt"} | {
    "deeplabv3plus": (16, 8),
    "deeplabv3": (16, 8),
    "pan": (16, 32),
}
"""By architecture, the usual first: the last three dilate their backbone. DPT is for transformers."""
ATROUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""The DeepLabs' dilation rates by output stride."""
AUX_CHANNELS = 256

# smp's arguments that have a name of ours, so that a setting has one place.
OWNED = {
    "encoder_name": "backbone.name",
    "encoder_weights": "backbone.weights",
    "encoder_output_stride": "model.output_stride",
    "decoder_atrous_rates": "model.atrous_rates",
    "decoder_use_norm": "model.norm",
    "classes": "model.num_classes",
    "in_channels": "the images, which are RGB",
    "activation": "the network, which gives logits",
    "aux_params": "model.aux_weight, another head",
}


class SegmentationModel(nn.Module):
    """An encoder, a decoder and a head of smp that take `Sample`s and return losses or `sem_seg`.

    In evaluation pictures of one size go through the network together and others in turn, so that what is
    said of a picture does not depend on the other pictures of the batch.

    Args:
        backbone: `(N, 3, H, W)` normalised -> the list of its maps, the picture itself first.
        decoder: that list -> a map.
        segmentation_head: that map -> `(N, num_classes, H, W)` logits.
        num_classes: of the head, the background counted as one.
        divisor: heights and widths that the network takes are multiples of it.
        aux_head: the last map of the backbone but one -> logits at its size; None for none.
        aux_weight: of its loss.
        class_weights: of each class in the loss; None for equal ones.
        pixel_mean: RGB, 0 to 255.
        pixel_std: RGB, 0 to 255.
        scales, flip, window, window_stride: of evaluation, see `semantic_inference.class_probabilities`.
    """

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
        class_weights: Sequence[float] | None = None,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: int | None = None,
        window_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.views: dict[str, Any] = {
            "scales": scales,
            "flip": flip,
            "window": window,
            "window_stride": window_stride,
        }
        check_views(**self.views)
        self.backbone = backbone
        self.decoder = decoder
        self.segmentation_head = segmentation_head
        self.aux_head = aux_head
        self.aux_weight = aux_weight
        self.num_classes = num_classes
        self.divisor = divisor
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """See `res2net_dense.types`. `sem_seg` of the predictions is at each image's original size.

        Raises:
            ConfigError: batch norm has a single value to learn from.
        """
        return self._losses(batch) if self.training else self._predict(batch)

    def logits(self, images: Tensor) -> Tensor:
        """`(N, 3, H, W)` normalised, H and W multiples of `divisor` -> `(N, num_classes, H, W)` logits."""
        return self._head(self.backbone(images), images)

    def _head(self, features: Sequence[Tensor], images: Tensor) -> Tensor:
        return _resized(self.segmentation_head(self.decoder(features)), images)

    def _losses(self, batch: Sequence[Sample]) -> Losses:
        """The losses of a batch, whose pictures are padded right and below to one size."""
        height, width = (
            -(-max(sample["image"].shape[axis] for sample in batch) // self.divisor) * self.divisor
            for axis in (1, 2)
        )
        images = torch.stack([_padded(self._normalise(s["image"]), height, width, 0.0) for s in batch])
        targets = torch.stack([_padded(s["sem_seg"], height, width, IGNORE_INDEX) for s in batch])
        targets = targets.to(images.device)
        with single_values_explained("data.crop_size"):
            features = self.backbone(images)
            losses = {"loss_sem_seg": self._loss(self._head(features, images), targets)}
            if self.aux_head is not None:
                aux = _resized(self.aux_head(features[-2]), images)
                losses["loss_aux"] = self.aux_weight * self._loss(aux, targets)
        return losses

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, the mean over all labelled pixels by the weights of their classes; 0 without any."""
        weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        # In full precision: under autocast the mean over a quarter of a million pixels would be rounded. As a
        # list of pixels, because the loss of maps has no reproducible form on CUDA.
        pixels, targets = logits.float().permute(0, 2, 3, 1).flatten(0, 2), targets.flatten()
        total = F.cross_entropy(pixels, targets, weights, ignore_index=IGNORE_INDEX, reduction="sum")
        labelled = targets != IGNORE_INDEX
        share = labelled if weights is None else labelled * weights[targets * labelled]
        count = share.sum()  # stays on the device: nobody waits for it
        return total / torch.where(count > 0, count, 1)

    def _predict(self, batch: Sequence[Sample]) -> list[Prediction]:
        predictions: list[Prediction] = [{} for _ in batch]
        for numbers in _by_size(batch):
            images = torch.stack([self._normalise(batch[number]["image"]) for number in numbers])
            scores = class_probabilities(self.logits, images, divisor=self.divisor, **self.views)
            for number, score in zip(numbers, scores, strict=True):
                if not bool(torch.isfinite(score).all()):
                    name = batch[number].get("file_name", "a picture")
                    _log.warning("%s: the scores are not finite, so its labels mean nothing", name)
                size = batch[number]["original_height"], batch[number]["original_width"]
                predictions[number]["sem_seg"] = resized_argmax(score, *size)
        return predictions

    def _normalise(self, image: Tensor) -> Tensor:
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (image.to(mean.device) - mean) / std


class _SingleValueSafe(nn.modules.batchnorm._BatchNorm):
    """Batch norm that spares itself where a channel has one value, as behind a pool over a single picture.

    There is no variance then: PyTorch's raises an error. This one uses its running statistics, as in
    evaluation, and leaves them as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C, H, W)`."""
        shared = isinstance(self, nn.SyncBatchNorm) and distributed.is_initialized()
        if not self.training or shared or x.numel() > x.shape[1]:
            return super().forward(x)
        _warn_once()
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class SingleValueSafeBatchNorm2d(_SingleValueSafe, nn.BatchNorm2d):
    """See `_SingleValueSafe`."""


class SingleValueSafeSyncBatchNorm(_SingleValueSafe, nn.SyncBatchNorm):
    """See `_SingleValueSafe`; with several processes there is always more than one value."""


@functools.cache
def _warn_once() -> None:
    _log.warning(
        "one picture at a time is too few for batch norm behind a pool: it learns no statistics there; "
        "raise train.batch_size, lower train.accumulate, or use model.norm=GN"
    )


def build_segmentation_model(
    *,
    backbone: Mapping[str, Any],
    arch: str,
    num_classes: int,
    output_stride: int | None = None,
    atrous_rates: Sequence[int] | None = None,
    norm: str = "BN",
    aux_weight: float = 0.0,
    class_weights: Sequence[float] | None = None,
    smp: Mapping[str, Any] | None = None,
    **options: Any,
) -> SegmentationModel:
    """Build an architecture of smp on a backbone of ours, on the weights that `backbone` names if any.

    Args:
        backbone: `name`, and optionally `weights` and whatever option `create_backbone` knows for it.
        arch: `deeplabv3plus` or another name of smp's `create_model`, but no `dpt`, which wants transformers.
        num_classes: the background counted as one.
        output_stride: see `OUTPUT_STRIDES`; None for the usual one.
        atrous_rates: of the DeepLabs; None for `ATROUS_RATES`.
        norm: in decoder and head: "BN", "SyncBN" or "GN". The batch norms are `_SingleValueSafe`.
        aux_weight: of the loss of a second head (3x3 convolution, norm, ReLU, dropout, 1x1 convolution) on
            the last map but one; 0 for none.
        class_weights: one for each class; None for equal ones.
        smp: further arguments of smp's class.
        **options: `pixel_mean, pixel_std, scales, flip, window, window_stride` of `SegmentationModel`.

    Raises:
        ConfigError: a value has no meaning.
        CheckpointError: the weights cannot be loaded.
    """
    if arch not in OUTPUT_STRIDES:
        raise ConfigError(f"model.arch is {arch!r}; known: {', '.join(sorted(OUTPUT_STRIDES))}")
    strides = OUTPUT_STRIDES[arch]
    dilates = strides != (32,)
    output_stride = output_stride or strides[0]
    if output_stride not in strides:
        raise ConfigError(
            f"model.output_stride is {output_stride}; {arch} has {' or '.join(map(str, strides))}"
        )
    if atrous_rates is not None and not arch.startswith("deeplab"):
        raise ConfigError(f"model.atrous_rates is {list(atrous_rates)}; {arch} has none")
    if class_weights is not None and (len(class_weights) != num_classes or not any(class_weights)):
        raise ConfigError(
            f"model.class_weights has {len(class_weights)} numbers; it takes one for each of "
            f"{num_classes} classes, not all of them 0"
        )
    arguments = dict(smp or {})
    _check_arguments(arch, arguments)
    if dilates:
        arguments["encoder_output_stride"] = output_stride
    if arch.startswith("deeplab"):
        arguments["decoder_atrous_rates"] = tuple(atrous_rates or ATROUS_RATES[output_stride])
    name = canonical_name(backbone["name"])
    network = _create(arch, name, num_classes, arguments)
    depth: int = network.encoder._depth
    # smp hands no options on to an encoder: this one takes the place of the plain one.
    encoder = build_encoder(
        name,
        depth=depth,
        output_stride=output_stride,
        **{key: value for key, value in backbone.items() if key not in ("name", "weights")},
    )
    divisor = output_stride if dilates else 2**depth
    if arch == "pan":  # it halves the last map three times more
        divisor *= 8
    if weights := backbone.get("weights"):
        load_backbone_weights(encoder, name, weights)
    aux_head = _aux_head(encoder._out_channels[-2], num_classes) if aux_weight else None
    parts = nn.ModuleList([network.decoder, network.segmentation_head, *([aux_head] if aux_head else [])])
    _set_norm(parts, norm)
    return SegmentationModel(
        encoder,
        network.decoder,
        network.segmentation_head,
        num_classes=num_classes,
        divisor=divisor,
        aux_head=aux_head,
        aux_weight=aux_weight,
        class_weights=class_weights,
        **options,
    )


def _check_arguments(arch: str, arguments: Mapping[str, Any]) -> None:
    names = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[arch].__init__).parameters.keys()
    allowed = sorted(names - OWNED.keys() - {"self", "kwargs"})
    for name in arguments:
        if name in OWNED:
            raise ConfigError(f"model.smp: {name} is set by {OWNED[name]}; remove it here")
        if name not in allowed:
            raise ConfigError(f"model.smp: {arch} has no {name}; it has {', '.join(allowed)}")


def _create(arch: str, name: str, num_classes: int, arguments: dict[str, Any]) -> Any:
    if PREFIX + name not in smp.encoders.encoders:
        raise ConfigError(
            f"backbone.name is {name}, a network for small pictures whose last map has stride 4: choose "
            "another"
        )

    def create() -> Any:
        return smp.create_model(
            arch, PREFIX + name, encoder_weights=None, in_channels=3, classes=num_classes, **arguments
        )

    try:
        with torch.device("meta"):  # some values fail in the first forward pass only; this one costs nothing
            create().eval()(torch.empty(1, 3, 256, 256))
        return create()
    except Exception as error:  # smp and PyTorch raise nearly every type
        raise ConfigError(
            f"segmentation_models_pytorch cannot build {arch} on {name} ({' '.join(str(error).split())}); "
            "check model.smp"
        ) from error


def _aux_head(in_channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, AUX_CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(AUX_CHANNELS),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(AUX_CHANNELS, num_classes, 1),
    )


def _set_norm(module: nn.Module, norm: str) -> None:
    """Replace every batch norm below `module` in place."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _set_norm(child, norm)
            continue
        channels = child.num_features
        if norm == "SyncBN":
            new: nn.Module = SingleValueSafeSyncBatchNorm(channels, child.eps, child.momentum)
        elif norm == "GN" and channels >= MIN_GROUP:  # PAN has maps of one channel
            new = group_norm(channels)
        elif norm in ("BN", "GN"):
            new = SingleValueSafeBatchNorm2d(channels, child.eps, child.momentum)
        else:
            raise ConfigError(f"model.norm is {norm!r}; allowed: BN, SyncBN, GN")
        setattr(module, name, new)


def _by_size(batch: Sequence[Sample]) -> Iterator[list[int]]:
    """Yield the numbers of the samples whose pictures have one size."""
    groups: dict[torch.Size, list[int]] = {}
    for number, sample in enumerate(batch):
        groups.setdefault(sample["image"].shape, []).append(number)
    yield from groups.values()


def _padded(grid: Tensor, height: int, width: int, value: float) -> Tensor:
    return F.pad(grid, (0, width - grid.shape[-1], 0, height - grid.shape[-2]), value=value)


def _resized(logits: Tensor, images: Tensor) -> Tensor:
    if logits.shape[-2:] == images.shape[-2:]:
        return logits
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
