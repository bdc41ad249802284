"""Small R-CNNs for tests, as if they had learnt something: `from small_rcnn import ...`."""

import copy

import torch
import torch.nn.functional as F
from networks import TINY
from torch import nn

from res2net_dense.backbones.bottle2neck import Bottle2neck
from res2net_dense.models.detection import build_rcnn

SMALL = {
    "anchor_sizes": (8, 16, 32, 64, 128), "fpn_channels": 32, "box_head_dim": 32, "mask_head_convs": 1,
    "mask_head_dim": 32, "rpn_pre_nms_test": 300, "rpn_post_nms_test": 100,
}  # fmt: skip


def noise_image(height, width, seed=0):
    """Coloured blobs, `(1, 3, height, width)` uint8."""
    generator = torch.Generator().manual_seed(seed)
    blobs = torch.rand(1, 3, height // 16 + 2, width // 16 + 2, generator=generator)
    return (F.interpolate(blobs, (height, width), mode="bilinear") * 255).to(torch.uint8)


def rcnn(name=TINY, **settings):
    """Statistics of images in its norms, scores that tell boxes apart, and residual branches that add little.

    Random branches that add much amplify rounding, in 16 blocks a hundredfold. It then decides which of two
    overlapping boxes of nearly equal score is kept, in PyTorch as in a file.
    """
    torch.manual_seed(0)
    model = build_rcnn(
        backbone={"name": name}, num_classes=5, **{**SMALL, "score_threshold": 0.22, **settings}
    )
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
        for part in (model.proposal_generator.rpn_head, model.roi_heads.box_predictor):
            for parameter in part.parameters():
                parameter.mul_(6)
        if model.roi_heads.mask_on:
            model.roi_heads.mask_head.predictor.weight.mul_(25)  # not all cells at 0.5
    return model.eval()


def rounding(model, images):
    """How far float32 moves the maps of an R-CNN's backbone: the largest relative error of one of them."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        maps, expected = (
            one.backbone((images.to(one.pixel_mean.dtype) - one.pixel_mean) / one.pixel_std)
            for one in (model, exact)
        )
    return max(float((maps[name] - value).norm() / value.norm()) for name, value in expected.items())
