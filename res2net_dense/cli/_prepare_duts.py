"""What `res2net-dense prepare-duts` does."""

from __future__ import annotations

import argparse
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from res2net_dense.data.images import list_images, read_image
from res2net_dense.data.layouts.image_masks import ImageMasksPart, PartFiles, find_files
from res2net_dense.data.layouts.listing import check_size
from res2net_dense.data.layouts.saliency_sets import KNOWN_SETS, count_warning, known_name
from res2net_dense.data.paths import path_inside
from res2net_dense.data.saliency_masks import RULE, SALIENT_ABOVE, read_mask_values
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.files import sha256_of, write_atomically

FORMAT = 1
_SAY_EVERY = 2000
_CHUNK = 16

T = TypeVar("T")
R = TypeVar("R")


class Fault(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True)
class Pair:
    """What is in a picture and its mask; sizes and hashes are empty where a file cannot be read."""

    name: str
    image: str
    mask: str
    image_sha256: str = ""
    mask_sha256: str = ""
    height: int = 0
    width: int = 0
    anti_aliased: bool = False
    salient: float = 0.0
    """Share of the pixels, 0 to 1."""
    fault: Fault | None = None


def inspect(job: tuple[str, Path, str, Path, str]) -> Pair:
    """Read a picture and its mask; the first thing wrong with them is the pair's fault.

    Args:
        job: name, resolved image folder, picture in it, resolved mask folder, mask in it.
    """
    name, image_folder, image, mask_folder, mask = job
    picture_file, mask_file = image_folder / image, mask_folder / mask

    def broken(kind: str, error: Exception) -> Pair:
        return Pair(name, image, mask, fault=Fault(kind, str(error)))

    try:
        path_inside(image_folder, image, "image folder")
        path_inside(mask_folder, mask, "mask folder")
    except DatasetError as error:
        return broken("outside the folder", error)
    try:
        picture = read_image(picture_file)
    except DatasetError as error:
        return broken("unreadable picture", error)
    try:
        values = read_mask_values(mask_file)
    except DatasetError as error:
        try:
            read_image(mask_file)
        except DatasetError:
            return broken("unreadable mask", error)
        return broken("mask values", error)
    try:
        check_size(mask_file, values.shape, picture_file, picture.shape[:2])
    except DatasetError as error:
        return broken("other size", error)
    try:
        hashes = sha256_of(picture_file), sha256_of(mask_file)
    except OSError as error:
        return broken("unreadable picture", error)
    counts = np.bincount(values.ravel(), minlength=256)
    height, width = values.shape
    return Pair(
        *(name, image, mask, *hashes, height, width),
        anti_aliased=bool(counts[1:255].any()),
        salient=float(counts[SALIENT_ABOVE + 1 :].sum() / values.size),
    )


