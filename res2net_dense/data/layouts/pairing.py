"""Which mask belongs to which image where their names differ: `x_mask.png`, `gt-x.png`, another case."""

from __future__ import annotations

import itertools
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from res2net_dense.data.images import IMAGE_SUFFIXES, MASK_SUFFIXES
from res2net_dense.data.layouts.listing import Files, index_files
from res2net_dense.data.layouts.near_names import NearFiles
from res2net_dense.errors import counted

SHARED_SUFFIXES = ((".jpg", ".jpeg"), (".png",))
"""Suffixes of images and of masks where they share a folder."""

_TRIED = 20
"""The first masks alone show which rules are possible; each is then tried on all."""
_TELLING = 3
"""So many masks must differ from their images in two additions: with fewer it may be chance."""
_MASK_WORD = re.compile(r"mask|gt|seg|label|anno|sal|matte|alpha|truth", re.IGNORECASE)


def pair_up(images: Files, masks: Files, what: str = "masks", whose: str = "images") -> tuple[Files, str]:
    """Give the masks the names of their images where these differ beyond doubt.

    Beyond doubt is an addition that all masks share whose name is not an image's (`x_mask` for `x`, `gt_x`,
    `x_mask` for `x_sat`), and one that differs in its case, Unicode form or folder alone.

    Args:
        images: the images.
        masks: the masks.
        what: what the line calls them.
        whose: what it calls the images.

    Returns:
        The masks, by the paths of their images without suffix, and a line that says what was done, or "".
    """
    odd = [stem for stem in masks.by_stem if stem not in images.by_stem]
    lacking = [stem for stem in images.by_stem if stem not in masks.by_stem]
    if not odd or not lacking:
        return masks, ""
    # A few of many are perhaps copies, such as `x_old`.
    renamed = _affix_rule(lacking, odd) if 2 * len(odd) > len(masks.by_stem) else None
    if renamed is None:
        paths = [images.by_stem[stem] for stem in lacking]
        found, _ = NearFiles(images.folder, paths).match(odd, ())
        renamed = {stem: os.path.splitext(path)[0] for stem, path in found.items()}
    if not renamed:
        return masks, ""
    by_stem = {renamed.get(stem, stem): path for stem, path in masks.by_stem.items()}
    name, image = next(iter(renamed.items()))
    line = (
        f"{counted(len(renamed), 'name')} of {len(masks.by_stem)} {what} are not those of their {whose}, "
        f"such as {masks.by_stem[name]} for {images.by_stem.get(image, image)}; it is clear which are meant"
    )
    return masks._replace(by_stem=by_stem), line


def index_both(
    image_folder: Path, mask_folder: Path, preferred: tuple[str, str] = ("", "")
) -> tuple[Files, Files]:
    """The images and the masks, of two folders or of one; see `index_files` for what is preferred and raised.

    In one folder they are told by an addition to the names of all masks, such as `_mask`, or are JPEGs and
    PNGs.
    """
    if image_folder.resolve() == mask_folder.resolve():
        return _index_shared(image_folder, "folder of both images and masks")
    images = index_files(image_folder, "image folder", IMAGE_SUFFIXES, preferred[0])
    masks = index_files(mask_folder, "mask folder", MASK_SUFFIXES, preferred[1])
    if mask_folder.resolve().is_relative_to(image_folder.resolve()):  # its masks were found as images, too
        below = f"{mask_folder.resolve().relative_to(image_folder.resolve()).as_posix()}/"
        images = Files(
            image_folder,
            {stem: path for stem, path in images.by_stem.items() if not path.startswith(below)},
            [path for path in images.clashes if not path.startswith(below)],
        )
    return images, masks


