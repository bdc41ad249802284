"""What `res2net-dense prepare-duts` does."""

from __future__ import annotations

import argparse
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from res2net_dense.data.images import list_images, read_image
from res2net_dense.data.layouts.image_masks import ImageMasksPart, PartFiles, find_files
from res2net_dense.data.layouts.listing import check_size, path_inside
from res2net_dense.data.layouts.saliency_sets import count_warning
from res2net_dense.data.masks import RULE, SALIENT_ABOVE, read_mask_values
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.files import sha256_of, write_atomically

FORMAT = 1

T = TypeVar("T")
R = TypeVar("R")


class Fault(NamedTuple):
    kind: str
    text: str


class Pair(NamedTuple):
    """An image and its mask; what is behind their paths has no meaning where there is a fault."""

    name: str
    image: str
    mask: str
    height: int = 0
    width: int = 0
    salient: float = 0.0
    """Share of the pixels, 0 to 1."""
    image_sha256: str = ""
    mask_sha256: str = ""
    anti_aliased: bool = False
    fault: Fault | None = None


def inspect(job: tuple[str, Path, str, Path, str]) -> Pair:
    """Read an image and its mask; the first thing wrong with them is the pair's fault.

    Args:
        job: name, resolved image folder, image in it, resolved mask folder, mask in it.
    """
    name, image_folder, image, mask_folder, mask = job
    image_file, mask_file = image_folder / image, mask_folder / mask
    kind = "outside the folder"
    try:
        path_inside(image_folder, image, "image folder")
        path_inside(mask_folder, mask, "mask folder")
        kind = "unreadable image"
        shape, hashes = read_image(image_file).shape[:2], (sha256_of(image_file), sha256_of(mask_file))
        kind = "mask values"
        values = read_mask_values(mask_file)
        kind = "other size"
        check_size(mask_file, values.shape, image_file, shape)
    except (DatasetError, OSError) as error:
        if kind == "mask values":
            try:
                read_image(mask_file)
            except DatasetError:
                kind = "unreadable mask"
        return Pair(name, image, mask, fault=Fault(kind, str(error)))
    counts = np.bincount(values.ravel(), minlength=256)
    height, width = values.shape
    salient = round(float(counts[SALIENT_ABOVE + 1 :].sum() / values.size), 6)
    return Pair(name, image, mask, height, width, salient, *hashes, anti_aliased=bool(counts[1:255].any()))


