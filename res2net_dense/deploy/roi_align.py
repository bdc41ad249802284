"""RoIAlign layers for inference on CPUs, see `models/roi_align.py`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import ops

from res2net_dense.deploy.layers import is_traced
from res2net_dense.models.roi_align import roi_align


class FastRoIAlign(nn.Module):
    """A RoIAlign layer of torchvision or detectron2 that uses `roi_align` above where it can; see `of`."""

    output_size: int | Sequence[int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool

    @classmethod
    def of(cls, layer: nn.Module) -> FastRoIAlign:
        """Turn `layer` into such a layer and return it."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        return layer

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """`(N, C, H, W)` and `(K, 5)` -> `(K, C, height, width)`; see `roi_align`."""
        size = (self.output_size,) * 2 if isinstance(self.output_size, int) else self.output_size
        settings = self.spatial_scale, self.sampling_ratio, self.aligned
        learns = torch.is_grad_enabled() and (features.requires_grad or boxes.requires_grad)
        if features.device.type != "cpu" or features.dtype != torch.float32 or learns or is_traced():
            return ops.roi_align(features, boxes.to(features.dtype), size, *settings)
        return roi_align(features, boxes.float(), size, *settings)
