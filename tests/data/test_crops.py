"""Crops of each task: torchvision, timm and Pillow as the reference; tiny and thin images."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from resizing import assert_as_pillow
from torchvision.transforms import CenterCrop, Compose, PILToTensor, RandomResizedCrop, Resize
from torchvision.transforms.functional import InterpolationMode, resized_crop

from res2net_dense.data import images, transforms
from res2net_dense.data.geometry import resize_to
from res2net_dense.data.images import read_sample
from res2net_dense.data.transforms import (
    PaddedCrop,
    PadToSquare,
    Pipeline,
    RandomPart,
    RandomScaledCrop,
    ResizeAndCenterCrop,
    ResizeLongestEdge,
    ResizeShortestEdge,
    drop_maps,
    random_crop_box,
)

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
COLOURS = np.random.default_rng(7).permutation(256 * 3)[: 21 * 3].reshape(21, 3).astype(np.uint8)


def sample_of(image, labels=None):
    sample = images.sample_of(image, "a.png", 3)
    if labels is not None:
        sample["sem_seg"] = torch.from_numpy(labels.astype(np.int64))
        sample["saliency"] = torch.from_numpy((labels % 2).astype(np.float32))
    return sample


def noise(height=48, width=64):
    return sample_of(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def blocks(height=90, width=130, seed=0):
    """Blocks of labels, the colour of a pixel tells its label."""
    coarse = np.random.default_rng(seed).integers(0, 21, (height // 24 + 1, width // 24 + 1))
    labels = coarse.repeat(24, axis=0).repeat(24, axis=1)[:height, :width]
    return sample_of(COLOURS[labels], labels)


def scaled_crop(size, base_size=None, scale=(0.5, 2.0)):
    return Pipeline(RandomScaledCrop(size, base_size, scale), PadToSquare(size, (124, 116, 104)))


def random_resized_crop(size):
    return Pipeline(transforms.RandomResizedCrop(size, SCALE, RATIO))


def pixels(sample):
    return sample["image"].permute(1, 2, 0).numpy()


def center_crops(height, width, resize, size):
    """Ours and torchvision's."""
    sample = noise(height, width)
    expected = Compose([Resize(resize), CenterCrop(size), PILToTensor()])(Image.fromarray(pixels(sample)))
    done = Pipeline(ResizeAndCenterCrop(resize, size))(sample)
    assert {**done, "image": 0} == {**sample, "image": 0}
    return done["image"].int(), expected.int()


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 300), (48, 64), (64, 48), (64, 64), (333, 500), (257, 256), (77, 301)]
)
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (64, 64), (65, 64), (37, 32)])
def test_evaluation_equals_torchvision(height, width, resize, size):
    assert_as_pillow(*center_crops(height, width, resize, size), share=0.0113)


@pytest.mark.parametrize(
    ("height", "width", "largest"),
    [(1, 1301, 0), (1300, 1, 0), (3, 1001, 12), (1000, 3, 12), (7, 701, 1), (7, 700, 0)],
)
def test_the_middle_of_a_strip_is_where_torchvision_has_it(height, width, largest):
    """Cutting the ends first may move it by a pixel, a twentieth of one that the third and fourth have."""
    done, expected = center_crops(height, width, 64, 56)
    assert (done - expected).abs().max() <= largest


@pytest.mark.parametrize("step", [ResizeAndCenterCrop(256, 224), PaddedCrop(256, 4)])
@pytest.mark.parametrize(("height", "width"), [(1, 4_000_000), (4_000_000, 1), (1, 2500), (5, 20_000)])
def test_strips_stay_small(step, height, width, monkeypatch):
    def bounded(sample, height, width):
        assert height * width <= 101 * 256**2
        return resize_to(sample, height, width)

    monkeypatch.setattr(transforms, "resize_to", bounded)
    image = torch.full((3, 1, 1), 7, dtype=torch.uint8).expand(3, height, width)
    done = Pipeline(step)({**noise(1, 1), "image": image})["image"]
    assert done.shape[1:] == (step.size, step.size)
    assert done.unique().tolist() in ([7], [0, 7])


def test_evaluation_equals_timm_on_photos(shared_data):
    timm_data = pytest.importorskip("timm.data")
    reference = timm_data.create_transform(224, crop_pct=0.875, interpolation="bilinear", normalize=False)
    paths = sorted((shared_data / "photos").rglob("*.jpg"))[:5]
    assert paths
    for path in paths:
        done = Pipeline(ResizeAndCenterCrop(256, 224))(read_sample(path, 0))
        assert_as_pillow(done["image"], reference(Image.open(path).convert("RGB")), share=0.0015)


