"""Image classification: a plain network of ours behind the contract of `res2net_dense.types`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from res2net_dense.backbones.registry import Classifier, create_classifier
from res2net_dense.convert import load_backbone_weights
from res2net_dense.errors import ConfigError
from res2net_dense.types import Losses, Prediction, Sample


class ClassificationModel(nn.Module):
    """A classifier that takes `Sample`s and returns its loss or `Prediction`s with `logits`.

    Args:
        backbone: gives `(N, num_classes)` logits of `(N, 3, H, W)` normalised pictures, and has
            `num_classes` and `extract_features`: see `create_classifier`.
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha: blend pairs of pictures and their labels with weights from Beta(alpha, alpha) (Zhang et
            al., arXiv 1710.09412); 0 for not.
        cutmix_alpha: paste a rectangle from picture to picture, with an area from Beta(alpha, alpha) (Yun et
            al., arXiv 1905.04899); 0 for not. With both, each batch takes one of them.
        pixel_mean: RGB, 0 to 255.
        pixel_std: RGB, 0 to 255.

    What is random comes from torch's global generator alone.

    Raises:
        ConfigError: an argument has no meaning.
    """

    def __init__(
        self,
        backbone: Classifier,
        *,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing}; it is a share from 0 to below 1")
        if mixup_alpha < 0 or cutmix_alpha < 0:
            raise ConfigError(
                f"mixup_alpha {mixup_alpha} and cutmix_alpha {cutmix_alpha} must not be negative; 0 is off"
            )
        self.backbone = backbone
        self.label_smoothing = label_smoothing
        kinds = [
            (kind, alpha) for kind, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha)) if alpha
        ]
        with torch.device("cpu"):  # where they draw, wherever the model is built
            self.mixes = [kind(alpha=alpha, num_classes=backbone.num_classes) for kind, alpha in kinds]
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(3, 1, 1), persistent=False)

    def forward(self, batch: Sequence[Sample]) -> Losses | list[Prediction]:
        """See `res2net_dense.types`. All pictures of a batch have one size.

        Raises:
            ConfigError: batch norm has a single value to learn from.
        """
        images = self._normalise(torch.stack([sample["image"] for sample in batch]))
        if not self.training:
            return [{"logits": logits.float()} for logits in self.backbone(images)]
        targets = torch.tensor([sample["label"] for sample in batch], device=images.device)
        if self.mixes:
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, targets = mix(images, targets)
        try:
            logits = self.backbone(images).float()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                "batch norm cannot learn from one picture whose last map is a single pixel: raise "
                "train.batch_size, lower train.accumulate, or use backbone.norm=GN"
            ) from None
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return {"loss_cls": loss}

    def extract_features(self, images: Tensor) -> dict[str, Tensor]:
        """`(N, 3, H, W)` pictures, RGB 0-255 -> the maps of all stages by name."""
        return self.backbone.extract_features(self._normalise(images))

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = self.get_buffer("pixel_mean"), self.get_buffer("pixel_std")
        return (images.to(mean.device) - mean) / std


def build_classifier_model(
    *,
    backbone: Mapping[str, Any],
    num_classes: int,
    keep_head: bool = True,
    label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
) -> ClassificationModel:
    """Build a classifier, on the weights that `backbone` names if any.

    Args:
        backbone: `name`, and optionally `weights` and whatever option `create_classifier` knows.
        num_classes: of the head.
        keep_head: start from the head of the weights too, where it has as many classes; a warning says where
            it has not.
        label_smoothing, mixup_alpha, cutmix_alpha, pixel_mean, pixel_std: see `ClassificationModel`.

    Raises:
        ConfigError: a value has no meaning.
        CheckpointError: the weights cannot be loaded.
    """
    options = {key: value for key, value in backbone.items() if key not in ("name", "weights")}
    net = create_classifier(backbone["name"], num_classes, **options)
    if weights := backbone.get("weights"):
        own_head = copy.deepcopy(net.fc)
        load_backbone_weights(net, backbone["name"], weights)
        if not keep_head:
            net.fc = own_head
    return ClassificationModel(
        net,
        label_smoothing=label_smoothing,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )
