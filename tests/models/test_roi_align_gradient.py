"""The gradient of our RoIAlign against torchvision's, and where a detector uses it."""

import pytest
import torch
from networks import TINY
from small_rcnn import SMALL
from torchvision import ops

from res2net_dense.models import rcnn
from res2net_dense.models.roi_align import roi_align


def boxes_and_features(count=40, height=30, width=21):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, height, width, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width * 5.0, height * 5.0]) - 10
    half = torch.exp(torch.rand(count, 2, generator=generator) * 4.5)
    number = torch.randint(0, 2, (count, 1), generator=generator)
    special = torch.tensor([
        [0, 8, 8, 8, 8],  # nothing
        [1, 10, 10, 5, 20],  # the wrong way round
        [0, -500, -500, -400, -400],  # outside
        [1, 0, 0, width * 4, height * 4],  # everything
        [1, -4, -4, 4, 4],  # half a pixel outside
    ])  # fmt: skip
    return torch.cat([torch.cat([number, centre - half, centre + half], 1), special]), features


def gradient(call, features, *arguments):
    features = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = call(features, *arguments)
    found.square().sum().backward()
    return features.grad


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "sampling_ratio"), [((7, 7), 0), ((1, 4), 0), ((3, 2), 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_equals_torchvisions(aligned, size, sampling_ratio, layout):
    boxes, features = boxes_and_features()
    features = features.contiguous(memory_format=layout)
    settings = size, 0.25, sampling_ratio, aligned
    expected = gradient(ops.roi_align, features, boxes, *settings)
    found = gradient(roi_align, features, boxes, *settings)
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_no_boxes():
    found = gradient(roi_align, torch.randn(1, 3, 4, 4), torch.zeros(0, 5), (2, 2))
    assert torch.equal(found, torch.zeros(1, 3, 4, 4))


def test_a_detector_learns_with_it_on_a_cpu_alone(monkeypatch):
    calls = []

    def watched(*arguments):
        calls.append(arguments)
        return roi_align(*arguments)

    monkeypatch.setattr(rcnn, "roi_align", watched)
    model = rcnn.build_rcnn(backbone={"name": TINY}, num_classes=5, **SMALL)
    sample = {
        "image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8),
        "original_height": 64, "original_width": 96,
        "boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1]),
        "masks": torch.ones(1, 64, 96, dtype=torch.bool),
    }  # fmt: skip
    losses = model.train()([sample])
    assert calls
    sum(losses.values()).backward()
    assert float(model.backbone.fpn_output2.weight.grad.abs().max()) > 0
    calls.clear()
    model.eval()([sample])  # which is torchvision's, to the last bit
    with torch.no_grad():
        model([sample])
    layer = model.roi_heads.box_pooler.level_poolers[0]
    layer(torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True), torch.zeros(1, 5))
    assert not calls
