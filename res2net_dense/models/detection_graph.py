"""Faster and Mask R-CNN as a function from one picture to plain tensors, which tracing can take."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from res2net_dense.models.detection import RCNN
from res2net_dense.models.graphs import Graph

# isort: split
from detectron2.export.torchscript_patch import patch_builtin_len
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.modeling.roi_heads import fast_rcnn


class RcnnGraph(Graph):
    """`boxes`: `(K, 4)` float32 xyxy in pixels of the input, clipped to it; `labels`: `(K,)` int64; `scores`:
    `(K,)` float32, falling; and of a Mask R-CNN `masks`: `(K, M, M)` float32, probabilities inside each box.

    Traced on a picture of any size it takes pictures of every size: detectron2 keeps sizes and counts as
    tensors while it is traced. In one thing a trace differs from the model itself: torchvision suppresses
    boxes of different classes or levels together, moved apart, where the model goes class by class if there
    are more than 1,000 boxes. The sum rounds a box's edges to about 1e-7 of the way that it was moved.
    """

    by_tracing = True

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.divisor = self.model.backbone.size_divisibility
        self.outputs = ("boxes", "labels", "scores", *(("masks",) if self.model.roi_heads.mask_on else ()))
        for part in list(self.model.roi_heads.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.GroupNorm):
                    setattr(part, name, _GroupNormOfNone(child))
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`(1, 3, H, W)` uint8 RGB -> the detections."""
        (image,) = images
        with torch.no_grad(), _traceable():
            (found,) = self.model.inference([{"image": image}], do_postprocess=False)
        detections = (found.pred_boxes.tensor, found.pred_classes, found.scores)
        return (*detections, found.pred_masks[:, 0]) if "masks" in self.outputs else detections


@contextmanager
def _traceable() -> Iterator[None]:
    """Where detectron2 is traced, without what a trace or a runtime takes wrongly."""
    with ExitStack() as stack:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # it is documented
            stack.enter_context(patch_builtin_len())  # it would write a count into the trace
            for module in (proposal_utils, fast_rcnn):
                stack.enter_context(mock.patch.object(module, "batched_nms", _batched_nms))
        yield


def _batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """torchvision's `batched_nms` for few boxes, without its branch for none, of which OpenVINO makes one.

    Args:
        boxes: (K, 4) xyxy, clipped to the picture; K may be 0.
        scores: (K,).
        groups: (K,) class or level of each box; boxes of different groups leave each other alone.
        threshold: of the overlap.

    Returns:
        The numbers of those kept, the highest score first.
    """
    coordinates = F.pad(
        boxes.flatten(), (0, 1)
    )  # with a 0, which is never the largest: of none there is none
    edge = coordinates.max() + 1
    return nms(boxes + (groups * edge)[:, None], scores, threshold)


class _GroupNormOfNone(nn.Module):
    """Group normalisation that ONNX can also do where there is nothing to normalise: its exporter writes a
    reshaping with an edge to be inferred, which runtimes refuse when no box was found.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """`(K, C, H, W)` -> the same; K may be 0."""
        norm = self.norm
        if not torch.onnx.is_in_onnx_export():
            return norm(x)
        count, channels = norm.num_groups, norm.num_channels // norm.num_groups
        groups = x.reshape(x.shape[0], count, channels, *x.shape[2:])
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        variance = centred.square().mean((2, 3, 4), keepdim=True)
        normalised = (centred * torch.rsqrt(variance + norm.eps)).reshape(x.shape)
        return normalised * norm.weight[:, None, None] + norm.bias[:, None, None]