def test_a_random_crop_is_torchvisions_resized_crop():
    sample = noise(97, 131)
    for seed in range(20):
        box = random_crop_box(97, 131, SCALE, RATIO, np.random.default_rng(seed))
        expected = resized_crop(Image.fromarray(pixels(sample)), *box, (32, 32), InterpolationMode.BILINEAR)
        done = random_resized_crop(32)(sample, np.random.default_rng(seed))
        assert_as_pillow(pixels(done), expected, share=0.0206)


@pytest.mark.parametrize(("height", "width"), [(200, 300), (100, 640), (640, 100)])
@pytest.mark.parametrize("scale", [SCALE, (0.5, 0.9)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width, scale):
    """Quantiles of share of the area, logarithm of the ratio, and place."""
    rng = np.random.default_rng(0)
    ours = np.array([random_crop_box(height, width, scale, RATIO, rng) for _ in range(4000)], float)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(RATIO)) for _ in range(4000)]

    def describe(boxes):
        top, left, h, w = np.asarray(boxes, float).T
        values = [h * w / height / width, np.log(w / h), top / height, left / width]
        return np.quantile(values, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], axis=1)

    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    np.testing.assert_allclose(describe(ours), describe(theirs), atol=0.04)


def test_images_that_no_box_fits():
    rng = np.random.default_rng(0)
    assert random_crop_box(1, 1, (1.0, 1.0), (1.0, 1.0), rng) == (0, 0, 1, 1)
    assert random_crop_box(10, 1000, (1.0, 1.0), RATIO, rng) == (0, 493, 10, 13)
    assert random_crop_box(1000, 10, (1.0, 1.0), RATIO, rng) == (493, 0, 13, 10)
    for height, width in ((1, 5), (5, 1), (1, 1)):
        assert random_resized_crop(8)(noise(height, width), rng)["image"].shape == (3, 8, 8)


def test_padded_crops_shift_by_up_to_the_padding():
    sample = noise(32, 32)
    transform = Pipeline(PaddedCrop(32, 4))
    padded = torch.nn.functional.pad(sample["image"], (4, 4, 4, 4))
    windows = {
        padded[:, y : y + 32, x : x + 32].numpy().tobytes(): (y, x) for y in range(9) for x in range(9)
    }
    seen = {
        windows[transform(sample, np.random.default_rng(n))["image"].numpy().tobytes()] for n in range(800)
    }
    assert len(seen) == 81
    assert torch.equal(Pipeline(PaddedCrop(32, 0))(sample)["image"], sample["image"])


def test_padded_crops_of_another_size_resize_first():
    sample = noise(48, 96)
    small = resize_to(sample, 24, 48)["image"]
    places = set()
    for seed in range(200):
        done = Pipeline(PaddedCrop(24, 0))(sample, np.random.default_rng(seed))["image"]
        places.add(next(x for x in range(25) if torch.equal(done, small[:, :, x : x + 24])))
    assert places == set(range(25))


@pytest.mark.parametrize("base_size", [None, 70])
def test_image_and_labels_of_a_scaled_crop_stay_together(base_size):
    compared = 0
    for seed in range(200):
        done = scaled_crop(64, base_size)(blocks(seed=seed % 5), np.random.default_rng(seed))
        labels = done["sem_seg"].numpy().astype(np.uint8)
        kernel = np.ones((5, 5), np.uint8)  # scaled by two, bilinear reaches over two pixels
        inside = cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)
        inside &= labels != 255
        np.testing.assert_array_equal(pixels(done)[inside], COLOURS[labels[inside]])
        compared += inside.sum()
    assert compared > 200 * 64 * 64 * 0.35


def test_without_scaling_the_square_is_cut_out_as_it_is():
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), np.arange(2000).reshape(40, 50)
    corners = set()
    for seed in range(300):
        done = scaled_crop(24, scale=(1, 1))(sample_of(image, labels), np.random.default_rng(seed))
        found = done["sem_seg"].numpy()
        top, left = divmod(int(found[0, 0]), 50)
        np.testing.assert_array_equal(found, labels[top : top + 24, left : left + 24])
        np.testing.assert_array_equal(pixels(done), image[top : top + 24, left : left + 24])
        corners.add((top, left))
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 16, 0, 26)


@pytest.mark.parametrize(("height", "width", "factor"), [(20, 30, 2.0), (60, 40, 0.5), (31, 17, 1.37)])
def test_the_whole_image_is_scaled_as_pillow_does(height, width, factor):
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, (height, width))
    size = round(width * factor), round(height * factor)
    done = scaled_crop(max(size), scale=(factor, factor))(sample_of(image, labels))
    rows, columns = np.nonzero(done["sem_seg"].numpy() != 255)
    where = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    wanted = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    assert_as_pillow(pixels(done)[where], wanted, share=0.0128)
    longest = Pipeline(ResizeLongestEdge(max(size)))(sample_of(image, labels))
    assert_as_pillow(pixels(longest), wanted, share=0.0128)
    if factor != 0.5:  # there every centre lies between two pixels, and either is the nearest
        nearest = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(done["sem_seg"].numpy()[where], np.asarray(nearest))
        np.testing.assert_array_equal(longest["saliency"].numpy(), np.asarray(nearest) % 2)


