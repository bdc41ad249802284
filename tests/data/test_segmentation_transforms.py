"""Crops of pictures with label maps: tiny and thin ones first, Pillow as the reference."""

import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from res2net_dense.data import segmentation_transforms
from res2net_dense.data.loaders import TrainBatches, TrainSet, train_loader
from res2net_dense.data.segmentation_transforms import SegmentationEvalTransform, SegmentationTrainTransform
from res2net_dense.data.transforms import EvalTransform
from res2net_dense.errors import ConfigError, MissingDependencyError

pytest.importorskip("albumentations")

FILL = (124, 116, 104)
COLOURS = np.random.default_rng(7).permutation(256 * 3)[: 21 * 3].reshape(21, 3).astype(np.uint8)


def sample_of(image, labels):
    return {
        "image": torch.from_numpy(image).permute(2, 0, 1),
        "sem_seg": torch.from_numpy(labels.astype(np.int64)),
        "file_name": "a.png",
        "image_id": 3,
        "original_height": image.shape[0],
        "original_width": image.shape[1],
    }


def make(height=90, width=130, seed=0, block=24):
    """Blocks of labels, the colour of a pixel says its label."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 21, (height // block + 1, width // block + 1))
    labels = coarse.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    return sample_of(COLOURS[labels], labels)


def pixels(sample):
    return sample["image"].permute(1, 2, 0).numpy()


def equal(one, two):
    return all(torch.equal(one[key], two[key]) for key in ("image", "sem_seg"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 900), (33, 32), (31, 400)])
@pytest.mark.parametrize("photometric", ["none", "light", "strong"])
@pytest.mark.parametrize("base_size", [None, 40])
def test_tiny_and_thin_pictures(height, width, photometric, base_size):
    transform = SegmentationTrainTransform(32, base_size=base_size, photometric=photometric)
    for seed in range(20):
        done = transform(make(height, width), np.random.default_rng(seed))
        assert done["image"].shape == (3, 32, 32)
        assert done["image"].dtype == torch.uint8
        assert done["image"].is_contiguous()
        assert done["sem_seg"].shape == (32, 32)
        assert done["sem_seg"].dtype == torch.int64
        assert (done["sem_seg"] != 255).any()
        assert (done["original_height"], done["original_width"], done["image_id"]) == (height, width, 3)


@pytest.mark.parametrize("base_size", [None, 70])
def test_picture_and_labels_stay_together(base_size):
    transform = SegmentationTrainTransform(64, base_size=base_size)
    compared = 0
    for seed in range(200):
        done = transform(make(seed=seed % 5), np.random.default_rng(seed))
        labels = done["sem_seg"].numpy().astype(np.uint8)
        kernel = np.ones((5, 5), np.uint8)  # scaled by two, bilinear reaches over two pixels
        inside = cv2.erode(labels, kernel) == cv2.dilate(labels, kernel)
        inside &= labels != 255
        np.testing.assert_array_equal(pixels(done)[inside], COLOURS[labels[inside]])
        compared += inside.sum()
    assert compared > 200 * 64 * 64 * 0.35


def test_no_label_comes_up_that_was_not_there():
    sample = make()
    sample["sem_seg"][20:40, 30:60] = 255
    known = set(sample["sem_seg"].unique().tolist())
    for seed in range(100):
        done = SegmentationTrainTransform(48)(sample, np.random.default_rng(seed))
        assert set(done["sem_seg"].unique().tolist()) <= known
    many = sample_of(np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 999))  # more labels than a byte holds
    assert SegmentationTrainTransform(4)(many, np.random.default_rng(0))["sem_seg"].unique().tolist() == [999]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_scaling_the_square_is_cut_out_as_it_is(flip):
    rng = np.random.default_rng(1)
    image, labels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), np.arange(2000).reshape(40, 50)
    transform = SegmentationTrainTransform(24, scale=(1, 1), flip=flip)
    corners = set()
    for seed in range(300):
        done = transform(sample_of(image, labels), np.random.default_rng(seed))
        found = done["sem_seg"].numpy()[:, :: -1 if flip else 1]
        top, left = divmod(int(found[0, 0]), 50)
        np.testing.assert_array_equal(found, labels[top : top + 24, left : left + 24])
        expected = image[top : top + 24, left : left + 24]
        np.testing.assert_array_equal(pixels(done), expected[:, :: -1 if flip else 1])
        corners.add((top, left))
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops), min(lefts), max(lefts)) == (0, 16, 0, 26)


@pytest.mark.parametrize(("height", "width", "factor"), [(20, 30, 2.0), (60, 40, 0.5), (31, 17, 1.37)])
def test_the_whole_picture_is_scaled_as_pillow_does(height, width, factor):
    rng = np.random.default_rng(2)
    image, labels = (
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        rng.integers(0, 9, (height, width)),
    )
    size = round(width * factor), round(height * factor)
    done = SegmentationTrainTransform(max(size), scale=(factor, factor), flip=0.0)(
        sample_of(image, labels), np.random.default_rng(0)
    )
    rows, columns = np.nonzero(done["sem_seg"].numpy() != 255)
    where = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    scaled = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels(done)[where], np.asarray(scaled))
    if factor != 0.5:  # there every centre lies between two pixels, and either is the nearest
        nearest = Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        np.testing.assert_array_equal(done["sem_seg"].numpy()[where], np.asarray(nearest))


@pytest.mark.parametrize("photometric", ["none", "strong"])
def test_beside_the_picture_is_the_fill_and_nothing_to_learn(photometric):
    transform = SegmentationTrainTransform(64, scale=(0.5, 0.9), photometric=photometric, fill=(1, 2, 3))
    tops, lefts = set(), set()
    for seed in range(100):
        done = transform(make(60, 60), np.random.default_rng(seed))
        beside = done["sem_seg"] == 255
        assert beside.any()
        assert (pixels(done)[beside] == (1, 2, 3)).all()
        rows, columns = np.nonzero(~beside.numpy())
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a rectangle
        tops.add(int(rows[0]))
        lefts.add(int(columns.min()))
    assert len(tops) > 20
    assert len(lefts) > 20
    usual = SegmentationTrainTransform(64, scale=(0.5, 0.5))(make(60, 60), np.random.default_rng(0))
    assert set(map(tuple, pixels(usual)[usual["sem_seg"] == 255].tolist())) == {FILL}


@pytest.mark.parametrize(("base_size", "times"), [(None, 1.0), (150, 0.5)])
def test_scales_are_drawn_evenly(base_size, times):
    """A ramp from left to right tells by its slope how much it was scaled."""
    ramp = np.zeros((300, 510, 3), np.uint8)
    ramp[...] = (np.arange(510) // 2)[None, :, None]
    sample = sample_of(ramp, np.zeros((300, 510)))
    transform = SegmentationTrainTransform(120, base_size=base_size, flip=0.0)
    scales = []
    for seed in range(400):
        done = transform(sample, np.random.default_rng(seed))
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

    def resize_to(sample, height, width):
        made.append((*sample["image"].shape[1:], height, width))
        return resize(sample, height, width)

    resize = segmentation_transforms.resize_to
    monkeypatch.setattr(segmentation_transforms, "resize_to", resize_to)
    large, thin = (
        {"image": torch.zeros(3, *size, dtype=torch.uint8), "sem_seg": torch.zeros(*size, dtype=torch.int64)}
        for size in ((4000, 5000), (1, 10_000_000))
    )
    for sample, base_size in ((large, None), (large, 64), (thin, None), (thin, 64)):
        for seed in range(3):
            SegmentationTrainTransform(64, base_size=base_size)(sample, np.random.default_rng(seed))
    assert all(height <= 64 and width <= 64 for _, _, height, width in made)
    assert all(height <= 128 and width <= 128 for height, width, *_ in made[:3] + made[6:])


@pytest.mark.parametrize("photometric", ["none", "light", "strong"])
def test_the_generator_alone_decides(photometric):
    first, second = (SegmentationTrainTransform(40, photometric=photometric) for _ in range(2))
    sample = make()
    before = pickle.dumps(sample)
    one = [first(sample, np.random.default_rng([5, n])) for n in range(60)]
    np.random.seed(3)
    copy = ForkingPickler.loads(ForkingPickler.dumps(second))  # as a worker process gets it
    two = [copy(sample, np.random.default_rng([5, n])) for n in reversed(range(60))][::-1]
    assert all(map(equal, one, two))
    assert pickle.dumps(sample) == before
    same = sum(equal(one[i], one[j]) for i in range(60) for j in range(i))
    assert same <= 0.01 * 60 * 59 / 2


class Source:
    def __len__(self):
        return 6

    def sample(self, index):
        return make(seed=index)


def test_workers_change_nothing_and_epochs_differ():
    """Over five epochs no two crops of a picture are alike, with as many workers as you like."""
    batches = TrainBatches(6, 3, seed=1)
    runs = []
    for workers in (0, 2):
        dataset = TrainSet(Source(), range(6), SegmentationTrainTransform(32, photometric="strong"), seed=1)
        loader = iter(train_loader(dataset, batches, workers=workers))
        runs.append([sample for _ in range(10) for sample in next(loader)])
    assert all(map(equal, *runs))
    assert len({sample["image"].numpy().tobytes() for sample in runs[0]}) == len(runs[0]) == 30


def test_colour_leaves_geometry_alone():
    plain, coloured = (
        SegmentationTrainTransform(40, photometric=name, flip=0.0) for name in ("none", "strong")
    )
    for seed in range(20):
        one, two = (t(make(200, 200), np.random.default_rng(seed)) for t in (plain, coloured))
        assert torch.equal(one["sem_seg"], two["sem_seg"])


def test_flips_are_as_frequent_as_asked():
    labels = np.tile(np.arange(64), (64, 1))
    for share in (0.0, 0.3, 1.0):
        transform = SegmentationTrainTransform(64, scale=(1, 1), flip=share)
        sample = sample_of(np.zeros((64, 64, 3), np.uint8), labels)
        flips = [transform(sample, np.random.default_rng(n))["sem_seg"][0, 0] == 63 for n in range(300)]
        assert abs(np.mean(flips) - share) < 0.08


@pytest.mark.parametrize(
    "options",
    [
        {"crop_size": 0},
        {"base_size": 0},
        {"scale": (0, 1)},
        {"scale": (2, 1)},
        {"scale": (1, float("inf"))},
        {"scale": (float("nan"), 1)},
        {"flip": 1.5},
        {"photometric": "wild"},
        {"fill": (0, 0, 256)},
        {"fill": (0, 0)},
    ],
)
def test_wrong_options_are_named(options):
    with pytest.raises(ConfigError, match=next(iter(options))) as error:
        SegmentationTrainTransform(**{"crop_size": 64, **options})
    assert "\n" not in str(error.value)


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingDependencyError, match=r"res2net_dense\[segmentation\]"):
        SegmentationTrainTransform(64)
    SegmentationEvalTransform()  # needs none


def test_evaluation_keeps_the_size_and_drops_the_labels():
    sample = make(37, 53)
    done = SegmentationEvalTransform()(sample)
    assert torch.equal(done["image"], sample["image"])
    assert done["image"].is_contiguous()
    assert "sem_seg" in sample
    assert done.keys() == sample.keys() - {"sem_seg"}


def test_evaluation_resizes_as_detection_does():
    for sample in (make(37, 53), make(1, 5000), make(1, 1)):
        done = SegmentationEvalTransform(30, 100)(sample)
        assert torch.equal(done["image"], EvalTransform(30, 100)(sample)["image"])
        height, width = sample["image"].shape[1:]
        assert (done["original_height"], done["original_width"]) == (height, width)
        shrunk = SegmentationEvalTransform(max_size=40)(sample)["image"].shape[1:]
        assert max(shrunk) == min(40, max(height, width))


@pytest.mark.parametrize(("min_size", "max_size"), [(0, 10), (10, 0), (None, 0), (512, None)])
def test_wrong_evaluation_sizes_are_named(min_size, max_size):
    with pytest.raises(ConfigError, match="max_size"):
        SegmentationEvalTransform(min_size, max_size)
