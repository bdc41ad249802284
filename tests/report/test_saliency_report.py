"""Saliency maps as grey images, overlays, cut-outs, contact sheets and curves."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.report.saliency import SheetRow, cut_out, draw_saliency, saliency_image, saliency_sheet
from res2net_dense.report.saliency_curves import plot_curves


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(height, width):
    """Salient in the middle."""
    saliency = np.zeros((height, width), np.float32)
    saliency[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 1
    return saliency


# maps


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_every_value_of_a_map_file_comes_back(kind):
    values = np.arange(256).reshape(8, 32)
    file = io.BytesIO()
    saliency_image((values / 255).astype(kind)).save(file, "PNG")
    stored = Image.open(file)
    assert stored.mode == "L"
    np.testing.assert_array_equal(np.asarray(stored), values)


def test_probabilities_are_rounded():
    saliency = np.array([[0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 127.6 / 255, 254.6 / 255, 1]])
    assert np.asarray(saliency_image(saliency)).tolist() == [[0, 0, 1, 127, 128, 255, 255]]


@pytest.mark.parametrize(
    ("saliency", "message"),
    [(np.full((2, 2), 1.01), "1.01"), (np.full((2, 2), -0.1), "-0.1"), (np.full((2, 2), np.nan), "nan"),
     (np.zeros((1, 2, 2)), r"\(1, 2, 2\)"), (np.zeros((0, 2)), r"\(0, 2\)")],
)  # fmt: skip
def test_what_is_not_a_map_is_refused(saliency, message):
    with pytest.raises(ConfigError, match=message):
        saliency_image(saliency)


def test_a_map_of_another_size_is_refused():
    for draw in (
        draw_saliency,
        cut_out,
        lambda *pair: saliency_sheet([SheetRow(pair[0], None, pair[1], "")]),
    ):
        with pytest.raises(ConfigError, match=r"\(4, 6\).*\(4, 5\)"):
            draw(noise(4, 5), np.zeros((4, 6)))


# overlays


@pytest.mark.parametrize("scale", [1, 4])
def test_the_object_keeps_its_colours_and_the_rest_is_dark_and_grey(scale):
    image = np.full((600 // scale, 800 // scale, 3), (200, 40, 40), np.uint8)
    drawn = draw_saliency(image, square(*image.shape[:2])).astype(int)
    assert drawn.shape == (600, 800, 3)
    inside, outside = drawn[160:440, 210:590], np.ones((600, 800), bool)
    outside[140:460, 190:610] = False
    assert np.abs(inside - (200, 40, 40)).max() <= 40
    assert (np.ptp(drawn[outside], axis=1) == 0).all()
    assert (drawn[outside] < 60).all()
    for y, x in ((150, 400), (450, 400), (300, 200), (300, 600)):  # a light line with a dark edge
        around = drawn[y - 3 : y + 4, x - 3 : x + 4]
        assert (around == 255).all(axis=-1).any()
        assert (around == 40).all(axis=-1).any()


def test_half_sure_areas_are_half_faded_and_not_outlined():
    drawn = draw_saliency(np.full((500, 500, 3), (200, 40, 40), np.uint8), np.full((500, 500), 0.5))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1
    assert 40 < np.ptp(drawn[0, 0].astype(int)) < 120


@pytest.mark.parametrize("value", [0, 1])
def test_constant_maps_have_no_outline(value):
    drawn = draw_saliency(np.full((500, 600, 3), 100, np.uint8), np.full((500, 600), float(value)))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(160, 160, 3), (480, 640, 1), (1, 1, 480), (1, 4000, 1)],
)
def test_size(height, width, scale):
    image = noise(height, width)
    before = image.copy()
    assert draw_saliency(image, square(height, width)).shape == (scale * height, scale * width, 3)
    assert (image == before).all()


# cut-outs


def test_a_cut_out_is_the_image_with_the_map_as_alpha():
    image, saliency = noise(30, 40), np.random.default_rng(1).random((30, 40))
    file = io.BytesIO()
    cut_out(image, saliency).save(file, "PNG")
    pixels = np.asarray(Image.open(file))
    np.testing.assert_array_equal(pixels[..., :3], image)
    np.testing.assert_array_equal(pixels[..., 3], np.asarray(saliency_image(saliency)))


def test_arrays_that_cannot_be_written_to_or_lie_in_another_order_are_no_harm():
    image, saliency = noise(30, 40)[:, ::-1], square(40, 30).T
    image.setflags(write=False)
    saliency.setflags(write=False)
    np.testing.assert_array_equal(np.asarray(cut_out(image, saliency))[..., :3], image)
    draw_saliency(image, saliency)


# contact sheets


def test_a_sheet_has_four_images_per_row():
    rows = [SheetRow(np.full((50, 100, 3), (0, 200, 0), np.uint8), square(50, 100) > 0, square(50, 100), "a")]
    sheet = np.asarray(saliency_sheet(rows * 2, cell=200)).astype(int)
    green = (sheet == (0, 200, 0)).all(axis=-1)
    assert green.sum() == 2 * 200 * 100
    # mask and map: the same square, a quarter of each cell
    assert (sheet == 255).all(axis=-1).sum() >= 2 * 2 * 0.9 * 100 * 50
    black = (sheet == 0).all(axis=-1)
    assert black[:, 208:640].sum() == pytest.approx(2 * 2 * 0.75 * 200 * 100, rel=0.1)


def test_any_size_and_caption_fits():
    captions = ["", "x" * 5000, "two\nlines", "Füße 日本", "…" * 400]
    sizes = [(1, 1), (300, 20), (20, 300), (1, 3000), (700, 500)]
    rows = [SheetRow(noise(*s), None, square(*s), c) for s, c in zip(sizes, captions, strict=True)]
    sheet = np.asarray(saliency_sheet(rows, cell=120))
    assert sheet.shape[1] == 4 * 128 + 8
    assert (sheet[:, -7:] == 250).all()


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        saliency_sheet([])


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"mask has shape \(4, 6\).*\(4, 5\)"):
        saliency_sheet([SheetRow(noise(4, 5), np.zeros((4, 6), bool), square(4, 5), "")])


# curves


def curves(top):
    """Of a made-up method whose best F is at threshold 100."""
    thresholds = np.arange(256)
    f = top * (1 - np.abs(thresholds - 100) / 300)
    return {"precision": np.linspace(0.2, 1, 256), "recall": np.linspace(1, 0, 256), "f": f, "e": f}


def test_each_method_has_its_two_curves():
    names = ["ours", "$\\frac", "_hidden", *(f"method {n}" for n in range(12))]
    methods = {name: curves(0.5 + 0.02 * n) for n, name in enumerate(names)}
    figure = plot_curves(methods)
    left, right = figure.axes
    lines = left.get_lines()
    assert len(lines) == len(names)
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(names)
    np.testing.assert_array_equal(lines[0].get_xdata(), methods["ours"]["recall"])
    np.testing.assert_array_equal(lines[0].get_ydata(), methods["ours"]["precision"])
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), methods["ours"]["f"])
    assert (right.get_lines()[1].get_xdata(), right.get_lines()[1].get_ydata()) == ([100], [0.5])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == len(names)
    assert texts[0] == "ours (max F 0.5000)"
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert Image.open(file).size == (1440, 672)


def test_no_method_is_refused():
    with pytest.raises(ConfigError, match="no curves"):
        plot_curves({})


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"matplotlib.*\[saliency\]"):
        plot_curves({"ours": curves(0.5)})
