"""Loaders: empty and broken sets first, then order, ranks, resumption and workers."""

import itertools
import logging
import os
import resource
import time
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from res2net_dense.data.images import read_sample
from res2net_dense.data.layouts import CocoPart, open_source
from res2net_dense.data.loaders import (
    BatchLoader,
    EvalSet,
    TrainBatches,
    TrainSet,
    aspect_ratio_groups,
    eval_loader,
    predict_loader,
)
from res2net_dense.data.transforms import Pipeline, RandomFlip, ResizeShortestEdge, colour_changes
from res2net_dense.errors import ConfigError, DatasetError


class Folder:
    """A data set of numbered images; those in `broken` are cut off."""

    def __init__(self, path, size, broken=()):
        self.files = [path / f"{n}.png" for n in range(size)]
        for n, file in enumerate(self.files):
            Image.new("RGB", (20 + n, 16), (n, 0, 0)).save(file)
            if n in broken:
                file.write_bytes(file.read_bytes()[:40])

    def __len__(self):
        return len(self.files)

    def sample(self, index):
        return read_sample(self.files[index], index)


def take(iterable, number):
    return list(itertools.islice(iter(iterable), number))


def transform(min_sizes=(16, 20), max_size=64):
    return Pipeline(ResizeShortestEdge(min_sizes, max_size), RandomFlip(0.5), colour_changes("strong"))


RESIZE = Pipeline(ResizeShortestEdge([16], 64))


def test_an_empty_training_set_is_refused():
    with pytest.raises(DatasetError, match="empty.* data.train"):
        TrainBatches(0, 2, seed=0)


@pytest.mark.parametrize(("size", "options"), [(3, {"world_size": 2}), (6, {"accumulate": 4}), (0, {})])
def test_a_batch_that_cannot_be_cut_names_the_keys(size, options):
    with pytest.raises(ConfigError, match=r"train.batch_size .* train.accumulate"):
        TrainBatches(10, size, seed=0, **options)


def test_every_position_comes_once_an_epoch():
    keys = list(itertools.chain.from_iterable(take(TrainBatches(10, 4, seed=0), 5)))
    assert sorted(keys) == [(epoch, position) for epoch in range(2) for position in range(10)]
    assert keys != sorted(keys)
    assert keys == list(itertools.chain.from_iterable(take(TrainBatches(10, 4, seed=0), 5)))
    assert keys != list(itertools.chain.from_iterable(take(TrainBatches(10, 4, seed=1), 5)))
    assert take(TrainBatches(3, 8, seed=0), 1)[0][-1][0] == 2  # a set smaller than a batch


def test_groups_are_not_mixed_and_nothing_is_left_out():
    groups = np.array([0] * 7 + [1] * 2)
    batches = take(TrainBatches(9, 4, seed=0, groups=groups), 90)
    assert all(len({groups[position] for _, position in batch}) == 1 for batch in batches)
    seen = Counter(key for batch in batches for key in batch)
    assert set(seen.values()) == {1}
    whole = [sorted(p for e, p in seen if e == epoch) for epoch in range(30)]
    assert whole == [list(range(9))] * 30
    assert aspect_ratio_groups(np.array([2.0, 1.0, 0.5])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2)])
def test_ranks_and_accumulation_share_one_global_batch(world_size, accumulate):
    groups = np.arange(23) % 2
    whole = take(TrainBatches(23, 8, seed=3, groups=groups), 12)
    options = {"seed": 3, "groups": groups, "world_size": world_size, "accumulate": accumulate}
    ranks = [take(TrainBatches(23, 8, rank=r, **options), 12 * accumulate) for r in range(world_size)]
    for iteration, expected in enumerate(whole):
        steps = range(iteration * accumulate, (iteration + 1) * accumulate)
        assert [key for step in steps for rank in ranks for key in rank[step]] == expected
    for start in (1, 5, 11):
        resumed = TrainBatches(23, 8, rank=world_size - 1, start_iteration=start, **options)
        assert take(resumed, (12 - start) * accumulate) == ranks[-1][start * accumulate :]


def test_a_long_run_is_resumed_quickly():
    start = time.perf_counter()
    take(TrainBatches(118_000, 16, seed=0, groups=np.arange(118_000) % 2, start_iteration=180_000), 1)
    assert time.perf_counter() - start < 10


