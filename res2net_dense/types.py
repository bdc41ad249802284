"""THE contract: what flows between data, models, evaluation and the training loop. Every reader starts here.

    YAML -> Config -> task -> (model, loaders, evaluator) -> trainer -> checkpoint -> predict / report

* A trainable model is an `nn.Module`. In training mode `model(batch)` returns `Losses`, in evaluation mode
  `list[Prediction]`, one per image at its original size (detectron2's published model contract).
* The batch is opaque to the training loop: a task builds both the loader and the model, so only these two
  must agree. All batches of this project are a `list[Sample]`.
* A data set is a `Source`; a task does not know which layout is behind it.
* A task is one object, `res2net_dense.tasks.base.Task`.

Conventions everywhere: images of three channels are RGB, boxes are absolute xyxy pixels with continuous
coordinates (x2 - x1 is the width), labels are contiguous from 0 (background is not a label), the ignored
pixel is 255.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypedDict

import numpy as np

from res2net_dense.findings import Finding, Findings

if TYPE_CHECKING:
    from torch import Tensor  # a configuration is read without it

IGNORE_INDEX = 255

Losses: TypeAlias = "dict[str, Tensor]"
"""Already weighted scalar losses by name (`loss_cls`, `loss_box_reg`, `loss_mask`, ...); their sum is
minimised.
"""

Polygons = list[list[np.ndarray]]
"""One entry per object: its polygons, each (2 * K,) float64 as x0, y0, x1, y1, ... in pixels of the
transformed image.
"""


class Tile(NamedTuple):
    """A rectangle of an image, in pixels of the image as it is."""

    top: int
    left: int
    height: int
    width: int
    image_height: int
    image_width: int
    number: int = 0
    """Its place among the tiles of the image."""
    total: int = 1
    """How many tiles the image has."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the image."""
        return (self.height, self.width) == (self.image_height, self.image_width)


class Sample(TypedDict, total=False):
    """One image on its way into a model. Everything but `original_*` and the names is in the transformed
    image's frame.
    """

    image: Tensor
    """(C, H, W), transformed (resized, flipped, ...): uint8, RGB where C is 3; float32 in 0..255 where
    `data.value_range` is set."""
    file_name: str
    image_id: int | str
    """The id in the annotation file, or the running number of an image without annotations."""
    original_height: int
    original_width: int
    tile: Tile
    """Which part of its image it is; `original_height` and `original_width` are those of the part."""
    boxes: Tensor
    """(N, 4) float32 xyxy."""
    labels: Tensor
    """(N,) int64."""
    label: int
    """The class of the whole image."""
    masks: Tensor | Polygons
    """(N, H, W) bool, or polygons where every object of the image has them: those stay exact under any
    transform.
    """
    sem_seg: Tensor
    """(H, W) int64, 255 is ignored."""
    saliency: Tensor
    """(H, W) float32 in {0, 1}."""


def is_part(sample: Sample) -> bool:
    """Whether it is one of several tiles of an image."""
    tile = sample.get("tile")
    return tile is not None and tile.total > 1


class MaskPart(NamedTuple):
    """A mask without most of its empty pixels."""

    top: int
    left: int
    mask: Tensor
    """(h, w) bool, inside the image; all other pixels are empty."""
    size: tuple[int, int]
    """(height, width) of the image."""


class Prediction(TypedDict, total=False):
    """What a model predicts for one image, at the image's original size H x W, in torchvision's names."""

    boxes: Tensor
    """(K, 4) float32 xyxy."""
    labels: Tensor
    """(K,) int64."""
    scores: Tensor
    """(K,) float32 in [0, 1]."""
    masks: Tensor
    """(K, H, W) bool."""
    keypoints: Tensor
    """(K, P, 3) float32: x, y, score."""
    mask_parts: list[MaskPart]
    """In place of `masks` where those of a large image would fill the memory: K."""
    sem_seg: Tensor
    """(H, W) int64; of an image merged from tiles uint8 where it holds all classes."""
    probabilities: Tensor
    """(num_classes, h, w) float32 at any size: in place of `sem_seg` of one of several tiles of an image."""
    saliency: Tensor
    """(H, W) float32 in [0, 1]; of a large image merged from tiles uint8, 0 to 255."""
    logits: Tensor
    """(num_classes,) float32."""