def in_processes(function: Callable[[T], R], jobs: Sequence[T], workers: int, what: str) -> list[R]:
    """Return the results in order, with a progress bar on a terminal."""
    # Ctrl-C is for the main process, which ends the others.
    with ProcessPoolExecutor(workers, None, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            found: Iterable[R] = map(function, jobs)
            if workers > 1:
                found = pool.map(function, jobs, chunksize=16)
            return list(tqdm(found, what, len(jobs), unit="file", disable=None))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
        except BrokenProcessPool as error:
            raise DatasetError(
                "a process was ended from outside, perhaps for want of memory; give fewer --workers"
            ) from error


def file_faults(files: PartFiles) -> list[Fault]:
    """What is wrong with the names of the files."""
    no_image, no_mask, alone = files.missing()
    named = (
        ("missing image", files.images.folder, no_image),
        ("missing mask", files.masks.folder, no_mask),
        ("mask without image", files.masks.folder, [files.masks.by_stem[name] for name in alone]),
        ("two files of one name", files.images.folder, files.images.clashes),
        ("two files of one name", files.masks.folder, files.masks.clashes),
    )
    return [Fault(kind, f"{folder / name}: {kind}") for kind, folder, names in named for name in names]


def read_manifest(file: Path) -> dict[str, tuple[str, str]]:
    """The hashes of each pair by its name; raises `DatasetError` if the file is not a manifest."""
    try:
        content = json.loads(file.read_bytes())
        if content["format"] == FORMAT:
            return {
                str(pair["name"]): (pair["image_sha256"], pair["mask_sha256"]) for pair in content["pairs"]
            }
        reason = f"format {content['format']} instead of {FORMAT}"
    except OSError as error:
        raise DatasetError(
            f"{file}: the manifest cannot be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        reason = type(error).__name__
    raise DatasetError(f"{file}: not a manifest of this command ({reason}); make it again")


def changes(known: Mapping[str, tuple[str, str]], pairs: Sequence[Pair]) -> list[Fault]:
    """What differs from a manifest."""
    here = {pair.name: (pair.image_sha256, pair.mask_sha256) for pair in pairs}
    faults = [Fault("gone", f"{name}: in the manifest, not here") for name in known if name not in here]
    faults += [Fault("new", f"{name}: here, not in the manifest") for name in here if name not in known]
    for name in here.keys() & known.keys():
        for what, now, then in zip(("image", "mask"), here[name], known[name], strict=True):
            if now and now != then:  # what cannot be read is a fault already
                faults.append(Fault(f"changed {what}", f"{name}: the {what} is not the manifest's"))
    return sorted(faults)


def summary(name: str, pairs: Sequence[Pair], faults: Sequence[Fault]) -> str:
    """The totals as text."""
    good = [pair for pair in pairs if pair.fault is None]
    rows = {"set": name, "pairs": f"{len(pairs)}, {len(good)} of them without fault", "rule": RULE}
    if good:
        for side in ("width", "height"):
            lengths = [getattr(pair, side) for pair in good]
            rows[side] = f"{min(lengths)} to {max(lengths)}, median {np.median(lengths):.0f}"
        sizes = Counter(f"{pair.width} x {pair.height}" for pair in good).most_common(3)
        rows["commonest"] = ", ".join(f"{size} ({count})" for size, count in sizes)
        for label, count in (
            ("anti-aliased masks", sum(pair.anti_aliased for pair in good)),
            ("empty masks", sum(pair.salient == 0 for pair in good)),
        ):
            rows[label] = f"{count} ({count / len(good):.1%})"
        rows["salient pixels"] = f"{np.mean([pair.salient for pair in good]):.1%}"
    rows |= {f"fault: {kind}": str(count) for kind, count in Counter(f.kind for f in faults).items()}
    rows["faults"] = str(len(faults))
    return "\n".join(f"{label:<30}{value}" for label, value in rows.items())


def check_places(output: Path | None, against: Path | None, root: Path) -> None:
    """Raise a `DatasetError` where the manifest would overwrite a file or lie in the set itself, or where the
    other folder shares images with the set.
    """
    if output and output.exists():
        raise DatasetError(f"{output}: already there; give --check {output}, or another --output")
    if output and not output.parent.is_dir():
        raise DatasetError(f"{output}: there is no folder {output.parent}; make it first")
    if output and output.resolve().is_relative_to(root):
        raise DatasetError(f"{output}: is in the set's own folder; choose a place outside")
    if against and (against.resolve().is_relative_to(root) or root.is_relative_to(against.resolve())):
        raise DatasetError(
            f"{against}: one of it and {root} lies in the other, so they share images; give --against "
            "another folder"
        )


def prepare(options: argparse.Namespace) -> int:
    """Check a set and print what was found; returns the exit code.

    Raises:
        DatasetError: a folder, list or manifest is missing or wrong, or the output is there already.
        OSError: the output cannot be written.
    """
    check_places(options.output, options.against, options.root.resolve())
    settings: dict[str, Any] = {
        key: getattr(options, key) or None for key in ("list", "images", "masks", "name")
    }
    files = find_files(ImageMasksPart(root=str(options.root), **settings))
    # what may fail early does so before the long work
    manifest = read_manifest(options.check) if options.check else None
    others = list_images(options.against) if options.against else []
    image_folder, mask_folder = files.images.folder.resolve(), files.masks.folder.resolve()
    images, masks = files.images.by_stem, files.masks.by_stem
    jobs = [
        (name, image_folder, images[name], mask_folder, masks[name])
        for name in files.names
        if name in images and name in masks
    ]
    print(f"{files.name}: {len(jobs)} pairs of {files.images.folder} and {files.masks.folder}", flush=True)
    pairs = in_processes(inspect, jobs, options.workers, "pairs")
    readable = [pair for pair in pairs if pair.fault is None]
    faults, warnings = file_faults(files), []
    if miscounted := count_warning(files.name, len(files.names)):
        if options.name:
            faults.append(Fault("count", miscounted))
        else:
            warnings.append(miscounted)
    faults += [pair.fault for pair in pairs if pair.fault is not None]
    groups: dict[str, list[Pair]] = {}
    for pair in readable:
        groups.setdefault(pair.image_sha256, []).append(pair)
    for group in groups.values():
        if len(group) > 1:
            same = "one mask" if len({pair.mask_sha256 for pair in group}) == 1 else "different masks"
            warnings.append(f"{first_few([pair.image for pair in group])}: the same image, with {same}")
    if manifest is not None:
        faults += changes(manifest, pairs)
    if others:
        digests = in_processes(sha256_of, others, options.workers, "files against")
        for digest, other in dict(zip(digests, others, strict=True)).items():
            for pair in groups.get(digest, ()):
                faults.append(
                    Fault("also in the other folder", f"{pair.image}: is the same image as {other}")
                )
    for line in [*(f"warning: {text}" for text in warnings), *(f"{kind}: {text}" for kind, text in faults)]:
        print(line)
    print(summary(files.name, pairs, faults))
    if options.output and not faults:
        document = {
            "format": FORMAT, "name": files.name, "rule": RULE, "count": len(pairs),
            "anti_aliased_masks": sum(pair.anti_aliased for pair in pairs),
            "empty_masks": sum(pair.salient == 0 for pair in pairs),
            "pairs": [dict(zip(Pair._fields[:8], pair[:8], strict=True)) for pair in pairs],
        }  # fmt: skip
        text = json.dumps(document, indent=1) + "\n"
        write_atomically(options.output, lambda stream: stream.write(text.encode()))
        print(f"{options.output}: manifest of {len(pairs)} pairs written")
    return 1 if faults else 0
