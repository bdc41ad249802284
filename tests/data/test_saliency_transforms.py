"""Pictures with a saliency mask: tiny and thin ones first, then pictures that are made from their masks."""

import inspect
import math
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from res2net_dense.data.loaders import TrainBatches, TrainSet, train_loader
from res2net_dense.data.saliency_transforms import SaliencyEvalTransform, SaliencyTrainTransform
from res2net_dense.errors import ConfigError, MissingDependencyError

cv2 = pytest.importorskip("cv2")
pytest.importorskip("albumentations")

BRIGHT, DARK = (230, 60, 90), (20, 200, 140)
EVERYTHING = {"crop": (0.6, 1.0), "rotate": 15.0, "photometric": "strong"}


def sample_of(image, mask):
    return {
        "image": torch.from_numpy(image).permute(2, 0, 1),
        "saliency": torch.from_numpy(mask.astype(np.float32)),
        "file_name": "a.jpg",
        "image_id": 3,
        "original_height": image.shape[0],
        "original_width": image.shape[1],
    }


def make(height=90, width=130, seed=0):
    """Random blobs; the colour of a pixel says whether it is salient."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height // 20 + 2, width // 20 + 2)).astype(np.float32)
    mask = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) > 0
    return sample_of(np.where(mask[..., None], BRIGHT, DARK).astype(np.uint8), mask)


def pixels(sample):
    return sample["image"].permute(1, 2, 0).numpy()


def equal(one, two):
    return all(torch.equal(one[key], two[key]) for key in ("image", "saliency"))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 900), (33, 32), (3, 40000)])
@pytest.mark.parametrize("options", [{}, EVERYTHING])
@pytest.mark.parametrize(("size", "keep_aspect"), [(None, True), (32, True), (32, False)])
def test_tiny_and_thin_pictures(height, width, options, size, keep_aspect):
    transform = SaliencyTrainTransform(size, keep_aspect=keep_aspect, **options)
    sample = make(height, width)
    for seed in range(10):
        done = transform(sample, np.random.default_rng(seed))
        assert done["image"].shape[1:] == done["saliency"].shape
        assert done["image"].dtype == torch.uint8
        assert done["image"].is_contiguous()
        assert done["saliency"].dtype == torch.float32
        assert ((done["saliency"] == 0) | (done["saliency"] == 1)).all()
        assert (done["original_height"], done["original_width"], done["image_id"]) == (height, width, 3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_empty_and_full_masks_stay_so(value):
    sample = make(40, 50)
    sample["saliency"] = torch.full((40, 50), value)
    for seed in range(10):
        done = SaliencyTrainTransform(33, **EVERYTHING)(sample, np.random.default_rng(seed))
        assert (done["saliency"] == value).all()


@pytest.mark.parametrize(
    ("size", "keep_aspect", "max_size", "expected"),
    [
        (None, True, 1024, (90, 130)),
        (None, True, 130, (90, 130)),
        (None, True, 65, (45, 65)),
        (26, True, 10, (18, 26)),
        (260, True, 10, (180, 260)),
        (48, False, 10, (48, 48)),
    ],
)
def test_sizes(size, keep_aspect, max_size, expected):
    options = {"keep_aspect": keep_aspect, "max_size": max_size}
    for rotate in (0.0, 20.0):
        done = SaliencyTrainTransform(size, rotate=rotate, **options)(make(), np.random.default_rng(0))
        assert done["saliency"].shape == expected
    assert SaliencyEvalTransform(size, **options)(make())["image"].shape[1:] == expected
    turned = SaliencyEvalTransform(size, **options)(make(130, 90))["image"].shape[1:]
    assert turned == expected[::-1]


@pytest.mark.parametrize("options", [{"size": 100}, {"size": 64, "keep_aspect": False}, {"size": None}])
def test_picture_and_mask_stay_together(options):
    transform = SaliencyTrainTransform(**options, crop=(0.5, 1.0), rotate=30.0)
    apart, far_apart = [], []
    for seed in range(60):
        done = transform(make(seed=seed), np.random.default_rng(seed))
        mask = done["saliency"].numpy().astype(np.uint8)
        assert 0 < mask.mean() < 1
        to_bright, to_dark = (abs(pixels(done) - np.array(c)).sum(axis=2) for c in (BRIGHT, DARK))
        differs = (to_bright < to_dark) != mask
        kernel = np.ones((3, 3), np.uint8)
        apart.append(differs.mean())
        far_apart.append((differs & (cv2.erode(mask, kernel) == cv2.dilate(mask, kernel))).mean())
    # nearest and bilinear part at borders alone; a shift by one pixel would give 0.037 and 1.6e-4 or more
    assert np.mean(apart) < 0.02
    assert np.mean(far_apart) < 5e-5


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_without_a_size_the_part_is_cut_out_as_it_is(flip):
    rng = np.random.default_rng(1)
    number = np.arange(40 * 50, dtype=np.int64).reshape(40, 50)
    image = np.stack([number // 256, number % 256, rng.integers(0, 256, (40, 50))], axis=2).astype(np.uint8)
    mask = rng.random((40, 50)) > 0.5
    transform = SaliencyTrainTransform(None, crop=(0.5, 0.8), flip=flip)
    found = []
    for seed in range(400):
        done = transform(sample_of(image, mask), np.random.default_rng(seed))
        cut = pixels(done)[:, :: -1 if flip else 1]
        (height, width), (top, left) = cut.shape[:2], divmod(int(cut[0, 0, 0]) * 256 + int(cut[0, 0, 1]), 50)
        where = slice(top, top + height), slice(left, left + width)
        np.testing.assert_array_equal(cut, image[where])
        np.testing.assert_array_equal(done["saliency"].numpy()[:, :: -1 if flip else 1], mask[where])
        found.append((height, width, top, left, 40 - top - height, 50 - left - width))
    lowest, highest = np.min(found, axis=0), np.max(found, axis=0)
    assert lowest.tolist() == [20, 25, 0, 0, 0, 0]  # every border is reached
    assert highest[:2].tolist() == [32, 40]
    heights, widths = np.array(found)[:, :2].T
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.2  # drawn apart


def test_the_whole_picture_is_resized_as_pillow_does():
    sample = make(61, 43)
    done = SaliencyTrainTransform(30, flip=0.0)(sample, np.random.default_rng(0))
    size = round(43 * 30 / 61), 30
    for found in (done, SaliencyEvalTransform(30)(sample)):
        wanted = Image.fromarray(pixels(sample)).resize(size, Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(pixels(found), np.asarray(wanted))
    mask = Image.fromarray(sample["saliency"].numpy().astype(np.uint8))
    np.testing.assert_array_equal(
        done["saliency"].numpy(), np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    )


def test_angles_are_drawn_evenly_and_corners_are_mirrored():
    """Of a picture that is dark on the left the border between both parts tells how it was turned."""
    mask = np.zeros((101, 101))
    mask[:, 51:] = 1
    sample = sample_of(np.where(mask[..., None] > 0, BRIGHT, DARK).astype(np.uint8), mask)
    transform = SaliencyTrainTransform(None, rotate=20.0, flip=0.0)
    angles = []
    for seed in range(300):
        done = transform(sample, np.random.default_rng(seed))
        assert set(map(tuple, pixels(done)[:, [0, -1]].reshape(-1, 3).tolist())) == {BRIGHT, DARK}
        border = done["saliency"][25:76].argmax(dim=1).double().numpy()
        angles.append(math.degrees(math.atan(np.polyfit(np.arange(51), border, 1)[0])))
    assert -20.5 < min(angles) < -18
    assert 18 < max(angles) < 20.5
    assert (abs(np.histogram(angles, [-21, -10, 0, 10, 21])[0] / 300 - 0.25) < 0.08).all()


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_the_generator_alone_decides(options):
    first, second = (SaliencyTrainTransform(40, **options) for _ in range(2))
    sample = make()
    before = pickle.dumps(sample)
    one = [first(sample, np.random.default_rng([5, n])) for n in range(40)]
    np.random.seed(3)
    copy = ForkingPickler.loads(ForkingPickler.dumps(second))  # as a worker process gets it
    two = [copy(sample, np.random.default_rng([5, n])) for n in reversed(range(40))][::-1]
    assert all(map(equal, one, two))
    assert pickle.dumps(sample) == before
    if options:
        assert len({done["image"].numpy().tobytes() for done in one}) == 40


class Source:
    def __len__(self):
        return 6

    def sample(self, index):
        return make(seed=index)


def test_workers_change_nothing_and_epochs_differ():
    batches = TrainBatches(6, 3, seed=1)
    runs = []
    for workers in (0, 2):
        dataset = TrainSet(Source(), range(6), SaliencyTrainTransform(32, **EVERYTHING), seed=1)
        loader = iter(train_loader(dataset, batches, workers=workers))
        runs.append([sample for _ in range(10) for sample in next(loader)])
    assert all(map(equal, *runs))
    assert len({sample["image"].numpy().tobytes() for sample in runs[0]}) == len(runs[0]) == 30


def test_colour_leaves_geometry_and_mask_alone():
    plain, coloured = (
        SaliencyTrainTransform(40, photometric=name, crop=(0.5, 1), rotate=10.0)
        for name in ("none", "strong")
    )
    changed = 0
    for seed in range(20):
        one, two = (t(make(), np.random.default_rng(seed)) for t in (plain, coloured))
        assert torch.equal(one["saliency"], two["saliency"])
        changed += not torch.equal(one["image"], two["image"])
    assert changed >= 15


def test_flips_are_as_frequent_as_asked():
    mask = np.tile(np.arange(16) < 8, (16, 1))
    sample = sample_of(np.zeros((16, 16, 3), np.uint8), mask)
    for share in (0.0, 0.3, 1.0):
        transform = SaliencyTrainTransform(16, flip=share)
        flips = [transform(sample, np.random.default_rng(n))["saliency"][0, 0] == 0 for n in range(300)]
        assert abs(np.mean(flips) - share) < 0.08


def test_evaluation_drops_the_mask_and_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    sample = make(37, 53)
    done = SaliencyEvalTransform(None)(sample)
    assert torch.equal(done["image"], sample["image"])
    assert done["image"].is_contiguous()
    assert "saliency" in sample
    assert done.keys() == sample.keys() - {"saliency"}
    assert SaliencyEvalTransform(20)(done)["image"].shape == (3, 14, 20)  # of a picture without a mask


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(MissingDependencyError, match=r"res2net_dense\[saliency\]"):
        SaliencyTrainTransform(64)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 40000},
        {"max_size": 0},
        {"max_size": 40000},
        {"keep_aspect": False, "size": None},
        {"crop": (0, 1)},
        {"crop": (0.9, 0.8)},
        {"crop": (0.9, 1.1)},
        {"crop": (float("nan"), 1)},
        {"crop": (0.9,)},
        {"rotate": -1},
        {"rotate": float("nan")},
        {"flip": 1.5},
        {"photometric": "wild"},
    ],
)
def test_wrong_options_are_named(options):
    for transform in (SaliencyTrainTransform, SaliencyEvalTransform):
        if not options.keys() <= inspect.signature(transform).parameters.keys():
            continue
        with pytest.raises(ConfigError, match=next(iter(options))) as error:
            transform(**{"size": 64, **options})
        assert "\n" not in str(error.value)
