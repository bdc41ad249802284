"""RoIAlign by sums of pixels against torchvision's."""

import pytest
import torch
from torchvision import ops

from res2net_dense.deploy.roi_align import FastRoIAlign, roi_align


def boxes_and_features(count=40, images=2, height=30, width=21):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, 5, height, width, generator=generator)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width * 5.0, height * 5.0]) - 10
    half = torch.exp(torch.rand(count, 2, generator=generator) * 4.5)
    number = torch.randint(0, images, (count, 1), generator=generator)
    special = torch.tensor([
        [0, 8, 8, 8, 8],  # nothing
        [1, 10, 10, 5, 20],  # the wrong way round
        [0, -500, -500, -400, -400],  # outside
        [1, 0, 0, width * 4, height * 4],  # everything
        [0, 4, 4, 8, 400],
        [1, -4, -4, 4, 4],  # half a pixel outside
    ])  # fmt: skip
    return torch.cat([torch.cat([number, centre - half, centre + half], 1), special]), features


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("size", [(7, 7), (1, 4)])
def test_it_equals_torchvisions(aligned, sampling_ratio, size):
    boxes, features = boxes_and_features()
    expected = ops.roi_align(features, boxes, size, 0.25, sampling_ratio, aligned)
    layouts = (torch.contiguous_format, torch.channels_last)
    for maps in (features.contiguous(memory_format=layout) for layout in layouts):
        found = roi_align(
            maps, boxes, size, spatial_scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned
        )
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_no_boxes():
    found = roi_align(torch.randn(1, 3, 4, 4), torch.zeros(0, 5), (2, 2))
    assert found.shape == (0, 3, 2, 2)


@pytest.mark.parametrize("size", [7, (7, 5)])
def test_the_layer(size):
    boxes, features = boxes_and_features()
    layer = ops.RoIAlign(size, 0.25, 0, True)
    expected = layer(features, boxes)
    features.requires_grad_()
    layer(features, boxes).square().sum().backward()
    gradient, features.grad = features.grad, None
    fast = FastRoIAlign.of(layer)
    with torch.no_grad():
        torch.testing.assert_close(fast(features, boxes), expected, atol=2e-6, rtol=1e-5)
        half = fast(features.double(), boxes)  # torchvision's, which knows float64
        torch.testing.assert_close(half.float(), expected, atol=1e-5, rtol=1e-5)
    fast(features, boxes).square().sum().backward()  # torchvision's, which has a gradient
    assert torch.equal(features.grad, gradient)
