"""Label maps as palette images, bit by bit, and drawn over their image."""

import io

import numpy as np
import pytest
from PIL import Image

from res2net_dense.errors import ConfigError
from res2net_dense.palette import voc_palette
from res2net_dense.report import segments
from res2net_dense.report.segments import draw_segmentation, palette_image

NAMES = ["background", "cat", "dog"]


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def labels(height, width):
    """Background with an area of each class."""
    result = np.zeros((height, width), np.int64)
    result[height // 4 : height // 2, width // 4 : width // 2] = 1
    result[height // 2 : 3 * height // 4, width // 4 : width // 2] = 2
    return result


def tinted(label, below=90):
    return below + 0.6 * (voc_palette(label + 1)[label].astype(float) - below)


# palette images


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
def test_a_palette_png_read_back_is_the_map(kind):
    sem_seg = np.arange(256, dtype=kind).reshape(8, 32)[:, ::-1]
    file = io.BytesIO()
    palette_image(sem_seg).save(file, "PNG")
    stored = Image.open(file)
    assert stored.mode == "P"
    np.testing.assert_array_equal(np.asarray(stored), sem_seg)
    np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), voc_palette()[sem_seg])


@pytest.mark.parametrize("sem_seg", [np.zeros((3, 4)), np.full((1, 1), 7), np.full((500, 1), 255)])
def test_maps_of_few_labels_keep_them(sem_seg):
    """A PNG with few colours may be written with fewer bits a pixel."""
    file = io.BytesIO()
    palette_image(sem_seg.astype(np.int64)).save(file, "PNG", optimize=True)
    np.testing.assert_array_equal(np.asarray(Image.open(file)), sem_seg)


def test_real_masks_come_back(shared_data):
    for path in sorted((shared_data / "voc2012_seg" / "SegmentationClassAug").glob("*.png"))[:10]:
        mask = np.asarray(Image.open(path))
        np.testing.assert_array_equal(np.asarray(palette_image(mask)), mask)


@pytest.mark.parametrize("label", [-1, 256, 300])
def test_labels_that_a_palette_cannot_hold_are_refused(label):
    sem_seg = np.zeros((4, 4), np.int64)
    sem_seg[1, 1] = label
    with pytest.raises(ConfigError, match=str(label)):
        palette_image(sem_seg)
    with pytest.raises(ConfigError, match=str(label)):
        draw_segmentation(grey(4, 4), sem_seg, NAMES)


# drawn


def test_background_alone_leaves_the_image_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    for name in ("background", "_background_"):
        drawn = draw_segmentation(image, np.zeros((500, 600), np.int64), [name, "cat"])
        np.testing.assert_array_equal(drawn[:500], image)
        assert drawn.shape[1:] == (600, 3)
        assert (drawn[500:] < 128).any()
    drawn = draw_segmentation(image, np.zeros((500, 600), np.int64), ["road"])
    assert (drawn[:500] <= image * 0.4 + 1).all()  # label 0 is black


@pytest.mark.parametrize("scale", [1, 4])
def test_areas_are_where_they_should_be(scale):
    sem_seg = labels(600 // scale, 800 // scale)
    drawn = draw_segmentation(grey(*sem_seg.shape), sem_seg, NAMES)[:600]
    assert drawn.dtype == np.uint8
    for label, y, x in ((1, 225, 300), (2, 375, 300)):
        np.testing.assert_allclose(drawn[y, x], tinted(label), atol=1)
    outside = np.ones((600, 800), bool)
    outside[145:455, 195:405] = False
    assert (drawn[outside] == 90).all()
    # outlines on the borders: to the background, and between the classes
    for y, x in ((150, 300), (225, 200), (225, 400), (300, 300), (450, 300)):
        around = drawn[y - 2 : y + 3, x - 2 : x + 3]
        assert (around == 255).all(axis=-1).any()


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(160, 160, 3), (480, 640, 1), (1500, 900, 1), (1, 1, 480), (4000, 2, 1), (30, 700, 5)],
)
def test_size(height, width, scale):
    image, sem_seg = grey(height, width), labels(height, width)
    drawn = draw_segmentation(image, sem_seg, NAMES)
    assert drawn.shape[1] == max(480, scale * width)
    assert scale * height + 20 <= drawn.shape[0] <= 1.5 * scale * height + 120
    assert (image == 90).all()