class ClassRows(NamedTuple):
    """How the rows (the first axis) of a layer's tensors belong to classes, in the order of their labels."""

    each: int = 1
    """Rows of a class."""
    background: int = 0
    """Rows after those of the classes that are of no class."""
    times: int = 1
    """How often the rows of all classes follow one another, for each anchor of a detector for instance."""

    def total(self, classes: int) -> int:
        """Rows of a layer for so many classes."""
        return self.times * self.each * classes + self.background


class Merger(Protocol):
    """What makes the prediction for an image out of those for its tiles, which come in their order."""

    def add(self, tile: Tile, prediction: Prediction) -> None:
        """Take in the next one, at the size of the tile."""

    def result(self) -> Prediction:
        """The prediction for the image, after its last tile."""


class Entry(NamedTuple):
    """A sample of a data set, for telling whether the set is still the same."""

    name: str
    """Within the set, wherever that lies."""
    files: Sequence[str | Path]
    """Its image, and its mask if that is a file."""
    annotation: int
    """A checksum of what is learned of it that is not a file of its own; 0 where there is nothing."""


class Source(Protocol):
    """A data set of raw samples, whatever its layout; `data.layouts.open_source` opens one."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def class_names(self) -> Sequence[str]:
        """By label; empty where there are no classes."""

    @property
    def remarks(self) -> Sequence[str]:
        """Lines that a user should read once: what is left out, and how many."""

    @property
    def findings(self) -> Findings:
        """What was found on opening, without reading an image."""

    @property
    def looked_into(self) -> Collection[int]:
        """Places of the samples that a quick check inspects thoroughly."""

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Read one, untransformed; raises `DatasetError`."""

    def file(self, index: int) -> Path | None:
        """The image file of one sample, there or not; None where it is not a file of its own. Raises
        `DatasetError` if it leads out of the data set.
        """

    def entries(self) -> Iterator[Entry]:
        """All samples, without opening a file."""

    def classes(self) -> Sequence[tuple[int | str | None, int]]:
        """By label: the id of the class in the annotation file, if it has one, and the number of its objects.
        Empty where this is not known without reading masks.
        """

    def inspect(self, index: int, *, thorough: bool) -> list[Finding]:
        """What is wrong with the files of one sample: whether they are there and their sizes fit, from the
        headers; `thorough` reads image and mask whole, as `sample` does.
        """

    def check(self) -> None:
        """Ask what concerns the set as a whole, such as whether a pixel is salient; raises `DatasetError`."""


class BoxSource(Source, Protocol):
    """A source of objects with boxes, and masks perhaps."""

    @property
    def has_masks(self) -> bool:
        """Whether samples carry `masks`."""

    @property
    def benchmark(self) -> str:
        """Whose rules it is scored by: `coco` or `voc`."""

    @property
    def aspect_ratios(self) -> np.ndarray:
        """(len,) float64, width / height."""

    def subset(self, places: Sequence[int]) -> BoxSource:
        """The same set with some of its images, in this order."""

    def indices_with_objects(self) -> np.ndarray:
        """(N,) int64, N > 0; raises `DatasetError` if there is none."""

    def learned_objects(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of their images and the labels of all objects to learn from, (N,) int64 each."""

    def ground_truth(self) -> Any:
        """What `evaluation.coco.CocoEvaluator` or `evaluation.voc.VocEvaluator` takes, by `benchmark`."""


class Evaluator(Protocol):
    """Three methods, detectron2's names."""

    def reset(self) -> None:
        """Forget everything seen so far."""

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Prediction]) -> None:
        """Take in one batch."""

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score. A flat map such as `{"bbox/AP": 41.2}`; NaN where a score does
        not exist.
        """


class ReportingEvaluator(Evaluator, Protocol):
    """An evaluator that people read."""

    def table(self) -> str:
        """The last results as text; empty before `evaluate`."""
