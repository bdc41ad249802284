"""What can be wrong with a data set: the table of its kinds, and the list of what was found.

Readers add what they find and go on. A training raises the first error of the list (`raise_errors`); the
command `res2net-dense check` shows all of it.
"""

from __future__ import annotations

import sys
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
    "text-encoding": Kind("note", "A list is not UTF-8; it is read in the encoding that fits the files"),
    "path-outside": Kind("error", "A name is not a path inside the data set"),
    "image-unreadable": Kind("error", "An image is empty, cut off or damaged, or not an image"),
    "image-too-large": Kind("error", "An image claims more pixels than are read"),
    "image-size": Kind("error", "An image has another size than its annotations say"),
    "image-channels": Kind("error", "An image has another number of channels than data.channels"),
    "duplicate-file-name": Kind("error", "Two images of a set have the same file"),
    "train-val-overlap": Kind("warning", "An image is in both the training and the validation set"),
    "list-entry": Kind("error", "A line of a list cannot be understood or is repeated"),
    # annotation files
    "file-format": Kind("error", "A file or folder is not as its layout has it"),
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
    "class-id": Kind("error", "A class id is not among the classes of its data.yaml"),
    "object-twice": Kind("warning", "An object is listed twice; the second one is left out"),
    "score": Kind("note", "An object has a score, as predictions have; it is not used"),
    "labels-missing": Kind("error", "No image has a file of labels"),
    "labels-alone": Kind("warning", "A file of labels has no image; it is left out"),
    "image-without-json": Kind("warning", "Images have no json; they are left out"),
    "shape-ignored": Kind("warning", "A point or line, which is not an object, is left out"),
    "classes-of-image": Kind("error", "An image does not have exactly one class"),
    "xml-no-size": Kind("note", "An xml file lacks the size of its image; it is read from the image"),
    "box-several": Kind("note", "An object of an xml file has several boxes; each is an object of its own"),
    "box-from-zero": Kind("note", "Boxes of xml files have an edge at 0, but VOC's pixels count from 1"),
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
    "boxes-pixels": Kind("error", "Boxes or outlines are in pixels where shares of the image are meant"),
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
    "rle-bytes": Kind("note", "A run-length code is the text of Python bytes, b'...'; it is read"),
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
    "mask-grey": Kind("note", "A label map is grey saved as colour; its grey values are the labels"),
    "mask-ones": Kind("note", "Masks of salient objects have the values 0 and 1; 1 counts as salient"),
    "mostly-ignored": Kind("warning", "Nearly all pixels of masks that are not background are ignored"),
    "label-unknown": Kind("error", "A mask has a label above the classes"),
    "all-ignored": Kind("error", "No mask has a label that is learned"),
    "nothing-salient": Kind("error", "No mask of the set has a salient pixel"),
    # others
    "count": Kind("warning", "A known set has another number of images than published"),
    "not-images": Kind("note", "Files that are not images are left out"),
    "score-below-100": Kind("warning", "The ground truth scored as predictions is below 100"),
}  # fmt: skip
"""By code. `docs/data.md` has the same table."""

OF_WHOLE = ("all-ignored", "mostly-ignored", "nothing-salient")
"""Codes of what concerns all masks of a set together."""

