"""Published facts about the usual sets of salient objects, and the names they go by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KnownSet:
    """What is published of a set."""

    count: int
    """Pairs of an image and a mask."""
    folders: tuple[str, str]
    """Images and masks in the archive, or in its usual repackaging where the archive has no masks."""
    url: str
    faults: str = ""
    """Those that its page or users of it report."""


KNOWN_SETS = {
    "DUTS-TR": KnownSet(10_553, ("DUTS-TR-Image", "DUTS-TR-Mask"), "http://saliencydetection.net/duts/"),
    "DUTS-TE": KnownSet(
        5_019,
        ("DUTS-TE-Image", "DUTS-TE-Mask"),
        "http://saliencydetection.net/duts/",
        "early copies have wrong masks of ILSVRC2012_test_00036002 and sun_bcogaqperiljqupq, of other sizes "
        "than the images; the page's archive is corrected",
    ),
    "ECSSD": KnownSet(
        1_000,
        ("images", "ground_truth_mask"),
        "https://www.cse.cuhk.edu.hk/leojia/projects/hsaliency/dataset.html",
        "masks distributed with results of methods have been found to differ from the original ones",
    ),
    "HKU-IS": KnownSet(
        4_447,
        ("imgs", "gt"),
        "https://i.cs.hku.hk/~gbli/deep_saliency.html",
        "many papers, PoolNet's among them, score its test list of 1,447 alone",
    ),
    "DUT-OMRON": KnownSet(
        5_168,
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        "http://saliencydetection.net/dut-omron/",
        "copies from before 2018 have four images without mask: img_561715398, sun_bqfgwnmzhjwuphdi, "
        "sun_bswlalhygmnrhvuw, sun_buaqzytduodbufcb",
    ),
    "PASCAL-S": KnownSet(
        850,
        ("images", "masks"),
        "http://cbi.gatech.edu/salobj/",
        "there are graded masks (a value for each object) and binary ones, whose scores do not compare; "
        "some papers score 845 of them",
    ),
    "SOD": KnownSet(
        300,
        ("images", "masks"),
        "https://www.elderlab.yorku.ca/resources/salient-objects-dataset-sod/",
        "the page has outlines of seven people and no masks, and the masks that others made of them differ",
    ),
    "MSRA-B": KnownSet(
        5_000,
        (".", "."),
        "https://mmcheng.net/drfi/",
        "its lists have 2,500 to train, 500 to validate and 2,000 to test; score the test list alone",
    ),
}


def known_name(name: str) -> str | None:
    """The published name of a set, whatever its case and hyphens; None if the set is not known."""
    return {_plain(known): known for known in KNOWN_SETS}.get(_plain(name))


def count_warning(name: str, count: int) -> str | None:
    """Warn of a known set with another count than published; None otherwise."""
    known = KNOWN_SETS.get(name)
    if known is None or known.count == count:
        return None
    faults = f"; {known.faults}" if known.faults else ""
    return f"{name} has {count} pairs here but {known.count} as published: scores do not compare{faults}"


def set_name(root: Path, folder: str) -> str:
    """A known set that a folder on the way to the images or masks is named after, else the root's name."""
    name = root.absolute().resolve().name
    for part in reversed((name, *Path(folder).parts)):
        known = known_name(_plain(part).removesuffix("image").removesuffix("mask"))
        if known:
            return known
    return name or "data"


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
