"""Rectangles of images, read without the rest: a large TIFF tile by tile or strip by strip.

Other files are decoded whole, up to `images.MAX_PIXELS`, and the latest ones are kept for the next rectangle.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from res2net_dense.data.bands import MAX_PIXELS
from res2net_dense.data.images import image_size, no_memory_for, read_image
from res2net_dense.data.pixels import RGB, Bands, PixelFormat, to_display, to_form
from res2net_dense.errors import DatasetError, MissingDependencyError, is_out_of_memory, one_line
from res2net_dense.opening import check_file, note

WHOLE_PIXELS = 1 << 25
"""Smaller images are decoded whole, whatever their format."""
MAX_TIFF_PIXELS = 1 << 36
"""Larger TIFFs are refused: the grid of their tiles alone would fill the memory."""
MAX_DRAWN_PIXELS = 1 << 25
"""Predictions on larger images are drawn on smaller ones."""
_LONGEST_DRAWN = 1 << 16  # viewers show no longer ones
_DRAWN_SIDE = 4096
_BLOCK_PIXELS = 1 << 22
_KEPT_BYTES = 128 << 20
_TIFF_SUFFIXES = (".tif", ".tiff")


class Pixels(Protocol):
    """An image of which rectangles can be read."""

    size: tuple[int, int]
    """(height, width)."""

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A copy of a rectangle inside the image, (height, width, channels); raises `DatasetError`."""


class Recent:
    """Values by key, the latest ones up to a number of bytes and at least one."""

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], np.ndarray]) -> np.ndarray:
        """The value of a key, loaded if it is not among the latest ones."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            while self._kept and self._bytes > self.limit:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            value = load()
            self._kept[key] = value
            self._bytes += value.nbytes
            return value

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


_recent = Recent()


class WholeImage:
    """The pixels of an image in memory, (H, W, channels)."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.size = (pixels.shape[0], pixels.shape[1])

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """See `Pixels`."""
        return self.pixels[top : top + height, left : left + width].copy()


class _File:
    """A file that is decoded whole."""

    def __init__(self, path: Path, form: PixelFormat) -> None:
        self.path, self.form, self.size = path, form, image_size(path)

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        pixels = _recent.get((identity(self.path), self.form), lambda: read_image(self.path, self.form))
        return pixels[top : top + height, left : left + width].copy()