def test_enlarged_borders_are_smooth_and_areas_keep_their_size():
    disc = np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 12
    large = segments._enlarged(disc.astype(np.uint8), [0, 1], (480, 480))
    truth = np.hypot(*(np.mgrid[:480, :480] - 239.5)) < 144
    staircase = np.kron(disc, np.ones((12, 12), bool))
    assert (large != truth).sum() < (staircase != truth).sum()
    assert large.sum() == pytest.approx(144 * disc.sum(), rel=0.02)
    # a single pixel is not lost
    dot = np.zeros((40, 40), np.uint8)
    dot[20, 20] = 7
    assert (segments._enlarged(dot, [0, 7], (480, 480))[240:252, 240:252] == 7).mean() > 0.6


def test_ignored_pixels_are_striped_without_an_outline():
    sem_seg = np.zeros((500, 600), np.int64)
    sem_seg[100:200] = 255
    drawn = draw_segmentation(grey(500, 600), sem_seg, NAMES)[:500]
    colours = np.unique(drawn[100:200].reshape(-1, 3), axis=0)
    assert len(colours) == 2
    assert (np.ptp(colours, axis=1) == 0).all()
    assert (drawn[:100] == 90).all()
    assert (drawn[200:] == 90).all()


@pytest.fixture
def written(monkeypatch):
    """What the legend says, row by row."""
    entries = []
    real = segments._with_legend

    def record(photo, rows, untinted):
        entries.extend(rows)
        return real(photo, rows, untinted)

    monkeypatch.setattr(segments, "_with_legend", record)
    return entries


def test_the_legend_has_the_classes_present_by_share(written):
    sem_seg = np.zeros((100, 100), np.int64)
    sem_seg[:20] = 2
    sem_seg[20:25] = 7
    sem_seg[25:55] = 255
    sem_seg[99, 99] = 8
    draw_segmentation(grey(100, 100), sem_seg, [*NAMES, *"xyzuv", "two\nlines"])
    assert written == [
        (0, "background", "45.0 %"), (2, "dog", "20.0 %"), (7, "v", "5.0 %"), (8, "two lines", "< 0.1 %"),
        (255, "ignored", "30.0 %"),
    ]  # fmt: skip


def test_the_legend_shows_the_colours():
    sem_seg = labels(500, 600)
    below = draw_segmentation(grey(500, 600), sem_seg, NAMES)[500:]
    for label in (1, 2):
        assert (below == voc_palette(3)[label]).all(axis=-1).sum() > 100


@pytest.mark.parametrize(
    "names",
    [["x" * 5000, "y" * 40], ["", " "], ["a\nb", "c\td"], ["Füße 日本", "\u202e\u0000"]],
)
def test_any_name_fits(names):
    """Long ones are cut: the shares stand next to them, and the right margin stays free."""
    sem_seg = np.zeros((300, 300), np.int64)
    sem_seg[:100] = 1
    legend = draw_segmentation(grey(300, 300), sem_seg, names)[600:]
    assert (legend < 128).any()
    assert (legend[:, -8:] == 255).all()


def test_many_classes_fit_below_each_other():
    sem_seg = np.kron(np.arange(255).reshape(15, 17), np.ones((40, 40), np.int64))
    drawn = draw_segmentation(grey(600, 680), sem_seg, [f"thing number {n}" for n in range(255)])
    legend = drawn[600:]
    places = np.array([1, 256, 256**2])
    assert set(np.unique(legend @ places)) >= set(voc_palette(255) @ places)
    assert (legend[-5:] == 255).all()


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"\(4, 6\).*\(4, 5\)"):
        draw_segmentation(grey(4, 5), np.zeros((4, 6), np.int64), NAMES)
