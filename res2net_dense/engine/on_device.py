"""Batches on the device where they are needed, on CUDA before they are."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from res2net_dense.types import Sample

T = TypeVar("T")
U = TypeVar("U")


def on_device(batches: Iterable[list[Sample]], device: torch.device) -> Generator[list[Sample]]:
    """Yield the batches with all their tensors on `device`; closing it closes the iterator of `batches`.

    On CUDA the next batch is fetched and copied, on a stream of its own, while this one is computed on. The
    copies overlap where the loader gives page-locked memory (`BatchLoader.feed`); images are the uint8 that
    they were read as, a quarter of the normalized ones.
    """
    if device.type == "cpu":
        yield from batches
    elif device.type != "cuda":
        for batch in batches:
            yield moved(batch, device)
    else:
        stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

        def start(batch: list[Sample]) -> tuple[list[Sample], Any]:
            with torch.cuda.stream(stream):
                return moved(batch, device), stream.record_event()

        for batch, is_copied in one_ahead(batches, start):
            current = torch.cuda.current_stream(device)
            current.wait_event(is_copied)
            for tensor in _tensors(batch):  # its memory is not reused before this stream is done with it
                tensor.record_stream(current)
            yield batch


def moved(batch: list[Sample], device: torch.device) -> list[Sample]:
    """The samples with their tensors on `device`, without waiting for the copies; polygons stay."""
    return [
        cast(
            Sample,
            {
                key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in sample.items()
            },
        )
        for sample in batch
    ]


def one_ahead(items: Iterable[T], start: Callable[[T], U]) -> Generator[U]:
    """Yield `start(item)` of each item, which is called before the item ahead of it is yielded.

    An error in fetching an item is raised where the item is asked for, not one too early: what comes before
    it is used first.
    """
    iterator = iter(items)
    with closing(iterator) if isinstance(iterator, Generator) else nullcontext():
        following = _next(iterator, start)
        while following is not None:
            if isinstance(following, Exception):
                raise following
            (item,) = following
            following = _next(iterator, start)
            yield item


def _next(iterator: Iterator[T], start: Callable[[T], U]) -> tuple[U] | Exception | None:
    """The next item, started; the error in its place, or None at the end."""
    try:
        return (start(next(iterator)),)
    except StopIteration:
        return None
    except Exception as error:
        return error


def _tensors(batch: list[Sample]) -> Iterator[Tensor]:
    return (value for sample in batch for value in sample.values() if isinstance(value, Tensor))