class _Tiff:
    """The first page of a TIFF, of which only the segments (tiles or strips) are decoded that are needed."""

    def __init__(self, path: Path, form: PixelFormat, page: Any) -> None:
        self.path, self.form, self._page = path, form, page
        self._has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in (1, 2)
        self.size = (int(page.imagelength), int(page.imagewidth))
        self._channels = int(page.samplesperpixel)
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        self._segment = (
            min(int(rows), self.size[0]),
            int(page.tilewidth) if page.is_tiled else self.size[1],
        )
        self._across = -(-self.size[1] // self._segment[1])
        self._down = -(-self.size[0] // self._segment[0])

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        try:
            return to_form(Bands(self._read(top, left, height, width), self._has_alpha), self.form)
        except DatasetError:
            raise
        except Exception as error:  # decoders raise nearly every type on damaged bytes
            if is_out_of_memory(error):
                raise no_memory_for(self.path) from error
            raise DatasetError(
                f"{self.path}: rows {top} to {top + height} cannot be read ({one_line(error)}); "
                "write the file again"
            ) from error

    def _read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """(height, width, channels) as stored."""
        page, channels = self._page, self._channels
        separate = channels > 1 and int(page.planarconfig) == 2
        if page.is_memmappable:  # mapped for this rectangle alone, so that its pages do not stay
            shape = (channels, *self.size) if separate else (*self.size, channels)
            dtype = np.dtype(page.parent.byteorder + page.dtype.char)
            mapped = np.memmap(self.path, dtype, "r", page.dataoffsets[0], shape)
            place = np.s_[top : top + height, left : left + width]
            return np.array(np.moveaxis(mapped, 0, 2)[place] if separate else mapped[place], page.dtype)
        tall, wide = self._segment
        found = np.zeros((height, width, self._channels), page.dtype)
        for down in range(top // tall, (top + height - 1) // tall + 1):
            for across in range(left // wide, (left + width - 1) // wide + 1):
                for plane in range(self._channels if separate else 1):
                    number = (plane * self._down + down) * self._across + across
                    key = (identity(self.path), number)
                    values = _recent.get(key, functools.partial(self._decode, number))
                    y, x = down * tall, across * wide
                    rows = slice(max(top, y), min(top + height, y + tall, self.size[0]))
                    columns = slice(max(left, x), min(left + width, x + wide, self.size[1]))
                    target = found[
                        rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
                    ]
                    part = values[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                    if separate:
                        target[..., plane] = part[..., 0]
                    else:
                        target[...] = part
        return found

    def _decode(self, number: int) -> np.ndarray:
        page = self._page
        note(self.path)
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        with open(self.path, "rb") as file:
            file.seek(offset)
            content = file.read(count)
        if len(content) < count:
            raise ValueError("it ends before its pixels do")
        values, _, _ = page.decode(content, number)
        if values is None:  # sparse: what was never written is zero
            return np.zeros((*self._segment, self._channels), page.dtype)
        return np.asarray(values[0])


def open_pixels(path: str | Path, form: PixelFormat = RGB) -> Pixels:
    """Open an image for reading rectangles of it; nothing stays open.

    Raises:
        DatasetError: the file is missing, not an image, or so large that it would have to be a TIFF which is
            read by region, and is not.
    """
    return _open(identity(Path(path).expanduser()), form)


def identity(path: Path) -> tuple[str, int, int]:
    """A file with what changes when it is written again; zeros where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _open(identity: tuple[str, int, int], form: PixelFormat) -> Pixels:
    path = Path(identity[0])
    tiff = _open_tiff(path, form) if path.suffix.lower() in _TIFF_SUFFIXES and identity[1] else None
    if tiff is None or tiff.size[0] * tiff.size[1] <= WHOLE_PIXELS:
        return _File(path, form)
    problem = _unreadable(tiff._page, form)
    if problem is None and tiff.size[0] * tiff.size[1] <= MAX_TIFF_PIXELS:
        return tiff
    if tiff.size[0] * tiff.size[1] <= MAX_PIXELS:
        return _File(path, form)
    raise DatasetError(
        f"{path}: {tiff.size[1]} x {tiff.size[0]} pixels are read by region, but "
        f"{problem or 'they are too many'}; write it as a tiled TIFF of 8 bits without compression or with "
        "deflate"
    )


def _open_tiff(path: Path, form: PixelFormat) -> _Tiff | None:
    """The TIFF, or None where tifffile cannot read its header: then the usual message follows."""
    try:
        import tifffile
    except ImportError as error:
        raise MissingDependencyError(
            "reading TIFFs by region needs tifffile; install it with: pip install 'res2net_dense[detection]'"
        ) from error
    try:
        check_file(path)
        with tifffile.TiffFile(path) as file:
            page = file.pages[0].aspage()
            page.dataoffsets, page.databytecounts, page.is_memmappable  # noqa: B018  # read while it is open
            return _Tiff(path, form, page)
    except Exception:  # it raises nearly every type on damaged bytes
        return None


def _unreadable(page: Any, form: PixelFormat) -> str | None:
    """Why a page cannot be read by region, if it cannot."""
    import tifffile

    kind, photometric = page.dtype, page.photometric
    if kind is None or not (kind.name in ("uint8", "uint16") or (kind.kind in "uif" and form.value_range)):
        return f"the range of its values, {kind}, is unknown (data.value_range)"
    if photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
        return f"its colours are {photometric.name.lower()}"
    if int(page.imagedepth) > 1 or int(getattr(page, "tags", {}).get("Orientation", _Upright).value) != 1:
        return "it is a volume or turned"
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression]
    except Exception:  # a library for it is missing
        return f"its compression {page.compression.name.lower()} needs the package imagecodecs"
    return None


class _Upright:
    value = 1


def read_through(pixels: Pixels) -> None:
    """Read all of an image, block by block; raises `DatasetError` if a part cannot be read."""
    height, width = pixels.size
    rows = max(1, _BLOCK_PIXELS // width)
    for top in range(0, height, rows):
        pixels.read(top, 0, min(rows, height - top), width)


def shrink_factor(size: tuple[int, int]) -> int:
    """By which whole number an image, (height, width), is made smaller to be drawn on."""
    is_large = size[0] * size[1] > MAX_DRAWN_PIXELS or max(size) > _LONGEST_DRAWN
    return -(-max(size) // _DRAWN_SIDE) if is_large else 1


def overview(pixels: Pixels, factor: int) -> np.ndarray:
    """Make an image smaller by a whole number: (ceil(H / factor), ceil(W / factor), 3) uint8."""
    height, width = pixels.size
    rows = max(1, _BLOCK_PIXELS // width // factor) * factor
    blocks = (pixels.read(top, 0, min(rows, height - top), width) for top in range(0, height, rows))
    small = [_reduced(block, factor) for block in blocks]
    _recent.clear()  # of a large image: what is drawn next needs the memory
    return to_display(np.concatenate(small))


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """(H, W, C) -> (ceil(H / factor), ceil(W / factor), C), each value the mean of its square."""
    channels = [np.asarray(Image.fromarray(channel).reduce(factor)) for channel in np.moveaxis(pixels, 2, 0)]
    return np.stack(channels, axis=2)
