"""Batches on their way to the device; CUDA's streams are stood in for, its copies are in tests/gpu."""

from contextlib import nullcontext

import pytest
import torch

from res2net_dense.data.loaders import BatchLoader, TrainBatches
from res2net_dense.engine.on_device import moved, on_device, one_ahead


def batches(count, closed, error=None):
    try:
        for number in range(count):
            yield [{"image": torch.full((3, 2, 2), number, dtype=torch.uint8), "image_id": number}]
        if error:
            raise error
    finally:
        closed.append(True)


def test_on_a_cpu_nothing_is_fetched_ahead_or_copied():
    closed = []
    source = [[{"image": torch.zeros(1)}]]
    assert next(on_device(source, torch.device("cpu"))) is source[0]
    feed = on_device(batches(3, closed), torch.device("cpu"))
    next(feed)
    feed.close()
    assert closed


def test_every_tensor_moves_and_nothing_else():
    sample = {"image": torch.zeros(3, 2, 2, dtype=torch.uint8), "boxes": torch.zeros(1, 4), "masks": [[]],
              "image_id": 7, "file_name": "a.png"}  # fmt: skip
    (found,) = moved([sample], torch.device("meta"))
    assert [found[key].device.type for key in ("image", "boxes")] == ["meta", "meta"]
    assert found["image"].dtype == torch.uint8
    assert (found["masks"], found["image_id"], found["file_name"]) == ([[]], 7, "a.png")
    assert sample["image"].device.type == "cpu"


def test_the_next_item_is_started_before_the_one_ahead_is_used():
    events = []

    def start(number):
        events.append(f"start {number}")
        return number

    for number in one_ahead(range(3), start):
        events.append(f"use {number}")
    assert events == ["start 0", "start 1", "use 0", "start 2", "use 1", "use 2"]
    assert list(one_ahead([], start)) == []


def test_what_comes_before_an_error_is_used_and_the_source_is_closed():
    used, closed = [], []
    feed = one_ahead(batches(2, closed, ZeroDivisionError()), lambda batch: batch)
    with pytest.raises(ZeroDivisionError):
        used.extend(batch[0]["image_id"] for batch in feed)
    assert used == [0, 1]
    closed.clear()
    feed = one_ahead(batches(5, closed), lambda batch: batch)
    next(feed)
    feed.close()
    assert closed


class Stream:
    """Counts what is recorded on it and waited for."""

    def __init__(self, device=None):
        self.recorded, self.waited = 0, []

    def record_event(self):
        self.recorded += 1
        return self.recorded

    def wait_event(self, event):
        self.waited.append((event, side.recorded))


def test_cuda_waits_for_the_copy_of_its_own_batch_alone(monkeypatch):
    global side
    main, side = Stream(), Stream()
    held = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr("res2net_dense.engine.on_device.moved", lambda batch, device: batch)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: held.append(stream))
    found = list(on_device(batches(3, []), torch.device("cuda")))
    assert [batch[0]["image_id"] for batch in found] == [0, 1, 2]
    assert main.waited == [(1, 2), (2, 3), (3, 3)]  # the next copy is on its way already
    assert held == [main] * 3


class Samples(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return {"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "image_id": key[1]}, []


@pytest.mark.parametrize(("device", "asked"), [("cuda", True), ("cpu", False), ("mps", False)])
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_page_locked_for_cuda(monkeypatch, device, asked, workers):
    options = []
    real = torch.utils.data.DataLoader

    def watched(*arguments, **keywords):
        options.append(keywords.pop("pin_memory"))
        return real(*arguments, **keywords)

    monkeypatch.setattr("res2net_dense.data.workers.DataLoader", watched)
    loader = BatchLoader(Samples(), TrainBatches(4, 2, seed=0), workers=workers)
    loader.feed(torch.device(device))
    feed = iter(loader)
    assert len(next(feed)) == 2
    feed.close()
    assert options == [asked]