REMEDIES: dict[str, str] = {
    # files
    "file-missing": "Add the file, or correct the name; names are compared with their case",
    "name-near": "Nothing has to be done; write the name as the file has it",
    "text-encoding": "Nothing has to be done; save the list as UTF-8 for other programs",
    "path-outside": "Put the file into the data set, and write a path inside it",
    "image-unreadable": "Replace or remove the file; data.on_error=skip trains without it",
    "image-too-large": "Scale the image down, or cut it into tiles",
    "image-size": "Correct the size in the annotations, or use the image that was annotated",
    "image-channels": "Set data.channels to the number that all images have",
    "duplicate-file-name": "Remove one entry, and give its annotations to the other",
    "train-val-overlap": "Remove the image from one of the sets: its score says nothing",
    "list-entry": "Write one name a line, each once",
    # annotation files
    "file-format": "Do what the message says, or give the layout that it has",
    "entry-format": "Correct the entry",
    "duplicate-image-id": "Give each image an id of its own, and check which annotations belong to it",
    "duplicate-annotation-id": "Nothing has to be done; renumber the annotations for other programs",
    "unknown-image": "Add the image to the list, or remove the annotation",
    "unknown-category": "Add the category, or correct category_id",
    "category-gaps": "Nothing has to be done",
    "id-zero": "Nothing has to be done; pycocotools ignores an annotation with id 0",
    "text-ids": "Nothing has to be done; some programs want numbers",
    "crowd-null": "Nothing has to be done",
    "all-crowd": "Set iscrowd to 0, unless the objects are groups that cannot be told apart",
    "crowd": "Nothing has to be done; set iscrowd or difficult to 0 where an object is to be learned",
    "class-unused": "Remove the class, or add objects of it; its score does not exist",
    "class-unknown": "Correct the name, or add it to data.class_names",
    "class-id": "Correct the id: it counts from 0 in the order of names",
    "object-twice": "Nothing has to be done; remove one of the lines",
    "score": "Nothing has to be done",
    "labels-missing": "Check the folders: labels/ is next to images/, with the same names",
    "labels-alone": "Add the image, or remove the file of labels",
    "image-without-json": "Save a json, empty where there is no object, or remove the image",
    "shape-ignored": "Draw a polygon or a box where it is an object",
    "classes-of-image": "Write 1 for one class of the image, and 0 for the others",
    "xml-no-size": "Nothing has to be done",
    "box-several": "Nothing has to be done; write one object for each box for other programs",
    "box-from-zero": "Set first_pixel: 0 if the tool that wrote the boxes counts from 0",
    "xml-dtd": "Remove <!DOCTYPE ...>: entities can read other files",
    # boxes
    "box-missing": "Draw the box, or remove the object",
    "box-zero-area": "Correct the box, or remove the object: it is mostly a slip of the mouse",
    "box-negative-size": "Correct the box: two corners were perhaps exchanged",
    "box-not-finite": "Correct or remove the box",
    "box-outside": "Correct or remove the box: the image was perhaps cut or scaled after it was annotated",
    "box-partly-outside": "Nothing has to be done where it is little; else the size of the image is wrong",
    "box-tiny": "Remove the object, or check whether the boxes are in pixels",
    "boxes-xyxy": "Write x, y, width, height: subtract the first corner from the second",
    "boxes-normalised": "Multiply by width and height of the image",
    "boxes-pixels": "Divide by width and height of the image",
    "area-missing": "Nothing has to be done",
    # masks of objects
    "mask-invalid": "Draw the mask, or train on boxes alone with a faster_rcnn config",
    "mask-no-pixel": "Draw the mask again: its outline is smaller than a pixel, or lies outside",
    "polygon-too-short": "Remove the polygon, or add its points",
    "polygon-odd": "Write x and y of each point",
    "polygon-line": "Remove the polygon, or correct its points",
    "polygon-far": "Correct the points: they are in pixels of the image",
    "polygon-crossing": "Look whether the filled shape is what was meant; else order the points",
    "rle-size": "Write [height, width] of the image, in this order, or code the mask again",
    "rle-invalid": "Code the mask again; counts is a text, not Python's b'...'",
    "rle-uncompressed": "Nothing has to be done",
    "rle-bytes": "Nothing has to be done; write counts.decode() for other programs",
    # keypoints
    "keypoints-length": "Write x, y, visibility for each name in the category's keypoints",
    "keypoints-visibility": "Write 0 (not labelled), 1 (hidden) or 2 (visible)",
    "keypoints-count": "Nothing has to be done; correct num_keypoints for other programs",
    # label maps and masks of salient objects
    "mask-missing": "Add the mask, or remove the image",
    "image-missing": "Add the image, or remove the mask",
    "mask-unreadable": "Save the mask as PNG: JPEG changes values",
    "mask-size": "Use the image that was annotated; do not scale the mask with smoothing",
    "mask-values": "Write the values that the layout has: see its section in docs/data.md",
    "mask-colour": "Add a labelmap.txt with the colour of each class, or save labels as grey",
    "mask-palette": "Save the mask as grey, whose values are the labels",
    "mask-grey": "Nothing has to be done; save one channel for other programs",
    "mask-ones": "Nothing has to be done; multiply the masks by 255 for other programs",
    "label-unknown": "Add the class to the class names, or correct the mask; 255 is ignored",
    "all-ignored": "Write 1 for the first class: 255 is ignored",
    "mostly-ignored": "Check whether 255 marks what is to be ignored, and not a class",
    "nothing-salient": "Write 255 where the object is: a pixel is salient above 128",
    # others
    "count": "Scores do not compare with published ones; fetch the set again",
    "not-images": "Nothing has to be done",
    "score-below-100": "See the reasons that are named",
}
"""What a person does about a kind, by code, for the documentation."""


def keep_all() -> None:
    """Keep every finding of each code from now on, for a command that writes all of them."""
    global KEPT
    KEPT = sys.maxsize


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
            more = self.number("error") - 1
            others = f" (and {counted(more, 'more error')}: `res2net-dense check --config ...` shows all)"
            raise DatasetError(f"{first}{others if more else ''}", code=first.code)