def test_the_fill_is_around_the_image_with_nothing_to_learn():
    transform = Pipeline(RandomScaledCrop(64, None, (0.5, 0.9)), PadToSquare(64, (1, 2, 3)))
    tops, lefts = set(), set()
    for seed in range(100):
        done = transform(blocks(60, 60), np.random.default_rng(seed))
        outside = done["sem_seg"] == 255
        assert outside.any()
        assert (pixels(done)[outside] == (1, 2, 3)).all()
        rows, columns = np.nonzero(~outside.numpy())
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle
        tops.add(int(rows[0]))
        lefts.add(int(columns.min()))
    assert len(tops) > 20
    assert len(lefts) > 20


@pytest.mark.parametrize(("base_size", "times"), [(None, 1.0), (150, 0.5)])
def test_scales_are_drawn_evenly(base_size, times):
    """A ramp from left to right tells by its slope how much it was scaled."""
    ramp = np.zeros((300, 510, 3), np.uint8)
    ramp[...] = (np.arange(510) // 2)[None, :, None]
    sample = sample_of(ramp, np.zeros((300, 510)))
    scales = []
    for seed in range(400):
        done = scaled_crop(120, base_size)(sample, np.random.default_rng(seed))
        row = done["image"][0, 60].double().numpy()
        row = row[done["sem_seg"][60].numpy() != 255]
        scales.append((len(row) - 1) / (row[-1] - row[0]) / 2)
    found = np.array(scales) / times
    assert 0.47 < found.min() < 0.56
    assert 1.9 < found.max() < 2.1
    quarters = np.histogram(found, [0, 0.875, 1.25, 1.625, 9])[0] / 400
    assert (abs(quarters - 0.25) < 0.07).all()


def test_nothing_larger_than_the_square_is_made(monkeypatch):
    made = []

    def recorded(sample, height, width):
        made.append((*sample["image"].shape[1:], height, width))
        return resize_to(sample, height, width)

    monkeypatch.setattr(transforms, "resize_to", recorded)
    large, thin = (
        {"image": torch.zeros(3, *size, dtype=torch.uint8), "sem_seg": torch.zeros(*size, dtype=torch.int64)}
        for size in ((4000, 5000), (1, 10_000_000))
    )
    for sample, base_size in ((large, None), (large, 64), (thin, None), (thin, 64)):
        for seed in range(3):
            scaled_crop(64, base_size)(sample, np.random.default_rng(seed))
    assert all(height <= 64 and width <= 64 for _, _, height, width in made)
    assert all(height <= 128 and width <= 128 for height, width, *_ in made[:3] + made[6:])


def test_a_random_part_is_cut_out_as_it_is():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    sample = sample_of(image, np.arange(40 * 50).reshape(40, 50))
    found = []
    for seed in range(400):
        done = Pipeline(RandomPart((0.5, 0.8)))(sample, np.random.default_rng(seed))
        (height, width), (top, left) = done["sem_seg"].shape, divmod(int(done["sem_seg"][0, 0]), 50)
        where = slice(top, top + height), slice(left, left + width)
        np.testing.assert_array_equal(pixels(done), image[where])
        assert torch.equal(done["saliency"], sample["saliency"][where])
        found.append((height, width, top, left, 40 - top - height, 50 - left - width))
    lowest, highest = np.min(found, axis=0), np.max(found, axis=0)
    assert lowest.tolist() == [20, 25, 0, 0, 0, 0]  # every border is reached
    assert highest[:2].tolist() == [32, 40]
    heights, widths = np.array(found)[:, :2].T
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2  # drawn apart


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ResizeLongestEdge(None), (90, 130)),
        (ResizeLongestEdge(None, max_size=130), (90, 130)),
        (ResizeLongestEdge(None, max_size=65), (45, 65)),
        (ResizeLongestEdge(26, max_size=10), (18, 26)),
        (ResizeLongestEdge(260, max_size=10), (180, 260)),
        (ResizeLongestEdge(48, keep_aspect=False, max_size=10), (48, 48)),
        (ResizeShortestEdge([], 1000), (90, 130)),
        (ResizeShortestEdge([], 65), (45, 65)),
    ],
)
def test_sizes_with_and_without_a_wanted_one(step, expected):
    assert Pipeline(step)(blocks())["saliency"].shape == expected
    assert Pipeline(step)(blocks(130, 90))["saliency"].shape == expected[::-1]


def test_evaluation_drops_the_maps_and_leaves_the_input_alone():
    sample = blocks(37, 53)
    done = Pipeline(drop_maps)(sample)
    assert torch.equal(done["image"], sample["image"])
    assert done["image"].is_contiguous()
    assert done.keys() == sample.keys() - {"sem_seg", "saliency"}
