"""Every image of a set is scored, and once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from res2net_dense.errors import DatasetError
from res2net_dense.types import Sample


def checked_id(sample: Sample, count: int, seen: Collection[int]) -> int:
    """The id of an image that is to be scored.

    Args:
        sample: with `image_id`.
        count: of the set's images; their ids are 0 to `count` - 1.
        seen: those scored already.

    Raises:
        DatasetError: it is not in the set, or comes twice.
    """
    image_id = sample["image_id"]
    if not isinstance(image_id, int) or not 0 <= image_id < count:
        raise DatasetError(f"image {image_id!r} is not one of the {count} to be scored")
    if image_id in seen:
        raise DatasetError(f"image {image_id} was evaluated twice; call reset() before another evaluation")
    return image_id


def join(parts: Sequence[set[int]]) -> set[int]:
    """The ids that any process has scored.

    Args:
        parts: those of each process.

    Raises:
        DatasetError: two processes have scored one image, so that their sums have it twice.
    """
    seen = set[int]().union(*parts)
    if twice := sum(map(len, parts)) - len(seen):
        raise DatasetError(
            f"{twice} images were evaluated by more than one process; give each process its own images"
        )
    return seen
