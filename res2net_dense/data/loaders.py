"""From a data set to batches of `list[Sample]`: which images, in which order, read by how many processes.

Everything random depends on (seed, epoch, position), never on a process: any number of workers gives the same
bits, and a run continues at iteration k as if it had never stopped. Workers return their errors as values
and the main process raises or logs them, so that a user reads one line and not a worker's traceback. What
hangs or dies is `workers`' affair.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from res2net_dense.data.images import read_sample
from res2net_dense.data.pixels import RGB, PixelFormat
from res2net_dense.data.tiles import TileSize, TileSource, TrainTiles, grids, read_tile
from res2net_dense.data.waiting import TIMEOUT
from res2net_dense.data.workers import WorkerBatches
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.opening import note_sample
from res2net_dense.types import Sample, Source, Tile

Key = tuple[int, ...]
"""(epoch, position) of one training sample; (epoch, position, n) after n others of the epoch."""

Item = tuple[Sample | None, list[DatasetError]]
"""The sample, or None where there is none, and the errors met on the way."""

_MAX_REPLACEMENTS = 10
_MAPS = {"image", "sem_seg", "saliency"}
_logger = logging.getLogger(__name__)


@dataclass
class TrainBatches:
    """The endless order of training samples, as lists of (epoch, position).

    Each iteration takes one batch from a stream of shuffled epochs. With groups all images of a batch are of
    one group; what does not fill a batch waits for the next epoch, so no image is left out. The batch is cut
    into `accumulate * world_size` equal chunks, and rank r gets the chunks r, world_size + r, ...: one list
    each.

    Args:
        size: number of positions.
        batch_size: images of one optimizer step, over all processes and accumulated steps.
        groups: (size,) integers; None puts all into one group. See `aspect_ratio_groups`.
        repeats: (size,) how often each position comes in an epoch, on average; None is once. Of a fraction it
            is drawn in each epoch whether it counts.
        accumulate: chunks whose gradients are added up before a step.
        start_iteration: optimizer steps already done in an earlier run; skipped without reading an image.

    Raises:
        DatasetError: `size` is 0.
        ConfigError: `batch_size` cannot be cut evenly.
    """

    size: int
    batch_size: int
    _: KW_ONLY
    seed: int
    groups: np.ndarray | None = None
    repeats: np.ndarray | None = None
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1
    start_iteration: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DatasetError("the training set is empty; check what data.train names")
        chunks = self.world_size * self.accumulate
        if self.batch_size < 1 or self.batch_size % chunks:
            raise ConfigError(
                f"train.batch_size {self.batch_size} is not a multiple of train.accumulate {self.accumulate} "
                f"x {self.world_size} processes; use "
                f"train.batch_size={max(1, self.batch_size // chunks) * chunks}"
            )

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.batch_size // (self.world_size * self.accumulate)
        starts = range(self.rank * size, self.batch_size, self.world_size * size)
        for batch in itertools.islice(self._batches(), self.start_iteration, None):
            yield from (batch[start : start + size] for start in starts)

    def _batches(self) -> Iterator[list[Key]]:
        groups = [0] * self.size if self.groups is None else self.groups.tolist()
        waiting: dict[int, list[Key]] = {group: [] for group in set(groups)}
        for epoch in itertools.count():
            for key in self._epoch(epoch):
                group = groups[key[1]]
                waiting[group].append(key)
                if len(waiting[group]) == self.batch_size:
                    yield waiting[group]
                    waiting[group] = []

    @property
    def epoch_size(self) -> int:
        """How many samples an epoch has, on average."""
        return self.size if self.repeats is None else round(float(self.repeats.sum()))

    def _epoch(self, epoch: int) -> Iterator[Key]:
        """The samples of an epoch in their order."""
        rng = np.random.default_rng([self.seed, epoch])
        times = np.ones(self.size, dtype=np.int64)
        if self.repeats is not None:
            whole = np.floor(self.repeats)
            times = (whole + (rng.random(self.size) < self.repeats - whole)).astype(np.int64)
        positions = np.repeat(np.arange(self.size), times)
        numbers = np.arange(len(positions)) - np.repeat(times.cumsum() - times, times)
        order = rng.permutation(len(positions))
        for position, number in zip(positions[order].tolist(), numbers[order].tolist(), strict=True):
            yield (epoch, position, number) if number else (epoch, position)


def aspect_ratio_groups(ratios: np.ndarray) -> np.ndarray:
    """Groups of images that pad well together: 0 where width / height > 1, else 1, as detectron2."""
    return np.where(np.asarray(ratios) > 1, 0, 1)


@dataclass
class TrainSet(Dataset[Item]):
    """Transformed training samples by (epoch, position)."""

    source: Source
    indices: Sequence[int] | np.ndarray
    """Which of its samples to use; a position is an index into this list."""
    transform: Callable[[Sample, np.random.Generator], Sample]
    """Such as a `transforms.Pipeline`."""
    _: KW_ONLY
    seed: int
    """Of the transforms."""
    on_error: Literal["raise", "skip"] = "raise"
    """Whether a broken image ends it, or the next readable one takes its place."""
    tiles: TrainTiles | None = None
    """The tiles that `indices` mean; None for whole images."""

    def __getitem__(self, key: Key) -> Item:
        position = key[1]
        errors: list[DatasetError] = []
        for offset in range(min(_MAX_REPLACEMENTS, len(self.indices)) if self.on_error == "skip" else 1):
            index = int(self.indices[(position + offset) % len(self.indices)])
            rng = np.random.default_rng([self.seed, *key])
            try:
                if self.tiles is None:
                    note_sample(self.source, index)
                raw = self.tiles(index, rng) if self.tiles else self.source.sample(index)
            except DatasetError as error:
                errors.append(error)
            else:
                return self.transform(raw, rng), errors
        return None, errors


@dataclass
class EvalSet(Dataset[Item]):
    """Transformed evaluation samples, in the order of the data set."""

    source: Source
    transform: Callable[[Sample], Sample]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        try:
            note_sample(self.source, index)
            return self.transform(self.source.sample(index)), []
        except DatasetError as error:
            return None, [error]


@dataclass
class TileSet(Dataset[Item]):
    """Transformed evaluation samples of tiles, by the index of an image and the tile."""

    source: TileSource
    transform: Callable[[Sample], Sample]
    min_visible: float = 0.0
    """See `tiles.cut_annotations`."""

    def __getitem__(self, key: tuple[int, Tile | None]) -> Item:
        try:
            return self.transform(read_tile(self.source, *key, self.min_visible)), []
        except DatasetError as error:
            return None, [error]


class BatchLoader:
    """Iterates over batches of `list[Sample]`; each pass starts from the beginning.

    A broken image raises its `DatasetError` here. One that was replaced (`on_error="skip"`) is logged as a
    warning, once, and counted in `skipped` and `broken`. `batches` are the keys of the samples of each batch,
    such as `TrainBatches`; with 0 workers this process reads. A batch that takes longer than `timeout`
    seconds (0 for no limit), and a worker that dies, is a `ReadingError`; see `workers`.
    """

    def __init__(
        self, dataset: Dataset[Item], batches: Iterable[list[Any]], *, workers: int, timeout: int = TIMEOUT
    ) -> None:
        self.dataset, self.batches = dataset, batches
        self.loader = _loader(dataset, batches, workers, timeout)
        self.skipped = 0
        self._told: set[str] = set()

    def __len__(self) -> int:
        """Number of batches of this process; a TypeError for endless batches."""
        return len(self.loader)

    @property
    def images(self) -> int:
        """How many images, or tiles, an epoch of endless batches has."""
        return self._endless.epoch_size

    def start_at(self, iteration: int) -> None:
        """Begin the endless batches after so many optimizer steps."""
        self._endless.start_iteration = iteration

    def feed(self, device: torch.device) -> None:
        """Give batches from which copies to this device need not be waited for: on CUDA in page-locked
        memory, which a thread copies them to.
        """
        self.loader.pin_memory = device.type == "cuda"

    @property
    def _endless(self) -> TrainBatches:
        assert isinstance(self.batches, TrainBatches)
        return self.batches

    @property
    def broken(self) -> int:
        """How many images could not be read so far."""
        return len(self._told)

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.loader:
            yield [self._sample(*item) for item in _unpack(batch)]

    def _sample(self, sample: Sample | None, errors: list[DatasetError]) -> Sample:
        if sample is None:
            if len(errors) == 1:
                raise errors[0]
            raise DatasetError(f"{errors[-1]} ({len(errors)} in a row are broken)")
        for error in errors:
            if str(error) not in self._told:  # it comes again in each epoch
                _logger.warning("skipped: %s", error)
                self._told.add(str(error))
        self.skipped += len(errors)
        return sample


def eval_loader(
    dataset: EvalSet,
    *,
    batch_size: int,
    workers: int,
    timeout: int = TIMEOUT,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """One pass in which every image comes exactly once over all processes; this one gets every
    `world_size`-th image, `batch_size` at a time.
    """
    batches = _chunks(range(rank, len(dataset), world_size), batch_size)
    return BatchLoader(dataset, batches, workers=workers, timeout=timeout)


def tile_loader(
    dataset: TileSet,
    size: TileSize,
    *,
    batch_size: int,
    workers: int,
    timeout: int = TIMEOUT,
    rank: int = 0,
    world_size: int = 1,
) -> BatchLoader:
    """The same in tiles: this process gets all tiles of every `world_size`-th image, one after the other."""
    keys = grids(dataset.source, range(rank, len(dataset.source), world_size), size)
    return BatchLoader(dataset, _chunks(keys, batch_size), workers=workers, timeout=timeout)


def predict_loader(
    files: Sequence[Path],
    transform: Callable[[Sample], Sample],
    *,
    batch_size: int,
    workers: int,
    timeout: int = TIMEOUT,
    form: PixelFormat = RGB,
    tiles: TileSize | None = None,
    done: Collection[int] = (),
) -> Iterator[tuple[list[Sample], list[tuple[int, DatasetError]]]]:
    """Yield the samples of each batch of files, read in a form, and number and error of those that cannot be
    read.

    Either list may be empty; every file is in exactly one of them. With `tiles` the samples are those of all
    tiles of the files, and each tile that cannot be read is an error of its file. Batches are left out that
    none but the files in `done` needs.
    """
    source: Any = _Files(files, form)
    places: list[tuple[int, Tile | None]] = (
        grids(source, range(len(files)), tiles) if tiles else [(index, None) for index in range(len(files))]
    )
    chunks = _needed(_chunks(places, batch_size), done)
    loader = _loader(TileSet(source, transform), chunks, workers, timeout)
    for keys, batch in zip(chunks, loader, strict=True):
        items = _unpack(batch)
        samples = [sample for sample, _ in items if sample is not None]
        yield (
            samples,
            [(n, error) for (n, _), (_, errors) in zip(keys, items, strict=True) for error in errors],
        )


def _needed(
    chunks: list[list[tuple[int, Tile | None]]], done: Collection[int]
) -> list[list[tuple[int, Tile | None]]]:
    """The chunks with all tiles of the files that are not done, and of the files that share a chunk with
    them: tiles are merged from the first one on.
    """
    needed: list[list[tuple[int, Tile | None]]] = []
    for chunk in reversed(chunks):
        first = needed[-1][0][1] if needed else None
        if (first is not None and first.number > 0) or any(number not in done for number, _ in chunk):
            needed.append(chunk)
    return needed[::-1]


class _Files(list[str]):
    """Image files without annotations; `image_id` is the running number from 0."""

    def __init__(self, files: Sequence[Path], form: PixelFormat) -> None:
        super().__init__(map(str, files))
        self.form = form

    def sample(self, index: int) -> Sample:
        return read_sample(self[index], index, form=self.form)

    def file(self, index: int) -> Path:
        return Path(self[index])

    def annotations(self, index: int, within: Tile | None = None) -> dict[str, Any]:
        return {"image_id": index, "file_name": self[index]}


def _chunks(keys: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(keys[first : first + size]) for first in range(0, len(keys), size)]


def _loader(
    dataset: Dataset[Item], batches: Iterable[list[Any]], workers: int, timeout: int
) -> WorkerBatches:
    return WorkerBatches(dataset.__getitem__, batches, workers=workers, timeout=timeout, collate=_pack)


def _pack(items: list[Item]) -> tuple[list[Item], dict[str, Tensor]]:
    """Join the maps of a batch that have one size for the way from a worker to the main process.

    Each tensor on that way holds an open file, and Linux allows a process 1024 of them: four workers with two
    batches of 256 images on their way would need 2048.
    """
    if get_worker_info() is None:
        return items, {}
    # copies, as a source may hand out what it keeps
    items = [(None if sample is None else sample.copy(), errors) for sample, errors in items]
    samples = _samples(items)
    packed = {
        key: torch.stack([sample.pop(key) for sample in samples])
        for key in (_MAPS & samples[0].keys() if samples else ())
        if len({sample[key].shape for sample in samples}) == 1
    }
    return items, packed


def _unpack(batch: tuple[list[Item], dict[str, Tensor]]) -> list[Item]:
    """Undo `_pack`."""
    items, packed = batch
    for key, maps in packed.items():
        for sample, one in zip(_samples(items), maps, strict=True):
            sample[key] = one
    return items


def _samples(items: list[Item]) -> list[dict[str, Any]]:
    return [cast(dict[str, Any], sample) for sample, _ in items if sample is not None]
