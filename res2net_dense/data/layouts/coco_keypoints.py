"""What is wrong with keypoints, which no task learns: they are only checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Raw

from res2net_dense.data.layouts.coco_annotations import Annotations
from res2net_dense.data.layouts.coco_file import finite, plain


def check_keypoints(rows: Annotations, entries: Sequence[Any], counts: Sequence[int | None]) -> None:
    """Add what is wrong with keypoints; `counts` is how many an object of each category has, or None."""
    categories = rows.categories.tolist()
    for row, place in enumerate(rows.places.tolist()):
        entry = entries[place]
        if type(entry) is Raw and b'"keypoints"' not in bytes(entry):
            continue
        try:
            value = plain(entry)
        except ValueError as error:
            rows.add("entry-format", row, f"{error}; correct the file")
            continue
        points = value.get("keypoints")
        if points is None or points == []:
            continue
        wanted = counts[categories[row]]
        numbers = finite(points)
        if numbers is None or len(numbers) % 3 or (wanted is not None and len(numbers) != 3 * wanted):
            length = len(points) if isinstance(points, list) else repr(points)[:40]
            should = "3 for each keypoint" if wanted is None else f"{3 * wanted}, 3 for each of {wanted}"
            text = f"its keypoints are {length} numbers, not {should}; correct the file"
            rows.add("keypoints-length", row, text)
            continue
        visibility = numbers[2::3]
        if wrong := [value for value in visibility if value not in (0, 1, 2)]:
            text = f"the visibility of a keypoint is {wrong[0]:g}, not 0, 1 or 2; correct the file"
            rows.add("keypoints-visibility", row, text)
            continue
        given, labelled = value.get("num_keypoints"), sum(map(bool, visibility))
        if given is not None and given != labelled:
            text = f"its num_keypoints is {given!r:.40}, but {labelled} have a visibility above 0"
            rows.add("keypoints-count", row, text)
