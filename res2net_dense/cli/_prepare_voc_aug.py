"""What `res2net-dense prepare-voc-aug` does."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from res2net_dense.cli._shared import say
from res2net_dense.data.layouts.listing import check_present, index_files
from res2net_dense.data.layouts.voc_files import read_names
from res2net_dense.errors import DatasetError, MissingDependencyError, one_line
from res2net_dense.files import draft_of
from res2net_dense.outputs import Outputs, remove_drafts
from res2net_dense.palette import voc_palette

try:
    from scipy.io import loadmat  # type: ignore[import-untyped]
except ImportError as error:
    raise MissingDependencyError(
        f"SBD's files need scipy ({error}); install it with: pip install 'res2net_dense[segmentation]'"
    ) from error

NAMES, MASKS = 10_582, 12_031  # of the whole SBD and VOC2012
CLASSES = 21


def read_sbd(file: Path) -> np.ndarray:
    """The labels in a file of SBD's `cls`, (H, W) uint8; raises `DatasetError`."""
    try:
        content = loadmat(file, appendmat=False, squeeze_me=True, struct_as_record=False)
        labels = np.asarray(content["GTcls"].Segmentation)
    except Exception as error:  # scipy raises nearly every type on damaged bytes
        raise DatasetError(
            f"{file}: not a mask of SBD ({one_line(error)}); unpack SBD's archive again"
        ) from error
    is_map = labels.ndim == 2 and labels.size and labels.dtype.kind in "ui"
    if not is_map or not 0 <= labels.min() <= labels.max() < CLASSES:
        raise DatasetError(f"{file}: its labels are not a map of values 0 to 20; unpack SBD's archive again")
    return labels.astype(np.uint8)


def write_masks(masks: dict[str, Path], folder: Path, outputs: Outputs) -> None:
    """Write all masks as palette PNGs, under another name until the last is there."""
    partial = draft_of(folder)
    partial.mkdir(parents=True)
    try:
        for name, source in tqdm(masks.items(), desc="masks", unit="img", disable=None):
            target = partial / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix.lower() == ".png":
                shutil.copyfile(source, target)
            else:
                image = Image.fromarray(read_sbd(source))
                image.putpalette(voc_palette().tobytes())
                image.save(target)
        if folder.is_dir() and any(folder.iterdir()):
            for name in masks:
                outputs.publish({partial / f"{name}.png": folder / f"{name}.png"})
        else:
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def prepare(voc: Path, sbd: Path, output: Path, *, overwrite: bool = False) -> None:
    """Write what is not there yet; with `overwrite` what is there too.

    Raises:
        DatasetError: something of VOC or SBD is missing or broken, or the output has other masks or another
            list.
        OSError: the output cannot be written.
    """
    lists = Path("ImageSets/Segmentation")
    voc_train, voc_val = (read_names(voc / lists / f"{split}.txt") for split in ("train", "val"))
    sbd_names = [name for split in ("train", "val") for name in read_names(sbd / f"{split}.txt")]
    names = sorted({*sbd_names, *voc_train} - set(voc_val))
    masks: dict[str, Path] = {}  # VOC's own where it has one
    for needed, root, place, what, suffix in (
        (sbd_names, sbd, "cls", "masks of SBD", ".mat"),
        ([*voc_train, *voc_val], voc, "SegmentationClass", "masks of VOC", ".png"),
    ):
        found = index_files(root / place, f"folder of the {what}", (suffix,)).by_stem
        check_present(needed, found, what, root / place, str(root))
        masks |= {name: root / place / found[name] for name in needed}
    for count, expected, what in ((len(names), NAMES, "names"), (len(masks), MASKS, "masks")):
        if count != expected:
            say(f"warning: {count} {what}; all of SBD and VOC2012 give {expected}", file=sys.stderr)
    folder, file = output / "SegmentationClassAug", output / lists / "trainaug.txt"
    outputs = Outputs(output, inputs=masks.values(), overwrite=overwrite, keep=True)
    has_masks = folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite
    if has_masks:
        there = index_files(folder, "mask folder", (".png",)).by_stem
        if missing := masks.keys() - there.keys():
            raise DatasetError(
                f"{folder}: holds {len(there)} masks, but {len(missing)} of {len(masks)} are not among them; "
                "delete it, give another --output, or --overwrite"
            )
    has_list = file.exists() and not overwrite
    if has_list and set(read_names(file)) != set(names):
        raise DatasetError(f"{file}: is another list; delete it, give another --output, or --overwrite")
    outputs.claim([] if has_list else [file])
    outputs.claim([] if has_masks else [folder / f"{name}.png" for name in masks])
    remove_drafts([folder])
    if has_masks and has_list:
        say(f"{folder} and {file}: already there, nothing to do")
    if not has_masks:
        write_masks(masks, folder, outputs)
        say(f"{folder}: {len(masks)} masks written")
    if not has_list:
        outputs.write(file, "".join(f"{n}\n" for n in names).encode())
        say(f"{file}: {len(names)} names written")
