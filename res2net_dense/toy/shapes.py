"""The images of the toy sets: scenes of shapes that hide each other, and images of one shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

HUES = {"circle": 15, "rectangle": 105, "triangle": 195, "star": 285}  # degrees
SPLITS = ("train", "val")
CLASSES = (
    *("arrow", "checkerboard", "circle", "crescent", "cross"),
    *("ring", "square", "star", "stripes", "triangle"),
)
SOLID = tuple(name for name in CLASSES if name not in ("checkerboard", "stripes"))  # one piece each

TEMPERATURES = {"cold": (40, 90), "warm": (160, 220)}  # of shapes in a fourth channel, drawn evenly
GROUND_TEMPERATURE = 110, 140

DETAIL = 4  # shapes are drawn so many times finer than the image, for smooth edges and exact outlines
EMPTY_EVERY = 25  # so often a training image has no objects
MIN_VISIBLE, MIN_PIXELS = 0.4, 40  # of an object, as share and in pixels, however much is drawn over it
MIN_CONTRAST = 70.0  # distance in RGB between a shape and what is around it
GRAIN = 14.0  # of the ground of salient shapes, which have none; standard deviation
MUTED = 0.2, 0.5  # least and largest share of its colour that such a ground keeps


class Shape(NamedTuple):
    """One object of a scene: what is visible of it."""

    name: str
    mask: np.ndarray
    """(H, W) bool."""
    polygons: list[np.ndarray]
    """Outlines of its pieces, each (K, 2) float64 xy in pixels."""
    visible: float
    """The share of it that nothing hides, in (0, 1]."""

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Its top left and bottom right corner, xy in pixels."""
        points = np.concatenate(self.polygons)
        return points.min(axis=0), points.max(axis=0)


class Scene(NamedTuple):
    """An image, (H, W, 3) uint8 RGB, and all that is in it."""

    image: np.ndarray
    shapes: list[Shape]


def draws(seed: int, split: str, count: int) -> Iterator[tuple[np.random.Generator, bool]]:
    """Yield the generator of each image of a split, which does not depend on the number of images, and
    whether it has no objects.
    """
    for index in range(count):
        empty = split == "train" and index % EMPTY_EVERY == EMPTY_EVERY - 1
        yield np.random.default_rng([seed, SPLITS.index(split), index]), empty


def scenes(seed: int, split: str, count: int, size: int, *, any_colour: float = 0.2) -> Iterator[Scene]:
    """Yield the scenes of a split: size x size images with one to five shapes, or none; the share
    `any_colour` of the shapes has a colour that does not depend on the class.
    """
    for rng, empty in draws(seed, split, count):
        yield _make_scene(rng, size, empty, any_colour)


def _make_scene(rng: np.random.Generator, size: int, empty: bool, any_colour: float) -> Scene:
    image = _ground(rng, size)
    drawn: list[tuple[str, int, np.ndarray]] = []  # name, size when whole, and what is visible
    wanted = 0 if empty else int(rng.integers(1, 6))
    # a shape that would hide another too much is drawn again elsewhere; the first always fits
    for _ in range(20 * wanted):
        if len(drawn) == wanted:
            break
        name = str(rng.choice(list(HUES)))
        fine = _draw(_outline(rng, name, size), size)
        below = [(other, whole, mask & ~fine) for other, whole, mask in drawn]
        if all(_is_visible(mask, whole) for _, whole, mask in below):
            if rng.random() < any_colour:
                colours = rng.uniform(10, 245, (40, 3))
            else:
                colours = _vivid(rng, (HUES[name] + rng.uniform(-25, 25, 40)) % 360)
            _paint(rng, image, fine, colours)
            drawn = [*below, (name, int(fine.sum()), fine)]
    shapes = [
        Shape(name, _coarse(mask) >= 0.5, _trace(mask), float(mask.sum() / whole))
        for name, whole, mask in drawn
    ]
    return Scene(_finished(rng, image), shapes)


