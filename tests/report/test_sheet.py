"""Contact sheets: every image at its place, whatever its size and mode."""

import numpy as np
import pytest
from PIL import Image

from res2net_dense.errors import ConfigError
from res2net_dense.report.sheet import contact_sheet, rows_sheet


def plain(width, height, color=(0, 200, 0)):
    return Image.new("RGB", (width, height), color)


def test_images_are_in_reading_order():
    colors = [(20 * number, 100, 0) for number in range(12)]
    sheet = contact_sheet([plain(30, 30, color) for color in colors], columns=4, tile=30)
    assert sheet.size == (4 * 38 + 8, 3 * 38 + 8)
    middles = [
        sheet.getpixel((8 + 38 * column + 15, 8 + 38 * row + 15)) for row in range(3) for column in range(4)
    ]
    assert middles == colors


def test_the_last_row_may_be_short():
    sheet = np.asarray(contact_sheet([plain(10, 10)] * 5, columns=3, tile=20))
    assert sheet.shape == (2 * 28 + 8, 3 * 28 + 8, 3)
    assert (sheet == (0, 200, 0)).all(axis=-1).sum() == 5 * 20 * 20
    assert (sheet[36:56, 64:] == 250).all()


def test_fewer_images_than_columns_leave_no_empty_paper():
    assert contact_sheet([plain(10, 10)], columns=4, tile=20).size == (36, 36)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2000), (1, 9000), (9000, 1), (40, 41)])
def test_sheet_is_bounded_whatever_the_sizes(size):
    sheet = contact_sheet([plain(*size), plain(7, 5)] * 6, tile=100)
    assert sheet.width == 4 * 108 + 8
    assert sheet.height <= 3 * 108 + 8


def test_images_keep_their_shape_and_lie_in_the_middle():
    sheet = np.asarray(contact_sheet([plain(200, 100), plain(50, 100)], tile=100))
    green = (sheet == (0, 200, 0)).all(axis=-1)
    assert green[:, 8:108].sum() == 100 * 50
    assert green[8 + 25 : 8 + 75, 8:108].all()
    assert green[8:108, 116 + 25 : 116 + 75].all()
    assert green.sum() == 100 * 50 + 50 * 100


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_mode(mode):
    sheet = contact_sheet([plain(9, 9, (255, 255, 255)).convert(mode)], tile=9)
    assert sheet.mode == "RGB"
    assert sheet.getpixel((12, 12)) == (255, 255, 255)


def test_images_are_left_as_they_are():
    image = plain(10, 10)
    before = image.tobytes()
    contact_sheet([image], tile=30)
    assert image.size == (10, 10)
    assert image.tobytes() == before


def test_titles_captions_and_empty_places_of_rows():
    rows = [((plain(20, 20), None), "first"), ((plain(20, 20), plain(20, 20)), "")]
    sheet = np.asarray(rows_sheet(rows, titles=("a", "b"), tile=20))
    assert sheet.shape == (21 + 2 * 28 + 21, 2 * 28 + 8, 3)
    assert (sheet[21:41, 8:28] == (0, 200, 0)).all()
    assert (sheet[21:41, 36:] == 250).all()
    assert (sheet[:21] < 100).any()  # the titles
    assert (sheet[41:62] < 100).any()  # the caption


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        contact_sheet([])
