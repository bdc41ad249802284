"""Views of an image: the input of the network, and averages equal to those of a naive loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from res2net_dense.models import semantic_inference
from res2net_dense.models.semantic_inference import class_probabilities, resized_argmax

SIZES = [(1, 1), (1, 70), (50, 1), (7, 9), (32, 32), (33, 65), (61, 47)]


def noise(height, width):
    """Two of noise, the same every time."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


class PerPixel(torch.nn.Module):
    """Knows nothing of a pixel's surroundings or place."""

    def __init__(self, classes=4):
        super().__init__()
        self.weight = torch.randn(classes, 3, 1, 1, generator=torch.Generator().manual_seed(1))
        self.shown = []

    def forward(self, images):
        self.shown.append(tuple(images.shape))
        return F.conv2d(images, self.weight)


class Context(PerPixel):
    """Sees surroundings, padding and left from right: each view of a pixel gives another answer."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))

    def forward(self, images):
        self.shown.append(tuple(images.shape))
        return F.conv2d(images, self.weight, padding=2) + images.mean((1, 2, 3), keepdim=True)


def test_one_view_is_the_softmax_of_the_logits():
    images = noise(32, 64)
    assert torch.equal(class_probabilities(Context(), images, divisor=32), Context()(images).softmax(1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [None, 16, 20, 33])
def test_the_network_is_shown_windows_in_multiples_of_the_divisor(size, window):
    """Full ones, except for images that are smaller, which get no border of zeros."""
    network = PerPixel()
    class_probabilities(network, noise(*size), divisor=16, window=window, scales=[0.5, 1, 1.5], flip=True)
    assert all(height % 16 == width % 16 == 0 for _, _, height, width in network.shown)
    if window:
        sizes = [[int(n * scale + 0.5) for n in size] for scale in (0.5, 1, 1.5)]
        sides = [[-(-min(n, window) // 16) * 16 for n in pair] for pair in sizes]
        assert set(network.shown) == {(2, 3, *pair) for pair in sides}
    else:
        assert len(network.shown) == 6


def interpolated(image, size, *, antialias):
    """Bilinear; with antialiasing by Pillow, as PyTorch 2.14 is wrong for a new width of 1."""
    if not antialias:
        return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
    planes = [Image.fromarray(plane.numpy()).resize(size[::-1], Image.Resampling.BILINEAR) for plane in image]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))


def naive(network, image, *, scales, flip, window, stride, divisor):
    """The definition, one image, view and pixel count at a time."""
    answers = []
    height, width = image.shape[1:]
    for scale in scales:
        size = (int(height * scale + 0.5), int(width * scale + 0.5))
        resized = interpolated(image, size, antialias=scale < 1)[None]
        for mirrored in [False, True] if flip else [False]:
            seen = torch.flip(resized, [3]) if mirrored else resized
            total, count = torch.zeros(4, *size), torch.zeros(size)
            for row in range(max(size[0] - window + stride - 1, 0) // stride + 1):
                for column in range(max(size[1] - window + stride - 1, 0) // stride + 1):
                    y1, x1 = min(row * stride + window, size[0]), min(column * stride + window, size[1])
                    y0, x0 = max(y1 - window, 0), max(x1 - window, 0)
                    tall, wide = ((n + divisor - 1) // divisor * divisor for n in (y1 - y0, x1 - x0))
                    crop = torch.zeros(1, 3, tall, wide)
                    crop[:, :, : y1 - y0, : x1 - x0] = seen[:, :, y0:y1, x0:x1]
                    logits = network(crop)[0, :, : y1 - y0, : x1 - x0]
                    total[:, y0:y1, x0:x1] += torch.softmax(logits, 0)
                    count[y0:y1, x0:x1] += 1
            assert count.min() > 0
            answer = total / count
            answer = torch.flip(answer, [2]) if mirrored else answer
            answers.append(interpolated(answer, (height, width), antialias=scale > 1))
    return sum(answers) / len(answers)


@pytest.mark.parametrize("size", [(40, 61), (12, 50), (1, 1), (1, 70), (50, 1)])
@pytest.mark.parametrize(
    ("window", "stride", "divisor"), [(16, 10, 8), (20, 20, 16), (24, 7, 1), (15, None, 4), (None, None, 32)]
)
@pytest.mark.parametrize(("scales", "flip"), [([1.0], False), ([0.5, 1.0, 1.75], True)])
def test_averages_are_those_of_a_naive_loop(size, window, stride, divisor, scales, flip):
    """With windows that move back into the image, padding at the right and below, two thirds as stride."""
    images = noise(*size)
    views = {"scales": scales, "flip": flip, "divisor": divisor}
    given = class_probabilities(Context(), images, window=window, window_stride=stride, **views)
    window = window or 1000
    for image, answer in zip(images, given, strict=True):
        expected = naive(Context(), image, window=window, stride=stride or window * 2 // 3, **views)
        torch.testing.assert_close(answer, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(given.sum(1), torch.ones(2, *size), rtol=0, atol=1e-5)


def test_half_precision_logits_and_no_gradients():
    images = noise(20, 30).requires_grad_()
    given = class_probabilities(lambda x: PerPixel()(x).bfloat16(), images, window=16)
    assert given.dtype == torch.float32
    assert not given.requires_grad
    torch.testing.assert_close(given.sum(1), torch.ones(2, 20, 30))


def test_images_given_are_not_changed():
    images = noise(20, 30)
    before = images.clone()
    # not even by a network that works in place on what it is shown
    class_probabilities(lambda x: x.mul_(2), images, flip=True, window=8, scales=[1, 0.5])
    assert torch.equal(images, before)


@pytest.mark.parametrize("classes", [1, 2, 21])
@pytest.mark.parametrize(
    ("size", "to"), [((1, 1), (7, 5)), ((13, 17), (13, 17)), ((13, 17), (100, 91)), ((90, 70), (31, 44))]
)
def test_resized_argmax_is_the_direct_computation(classes, size, to):
    scores = torch.randn(classes, *size, generator=torch.Generator().manual_seed(classes))
    direct = F.interpolate(scores[None], to, mode="bilinear", align_corners=False)[0].argmax(0)
    given = resized_argmax(scores, *to)
    assert given.dtype == torch.int64
    assert torch.equal(given, direct)


def test_resized_argmax_takes_the_first_of_equal_scores():
    scores = torch.tensor([0.0, 1.0, 1.0, 0.5]).reshape(4, 1, 1).expand(4, 3, 3)
    assert (resized_argmax(scores, 9, 8) == 1).all()
    assert (resized_argmax(scores.bfloat16(), 3, 3) == 1).all()
    assert (resized_argmax(torch.full((3, 2, 2), -1e30), 4, 4) == 0).all()


def test_resized_argmax_resizes_one_class_at_a_time(monkeypatch):
    """150 classes of a large image would fill the memory."""
    shapes = []

    class Watched:
        @staticmethod
        def interpolate(scores, *arguments, **keywords):
            shapes.append(scores.shape)
            return F.interpolate(scores, *arguments, **keywords)

    monkeypatch.setattr(semantic_inference, "F", Watched)
    resized_argmax(torch.randn(150, 4, 4), 30, 20)
    assert shapes == [(1, 1, 4, 4)] * 150
