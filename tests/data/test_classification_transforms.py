"""Crops for classification: torchvision's and timm's own transforms as the reference."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, PILToTensor, RandomResizedCrop, Resize
from torchvision.transforms.functional import InterpolationMode, resized_crop

from res2net_dense.data import transforms
from res2net_dense.data.images import read_sample
from res2net_dense.data.transforms import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    center_crop,
    crop,
    random_crop_box,
    resize_to,
)
from res2net_dense.errors import ConfigError


def make(height=48, width=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {
        "image": torch.from_numpy(pixels).permute(2, 0, 1),
        "file_name": "a.png",
        "image_id": 3,
        "original_height": height,
        "original_width": width,
        "label": 7,
    }


def picture(sample):
    return Image.fromarray(sample["image"].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 300), (48, 64), (64, 48), (64, 64), (333, 500), (257, 256), (77, 301)]
)
@pytest.mark.parametrize(("resize", "size"), [(256, 224), (64, 64), (65, 64), (37, 32)])
def test_evaluation_equals_torchvision(height, width, resize, size):
    sample = make(height, width)
    expected = Compose([Resize(resize), CenterCrop(size), PILToTensor()])(picture(sample))
    done = ClassificationEvalTransform(resize, size)(sample)
    assert torch.equal(done["image"], expected)
    assert {**done, "image": 0} == {**sample, "image": 0}


@pytest.mark.parametrize(
    ("height", "width", "largest"),
    [(1, 1301, 0), (1300, 1, 0), (3, 1001, 12), (1000, 3, 12), (7, 701, 0), (7, 700, 0)],
)
def test_the_middle_of_a_strip_is_where_torchvision_has_it(height, width, largest):
    """Cutting the ends first may move it by a pixel, a twentieth of one that the third and fourth have."""
    sample = make(height, width)
    expected = Compose([Resize(64), CenterCrop(56), PILToTensor()])(picture(sample))
    done = ClassificationEvalTransform(64, 56)(sample)["image"]
    assert (done.int() - expected.int()).abs().max() <= largest


@pytest.mark.parametrize(
    "transform",
    [
        ClassificationEvalTransform(256, 224),
        ClassificationTrainTransform(256, crop="padded"),
        ClassificationTrainTransform(256),
    ],
)
@pytest.mark.parametrize(("height", "width"), [(1, 4_000_000), (4_000_000, 1), (1, 2500), (5, 20_000)])
def test_strips_stay_small(transform, height, width, monkeypatch):
    def bounded(sample, height, width):
        assert height * width <= 101 * 256**2
        return resize_to(sample, height, width)

    monkeypatch.setattr(transforms, "resize_to", bounded)
    image = torch.full((3, 1, 1), 7, dtype=torch.uint8).expand(3, height, width)
    sample = {**make(1, 1), "image": image}
    rng = () if isinstance(transform, ClassificationEvalTransform) else (np.random.default_rng(0),)
    done = transform(sample, *rng)["image"]
    assert done.shape[1:] == (transform.size, transform.size)
    assert done.unique().tolist() in ([7], [0, 7])


def test_evaluation_equals_timm_on_photos(shared_data):
    timm_data = pytest.importorskip("timm.data")
    reference = timm_data.create_transform(224, crop_pct=0.875, interpolation="bilinear", normalize=False)
    paths = sorted((shared_data / "photos").rglob("*.jpg"))[:5]
    assert paths
    for path in paths:
        done = ClassificationEvalTransform(256, 224)(read_sample(path, 0))
        assert torch.equal(done["image"], reference(Image.open(path).convert("RGB")))


def test_a_random_crop_is_torchvisions_resized_crop():
    sample = make(97, 131)
    transform = ClassificationTrainTransform(32, flip=0.0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rng.random(), rng.integers(2**31)
        box = random_crop_box(97, 131, (0.08, 1.0), (3 / 4, 4 / 3), rng)
        expected = resized_crop(picture(sample), *box, (32, 32), InterpolationMode.BILINEAR)
        done = transform(sample, np.random.default_rng(seed))["image"]
        np.testing.assert_array_equal(done.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(200, 300), (100, 640), (640, 100)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.9)])
def test_crop_boxes_are_distributed_as_torchvisions(height, width, scale):
    """Quantiles of share of the area, logarithm of the ratio, and place."""
    rng = np.random.default_rng(0)
    ratio = (3 / 4, 4 / 3)
    ours = np.array([random_crop_box(height, width, scale, ratio, rng) for _ in range(4000)], float)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(4000)]

    def describe(boxes):
        top, left, h, w = np.asarray(boxes, float).T
        values = [h * w / height / width, np.log(w / h), top / height, left / width]
        return np.quantile(values, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1], axis=1)

    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    np.testing.assert_allclose(describe(ours), describe(theirs), atol=0.04)


def test_pictures_that_no_box_fits():
    rng = np.random.default_rng(0)
    assert random_crop_box(1, 1, (1.0, 1.0), (1.0, 1.0), rng) == (0, 0, 1, 1)
    assert random_crop_box(10, 1000, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (0, 493, 10, 13)
    assert random_crop_box(1000, 10, (1.0, 1.0), (3 / 4, 4 / 3), rng) == (493, 0, 13, 10)
    for height, width in ((1, 5), (5, 1), (1, 1)):
        done = ClassificationTrainTransform(8)(make(height, width), rng)
        assert done["image"].shape == (3, 8, 8)


def test_a_crop_beyond_the_border_is_black():
    sample = make(4, 6)
    done = crop(sample, -1, 4, 6, 3)["image"]
    expected = torch.zeros(3, 6, 3, dtype=torch.uint8)
    expected[:, 1:5, :2] = sample["image"][:, :, 4:]
    assert torch.equal(done, expected)
    assert torch.equal(center_crop(sample, 4)["image"], sample["image"][:, :, 1:5])


def test_padded_crops_shift_by_up_to_the_padding():
    sample = make(32, 32)
    transform = ClassificationTrainTransform(32, crop="padded", padding=4, flip=0.0)
    padded = torch.nn.functional.pad(sample["image"], (4, 4, 4, 4))
    windows = {
        padded[:, y : y + 32, x : x + 32].numpy().tobytes(): (y, x) for y in range(9) for x in range(9)
    }
    seen = {
        windows[transform(sample, np.random.default_rng(n))["image"].numpy().tobytes()] for n in range(800)
    }
    assert len(seen) == 81
    whole = ClassificationTrainTransform(32, crop="padded", padding=0, flip=0.0)
    assert torch.equal(whole(sample, np.random.default_rng(0))["image"], sample["image"])


def test_padded_crops_of_another_size_resize_first():
    sample = make(48, 96)
    transform = ClassificationTrainTransform(24, crop="padded", padding=0, flip=0.0)
    small = resize_to(sample, 24, 48)["image"]
    places = set()
    for seed in range(200):
        done = transform(sample, np.random.default_rng(seed))["image"]
        places.add(next(x for x in range(25) if torch.equal(done, small[:, :, x : x + 24])))
    assert places == set(range(25))


@pytest.mark.parametrize("photometric", ["none", "strong"])
@pytest.mark.parametrize("kind", ["resized", "padded"])
def test_the_generator_alone_decides(photometric, kind):
    first, second = (ClassificationTrainTransform(16, crop=kind, photometric=photometric) for _ in range(2))
    sample = make()
    before = sample["image"].clone()
    ones = [first(sample, np.random.default_rng([5, n]))["image"] for n in range(30)]
    np.random.seed(3)
    torch.manual_seed(3)
    twos = [second(sample, np.random.default_rng([5, n]))["image"] for n in reversed(range(30))][::-1]
    assert all(map(torch.equal, ones, twos))
    assert len({one.numpy().tobytes() for one in ones}) > 25
    assert torch.equal(sample["image"], before)
    assert all(one.is_contiguous() and one.dtype == torch.uint8 for one in ones)


def test_flips_and_colours_do_not_depend_on_the_crop():
    sample = make(32, 32)
    flipped = []
    for kind in ("padded", "resized"):
        plain = ClassificationTrainTransform(32, crop=kind, flip=0.0)
        maybe = ClassificationTrainTransform(32, crop=kind, flip=0.5)
        pairs = [
            (plain(sample, np.random.default_rng(n)), maybe(sample, np.random.default_rng(n)))
            for n in range(60)
        ]
        for one, other in pairs:
            assert torch.equal(one["image"], other["image"]) or torch.equal(
                one["image"].flip(-1), other["image"]
            )
        flipped.append([not torch.equal(one["image"], other["image"]) for one, other in pairs])
    assert flipped[0] == flipped[1]
    assert 15 < sum(flipped[0]) < 45


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"crop": "center"},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"ratio": (0.0, 1.0)},
        {"padding": -1},
        {"flip": 2.0},
        {"photometric": "wild"},
    ],
)
def test_wrong_options_are_named(options):
    with pytest.raises(ConfigError):
        ClassificationTrainTransform(**{"size": 32, **options})


def test_wrong_evaluation_sizes_are_named():
    for sizes in ((31, 32), (0, 0)):
        with pytest.raises(ConfigError, match="crop size"):
            ClassificationEvalTransform(*sizes)