def make_image(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB: one shape of class `name` over a ground with lines and specks."""
    image = 0.5 * _ground(rng, size)  # shapes are the lighter part, which halves the time to learn them
    for _ in range(int(rng.integers(2, 7))):
        _scratch(rng, image, (5, 150), 0.7)
    radius, turn = size * rng.uniform(0.26, 0.48), rng.uniform(0, 2 * math.pi)
    place = rng.uniform(0.9 * radius, size - 0.9 * radius, 2)
    fine = _thing(rng, name, radius, turn, place, size)
    _paint(rng, image, fine, rng.uniform(90, 250, (40, 3)))
    return _finished(rng, image)


def make_salient(
    rng: np.random.Generator, size: int, *, empty: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image whose longer edge is `size`, with one to three shapes that stand out, or none.

    The ground is dull, grainy and of two kinds on both sides of a line, one of them lighter: brightness and
    the distance from its mean colour do not tell shapes from it. On it are faint lines and specks. Shapes are
    what is vivid, smooth and compact, which a network learns in minutes.

    Returns:
        The image, (H, W, 3) uint8 RGB, and how much of each pixel shapes cover, (H, W) uint8, 0 to 255.
    """
    upright, shorter = rng.random() >= 0.5, round(size * rng.uniform(0.6, 1))
    height, width = (size, shorter) if upright else (shorter, size)
    # what is drawn is square; the rest of it is cut off in the end
    first, second = (_ground(rng, size, muted=MUTED) for _ in range(2))
    y, x = np.mgrid[:size, :size]
    angle, middle = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.75, 2) * (width, height)
    beyond = np.cos(angle) * (x - middle[0]) + np.sin(angle) * (y - middle[1]) > 0
    image = np.where(beyond[..., None], first + 25, second - 25) + rng.normal(0, GRAIN, (size, size, 1))
    for _ in range(int(rng.integers(4, 13))):
        _scratch(rng, image, (5, 250), 0.45)
    covered = np.zeros((DETAIL * size, DETAIL * size), bool)
    for _ in range(0 if empty else int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        name = str(rng.choice(SOLID))
        radius = min(height, width) * rng.uniform(0.22, 0.45)
        place = rng.uniform(0.8 * radius, np.array([width, height]) - 0.8 * radius)
        fine = _thing(rng, name, radius, rng.uniform(0, 2 * math.pi), place, size)
        _paint(rng, image, fine, _vivid(rng, rng.uniform(0, 360, 40)))
        covered |= fine
    mask = np.round(255 * _coarse(covered)).astype(np.uint8)
    return _finished(rng, image)[:height, :width], mask[:height, :width]


def warm_scenes(seed: int, split: str, count: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield scenes with a fourth channel, a temperature, which alone tells cold shapes from warm
    ones; colours and outlines do not.

    Yields:
        The image, (size, size, 4) uint8, and labels, (size, size) uint8: 0 for the ground, 1 cold, 2 warm.
    """
    found = scenes(seed, split, count, size, any_colour=1.0)
    for index, scene in enumerate(found):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, len(TEMPERATURES)])
        heat = np.full((size, size), rng.uniform(*GROUND_TEMPERATURE))
        labels = np.zeros((size, size), np.uint8)
        for shape in scene.shapes:
            label = int(rng.integers(len(TEMPERATURES)))
            heat[shape.mask] = rng.uniform(*list(TEMPERATURES.values())[label])
            labels[shape.mask] = 1 + label
        heat = cv2.GaussianBlur(heat, (5, 5), 1.0) + rng.normal(0, 12, heat.shape)
        fourth = np.clip(heat, 0, 255).astype(np.uint8)[..., None]
        yield np.concatenate([scene.image, fourth], axis=2), labels


def area(polygon: np.ndarray) -> float:
    """The area inside an outline (K, 2)."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def _ground(rng: np.random.Generator, size: int, muted: tuple[float, float] | None = None) -> np.ndarray:
    """(size, size, 3) float RGB: a gradient, low-contrast stripes and blotches; with `muted` only a share of
    their saturation, drawn between both.
    """
    y, x = np.mgrid[:size, :size] / size
    first, second = rng.uniform(30, 225, (2, 3))
    second = first + 0.5 * (second - first)
    angle, stripes = rng.uniform(0, 2 * math.pi, 2)
    along = (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5) + 0.7) / 1.4
    image = first + along[..., None] * (second - first)
    waves = np.sin(2 * math.pi * rng.uniform(4, 16) * (np.cos(stripes) * x + np.sin(stripes) * y))
    image += waves[..., None] * rng.uniform(0, 14)
    blotches = rng.normal(0, 1, (12, 12, 3)).astype(np.float32)
    image += cv2.resize(blotches, (size, size), interpolation=cv2.INTER_CUBIC) * rng.uniform(0, 12)
    if muted:
        grey = image.mean(axis=2, keepdims=True)
        image = grey + rng.uniform(*muted) * (image - grey)
    return np.asarray(image)


def _finished(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The image as uint8, with a little noise."""
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def _outline(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """(K, 2) corners in pixels of a shape that lies wholly in the image."""
    diameter = size * (12 + 78 * rng.random() ** 1.5) / 160
    turn = math.radians(rng.uniform(-20, 20))
    if name == "rectangle":
        half = math.atan(rng.uniform(0.6, 1.0))
        angles = np.array([half, math.pi - half, math.pi + half, -half])
        turn += rng.choice([0, math.pi / 2])
    else:
        corners = {"circle": 64, "triangle": 3, "star": 10}[name]
        angles = np.arange(corners) * 2 * math.pi / corners - (name != "circle") * math.pi / 2
    radii = np.tile([1.0, 0.45], 5) if name == "star" else np.ones(1)
    points = radii[:, None] * np.stack([np.cos(angles + turn), np.sin(angles + turn)], axis=1)
    points *= diameter / np.ptp(points, axis=0).max()
    low, high = 1 - points.min(axis=0), size - 1 - points.max(axis=0)
    return np.asarray(points + rng.uniform(low, high))


def _draw(outline: np.ndarray, size: int) -> np.ndarray:
    """The filled outline as a fine mask, (DETAIL * size, DETAIL * size) bool."""
    canvas = np.zeros((DETAIL * size, DETAIL * size), np.uint8)
    cv2.fillPoly(canvas, [np.round(outline * DETAIL - 0.5).astype(np.int32)], 1)
    return canvas.astype(bool)


def _coarse(fine: np.ndarray) -> np.ndarray:
    """How much of each pixel a fine mask covers, (size, size) float in [0, 1]."""
    size = len(fine) // DETAIL
    return np.asarray(fine.reshape(size, DETAIL, size, DETAIL).mean(axis=(1, 3)))


def _is_visible(fine: np.ndarray, whole: int) -> bool:
    """Whether enough is left of a shape of so many fine pixels, and no hole, which polygons cannot have."""
    if fine.sum() < whole and fine.sum() < max(MIN_VISIBLE * whole, MIN_PIXELS * DETAIL**2):
        return False
    _, hierarchy = cv2.findContours(fine.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return bool((hierarchy[0, :, 3] < 0).all())


def _trace(fine: np.ndarray) -> list[np.ndarray]:
    """Outlines of a fine mask's pieces in pixels of the image, crumbs below four pixels left out."""
    contours, _ = cv2.findContours(fine.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    smooth = [cv2.approxPolyDP(c, 1.0, closed=True)[:, 0] for c in contours]
    polygons = [(c + 0.5) / DETAIL for c in smooth if len(c) >= 3]
    return [p for p in polygons if area(p) >= 4]


def _paint(rng: np.random.Generator, image: np.ndarray, fine: np.ndarray, colours: np.ndarray) -> None:
    """Fill the shape in place with the first of the colours that stands out from what is around it."""
    alpha = _coarse(fine)[..., None]
    around = cv2.dilate(alpha[..., 0], np.ones((9, 9), np.uint8)) > 0
    nearby = image[around]
    gaps = np.linalg.norm(colours[:, None] - nearby[None, :: max(1, len(nearby) // 200)], axis=2).min(axis=1)
    clear = np.flatnonzero(gaps > MIN_CONTRAST)
    colour = colours[clear[0] if len(clear) else gaps.argmax()]
    shade = np.linspace(-1, 1, len(image))[:, None, None] * rng.uniform(-20, 20)
    image += alpha * (colour + shade - image)


def _vivid(rng: np.random.Generator, hues: np.ndarray) -> np.ndarray:
    """Saturated colours of the hues, which are in degrees; (K, 3) float RGB."""
    count = len(hues)
    hsv = np.stack([hues, rng.uniform(0.5, 1, count), rng.uniform(0.4, 1, count)], axis=1)
    return np.asarray(cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255)


def _scratch(rng: np.random.Generator, image: np.ndarray, colours: tuple[int, int], opacity: float) -> None:
    """Draw a line or a speck in place; `colours` are the lowest and the highest value of a channel."""
    size = len(image)
    start, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * math.pi)
    along = rng.uniform(0.02, 0.4) * size * np.array([math.cos(angle), math.sin(angle)])
    across = rng.uniform(0.008, 0.025) * size * np.array([-math.sin(angle), math.cos(angle)])
    scratch = _draw(np.array([start - across, start + across, start + along + across, start + along]), size)
    image += opacity * _coarse(scratch)[..., None] * (rng.uniform(*colours, 3) - image)


def _thing(
    rng: np.random.Generator, name: str, radius: float, turn: float, place: np.ndarray, size: int
) -> np.ndarray:
    """A shape of class `name` around `place`, xy in pixels, as a fine mask."""
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    outlines = [piece @ rotation * radius + place for piece in _pieces(rng, name)]
    return np.asarray(np.logical_or.reduce([_draw(outline, size) for outline in outlines]))


def _pieces(rng: np.random.Generator, name: str) -> list[np.ndarray]:
    """The outlines of a shape's pieces, each (K, 2), in the unit circle."""
    if name == "arrow":
        shaft, head = rng.uniform(0.15, 0.25), rng.uniform(0.55, 0.75)
        half = [(-0.95, shaft), (0.15, shaft), (0.15, head), (1.0, 0.0)]
        return [np.array([*half, *((x, -y) for x, y in half[-2::-1])])]
    if name in ("checkerboard", "stripes"):
        count = int(rng.integers(3, 5))
        middle = (count - 1) / 2
        if name == "stripes":
            step = 1.5 / (count - 0.5)
            return [_box(1.5, step / 2) + [0, (i - middle) * step] for i in range(count)]
        side = 1.4 / count
        cells = [(i, j) for i in range(count) for j in range(count) if (i + j) % 2 == 0]
        return [_box(side, side) + (np.array(cell) - middle) * side for cell in cells]
    if name == "crescent":
        tip, middle = rng.uniform(1.7, 2.1), rng.uniform(0.1, 0.45)
        y = np.linspace(math.sin(tip), -math.sin(tip), 48)
        x = middle + (math.cos(tip) - middle) * (y / y[0]) ** 2
        return [np.concatenate([_arc(1, tip), np.stack([x, y], axis=1)])]
    if name == "cross":
        arm = rng.uniform(0.35, 0.6)
        return [_box(1.9, arm), _box(arm, 1.9)]
    if name == "ring":
        return [np.concatenate([_arc(1, math.pi), _arc(rng.uniform(0.5, 0.7), math.pi)[::-1]])]
    if name == "square":
        return [_box(1.4, 1.4)]
    corners = {"triangle": 3, "star": 10, "circle": 64}[name]
    radii = np.tile([1.0, 0.42], 5) if name == "star" else np.ones(corners)
    return [radii[:, None] * _arc(1, math.pi * (1 - 1 / corners), corners)]


def _box(width: float, height: float) -> np.ndarray:
    """The corners of a box around the origin, (4, 2)."""
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * [width / 2, height / 2]


def _arc(radius: float, half: float, count: int = 48) -> np.ndarray:
    """Points of a circle around the origin from the angle -half to half, (count, 2)."""
    angles = np.linspace(-half, half, count)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
