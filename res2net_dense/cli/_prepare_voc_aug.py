"""What `res2net-dense prepare-voc-aug` does."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from res2net_dense.data.layouts.listing import check_present, index_files
from res2net_dense.data.layouts.voc_files import read_names
from res2net_dense.errors import DatasetError, MissingDependencyError
from res2net_dense.files import write_atomically
from res2net_dense.palette import voc_palette

try:
    from scipy.io import loadmat  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingDependencyError(
        f"SBD's files need scipy ({error}); install it with: pip install 'res2net_dense[segmentation]'"
    ) from error

NAMES, MASKS = 10_582, 12_031  # of the whole SBD and VOC2012
CLASSES = 21
MASK_FOLDER = "SegmentationClassAug"
_SAY_EVERY = 2000


@dataclass(frozen=True)
class Plan:
    """What the augmented set consists of."""

    names: list[str]
    """The pictures to train on, sorted."""
    masks: dict[str, Path]
    """Where the mask of each picture comes from, a png of VOC or a mat of SBD; sorted by name."""


def make_plan(voc: Path, sbd: Path) -> Plan:
    """Read the lists and find all masks; raises `DatasetError` where something is missing."""
    lists = voc / "ImageSets" / "Segmentation"
    voc_train, voc_val = (read_names(lists / f"{split}.txt") for split in ("train", "val"))
    sbd_names = [name for split in ("train", "val") for name in read_names(sbd / f"{split}.txt")]
    sources: dict[str, Path] = {}
    for names, folder, what, suffix, source in (
        (sbd_names, sbd / "cls", "masks of SBD", ".mat", sbd),
        ([*voc_train, *voc_val], voc / "SegmentationClass", "masks of VOC", ".png", lists),
    ):
        files = index_files(folder, f"folder of the {what}", (suffix,)).by_stem
        check_present(names, files, what, folder, str(source))
        sources |= {name: folder / files[name] for name in names}
    trained = (set(sbd_names) | set(voc_train)) - set(voc_val)
    return Plan(sorted(trained), dict(sorted(sources.items())))


def read_sbd(file: Path) -> np.ndarray:
    """The labels in a file of SBD's `cls`, (H, W) uint8; raises `DatasetError`."""
    try:
        content = loadmat(file, appendmat=False, squeeze_me=True, struct_as_record=False)
        labels = np.asarray(content["GTcls"].Segmentation)
    except Exception as error:  # scipy raises nearly every type on damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{file}: no mask of SBD ({reason}); unpack SBD's archive again") from error
    is_map = labels.ndim == 2 and labels.size and labels.dtype.kind in "ui"
    if not is_map or not 0 <= labels.min() <= labels.max() < CLASSES:
        raise DatasetError(f"{file}: its labels are no picture of values 0 to 20; unpack SBD's archive again")
    return labels.astype(np.uint8)


def write_masks(masks: dict[str, Path], folder: Path) -> None:
    """Write all masks as palette PNGs, under another name until the last is there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    palette = voc_palette().tobytes()
    try:
        bar = tqdm(masks.items(), desc="masks", unit="img", disable=None)
        for number, (name, source) in enumerate(bar, start=1):
            target = partial / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix.lower() == ".png":
                shutil.copyfile(source, target)
            else:
                image = Image.fromarray(read_sbd(source))
                image.putpalette(palette)
                image.save(target)
            if bar.disable and number % _SAY_EVERY == 0:
                print(f"{number} of {len(masks)} masks", flush=True)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def prepare(voc: Path, sbd: Path, output: Path) -> None:
    """Write what is not there yet.

    Raises:
        DatasetError: something of VOC or SBD is missing or broken, or the output has other masks or another
            list.
        OSError: the output cannot be written.
    """
    plan = make_plan(voc, sbd)
    for count, expected, what in ((len(plan.names), NAMES, "names"), (len(plan.masks), MASKS, "masks")):
        if count != expected:
            print(f"warning: {count} {what}; all of SBD and VOC2012 give {expected}", file=sys.stderr)
    folder, file = output / MASK_FOLDER, output / "ImageSets" / "Segmentation" / "trainaug.txt"
    done = []
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        there = index_files(folder, "mask folder", (".png",)).by_stem
        if missing := plan.masks.keys() - there.keys():
            raise DatasetError(
                f"{folder}: holds {len(there)} masks, but {len(missing)} of {len(plan.masks)} are not among "
                "them; delete it or give another --output"
            )
        done.append(folder)
    if file.exists():
        if set(read_names(file)) != set(plan.names):
            raise DatasetError(f"{file}: is another list; delete it or give another --output")
        done.append(file)
    if len(done) == 2:
        print(f"{folder} and {file}: already there, nothing to do")
        return
    if folder not in done:
        output.mkdir(parents=True, exist_ok=True)
        write_masks(plan.masks, folder)
        print(f"{folder}: {len(plan.masks)} masks written")
    if file not in done:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda stream: stream.write("".join(f"{n}\n" for n in plan.names).encode()))
        print(f"{file}: {len(plan.names)} names written")
