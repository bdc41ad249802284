"""Pipelines as the tasks build them: what holds for every one of them, then flips, colours and rotations."""

import math
import pickle
import sys
from multiprocessing.reduction import ForkingPickler

import cv2
import numpy as np
import pytest
import torch

from res2net_dense.data import images
from res2net_dense.data.loaders import BatchLoader, TrainBatches, TrainSet
from res2net_dense.data.transforms import (
    PaddedCrop,
    PadToSquare,
    Pipeline,
    RandomFlip,
    RandomPart,
    RandomResizedCrop,
    RandomScaledCrop,
    ResizeLongestEdge,
    ResizeShortestEdge,
    colour_changes,
    random_rotation,
)
from res2net_dense.errors import MissingDependencyError

pytest.importorskip("albumentations")

BRIGHT, DARK = (230, 60, 90), (20, 200, 140)


FIRST_STEPS = {
    "detection": lambda: [ResizeShortestEdge([24, 32, 40], 60)],
    "classification": lambda: [RandomResizedCrop(32, (0.08, 1), (3 / 4, 4 / 3))],
    "small images": lambda: [PaddedCrop(32, 4)],
    "segmentation": lambda: [RandomScaledCrop(32, None, (0.5, 2))],
    "saliency": lambda: [RandomPart((0.6, 1)), ResizeLongestEdge(32), random_rotation(15)],
    "squares": lambda: [RandomPart((0.6, 1)), ResizeLongestEdge(32, False), random_rotation(15)],
}
each_task = pytest.mark.parametrize("task", FIRST_STEPS)


def pipeline(task, photometric="strong", flip=0.5):
    last = [PadToSquare(32, (9, 8, 7))] if task == "segmentation" else []
    return Pipeline(*FIRST_STEPS[task](), RandomFlip(flip), colour_changes(photometric), *last)


def sample_of(image, mask):
    return images.sample_of(image, "a.jpg", 3) | {
        "sem_seg": torch.from_numpy(mask.astype(np.int64) * 999),  # more labels than a byte holds
        "saliency": torch.from_numpy(mask.astype(np.float32)),
    }


def make(height=90, width=130, seed=0):
    """Random blobs; the colour of a pixel tells whether it is salient."""
    coarse = np.random.default_rng(seed).normal(size=(height // 20 + 2, width // 20 + 2)).astype(np.float32)
    mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) > 0
    return sample_of(np.where(mask[..., None], BRIGHT, DARK).astype(np.uint8), mask)


def with_objects():
    mask = np.zeros((2, 90, 130), bool)
    mask[0, 10:40, 20:60] = mask[1, 30:80, 70:120] = True
    boxes = torch.tensor([[20.0, 10, 60, 40], [70, 30, 120, 80]])
    return make() | {"boxes": boxes, "labels": torch.tensor([4, 5]), "masks": torch.from_numpy(mask)}


def pixels(sample):
    return sample["image"].permute(1, 2, 0).numpy()


def equal(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        for key, value in one.items()
    )


@each_task
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (2, 900), (33, 32), (3, 40000)])
def test_tiny_and_thin_images(task, height, width):
    transform = pipeline(task)
    sample = make(height, width)
    for seed in range(8):
        done = transform(sample, np.random.default_rng(seed))
        assert done["image"].shape[1:] == done["saliency"].shape == done["sem_seg"].shape
        assert done["image"].is_contiguous()
        assert [done[key].dtype for key in ("image", "saliency", "sem_seg")] == [
            *(torch.uint8, torch.float32, torch.int64)
        ]
        assert set(done["saliency"].unique().tolist()) <= {0, 1}
        assert set(done["sem_seg"].unique().tolist()) <= {0, 999, 255}
        assert (done["sem_seg"] != 255).any()
        assert (done["original_height"], done["original_width"], done["image_id"]) == (height, width, 3)


@each_task
def test_the_generator_alone_decides(task):
    first, second = pipeline(task), pipeline(task)
    sample = with_objects() if task == "detection" else make()
    before = pickle.dumps(sample)
    one = [first(sample, np.random.default_rng([5, n])) for n in range(40)]
    np.random.seed(3)
    torch.manual_seed(3)
    copy = ForkingPickler.loads(ForkingPickler.dumps(second))  # as a worker process gets it
    two = [copy(sample, np.random.default_rng([5, n])) for n in reversed(range(40))][::-1]
    assert all(map(equal, one, two))
    assert pickle.dumps(sample) == before
    assert len({done["image"].numpy().tobytes() for done in one}) >= 36
    if task == "detection":
        assert {min(done["image"].shape[1:]) for done in one} == {24, 32, 40}


