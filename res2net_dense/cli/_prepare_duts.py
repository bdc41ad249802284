"""What `res2net-dense prepare-duts` does."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from res2net_dense.cli._processes import in_processes
from res2net_dense.cli._shared import check_output, say
from res2net_dense.data.images import list_images, read_image
from res2net_dense.data.layouts.image_masks import ImageMasksPart, PartFiles, find_files
from res2net_dense.data.layouts.listing import check_size, path_inside, remarks_of
from res2net_dense.data.layouts.saliency_sets import count_warning
from res2net_dense.data.masks import RULE, SALIENT_ABOVE, read_mask_values
from res2net_dense.errors import DatasetError, first_few
from res2net_dense.files import sha256_of
from res2net_dense.outputs import files_in, output_file


class Fault(NamedTuple):
    kind: str
    text: str


class Pair(BaseModel):
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
    anti_aliased: bool = Field(default=False, exclude=True)
    fault: Fault | None = Field(default=None, exclude=True)


class Manifest(BaseModel):
    """The file that is written."""

    format: Literal[1] = 1
    name: str
    rule: str = RULE
    count: int
    anti_aliased_masks: int
    empty_masks: int
    pairs: list[Pair]


def prepare(options: argparse.Namespace) -> int:
    """Check a set and print what was found; returns the exit code.

    Raises:
        DatasetError: a folder, list or manifest is missing or wrong, or the output is there already.
        OSError: the output cannot be written.
    """
    check_places(options.output, options.against, options.root.resolve())
    if options.output:
        inputs = files_in([options.root, options.against])
        outputs = output_file(
            "--output", options.output, inputs=inputs, overwrite=options.overwrite, keep=True
        )
    settings: dict[str, Any] = {
        key: getattr(options, key) or None for key in ("list", "images", "masks", "name")
    }
    files = find_files(ImageMasksPart(root=str(options.root), **settings))
    # what may fail early does so before the long work
    manifest = read_manifest(options.check) if options.check else None
    others = list_images(options.against) if options.against else []
    (image_folder, images, _), (mask_folder, masks, _) = files.images, files.masks
    jobs = [
        (name, image_folder.resolve(), images[name], mask_folder.resolve(), masks[name])
        for name in files.names
        if name in images and name in masks
    ]
    say(f"{files.name}: {len(jobs)} pairs of {image_folder} and {mask_folder}")
    pairs = list(in_processes(inspect, jobs, options.workers, "pairs"))
    faults, warnings = file_faults(files), remarks_of(files.findings)
    if miscounted := count_warning(files.name, len(files.names)):
        if options.name:
            faults.append(Fault("count", miscounted))
        else:
            warnings.append(miscounted)
    faults += [pair.fault for pair in pairs if pair.fault]
    by_image = defaultdict(list)
    for pair in pairs:
        if not pair.fault:
            by_image[pair.image_sha256].append(pair)
    for group in by_image.values():
        if len(group) > 1:
            same = "one mask" if len({pair.mask_sha256 for pair in group}) == 1 else "different masks"
            warnings.append(f"{first_few([pair.image for pair in group])}: the same image, with {same}")
    if manifest:
        faults += changes(manifest.pairs, pairs)
    digests = in_processes(sha256_of, others, options.workers, "files against")
    for digest, other in dict(zip(digests, others, strict=True)).items():
        for pair in by_image.get(digest, ()):
            text = f"{pair.image}: is the same image as {other}"
            faults.append(Fault("also in the other folder", text))
    lines = [*(f"warning: {text}" for text in warnings), *map(": ".join, faults)]
    say(*lines, *summary(files.name, pairs, faults))
    if options.output and not faults:
        content = Manifest(
            name=files.name, count=len(pairs), pairs=pairs,
            anti_aliased_masks=sum(pair.anti_aliased for pair in pairs),
            empty_masks=sum(pair.salient == 0 for pair in pairs),
        )  # fmt: skip
        text = json.dumps(content.model_dump(), indent=1) + "\n"
        outputs.write(options.output, text.encode())
        say(f"{options.output}: manifest of {len(pairs)} pairs written")
    return 1 if faults else 0


def check_places(output: Path | None, against: Path | None, root: Path) -> None:
    """Raise a `DatasetError` where the manifest would lie in the set itself, or where the other folder shares
    images with the set.
    """
    check_output("--output", output)
    if output and output.resolve().is_relative_to(root):
        raise DatasetError(f"{output}: is in the set's own folder; choose a place outside")
    if against and (against.resolve().is_relative_to(root) or root.is_relative_to(against.resolve())):
        raise DatasetError(
            f"{against}: one of it and {root} lies in the other, so they share images; give --against "
            "another folder"
        )


def inspect(job: tuple[str, Path, str, Path, str]) -> Pair:
    """Read an image and its mask in their resolved folders; the first thing wrong is the pair's fault."""
    name, image_folder, image, mask_folder, mask = job
    image_file, mask_file = image_folder / image, mask_folder / mask
    pair = Pair(name=name, image=image, mask=mask)
    kind = "outside the folder"
    try:
        path_inside(image_folder, image, "image folder")
        path_inside(mask_folder, mask, "mask folder")
        kind = "unreadable image"
        shape = read_image(image_file).shape[:2]
        kind = "mask values"
        values = read_mask_values(mask_file)
        kind = "other size"
        check_size(mask_file, values.shape, image_file, shape)
        hashes = {"image_sha256": sha256_of(image_file), "mask_sha256": sha256_of(mask_file)}
    except (DatasetError, OSError) as error:
        if kind == "mask values":
            try:
                read_image(mask_file)
            except DatasetError:
                kind = "unreadable mask"
        return pair.model_copy(update={"fault": Fault(kind, str(error))})
    counts = np.bincount(values.ravel(), minlength=256)
    height, width = values.shape
    salient = round(float(counts[SALIENT_ABOVE + 1 :].sum() / values.size), 6)
    found = {"height": height, "width": width, "salient": salient, "anti_aliased": bool(counts[1:255].any())}
    return pair.model_copy(update=found | hashes)


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


def read_manifest(file: Path) -> Manifest:
    """Read what an earlier run wrote; raises `DatasetError` if it is not a manifest."""
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
    raise DatasetError(f"{file}: not a manifest of this command ({reason}); make it again")


def changes(known: Sequence[Pair], pairs: Sequence[Pair]) -> list[Fault]:
    """What differs from a manifest."""
    then, now = ({pair.name: pair for pair in group} for group in (known, pairs))
    faults = [Fault("gone", f"{name}: in the manifest, not here") for name in then if name not in now]
    faults += [Fault("new", f"{name}: here, not in the manifest") for name in now if name not in then]
    for name in now.keys() & then.keys():
        for what in ("image", "mask"):
            digests = [getattr(pair, f"{what}_sha256") for pair in (now[name], then[name])]
            if digests[0] and digests[0] != digests[1]:  # what cannot be read is a fault already
                faults.append(Fault(f"changed {what}", f"{name}: the {what} is not the manifest's"))
    return sorted(faults)


def summary(name: str, pairs: Sequence[Pair], faults: Sequence[Fault]) -> list[str]:
    """The totals, a line each."""
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
    return [f"{label:<30}{value}" for label, value in rows.items()]
