"""Small detectors for tests, as if they had learnt something: `from small_rcnn import ...`."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from networks import TINY
from torch import nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.models.rcnn import build_rcnn
from res2net_dense.models.retinanet import build_retinanet

SMALL = {
    "anchor_sizes": (8, 16, 32, 64, 128), "fpn_channels": 32, "box_head_dim": 32, "mask_head_convs": 1,
    "mask_head_dim": 32, "rpn_pre_nms_test": 300, "rpn_post_nms_test": 100,
}  # fmt: skip


def noise_image(height, width, seed=0):
    """Coloured blobs, `(1, 3, height, width)` uint8."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    return (F.interpolate(blobs, (height, width), mode="bilinear") * 255).to(torch.uint8)


def sample(objects=1, height=64, width=96, **more):
    """A sample with equal objects, twice as large originally."""
    box = [10.0, 12.0, 42.0, 50.0]
    polygon = np.array([10, 12, 42, 12, 42, 50, 10, 50], dtype=np.float64)
    return {
        "image": torch.randint(0, 255, (3, height, width), dtype=torch.uint8),
        "original_height": 2 * height,
        "original_width": 2 * width,
        "boxes": torch.tensor([box] * objects).reshape(-1, 4),
        "labels": torch.zeros(objects, dtype=torch.int64),
        "masks": [[polygon]] * objects,
        **more,
    }


def rcnn(name=TINY, **settings):
    """Statistics of images in its norms, scores that tell boxes apart, and residual branches that add little.

    Random branches that add much amplify rounding, in 16 blocks a hundredfold. It then decides which of two
    overlapping boxes of nearly equal score is kept, in PyTorch as in a file.
    """
    torch.manual_seed(0)
    model = build_rcnn(
        backbone={"name": name}, num_classes=5, **{**SMALL, "score_threshold": 0.22, **settings}
    )
    heads = (model.proposal_generator.rpn_head, model.roi_heads.box_predictor)
    _learn(model, [parameter for part in heads for parameter in part.parameters()], 6)
    if model.roi_heads.mask_on:
        with torch.no_grad():
            model.roi_heads.mask_head.predictor.weight.mul_(25)  # not all cells at 0.5
    return model.eval()


def retinanet(name=TINY, **settings):
    """The same for a RetinaNet."""
    torch.manual_seed(0)
    small = {name: SMALL[name] for name in ("anchor_sizes", "fpn_channels")} | {"head_convs": 2}
    model = build_retinanet(backbone={"name": name}, num_classes=5, **{**small, **settings})
    _learn(model, [parameter for parameter in model.head.parameters() if parameter.ndim > 1], 8)
    return model.eval()


def _learn(model, parameters, factor):
    """See `rcnn`."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.7, 1.3)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = None  # the mean of what it has seen
    for block in model.modules():
        if isinstance(block, Bottle2neck):
            nn.init.uniform_(block.bn3.weight, 0.07, 0.13)
    images = torch.cat([noise_image(128, 160, seed) for seed in (1, 2)])
    with torch.no_grad():
        model.backbone.train()((images.float() - model.pixel_mean) / model.pixel_std)
        for parameter in parameters:
            parameter.mul_(factor)


def rounding(model, images):
    """How far float32 moves the maps of an R-CNN's backbone: the largest relative error of one of them."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        maps, expected = (
            one.backbone((images.to(one.pixel_mean.dtype) - one.pixel_mean) / one.pixel_std)
            for one in (model, exact)
        )
    return max(float((maps[name] - value).norm() / value.norm()) for name, value in expected.items())