def ignore_interrupts() -> None:
    """Ctrl-C is for the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_processes(function: Callable[[T], R], jobs: Sequence[T], workers: int, what: str) -> Iterator[R]:
    """Yield the results in order, and show how far it is: a bar, or now and then a line."""
    bar = tqdm(total=len(jobs), desc=what, unit="file", disable=None)
    with bar, ProcessPoolExecutor(workers, initializer=ignore_interrupts) as pool:
        results = pool.map(function, jobs, chunksize=_CHUNK) if workers > 1 else map(function, jobs)
        try:
            for number, result in enumerate(results, start=1):
                yield result
                bar.update()
                if bar.disable and number % _SAY_EVERY == 0:
                    print(f"{number} of {len(jobs)} {what}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
        except BrokenProcessPool as error:
            raise DatasetError(
                "a process was ended from outside, perhaps for want of memory; give fewer --workers"
            ) from error


def file_faults(files: PartFiles) -> list[Fault]:
    """What is wrong with the names of the files."""
    no_picture, no_mask, alone = files.missing()
    named = (
        ("missing picture", files.images.folder, no_picture),
        ("missing mask", files.masks.folder, no_mask),
        ("mask without picture", files.masks.folder, [files.masks.by_stem[name] for name in alone]),
        ("two files of one name", files.images.folder, files.images.clashes),
        ("two files of one name", files.masks.folder, files.masks.clashes),
    )
    return [Fault(kind, f"{folder / name}: {kind}") for kind, folder, names in named for name in names]


def repeated(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Pictures that are the same to the bit."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.image_sha256, []).append(pair)
    return [group for group in groups.values() if len(group) > 1]


def list_others(folder: Path, root: Path) -> list[Path]:
    """The pictures of another folder; raises `DatasetError` if it has none or shares some with the root."""
    other = folder.resolve()
    if other.is_relative_to(root) or root.is_relative_to(other):
        raise DatasetError(
            f"{folder}: one of it and {root} lies in the other, so they share pictures; give --against "
            "another folder"
        )
    return list_images(folder)


def leaks(pairs: Sequence[Pair], files: Sequence[Path], workers: int) -> list[Fault]:
    """Pictures that are among the files of another folder too."""
    known: dict[str, Path] = {}
    for file, digest in zip(files, in_processes(sha256_of, files, workers, "files against"), strict=True):
        known.setdefault(digest, file)
    return [
        Fault("also in the other folder", f"{pair.image}: is the same picture as {known[pair.image_sha256]}")
        for pair in pairs
        if pair.image_sha256 in known
    ]


def make_manifest(name: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """All that is to be known of a set without faults, as plain data."""
    return {
        "format": FORMAT,
        "name": name,
        "rule": RULE,
        "count": len(pairs),
        "anti_aliased_masks": sum(pair.anti_aliased for pair in pairs),
        "empty_masks": sum(pair.salient == 0 for pair in pairs),
        "pairs": [
            {
                "name": pair.name,
                "image": pair.image,
                "mask": pair.mask,
                "height": pair.height,
                "width": pair.width,
                "salient": round(pair.salient, 6),
                "image_sha256": pair.image_sha256,
                "mask_sha256": pair.mask_sha256,
            }
            for pair in pairs
        ],
    }


def read_manifest(file: Path) -> dict[str, tuple[str, str]]:
    """The hashes of each pair by its name; raises `DatasetError` if the file is no manifest."""
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != FORMAT:
            raise DatasetError(
                f"{file}: a manifest of format {content['format']}, not {FORMAT}; make it anew"
            )
        return {
            str(entry["name"]): (entry["image_sha256"], entry["mask_sha256"]) for entry in content["pairs"]
        }
    except OSError as error:
        raise DatasetError(
            f"{file}: the manifest cannot be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"{file}: no manifest of this tool ({type(error).__name__}); make it anew"
        ) from error


def changes(known: Mapping[str, tuple[str, str]], pairs: Sequence[Pair]) -> list[Fault]:
    """What differs from a manifest."""
    here = {pair.name: (pair.image_sha256, pair.mask_sha256) for pair in pairs}
    faults = [Fault("gone", f"{name}: in the manifest, not here") for name in known if name not in here]
    faults += [Fault("new", f"{name}: here, not in the manifest") for name in here if name not in known]
    for name in here.keys() & known.keys():
        for what, now, then in zip(("picture", "mask"), here[name], known[name], strict=True):
            if now and now != then:  # what cannot be read is a fault already
                faults.append(Fault(f"changed {what}", f"{name}: the {what} is not the manifest's"))
    return sorted(faults)


def summary(name: str, pairs: Sequence[Pair], faults: Sequence[Fault]) -> str:
    """The totals as text."""
    good = [pair for pair in pairs if pair.fault is None]
    rows = [("set", name), ("pairs", f"{len(pairs)}, {len(good)} of them without fault"), ("rule", RULE)]
    if good:
        heights, widths = (np.array([getattr(pair, side) for pair in good]) for side in ("height", "width"))
        common = Counter(zip(widths.tolist(), heights.tolist(), strict=True)).most_common(3)
        count = len(good)
        graded, empty = sum(pair.anti_aliased for pair in good), sum(pair.salient == 0 for pair in good)
        rows += [
            ("width", f"{widths.min()} to {widths.max()}, median {np.median(widths):.0f}"),
            ("height", f"{heights.min()} to {heights.max()}, median {np.median(heights):.0f}"),
            ("commonest", ", ".join(f"{w} x {h} ({n})" for (w, h), n in common)),
            ("anti-aliased masks", f"{graded} ({graded / count:.1%})"),
            ("empty masks", f"{empty} ({empty / count:.1%})"),
            ("salient pixels", f"{np.mean([pair.salient for pair in good]):.1%}"),
        ]
    rows += [(f"fault: {kind}", str(number)) for kind, number in Counter(f.kind for f in faults).items()]
    rows += [("faults", str(len(faults)))]
    width = max(28, 2 + max(len(label) for label, _ in rows))
    return "\n".join(f"{label:<{width}}{value}" for label, value in rows)


def prepare(options: argparse.Namespace) -> int:
    """Check a set and print what was found; returns the exit code.

    Raises:
        DatasetError: a folder, list or manifest is missing or wrong, or the output is there already.
        ConfigError: there is no process to work.
        OSError: the output cannot be written.
    """
    if options.workers < 1:
        raise ConfigError(f"--workers {options.workers} must be at least 1")
    if options.output is not None and options.output.exists():
        raise DatasetError(
            f"{options.output}: already there; give --check {options.output}, or another --output"
        )
    root = options.root.resolve()
    if options.output is not None:
        if not options.output.parent.is_dir():
            raise DatasetError(f"{options.output}: there is no folder {options.output.parent}; make it first")
        if options.output.resolve().is_relative_to(root):
            raise DatasetError(f"{options.output}: is in the set's own folder; choose a place outside")
    part = ImageMasksPart(
        root=str(options.root),
        list=options.list or None,
        images=options.images or None,
        masks=options.masks or None,
        name=options.name or None,
    )
    files = find_files(part)
    # what may fail early does so before the long work
    manifest = None if options.check is None else read_manifest(options.check)
    others = None if options.against is None else list_others(options.against, root)
    folders = files.images.folder.resolve(), files.masks.folder.resolve()
    jobs = [
        (name, folders[0], files.images.by_stem[name], folders[1], files.masks.by_stem[name])
        for name in files.names
        if name in files.images.by_stem and name in files.masks.by_stem
    ]
    print(f"{files.name}: {len(jobs)} pairs of {files.images.folder} and {files.masks.folder}", flush=True)
    faults, warnings = file_faults(files), []
    miscounted = count_warning(files.name, len(files.names))
    if miscounted and options.name:
        faults.append(Fault("count", miscounted))
    elif miscounted:
        warnings.append(miscounted)
    pairs = list(in_processes(inspect, jobs, options.workers, "pairs"))
    faults += [pair.fault for pair in pairs if pair.fault is not None]
    readable = [pair for pair in pairs if pair.fault is None]
    for group in repeated(readable):
        masks = "one mask" if len({pair.mask_sha256 for pair in group}) == 1 else "different masks"
        warnings.append(f"{first_few([pair.image for pair in group])}: the same picture, with {masks}")
    if manifest is not None:
        faults += changes(manifest, pairs)
    if others is not None:
        faults += leaks(readable, others, options.workers)
    for warning in warnings:
        print(f"warning: {warning}")
    for fault in faults:
        print(f"{fault.kind}: {fault.text}")
    print(summary(files.name, pairs, faults))
    known = KNOWN_SETS.get(known_name(files.name) or "")
    if known is not None:
        print(
            f"{'source':<28}{known.url}" + (f"\n{'known faults':<28}{known.faults}" if known.faults else "")
        )
    if faults:
        return 1
    if options.output is not None:
        text = json.dumps(make_manifest(files.name, pairs), indent=1) + "\n"
        write_atomically(options.output, lambda stream: stream.write(text.encode()))
        print(f"{options.output}: manifest of {len(pairs)} pairs written")
    return 0
