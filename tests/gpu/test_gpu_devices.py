"""Without a GPU, on PyTorch's fake tensors, which have a device and a shape but no numbers: the networks find
all that they compute with on CUDA, and types agree under autocast.

Fake tensors have no values to branch on: R-CNNs, images of different sizes and mixed ones are left to the
tests on a GPU. There is no backward pass, which PyTorch runs in a thread of the device.
"""

from unittest import mock

import pytest
import torch
from networks import TINY
from torch._subclasses.fake_tensor import FakeTensorMode

from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.models import saliency, segmentation
from res2net_dense.models.classification import build_classifier_model
from res2net_dense.models.saliency import build_saliency_model
from res2net_dense.models.segmentation import build_segmentation_model

BACKBONE = {"name": TINY, "drop_path_rate": 0.1}
WEIGHTS = [1.0, 0.0, 2.0, 1.0, 1.0]


def build(kind):
    if kind == "classification":
        return build_classifier_model(
            backbone=BACKBONE, num_classes=5, label_smoothing=0.1, class_weights=WEIGHTS
        )
    if kind == "saliency":
        losses = {"bce": 1.0, "iou": 1.0, "ssim": 0.5, "structure": 0.5}
        return build_saliency_model(
            backbone=BACKBONE, channels=8, edge_weight=0.5, side_weight=0.5, losses=losses
        )
    losses = {"cross_entropy": 1.0, "dice": 1.0, "focal": 1.0, "lovasz": 1.0}
    views = {"scales": [0.75, 1.0], "flip": True, "window": 64, "window_stride": 48}
    options = {"losses": losses, "class_weights": WEIGHTS, "views": views, "aux_weight": 0.4}
    return build_segmentation_model(backbone=BACKBONE, arch=kind, num_classes=5, **options)


def sample(side):
    return {
        "image": torch.zeros(3, side, side, dtype=torch.uint8),
        "original_height": 2 * side, "original_width": side, "label": 1,
        "sem_seg": torch.zeros(side, side, dtype=torch.int64), "saliency": torch.zeros(side, side),
    }  # fmt: skip


def on_cuda(model):
    """The model with its parameters and buffers on a fake GPU; what else it keeps stays."""
    for module in model.modules():
        for entries in (module._parameters, module._buffers):
            for name, value in entries.items():
                if value is not None:
                    moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
                    learned = isinstance(value, torch.nn.Parameter)
                    entries[name] = torch.nn.Parameter(moved, value.requires_grad) if learned else moved
    return model


@pytest.fixture
def cuda(monkeypatch):
    """Inside, there is a fake GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a true one")
    # Autocast would switch itself off.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    for module in (saliency, segmentation):  # it looks at values
        monkeypatch.setattr(module, "warn_if_not_finite", mock.Mock())
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        yield mode


KINDS = [
    "classification",
    "saliency",
    *(
        kind if kind == "deeplabv3plus" else pytest.param(kind, marks=pytest.mark.slow)
        for kind in segmentation.OUTPUT_STRIDES
    ),
]


@pytest.mark.parametrize("way", [pytest.param("fp32", marks=pytest.mark.slow), "bf16", "optimized"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_is_on_the_device(kind, way, request):
    model = build(kind)
    if way == "optimized":
        model = optimize_for_inference(model, dtype=torch.bfloat16, pad_width=8)
    request.getfixturevalue("cuda")  # only now: the networks are built with numbers
    on_cuda(model)
    batch = [sample(256 if kind in segmentation.OUTPUT_STRIDES else 64) for _ in range(2)]
    with torch.autocast("cuda", torch.bfloat16, enabled=way == "bf16"):
        if way != "optimized":
            losses = model.train()(batch)
            assert {(loss.device.type, loss.dtype) for loss in losses.values()} == {("cuda", torch.float32)}
        with torch.no_grad():
            predictions = model.eval()(batch)
    assert {value.device.type for one in predictions for value in one.values()} == {"cuda"}


@pytest.mark.usefixtures("cuda")
def test_what_is_not_moved_is_found():
    with pytest.raises(RuntimeError, match="cpu"):
        torch.ones(3, device="cuda") + torch.ones(3)