class Source:
    def __len__(self):
        return 6

    def sample(self, index):
        return make(seed=index)


@each_task
def test_workers_change_nothing_and_epochs_differ(task):
    batches = TrainBatches(6, 3, seed=1)
    runs = []
    for workers in (0, 2):
        dataset = TrainSet(Source(), range(6), pipeline(task), seed=1)
        loader = iter(BatchLoader(dataset, batches, workers=workers))
        runs.append([sample for _ in range(10) for sample in next(loader)])
    assert all(map(equal, *runs))
    assert len(runs[0]) == 30
    assert len({sample["image"].numpy().tobytes() for sample in runs[0]}) >= 28


@each_task
def test_neither_colour_nor_flip_changes_what_else_is_drawn(task):
    plain, coloured, flipped = (
        pipeline(task, "none", 0.0),
        pipeline(task, "strong", 0.0),
        pipeline(task, flip=1.0),
    )
    changed = 0
    for seed in range(20):
        one, two, three = (t(make(200, 220), np.random.default_rng(seed)) for t in (plain, coloured, flipped))
        for key in ("sem_seg", "saliency"):
            assert torch.equal(one[key], two[key])
            if task != "segmentation":  # whose padding comes after the flip
                assert torch.equal(one[key], three[key].flip(-1))
        changed += not torch.equal(one["image"], two["image"])
    assert changed >= 15


def test_what_is_around_an_image_has_its_own_colour():
    """The colour changes leave it alone."""
    transform = Pipeline(
        RandomScaledCrop(64, None, (0.5, 0.6)), colour_changes("strong"), PadToSquare(64, (1, 2, 3))
    )
    for seed in range(30):
        done = transform(make(60, 60), np.random.default_rng(seed))
        assert (pixels(done)[done["sem_seg"] == 255] == (1, 2, 3)).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_asked(share):
    sample = with_objects()
    flips = [Pipeline(RandomFlip(share))(sample, np.random.default_rng(n)) for n in range(300)]
    assert abs(np.mean([done["boxes"][0, 0].item() == 70 for done in flips]) - share) < 0.08


@pytest.mark.parametrize(("strength", "same", "kinds"), [("light", 0.35, 0.65), ("strong", 0.1, 0.9)])
def test_colours_change_the_image_alone_and_each_in_its_own_way(strength, same, kinds):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)).permute(2, 0, 1)
    sample = with_objects() | {"image": image}
    transform = Pipeline(colour_changes(strength))
    done = [transform(sample, np.random.default_rng(n)) for n in range(200)]
    assert all(equal(one | {"image": 0}, sample | {"image": 0}) for one in done)
    means = [one["image"].float().mean().item() for one in done]
    # light leaves 25 % as they are, strong 5 %; steps drawing the same numbers would leave 50 and 30 %
    assert np.mean(np.array(means) == image.float().mean().item()) < same
    assert len(set(means)) > kinds * len(means)


def test_image_and_mask_stay_together():
    for size, keep_aspect in ((100, True), (64, False), (None, True)):
        transform = Pipeline(
            RandomPart((0.5, 1.0)), ResizeLongestEdge(size, keep_aspect), random_rotation(30), RandomFlip(0.5)
        )
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


def test_angles_are_drawn_evenly_and_corners_are_mirrored():
    """In an image that is dark on the left, the border between both parts tells how it was rotated."""
    mask = np.zeros((101, 101))
    mask[:, 51:] = 1
    sample = sample_of(np.where(mask[..., None] > 0, BRIGHT, DARK).astype(np.uint8), mask)
    angles = []
    for seed in range(300):
        done = Pipeline(random_rotation(20))(sample, np.random.default_rng(seed))
        assert set(map(tuple, pixels(done)[:, [0, -1]].reshape(-1, 3).tolist())) == {BRIGHT, DARK}
        border = done["saliency"][25:76].argmax(dim=1).double().numpy()
        angles.append(math.degrees(math.atan(np.polyfit(np.arange(51), border, 1)[0])))
    assert -20.5 < min(angles) < -18
    assert 18 < max(angles) < 20.5
    assert (abs(np.histogram(angles, [-21, -10, 0, 10, 21])[0] / 300 - 0.25) < 0.08).all()


def test_a_rotation_does_not_leave_boxes_behind():
    with pytest.raises(NotImplementedError, match="boxes would not follow"):
        Pipeline(random_rotation(5))(with_objects())


def test_missing_library_is_named_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    for build in (lambda: colour_changes("light"), lambda: random_rotation(5)):
        with pytest.raises(MissingDependencyError, match=r"albumentations; pip install 'res2net_dense\["):
            build()
    Pipeline(random_rotation(0), RandomFlip(1.0), colour_changes("none"))(make())
