"""PASCAL VOC's layout, http://host.robots.ox.ac.uk/pascal/VOC/: folders, and lists of names.

JPEGImages/<name>.jpg   Annotations/<name>.xml   SegmentationClass/<name>.png   ImageSets/<kind>/<split>.txt
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple
from xml.sax.saxutils import unescape

from res2net_dense.data.images import IMAGE_SUFFIXES
from res2net_dense.data.layouts.base import Part
from res2net_dense.data.layouts.listing import (
    Files,
    check_names,
    index_files,
    is_inside,
    keep_present,
    read_bytes,
    read_lines,
    take_names,
)
from res2net_dense.data.layouts.near_names import NearFiles
from res2net_dense.data.layouts.pairing import index_both, pair_up
from res2net_dense.errors import counted
from res2net_dense.findings import Finding, Findings
from res2net_dense.sections import PathText, Text


class VocPart(Part):
    """One part of a data set in VOC's layout. A relative root starts at the current working directory."""

    toy: ClassVar[str] = "voc"
    kind: ClassVar[str]
    """The folder of the lists in `ImageSets`."""

    root: PathText
    """Folder of the data set, such as `datasets/VOCdevkit/VOC2012`."""
    split: Text | None
    """Name of the list `ImageSets/<kind>/<split>.txt`, of the kind Main for boxes and Segmentation for masks;
    null takes every annotation file for boxes and every image for masks."""
    images: Text = "JPEGImages"
    """Folder of the images in `root`."""


class VocFiles(NamedTuple):
    """The files of a part."""

    source: Path
    """The list, or the folder that gives the names where there is none."""
    images: Files
    annotations: Files
    names: list[str]
    """Paths without suffix, for each of which there is an image and an annotation."""


def find_files(
    part: VocPart,
    folder: str,
    what: str,
    suffixes: Collection[str],
    preferred: str,
    findings: Findings,
    strict: bool,
) -> VocFiles:
    """List the images of a part and the annotations in a folder of it.

    Args:
        part: the part.
        folder: of the annotations, in the root.
        what: what messages call one of them, such as "mask".
        suffixes: of the annotations.
        preferred: as in `index_files`.
        findings: takes what is wrong with names, which are left out.
        strict: whether an error is raised instead.

    Raises:
        DatasetError: a folder or the list is missing or wrong, or, if `strict`, a file.
    """
    root = Path(part.root)
    if part.kind == "Main":
        images = index_files(root / part.images, "image folder", IMAGE_SUFFIXES, ".jpg")
        annotations = index_files(root / folder, f"{what} folder", suffixes, preferred)
    else:
        images, annotations = index_both(root / part.images, root / folder, (".jpg", preferred))
    annotations, line = pair_up(images, annotations, f"{what}s")
    if not line and what == "annotation":
        annotations, line = _by_file_name(images, annotations)
    if line:
        findings.add(Finding("name-near", str(annotations.folder), line))
    if part.split is None:
        every = annotations if part.kind == "Main" else images
        source, names = every.folder, sorted(every.by_stem)
        names = keep_present(names, images, "images", source, findings, strict, annotations)
    else:
        source = root / "ImageSets" / part.kind / f"{part.split}.txt"
        entries = _read_entries(source, images.by_stem.keys(), findings)
        named, hint = take_names(source, entries, images, findings, strict, annotations)
        names = keep_present(named, images, "images", source, findings, strict, annotations, hint)
    names = keep_present(names, annotations, f"{what}s", source, findings, strict, images)
    return VocFiles(source, images, annotations, names)


def _by_file_name(images: Files, xmls: Files) -> tuple[Files, str]:
    """Give xml files that are called otherwise the names of the images that they name as theirs."""
    lacking = [path for stem, path in images.by_stem.items() if stem not in xmls.by_stem]
    named: dict[str, str] = {}
    for stem, path in xmls.by_stem.items():
        if stem not in images.by_stem and is_inside(path):
            content = read_bytes(xmls.folder / path, "annotation file", 1 << 12)
            if text := re.search(rb"<filename>\s*([^<]+?)\s*</filename>", content):
                named[stem] = unescape(text[1].decode(errors="replace"))
    uses = Counter(named.values())
    found, _ = NearFiles(images.folder, lacking).match([name for name in uses if uses[name] == 1], ())
    renamed = {stem: os.path.splitext(found[name])[0] for stem, name in named.items() if name in found}
    if not renamed:
        return xmls, ""
    stem, image = next(iter(renamed.items()))
    line = (
        f"{counted(len(renamed), 'annotation')} of {len(xmls.by_stem)} are named otherwise than their images "
        f"and joined by <filename>, such as {xmls.by_stem[stem]} to {images.by_stem[image]}"
    )
    return xmls._replace(by_stem={renamed.get(s, s): path for s, path in xmls.by_stem.items()}), line


def read_names(file: Path, known: Set[str] = frozenset()) -> list[str]:
    """Read a list, one name of an image (without suffix) per line.

    In the lists of one class a number follows each name: -1 means that the image does not show the class, and
    it is left out. The known names, which have files, tell a blank in a name from a number after it. Raises
    `DatasetError` if the list is missing, empty or not text, or a line is not a name or is repeated.
    """
    return check_names(file, _read_entries(file, known, Findings()))


def _read_entries(file: Path, known: Set[str], findings: Findings) -> Mapping[int, str]:
    """The names of a list by line number, as they are written, without further columns."""
    entries = read_lines(file, lambda line: any(reading in known for reading in _readings(line)), findings)
    if any(line not in known for line in entries.values()):
        pairs = {number: line.rsplit(maxsplit=1) for number, line in entries.items()}
        if all(len(pair) == 2 and pair[1] in ("1", "0", "-1") for pair in pairs.values()):
            return {
                number: line if line in known else pairs[number][0]
                for number, line in entries.items()
                if line in known or pairs[number][1] != "-1"
            }
        if all(
            len(line.split()) == 2 and len(set(map(_stem, line.split()))) == 1 for line in entries.values()
        ):
            return {number: line.split()[0] for number, line in entries.items()}  # an image and its mask
    return entries


def _readings(line: str) -> tuple[str, ...]:
    """The names that a line may have: all of it, without its suffix, or without further columns."""
    return line, os.path.splitext(line)[0], line.split()[0], line.rsplit(maxsplit=1)[0]


def _stem(path: str) -> str:
    return PurePosixPath(path).stem
