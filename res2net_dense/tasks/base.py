"""A task is one object. Nothing outside `tasks/` asks which task it is: it asks the object.

`Task` holds what all tasks share: class names, loaders, the checks before a run. A subclass adds what is its
own. A new task is a file next to this one and a line in `config.load.CONFIGS`.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config import Config
from res2net_dense.data.layouts import open_source
from res2net_dense.data.loaders import (
    BatchLoader,
    EvalSet,
    TileSet,
    TrainBatches,
    TrainSet,
    aspect_ratio_groups,
    eval_loader,
    predict_loader,
    tile_loader,
)
from res2net_dense.data.regions import Pixels, overview, shrink_factor
from res2net_dense.data.sampling import ClassCounts
from res2net_dense.data.tiles import TileSize, TrainTiles, grids, starts
from res2net_dense.engine import distributed
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.engine.inference import VAL_LOSS
from res2net_dense.errors import ConfigError, DatasetError, counted, first_few
from res2net_dense.evaluation.base import Gather
from res2net_dense.models.graphs import Graph
from res2net_dense.report.shrink import shrunk
from res2net_dense.tasks.checking import check_data, left_out
from res2net_dense.tasks.metric import Metric as Metric  # it is part of what a task defines
from res2net_dense.tasks.pixels import measured, pixel_format
from res2net_dense.tasks.rare_classes import image_repeats, with_class_weights, without_class_weights
from res2net_dense.tasks.settings import updated
from res2net_dense.tasks.starting import check_start
from res2net_dense.tasks.watching import check_metrics, check_watched
from res2net_dense.types import Merger, Prediction, ReportingEvaluator, Sample, Source, Tile

_log = logging.getLogger(__name__)

C = TypeVar("C", bound=Config)

Transform = Callable[..., Sample]
"""Takes a sample, in training a `numpy.random.Generator` too: a `data.transforms.Pipeline`."""
Images = list[Image.Image]


class Task(ABC, Generic[C]):
    """What can be learned, with everything that is needed to learn, score, predict and export it."""

    name: ClassVar[str]
    """As in `task:` of a config."""
    config_class: type[C]
    needs: ClassVar[tuple[str, ...]] = ()
    """The parts of a `Sample` that are learned and scored; a layout that has none of them is refused."""
    folders: ClassVar[tuple[str, ...]] = ("",)
    """Of the images that `draw` returns, below the output folder."""
    overlay: ClassVar[str] = ""
    """Which of `folders` has the predictions drawn on their images."""
    first_category_id: ClassVar[int] = 1
    """The `category_id` of label 0 in `to_records`."""
    counted: ClassVar[str] = "objects"
    """What the records of `to_records` are, for `summary`."""
    usual_classes: ClassVar[int] = 2
    """Number of classes of the usual benchmark, for a model that is built without any data."""
    batched_outputs: bool = True
    """Whether the outputs of an exported file have one row per image."""
    quantizable: ClassVar[bool] = False
    """Whether its exported files may be in int8."""
    truth_images: ClassVar[int] = 0
    """How many images are scored by their own annotations before a run, as `truth` returns them."""
    varied_sizes: ClassVar[bool] = False
    """Whether batches of a training have many sizes, which one compiled graph must serve."""
    weights_are_whole: ClassVar[bool] = False
    """Whether `backbone.weights` may hold the whole model."""

    # What each task defines.

    @abstractmethod
    def metrics(self, config: C) -> list[Metric]:
        """The scores of an evaluation on `data.val`, without those of single classes."""

    def class_scores(self, config: C) -> Sequence[str]:
        """What is scored for each class: `IoU` of `IoU/cat`."""
        return ()

    @abstractmethod
    def build_model(self, config: C, *, load_weights: bool = True) -> nn.Module:
        """Build the network; without `load_weights` its backbone's weights are not looked for."""

    @abstractmethod
    def build_graph(self, model: Any) -> Graph:
        """Return a copy of the network as a function from images to plain tensors, to be exported."""

    @abstractmethod
    def train_transform(self, config: C) -> Transform:
        """Return what is done to a sample in training."""

    @abstractmethod
    def eval_transform(self, config: C) -> Transform:
        """Return what is done to a sample in evaluation and prediction."""

    def loss_transform(self, config: C) -> Transform:
        """Return what is done to a sample in evaluation whose losses are computed: it keeps the targets."""
        return self.eval_transform(config)

    @abstractmethod
    def build_evaluator(self, config: C, source: Any = None) -> ReportingEvaluator:
        """Return the evaluator of `data.val`, or of a part of it in this process alone; label maps it reads
        itself, at their own size.
        """

    @abstractmethod
    def decode(self, outputs: Mapping[str, Tensor], place: int, sample: Sample) -> Prediction:
        """Return the prediction for one image, at its original size, from the outputs of an exported file.

        Args:
            outputs: of a batch, by their names in the file.
            place: of the image in the batch.
            sample: as it went into the file.
        """

    @abstractmethod
    def draw(self, image: np.ndarray, prediction: Prediction, names: Sequence[str], score: float) -> Images:
        """Return the images made of a prediction, one for each of `folders`.

        Args:
            image: (H, W, 3) uint8, RGB.
            prediction: at the size of the image.
            names: of the classes, by label.
            score: lowest score of an object that is drawn.
        """

    def draw_maps(self, prediction: Prediction) -> dict[str, Image.Image]:
        """The images of `draw` that show a prediction without its image, by their folder."""
        return {}

    def draw_large(
        self, pixels: Pixels, prediction: Prediction, names: Sequence[str], score: float
    ) -> Images:
        """Return what `draw` does, with the image made smaller; `draw_maps` keep its size."""
        factor = shrink_factor(pixels.size)
        small = shrunk(prediction, factor, pixels.size)
        drawn = zip(self.folders, self.draw(overview(pixels, factor), small, names, score), strict=True)
        maps = self.draw_maps(prediction)
        return [maps.get(folder, image) for folder, image in drawn]

    @abstractmethod
    def to_records(self, prediction: Prediction, image_id: int | str) -> list[dict[str, Any]]:
        """Return a prediction as plain data for a JSON file, in COCO's format."""

    def summary(self, records: Iterable[Mapping[str, Any]], class_names: Sequence[str], score: float) -> str:
        """Return a few words on what was found in all images, such as `12 objects with score >= 0.5`."""
        return f"{sum(record['score'] >= score for record in records)} {self.counted} with score >= {score:g}"

    def category_ids(self, config: C) -> list[int | str | None]:
        """The category id of each label in predictions on `data.val`: that of its annotation file where it
        has some, None for a class that it does not have.
        """
        first = self.first_category_id
        return list(range(first, first + len(self.class_names(config))))

    def gives(self, config: C) -> frozenset[str]:
        """The keys of a `Prediction` of the model; by default those that it learns."""
        return frozenset(self.needs)

    def truth(self, config: C, source: Any, index: int) -> tuple[Sample, Prediction]:
        """Return the annotations of an image as a prediction, and what the evaluator reads of the sample."""
        raise NotImplementedError

    def truth_fits(self, config: C, source: Any, index: int) -> bool:
        """Whether `truth` of an image takes little memory."""
        return True

    def truth_metrics(self, config: C) -> list[Metric]:
        """The scores that the ground truth must reach in full."""
        return [metric for metric in self.metrics(config) if metric.headline]

    def truth_losses(self, config: C, source: Any) -> list[str]:
        """Why the ground truth of a source does not reach the full score, in words."""
        return []

    def source_options(self, config: C) -> dict[str, Any]:
        """What `data.layouts.open_source` has to know of the task."""
        return {"needs": self.needs}

    def open_source(self, config: C, *, train: bool) -> Any:
        """Return the samples of `data.train` or `data.val`, a `Source`; opened once.

        Raises:
            ConfigError: the config names none, or what does not fit the task.
            DatasetError: the data are missing or broken.
        """
        name = "train" if train else "val"
        parts = getattr(config.data, name)
        if parts is None:
            raise ConfigError(f"data.{name} is not set: name the data there")
        strict = not (train and config.data.on_error == "skip")
        options = {"strict": strict, "form": pixel_format(config), **self.source_options(config)}
        options["tiled"] = self.tile_size(config) is not None
        return open_source(parts, train=train, class_names=config.data.class_names, **options)

    def adapt(self, config: C, source: Source) -> C:
        """Fill in the settings that are derived from the data: by default class names and their number."""
        names, count = list(source.class_names), config.model.num_classes
        if count not in (None, len(names)):
            raise ConfigError(
                f"model.num_classes is {count}, but {source.name} has {counted(len(names), 'class')} "
                f"({first_few(names)}); set model.num_classes=null to count them there"
            )
        return updated(config, data={"class_names": names}, model={"num_classes": len(names)})

    def sampling(self, config: C, source: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Which samples are learned from (None for all), and the group of each (None for one group)."""
        return None, None

    def class_counts(self, config: C, source: Any) -> ClassCounts:
        """How many objects, or pixels, of each class each image of the training set has."""
        raise NotImplementedError(f"{self.name} does not count classes")

    def class_names(self, config: C) -> list[str]:
        """Names of the classes by label; `class 3` where they are unknown."""
        return list(config.data.class_names or [f"class {n}" for n in range(config.model.num_classes or 0)])

    def colours(self, class_names: Sequence[str]) -> list[list[int]]:
        """RGB of each class as `draw` has it; empty where classes have no colour."""
        return []

    def image_size(self, config: C) -> tuple[int, int] | None:
        """Height and width of the images that enter the network in evaluation, if all have one size."""
        return None

    def single_view(self, config: C) -> C:
        """The config of an evaluation that sees each image once and whole, as exported files do."""
        return config

    # What all tasks share.

    def check(self, config: C, *, weights: bool = True) -> None:
        """Raise the first error that a config shows without any data: in backbone, architecture, or weights
        (where they will be needed).
        """
        if weights:
            check_start(config)
        if config.model.num_classes is None:
            config = without_class_weights(config)
            config = updated(config, model={"num_classes": self.usual_classes})
        count = config.data.channels
        mean, std = config.model.pixel_mean or [0.0] * count, config.model.pixel_std or [1.0] * count
        config = updated(config, model={"pixel_mean": mean, "pixel_std": std})
        with torch.device("meta"):
            self.build_model(config, load_weights=False)

    def prepare(self, config: C, *, training: bool = True, inspect: bool = True, weights: bool = True) -> C:
        """Check config and data before a run; return the config with the settings derived from the data.

        Args:
            config: as it was loaded.
            training: False leaves the training set alone; without class names in the config those of the
                validation set are taken.
            inspect: whether the header of every image is read.
            weights: whether a training starts from those in the config, which must be there then.
        """
        if training:
            check_watched(config)
            self.check(config, weights=weights)
        config = measured(self, config, training=training)
        source = self.open_source(config, train=training)
        config = self.adapt(config, source)
        sources = {"data.train": self.open_source(config, train=True)} if training else {}
        if config.data.val is not None:
            sources["data.val"] = self.open_source(config, train=False)
        if inspect:
            skip = "data.train" if training and config.data.on_error == "skip" else None
            # better now than after a day of training
            check_data(sources, skip=skip, timeout=config.data.timeout)
        config = with_class_weights(self, config, sources.get("data.train"))
        # Those of the first source are about the class names that the data have.
        for remark in dict.fromkeys(remark for one in (source, *sources.values()) for remark in one.remarks):
            warn_rank0(remark)
        if training:
            check_metrics(config, self.metric_names(config))
        return config

    def metric_names(self, config: C) -> list[str]:
        """The names of all scores, those of single classes too."""
        names = config.data.class_names or ()
        of_classes = [f"{score}/{name}" for score in self.class_scores(config) for name in names]
        losses = [VAL_LOSS] if config.eval.loss else []
        return [metric.name for metric in self.metrics(config)] + of_classes + losses

    def best_metric(self, config: C) -> Metric:
        """The metric that chooses the best checkpoint: `train.best_metric`, or the headline of the task."""
        return self.metric_named(config, config.train.best_metric)

    def metric_named(self, config: C, name: str | None) -> Metric:
        """A score of `metric_names`; None is the headline."""
        metrics = {metric.name: metric for metric in (*self.metrics(config), Metric(VAL_LOSS, "min", 1))}
        headline = next(metric for metric in metrics.values() if metric.headline)
        # The scores of single classes are of the headline's kind.
        return headline if name is None else metrics.get(name, headline._replace(name=name))

    def score_metric(self, config: C) -> Metric:
        """The best metric, or the headline where that is the `val_loss`, which is not a score."""
        best = self.best_metric(config)
        return self.metric_named(config, None) if best.name == VAL_LOSS else best

    def build_train_loader(self, config: C, *, start_iteration: int = 0) -> BatchLoader:
        """Return endless batches of this process, from `start_iteration` on."""
        source, names = self.open_source(config, train=True), self.class_names(config)
        seed = config.runtime.seed
        indices, groups = self.sampling(config, source)
        indices = np.arange(len(source)) if indices is None else indices
        good = ~np.isin(indices, left_out(source))
        indices, groups = indices[good], None if groups is None else groups[good]
        said = f"{counted(len(indices), 'image')} of {source.name}, {counted(len(names), 'class')}"
        tiles = self.train_tiles(config, source, indices)
        if tiles is not None:
            said = f"{counted(len(tiles.places), 'tile')} of {said}"
            groups = None if groups is None else aspect_ratio_groups(tiles.aspect_ratios)
            indices = np.arange(len(tiles.places))
        print_rank0(f"data.train: {said}: {first_few(names)}")
        batches = TrainBatches(
            len(indices),
            config.train.batch_size,
            seed=seed,
            groups=groups,
            repeats=image_repeats(self, config, source, indices) if tiles is None else None,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            accumulate=config.train.accumulate,
            start_iteration=start_iteration,
        )
        transform, on_error = self.train_transform(config), config.data.on_error
        samples = TrainSet(source, indices, transform, seed=seed, on_error=on_error, tiles=tiles)
        return BatchLoader(samples, batches, workers=config.data.workers, timeout=config.data.timeout)

    def tile_size(self, config: C) -> TileSize | None:
        """How images are divided in evaluation and prediction; None where they are not."""
        tiles = getattr(config.data, "tiles", None)
        return None if tiles is None else TileSize(tiles.size, tiles.overlap)

    def train_tiles(self, config: C, source: Any, indices: np.ndarray) -> TrainTiles | None:
        """The tiles of these images to learn from; None where they are learned from whole."""
        size, kind = self.tile_size(config), getattr(getattr(config.data, "tiles", None), "train", "none")
        if size is None or kind == "none":
            return None
        return TrainTiles(source, grids(source, indices, size), kind == "random")

    def tile_places(self, config: C, tile: Tile) -> tuple[list[int], list[int]]:
        """Where the tiles of an image, one of which is given, start: from above and from the left."""
        size = self.tile_size(config)
        assert size  # there are tiles
        return starts(tile.image_height, *size), starts(tile.image_width, *size)

    def merger(self, config: C, first: Tile) -> Merger:
        """Return what makes the prediction for an image out of those for its tiles; this is the first."""
        raise NotImplementedError(f"{self.name} does not divide images into tiles")

    def scored(self, config: C, source: Any) -> tuple[Any, Gather | None]:
        """What an evaluator is for, and how it gathers; see `build_evaluator`."""
        if source is not None:
            return source, None
        return self.open_source(config, train=False), distributed.gather_objects

    def build_eval_loader(self, config: C, *, targets: bool = False) -> BatchLoader:
        """Return this process's part of the validation images, each once, or the tiles of each; one at a time
        with all that is learned from it where `targets` is true.
        """
        source = self.open_source(config, train=False)
        transform = self.loss_transform(config) if targets else self.eval_transform(config)
        options: dict[str, int] = {
            "batch_size": 1 if targets else config.eval.batch_size,
            "workers": config.data.workers,
            "timeout": config.data.timeout,
            "rank": distributed.rank(),
            "world_size": distributed.world_size(),
        }
        size = self.tile_size(config)
        if size is None:
            return eval_loader(EvalSet(source, transform), **options)
        min_visible = getattr(getattr(config.data, "tiles", None), "min_visible", 0.0) if targets else 0.0
        return tile_loader(TileSet(source, transform, min_visible), size, **options)

    def build_predict_loader(
        self, config: C, files: Sequence[Path], *, done: Collection[int] = ()
    ) -> Iterator[tuple[list[Sample], list[tuple[int, DatasetError]]]]:
        """Return the images in batches, see `data.loaders.predict_loader`."""
        return predict_loader(
            files,
            self.eval_transform(config),
            batch_size=config.eval.batch_size,
            workers=config.data.workers,
            timeout=config.data.timeout,
            form=pixel_format(config),
            tiles=self.tile_size(config),
            done=done,
        )


def warn_rank0(text: str) -> None:
    """Log a warning in the main process alone."""
    if distributed.is_main():
        _log.warning("%s", text)
