"""What can be wrong with a data set: the table of its kinds, and the list of what was found.

Readers add what they find and go on. A training raises the first error of the list (`raise_errors`); the
command `res2net-dense check` shows all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal, NamedTuple

from res2net_dense.errors import DatasetError, counted

Severity = Literal["error", "warning", "note"]

KEPT = 1000
"""How many findings of one code are kept; the others are counted."""


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity
    """An error ends a training; of a warning something is lost or doubtful; a note is legal but rare."""
    meaning: str
    """What is wrong, for the documentation."""


KINDS: dict[str, Kind] = {
    # files
    "file-missing": Kind("error", "A file that is named is not there"),
    "name-near": Kind("note", "A name is not the file's, but it is beyond doubt which file is meant"),
    "path-outside": Kind("error", "A name is not a path inside the data set"),
    "image-unreadable": Kind("error", "An image is empty, cut off or damaged, or not an image"),
    "image-too-large": Kind("error", "An image claims more pixels than are read"),
    "image-size": Kind("error", "An image has another size than its annotations say"),
    "duplicate-file-name": Kind("error", "Two images of a set have the same file"),
    "train-val-overlap": Kind("warning", "An image is in both the training and the validation set"),
    "list-entry": Kind("error", "A line of a list cannot be understood or is repeated"),
    # annotation files
    "file-format": Kind("error", "An annotation file is not in its format"),
    "entry-format": Kind("error", "An entry of an annotation file lacks something or has a wrong value"),
    "duplicate-image-id": Kind("error", "Two images have the same id"),
    "duplicate-annotation-id": Kind("warning", "Two annotations have the same id (it is not used)"),
    "unknown-image": Kind("warning", "An annotation is of an image that is not listed; it is left out"),
    "unknown-category": Kind("error", "An annotation has a category that is not listed"),
    "category-gaps": Kind("note", "The category ids have gaps"),
    "id-zero": Kind("note", "An id is 0"),
    "text-ids": Kind("note", "Ids are texts, or written in two ways"),
    "crowd-null": Kind("note", "iscrowd is null; it counts as 0"),
    "all-crowd": Kind("error", "Every object is a crowd region (iscrowd = 1), so nothing can be learned"),
    "crowd": Kind("note", "Crowd regions or difficult objects are neither learned nor counted"),
    "class-unused": Kind("warning", "A class has no object"),
    "class-unknown": Kind("error", "An object has a class that the model does not have"),
    "xml-no-size": Kind("note", "An xml file lacks the size of its image; it is read from the image"),
    "xml-dtd": Kind("error", "An xml file has a document type definition, which is not read"),
    # boxes
    "box-missing": Kind("warning", "An object has neither a box nor a mask; it is left out"),
    "box-zero-area": Kind("warning", "A box has no width or no height; the object is left out"),
    "box-negative-size": Kind("warning", "A box has a negative width or height; the object is left out"),
    "box-not-finite": Kind("error", "A box is not 4 finite numbers"),
    "box-outside": Kind("warning", "A box lies outside its image; the object is left out"),
    "box-partly-outside": Kind("warning", "A box leaves its image; it is clipped"),
    "box-tiny": Kind("warning", "A box has an area below one pixel"),
    "boxes-xyxy": Kind("error", "The boxes look like x1, y1, x2, y2, not x, y, width, height"),
    "boxes-normalised": Kind("error", "The boxes look like shares of the image, 0 to 1, not pixels"),
    "area-missing": Kind("note", "An annotation lacks its area; it is computed"),
    # masks of objects
    "mask-invalid": Kind("warning", "An object has no valid mask where masks are needed; it is left out"),
    "mask-no-pixel": Kind("warning", "A mask covers no pixel; the object is left out"),
    "polygon-too-short": Kind("warning", "A polygon has under 3 points; it is left out"),
    "polygon-odd": Kind("warning", "A polygon has an odd number of coordinates; it is left out"),
    "polygon-line": Kind("warning", "The points of a polygon lie on a line; it is left out"),
    "polygon-far": Kind("warning", "A polygon lies far outside its image; it is left out"),
    "polygon-crossing": Kind("warning", "The outline of a polygon crosses itself"),
    "rle-size": Kind("error", "A run-length code has another size than its image"),
    "rle-invalid": Kind("error", "A run-length code does not describe its image"),
    "rle-uncompressed": Kind("note", "A run-length code is not compressed"),
    # keypoints
    "keypoints-length": Kind("error", "Keypoints are not 3 numbers for each of the category's"),
    "keypoints-visibility": Kind("error", "The visibility of a keypoint is not 0, 1 or 2"),
    "keypoints-count": Kind("warning", "num_keypoints is not the number of visible keypoints"),
    # label maps and masks of salient objects
    "mask-missing": Kind("error", "An image has no mask"),
    "image-missing": Kind("error", "A mask has no image"),
    "mask-unreadable": Kind("error", "A mask is damaged, or in a format that changes values"),
    "mask-size": Kind("error", "A mask has another size than its image"),
    "mask-values": Kind("error", "A mask has values that its layout does not allow"),
    "mask-colour": Kind("error", "A mask has colours, and no file says which is which class"),
    "mask-palette": Kind("error", "The palette of a mask shows that its indices are not the labels"),
    "label-unknown": Kind("error", "A mask has a label above the classes"),
    "all-ignored": Kind("error", "No mask has a label that is learned"),
    "nothing-salient": Kind("error", "No mask of the set has a salient pixel"),
    # others
    "count": Kind("warning", "A known set has another number of images than published"),
    "not-images": Kind("note", "Files that are not images are left out"),
    "score-below-100": Kind("warning", "The ground truth scored as predictions is below 100"),
}  # fmt: skip
"""By code. `docs/data.md` has the same table."""


class Finding(NamedTuple):
    """One thing that is wrong, or rare."""

    code: str
    file: str
    """The file to look at: an annotation file, a list, an image or a mask."""
    text: str
    """What is wrong and what to do, without the file: `annotation 7: its bbox ...; correct it`."""
    image: str = ""
    """Path of the image that it is about, to be shown; empty where it is about no image."""
    place: int | None = None
    """Place of that image in the source; None where it is about the whole set."""
    box: tuple[float, float, float, float] | None = None
    """xyxy in pixels of that image, to be drawn."""
    fix: Literal["", "drop", "clip"] = ""
    """What reading does about it: leave the object out, or clip its box."""

    @property
    def severity(self) -> Severity:
        return KINDS[self.code].severity

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


class Findings:
    """What was found, in order: of each code the first `KEPT`, and how many there are."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.broken: set[int] = set()
        """Places of the samples that have an error, those of findings that are not kept too."""
        self._kept: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """Add one; its code is a key of `KINDS`."""
        self.counts[finding.code] += 1
        if finding.severity == "error" and finding.place is not None:
            self.broken.add(finding.place)
        if self.counts[finding.code] <= KEPT:
            self._kept.append(finding)

    def extend(self, others: Findings) -> None:
        """Add those of another list, with the counts of those that it did not keep."""
        for finding in others:
            self.add(finding)
        self.broken |= others.broken
        kept = Counter(finding.code for finding in others)
        self.counts.update({code: count - kept[code] for code, count in others.counts.items()})

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._kept)

    def number(self, severity: Severity) -> int:
        """How many there are of a severity."""
        return sum(count for code, count in self.counts.items() if KINDS[code].severity == severity)

    def raise_errors(self) -> None:
        """Raise a `DatasetError` with the first error and the number of the others, if there is one."""
        first = next((finding for finding in self if finding.severity == "error"), None)
        if first is not None:
            more = counted(self.number("error") - 1, "more error")
            others = f" (and {more}: `res2net-dense check --config ...` shows all)"
            raise DatasetError(f"{first}{'' if more.startswith('0') else others}")
