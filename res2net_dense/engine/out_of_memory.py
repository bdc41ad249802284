"""One line of an error about memory: what was computed, and what needs less."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from res2net_dense.errors import OutOfMemoryError, Res2NetDenseError, is_out_of_memory
from res2net_dense.types import Sample


@contextmanager
def explaining_memory(device: torch.device, doing: Callable[[], str], remedy: str) -> Iterator[None]:
    """Turn errors of PyTorch, numpy and Python about memory into an `OutOfMemoryError`.

    Args:
        device: where it is computed.
        doing: describes what is computed, such as `in iteration 3: 2 images`.
        remedy: what to do.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Res2NetDenseError) or not is_out_of_memory(error):
            raise
        wanted = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        amount = f" ({wanted[1]} more were needed)" if wanted else ""
        kind = "GPU memory" if device.type == "cuda" else "memory"
        raise OutOfMemoryError(f"out of {kind} {doing()}{amount}; {remedy}") from error


def describe_images(samples: Sequence[Sample], precision: str) -> str:
    """`height x width 480x640, 512x512, precision fp32` of the images of samples."""
    sizes = {"x".join(map(str, one["image"].shape[-2:])) for one in samples if "image" in one}
    return f"height x width {', '.join(sorted(sizes)) or 'unknown'}, precision {precision}"
