"""Image classification: a plain network of ours behind the contract of `res2net_dense.types`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from res2net_dense.backbones.registry import Classifier, create_classifier
from res2net_dense.convert import load_backbone_weights
from res2net_dense.models.base import ImageModel, check_class_weights
from res2net_dense.types import ClassRows, Losses, Prediction, Sample


class ClassificationModel(ImageModel):
    """A classifier that takes `Sample`s and returns its loss or `Prediction`s with `logits`.

    All images of a batch have one size. All random numbers come from torch's global generator.
    `config/classification.py` explains the settings.

    Args:
        backbone: `(N, C, H, W)` normalized images -> `(N, num_classes)` logits; see `create_classifier`.
        **pixels: `pixel_mean` and `pixel_std` of `ImageModel`.
    """

    size_setting = "data.crop_size"
    norm_settings = "backbone.norm"
    class_layers: ClassVar = {"backbone.fc": ClassRows()}

    def __init__(
        self,
        backbone: Classifier,
        *,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **pixels: Sequence[float],
    ) -> None:
        super().__init__(**pixels)
        check_class_weights(class_weights, backbone.num_classes)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.backbone = backbone
        self.label_smoothing = label_smoothing
        self.mixing = Mixing(backbone.num_classes, mixup_alpha, cutmix_alpha)

    def predictions(self, batch: Sequence[Sample]) -> list[Prediction]:
        return [{"logits": logits.float()} for logits in self.logits(self._stacked(batch))]

    def logits(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` normalized -> `(N, num_classes)`."""
        return self.backbone(images)

    def losses(self, batch: Sequence[Sample]) -> Losses:
        images = self._stacked(batch)
        targets = torch.tensor([sample["label"] for sample in batch], device=images.device)
        images, targets = self.mixing(images, targets)
        logits = self.logits(images).float()
        return {"loss_cls": self._loss(logits, targets)}

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, the mean by the weights of the classes."""
        weights = self.class_weights if isinstance(self.class_weights, Tensor) else None
        entropy = partial(functional.cross_entropy, weight=weights, label_smoothing=self.label_smoothing)
        if weights is None or targets.is_floating_point():  # mixed
            return entropy(logits, targets)
        total = weights[targets].sum()
        return entropy(logits, targets, reduction="sum") / torch.where(total > 0, total, 1)

    def _stacked(self, batch: Sequence[Sample]) -> Tensor:
        return self.normalize(torch.stack([sample["image"] for sample in batch]))


class Mixing(nn.Module):
    """Mixup or CutMix of a batch, one of them drawn where both have an alpha above 0; as dropout, in training
    mode only.
    """

    def __init__(self, num_classes: int, mixup_alpha: float, cutmix_alpha: float) -> None:
        super().__init__()
        with torch.device("cpu"):  # where they draw, wherever the model is built
            self.kinds = [
                mix(alpha=alpha, num_classes=num_classes)
                for mix, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
                if alpha
            ]

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix `(N, C, H, W)` images and `(N,)` labels, which become `(N, num_classes)` shares."""
        if not self.training or not self.kinds:
            return images, targets
        mixed: tuple[Tensor, Tensor] = self.kinds[int(torch.randint(len(self.kinds), ()))](images, targets)
        return mixed


def build_classifier_model(
    *, backbone: Mapping[str, Any], num_classes: int, keep_head: bool = True, **options: Any
) -> ClassificationModel:
    """Build a classifier, and load the weights that `backbone` names, if any.

    Args:
        backbone: `name`, and optionally `weights` and the options of `create_classifier`.
        num_classes: of the head.
        keep_head: also load the head of the weights, if it has as many classes; otherwise a warning says so.
        **options: of `ClassificationModel`.

    Raises:
        ConfigError: the network has no such option.
        CheckpointError: the weights cannot be loaded.
    """
    settings = dict(backbone)
    name, weights = settings.pop("name"), settings.pop("weights", None)
    net = create_classifier(name, num_classes, **settings)
    if weights:
        own_head = copy.deepcopy(net.fc)
        load_backbone_weights(net, name, weights)
        if not keep_head:
            net.fc = own_head
    return ClassificationModel(net, **options)
