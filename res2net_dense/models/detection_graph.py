"""A detector as a function from one image to plain tensors, for export by tracing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from res2net_dense.models import retinanet
from res2net_dense.models.graphs import Graph

# isort: split
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn


class DetectorGraph(Graph):
    """`boxes`: `(K, 4)` float32 xyxy in pixels of the input, clipped to it; `labels`: `(K,)` int64; `scores`:
    `(K,)` float32, falling; and of a Mask R-CNN `masks`: `(K, M, M)` float32, probabilities inside each box.

    Traced on an image of any size it takes images of every size: detectron2 keeps sizes and counts as tensors
    while it is traced. A trace differs from the model in one way: it always suppresses boxes of all classes
    or levels together, moved apart, where the model goes class by class if there are more than 1,000 boxes.
    This rounds a box's edges to about 1e-7 of the distance that it was moved.
    """

    by_tracing = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.divisor = self.model.backbone.size_divisibility
        heads = getattr(self.model, "roi_heads", nn.Identity())
        masks = ("masks",) if getattr(heads, "mask_on", False) else ()
        self.outputs = ("boxes", "labels", "scores", *masks)
        for part in list(heads.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(part, name, _EmptySafeGroupNorm(child))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        (image,) = images
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # documented
        with torch.no_grad(), _traceable() if traced else nullcontext():
            (found,) = self.model.inference([{"image": image}], do_postprocess=False)
        detections = (found.pred_boxes.tensor, found.pred_classes, found.scores)
        return (*detections, found.pred_masks[:, 0]) if "masks" in self.outputs else detections


@contextmanager
def _traceable() -> Iterator[None]:
    """Replace what a trace or a runtime gets wrong."""
    with (
        patch_builtin_len(),  # `len` would write a constant into the trace
        mock.patch.object(proposal_utils, "batched_nms", _batched_nms),
        mock.patch.object(fast_rcnn, "batched_nms", _batched_nms),
        mock.patch.object(retinanet, "batched_nms", _batched_nms),
    ):
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """torchvision's `batched_nms` for few boxes, without its branch for no boxes, where OpenVINO adds one.

    `boxes` are (K, 4), `groups` (K,) are their classes or levels; K may be 0.
    """
    edges = F.pad(boxes.flatten(), (0, 1))  # with a 0, so that there is a maximum without boxes
    edge = edges.max() - edges.min() + 1
    return nms(boxes + (groups * edge)[:, None], scores, threshold)


class _EmptySafeGroupNorm(nn.Module):
    """Group normalization that ONNX runtimes also accept without boxes: PyTorch's exporter writes a reshape
    with an inferred size, which they refuse for an empty tensor.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if not torch.onnx.is_in_onnx_export():
            return norm(x)
        count, channels = norm.num_groups, norm.num_channels // norm.num_groups
        groups = x.reshape(x.shape[0], count, channels, *x.shape[2:])
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        variance = centred.square().mean((2, 3, 4), keepdim=True)
        normalized = (centred * torch.rsqrt(variance + norm.eps)).reshape(x.shape)
        return normalized * norm.weight[:, None, None] + norm.bias[:, None, None]