def _index_shared(folder: Path, what: str) -> tuple[Files, Files]:
    files = index_files(folder, what, MASK_SUFFIXES)
    stems = [] if files.clashes else sorted(files.by_stem)
    known = set(stems)
    endings = dict.fromkeys(
        after[len(before) :]
        for before, after in itertools.pairwise(stems)
        if after.startswith(before) and _MASK_WORD.search(after[len(before) :])
    )
    for ending in list(endings)[:_TRIED]:
        masks = {stem for stem in stems if stem.endswith(ending)}
        images = known - masks
        if {stem[: -len(ending)] for stem in masks} <= images and 2 * len(masks) >= len(images):
            return tuple(  # type: ignore[return-value]  # of two
                files._replace(by_stem={stem: files.by_stem[stem] for stem in stems if stem in part})
                for part in (images, masks)
            )
    jpegs, pngs = (index_files(folder, what, suffixes) for suffixes in SHARED_SUFFIXES)
    return jpegs, pngs


Rule = Callable[[str], "str | None"]
"""Takes the addition from a name; None where the name does not have it."""


def _affix_rule(images: Sequence[str], masks: Sequence[str]) -> dict[str, str] | None:
    """The image of each mask, by an addition that all masks share; None if there is none, or several do."""
    known = set(images)
    results = []
    for rule in _additions(known, masks):
        named = {mask: rule(mask) for mask in masks}
        stems = [stem for stem in named.values() if stem is not None]
        if len(set(stems)) == len(masks) and 2 * len(known.intersection(stems)) >= len(masks):
            results.append({mask: stem for mask, stem in named.items() if stem is not None})
    for image_rule, mask_rule in _replacements(images, masks):
        by_core = {image_rule(image): image for image in images}
        cores = [mask_rule(mask) for mask in masks]
        if (
            (None not in by_core and len(by_core) == len(images))
            and (len(set(cores)) == len(masks) >= _TELLING and by_core.keys() >= set(cores))
            and 2 * len(masks) >= len(images)
        ):
            results.append({mask: by_core[core] for mask, core in zip(masks, cores, strict=True)})
    if not results or any(result != results[0] for result in results):
        return None
    return results[0]


def _additions(images: Collection[str], masks: Sequence[str]) -> list[Rule]:
    """Rules that make the name of an image of one of the first masks."""
    endings: dict[str, None] = {}
    beginnings: dict[str, None] = {}
    for mask in masks[:_TRIED]:
        place, name = _parted(mask)
        for cut in range(1, len(name)):
            if place + name[:cut] in images and _is_addition(name[cut:], len(masks)):
                endings[name[cut:]] = None
            if place + name[cut:] in images and _is_addition(name[cut - 1 :: -1], len(masks)):
                beginnings[name[:cut]] = None
    return [_without_ending(text) for text in endings] + [_without_beginning(text) for text in beginnings]


def _is_addition(text: str, count: int) -> bool:
    """Whether what one name has more than another is no part of a number, or of a word of a single name."""
    return not text[0].isdigit() and (count > 1 or not text[0].isalnum())


def _replacements(images: Sequence[str], masks: Sequence[str]) -> Iterator[tuple[Rule, Rule]]:
    """Rules for images and masks that each have an addition of their own, from the first mask."""
    place, name = _parted(masks[0])
    ordered = sorted(images)
    for match in re.finditer(r"[^0-9A-Za-z]", name):
        core = place + name[: match.start()]
        start = bisect_left(ordered, core)
        for image in ordered[start : start + _TRIED]:
            if image.startswith(core) and len(image) > len(core):
                yield _without_ending(image[len(core) :]), _without_ending(name[match.start() :])
        ending = name[match.start() :]
        for image in ordered[:_TRIED]:
            beginning = _parted(image)[1]
            if beginning.endswith(ending) and beginning != ending:
                yield (
                    _without_beginning(beginning[: -len(ending)]),
                    _without_beginning(name[: match.start()]),
                )


def _parted(stem: str) -> tuple[str, str]:
    """The folders of a path, with their slash, and the rest."""
    place, slash, name = stem.rpartition("/")
    return place + slash, name


def _without_ending(text: str) -> Rule:
    def rule(stem: str) -> str | None:
        return stem[: -len(text)] if stem.endswith(text) and len(_parted(stem)[1]) > len(text) else None

    return rule


def _without_beginning(text: str) -> Rule:
    def rule(stem: str) -> str | None:
        place, name = _parted(stem)
        return place + name[len(text) :] if name.startswith(text) and len(name) > len(text) else None

    return rule