def test_a_broken_image_ends_training_with_one_line(tmp_path):
    folder = Folder(tmp_path, 3, broken=[1])
    for workers in (0, 1):
        loader = BatchLoader(
            TrainSet(folder, range(3), transform(), seed=0), TrainBatches(3, 3, seed=0), workers=workers
        )
        with pytest.raises(DatasetError) as error:
            take(loader, 1)
        assert str(tmp_path / "1.png") in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_skipped_named_and_counted(tmp_path, caplog, workers):
    folder = Folder(tmp_path, 6, broken=[1, 2])
    dataset = TrainSet(folder, range(6), transform(), seed=0, on_error="skip")
    loader = BatchLoader(dataset, TrainBatches(6, 6, seed=0), workers=workers)
    with caplog.at_level(logging.WARNING):
        (batch,) = take(loader, 1)
    assert sorted(sample["image_id"] for sample in batch) == [0, 3, 3, 3, 4, 5]
    assert loader.skipped == 3
    assert {name for name in ("1.png", "2.png") if name in caplog.text} == {"1.png", "2.png"}
    assert "\nTraceback" not in caplog.text


def test_a_set_of_broken_images_only_ends(tmp_path):
    folder = Folder(tmp_path, 3, broken=[0, 1, 2])
    dataset = TrainSet(folder, range(3), transform(), seed=0, on_error="skip")
    with pytest.raises(DatasetError, match="3 in a row"):
        take(BatchLoader(dataset, TrainBatches(3, 1, seed=0), workers=0), 1)


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_workers_resumption_and_seeds_on_real_data(shared_data):
    folder = shared_data / "coco_tiny"
    part = CocoPart(
        annotations=str(folder / "annotations" / "instances_train2017.json"), images=str(folder / "train2017")
    )
    dataset = open_source([part], train=True, needs=["masks"])
    indices = dataset.indices_with_objects()[:12]
    groups = aspect_ratio_groups(dataset.aspect_ratios[indices])

    def batches(number, *, seed=0, workers=0, start=0):
        train_set = TrainSet(dataset, indices, transform(min_sizes=[96, 128], max_size=256), seed=seed)
        order = TrainBatches(len(indices), 4, seed=seed, groups=groups, start_iteration=start)
        return take(BatchLoader(train_set, order, workers=workers), number)

    state = torch.random.get_rng_state()
    first = batches(7)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, batches(7, workers=2))
    assert same(first[3:], batches(4, start=3, workers=1))
    assert not same(first, batches(7, seed=1))
    for sample in itertools.chain.from_iterable(first):
        assert len(sample["boxes"]) == len(sample["labels"]) == len(sample["masks"]) > 0
        height, width = sample["image"].shape[1:]
        assert (sample["boxes"] >= 0).all()
        assert (sample["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


@pytest.mark.parametrize("size", [0, 1, 5, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_image_once(tmp_path, size, world_size):
    dataset = EvalSet(Folder(tmp_path, size), RESIZE)
    seen = []
    for rank in range(world_size):
        loader = eval_loader(dataset, batch_size=2, workers=0, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(loader) == len(batches)
        seen += [sample["image_id"] for batch in batches for sample in batch]
        assert len(list(loader)) == len(batches)
    assert sorted(seen) == list(range(size))


def test_evaluation_is_the_same_with_workers_and_ends_at_a_broken_image(tmp_path):
    folder = Folder(tmp_path, 5)
    dataset = EvalSet(folder, RESIZE)
    alone, helped = (list(eval_loader(dataset, batch_size=2, workers=workers)) for workers in (0, 2))
    assert same(alone, helped)
    assert [len(batch) for batch in alone] == [2, 2, 1]
    folder.files[3].unlink()
    with pytest.raises(DatasetError, match="3.png"):
        list(eval_loader(dataset, batch_size=2, workers=1))


def test_prediction_gives_samples_and_errors(tmp_path):
    folder = Folder(tmp_path, 5, broken=[0, 2, 3])
    for workers in (0, 1):
        batches = list(predict_loader(folder.files, RESIZE, batch_size=2, workers=workers))
        assert [[sample["image_id"] for sample in samples] for samples, _ in batches] == [[1], [], [4]]
        assert [len(errors) for _, errors in batches] == [1, 2, 0]
        assert str(folder.files[0]) in str(batches[0][1][0])
    assert list(predict_loader([], RESIZE, batch_size=2, workers=0)) == []


def test_a_large_batch_needs_few_open_files(tmp_path):
    """Four batches of 64 images on their way from two workers, where a process may open 64 files more."""
    files = Folder(tmp_path, 1).files * 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 64, hard))
    try:
        batches = predict_loader(files, RESIZE, batch_size=64, workers=2)
        seen = [sample["image_id"] for samples, _ in batches for sample in samples]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert seen == list(range(256))
