"""What `res2net-dense score-saliency` does."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from res2net_dense.cli._processes import in_processes
from res2net_dense.cli._shared import check_output, say
from res2net_dense.cli.score_saliency import SHEET_ROWS
from res2net_dense.data.images import IMAGE_SUFFIXES, read_image
from res2net_dense.data.layouts.listing import Files, check_present, check_size, index_files
from res2net_dense.data.layouts.pairing import SHARED_SUFFIXES, pair_up
from res2net_dense.data.layouts.saliency_sets import count_warning, set_name
from res2net_dense.data.masks import RULE, read_grey, read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.evaluation.saliency import (
    METRICS,
    PROTOCOLS,
    RESCALE_NOTES,
    SaliencyScores,
    describe_protocols,
)
from res2net_dense.evaluation.saliency_measures import score_map
from res2net_dense.evaluation.tables import align, show, show_size
from res2net_dense.outputs import Outputs, files_in, output_file
from res2net_dense.report.canvas import png
from res2net_dense.report.saliency import SheetRow, saliency_sheet
from res2net_dense.report.saliency_curves import plot_curves

_OUTPUTS = {"json": (".json",), "plot": (".png", ".pdf", ".svg"), "sheet": (".png",)}
_REMEDY = "save maps as 8-bit grey images, round(255 * probability)"


def score_folders(args: argparse.Namespace) -> None:
    """Score the maps that the arguments name, print the table, and write what was asked for."""
    folder = Path(args.masks)
    named = name_methods(args.predictions)
    outputs = check_arguments(args, [folder, *named.values()])
    masks = find_files(folder, "masks")
    if remark := count_warning(set_name(folder.resolve().parent, folder.name), len(masks)):
        say(f"warning: {remark}", file=sys.stderr)
    photos = find_photos(Path(args.images), list(masks)) if args.images else {}
    maps = [find_maps(name, place, folder, masks) for name, place in named.items()]
    if args.plot:
        # without matplotlib this fails now, and not after the long work
        plot_curves({"": dict.fromkeys(("precision", "recall", "f"), np.zeros(256))})

    totals = {name: SaliencyScores() for name in named}
    methods: dict[str, dict[str, Any]] = {
        name: {"predictions": str(place), "resized": 0, "images": {}} for name, place in named.items()
    }
    score = partial(score_mask, rescale=args.rescale, resize=args.resize)
    jobs = list(zip(masks.values(), zip(*maps, strict=True), strict=True))
    for stem, scored in zip(masks, in_processes(score, jobs, args.workers, "score"), strict=True):
        for (name, method), (scores, was_resized) in zip(methods.items(), scored, strict=True):
            totals[name].merge(scores)
            method["images"][stem] = scores.metrics()
            method["resized"] += was_resized
    curves = {name: total.curves() for name, total in totals.items()}
    metrics = {name: total.metrics() for name, total in totals.items()}

    if args.json:
        for name, method in methods.items():
            plain = {key: curve.tolist() for key, curve in curves[name].items()}
            method |= {"metrics": metrics[name], "curves": plain}
        settings = {"protocols": PROTOCOLS, "rescale": args.rescale, "masks": str(folder)}
        document = json.dumps({**settings, "methods": methods}, indent=1)
        outputs["json"].write(Path(args.json), document.encode())
    if args.plot:
        plot = io.BytesIO()
        plot_curves(curves).savefig(plot, format=Path(args.plot).suffix[1:].lower())
        outputs["plot"].write(Path(args.plot), plot.getvalue())
    if args.sheet:
        name, method = next(iter(methods.items()))
        places = {stem: (photos[stem], masks[stem], map) for stem, map in zip(masks, maps[0], strict=True)}
        sheet = saliency_sheet(worst_images(name, method["images"], places, rescale=args.rescale))
        outputs["sheet"].write(Path(args.sheet), png(sheet))
    say(f"{len(masks)} masks in {folder}: {RULE}", "", *table(metrics).split("\n"))
    say(RESCALE_NOTES[args.rescale] + "; --no-rescale takes maps as they are" * args.rescale)
    for name, method in methods.items():
        if count := method["resized"]:
            say(f"{name}: {count} of {len(masks)} maps were scaled to their masks, bilinear")


def name_methods(arguments: Sequence[str]) -> dict[str, Path]:
    """The folder of each method by its name: that of `NAME=DIR`, or the folder's own."""
    named: dict[str, Path] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or Path(argument).is_dir():
            name, text = Path(argument).resolve().name, argument
        name = " ".join(name.split())
        if not name or not text:
            raise ConfigError(f"--predictions {argument}: has no name or no folder; write NAME=DIR")
        if name in named:
            raise ConfigError(
                f"--predictions: {named[name]} and {text} are both named {name}; write OTHERNAME={text}"
            )
        named[name] = Path(text)
    return named


def check_arguments(args: argparse.Namespace, inputs: list[Path]) -> dict[str, Outputs]:
    """Check, before the long work, that the files can be written and are not among the user's data; returns
    how they are written.
    """
    outputs: dict[str, Outputs] = {}
    if bool(args.sheet) != bool(args.images):
        raise ConfigError("--sheet and --images go together: the sheet shows the images next to their maps")
    inputs = [*inputs, Path(args.images)] if args.images else inputs
    for option, suffixes in _OUTPUTS.items():
        if not (value := getattr(args, option)):
            continue
        file = Path(value)
        if other := next((one for one in outputs if Path(getattr(args, one)) == file), None):
            raise ConfigError(f"--{option} {file} is the file of --{other} too: name another one")
        check_output(f"--{option}", file, suffixes)
        if folder := next((one for one in inputs if file.resolve().is_relative_to(one.resolve())), None):
            raise ConfigError(
                f"--{option} {file} is in {folder}, whose files are scored; choose a place outside"
            )
        outputs[option] = output_file(f"--{option}", file, inputs=files_in(inputs), overwrite=args.overwrite)
    return outputs


def find_files(folder: Path, what: str) -> dict[str, Path]:
    """All masks or maps by their names, in the order of the names."""
    found = index_files(folder, f"folder of {what}", IMAGE_SUFFIXES)
    clashes, names = found.clashes, found.by_stem.keys()
    if clashes and what == "masks":  # JPEGs next to masks of their names are images
        found = index_files(folder, f"folder of {what}", IMAGE_SUFFIXES - set(SHARED_SUFFIXES[0]))
        clashes = clashes if found.by_stem.keys() != names else found.clashes
    if clashes:
        raise DatasetError(
            f"{folder}: {len(clashes)} files have the name of another but for the suffix "
            f"({first_few(clashes)}); leave one of each name"
        )
    return {stem: folder / file for stem, file in sorted(found.by_stem.items())}


def find_photos(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The image of each mask, which may lie next to it; raises `DatasetError` where there is none."""
    files = index_files(folder, "folder of images", IMAGE_SUFFIXES, preferred=".jpg")
    check_present(stems, files.by_stem, "images", folder, "--images")
    return {stem: folder / files.by_stem[stem] for stem in stems}


def find_maps(name: str, folder: Path, mask_folder: Path, masks: dict[str, Path]) -> list[Path]:
    """The map of each mask; raises `DatasetError` where there is none or more than one."""
    maps = find_files(folder, "maps")
    found = [
        Files(place, {stem: str(file.relative_to(place)) for stem, file in files.items()}, [])
        for place, files in ((mask_folder, masks), (folder, maps))
    ]
    paired, line = pair_up(found[0], found[1], "maps", "masks")
    if line:
        say(f"warning: {folder}: {line}", file=sys.stderr)
    maps = {stem: folder / file for stem, file in paired.by_stem.items()}
    missing = [stem for stem in masks if stem not in maps]
    extra = [stem for stem in maps if stem not in masks]
    if missing:
        others = f"; maps there without a mask: {first_few(extra)}" if extra else ""
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(masks)} masks in {mask_folder} have no map: "
            f"{first_few(missing)}{others}; all masks are scored or none: add the missing maps under their "
            "masks' names"
        )
    if extra:
        say(
            f"warning: {name}: {len(extra)} of {len(maps)} maps in {folder} have no mask and are left out: "
            f"{first_few(extra)}",
            file=sys.stderr,
        )
    return [maps[stem] for stem in masks]


def score_mask(
    job: tuple[Path, Sequence[Path]], *, rescale: bool, resize: bool
) -> list[tuple[SaliencyScores, bool]]:
    """Score the maps of all methods of one mask, which is read once, and say which had to be scaled."""
    mask_path, maps = job
    mask = read_saliency_mask(mask_path)
    scored = []
    for path in maps:
        saliency, scores = read_grey(path, "map", _REMEDY), SaliencyScores()
        differs = saliency.shape != mask.shape
        if differs and not resize:
            raise DatasetError(
                f"{path}: the map is {show_size(saliency)}, but its mask {mask_path} is {show_size(mask)}; "
                "make maps of the images' sizes, or let --resize scale them"
            )
        scores.add(score_map(resized(saliency, mask), mask, rescale=rescale))
        scored.append((scores, differs))
    return scored


def resized(saliency: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A map scaled to its mask, bilinear."""
    if saliency.shape == mask.shape:
        return saliency
    return np.asarray(Image.fromarray(saliency).resize(mask.shape[::-1], Image.Resampling.BILINEAR))


def worst_images(
    method: str,
    images: dict[str, dict[str, float]],
    places: dict[str, tuple[Path, Path, Path]],
    *,
    rescale: bool,
) -> Iterator[SheetRow]:
    """The images with the largest error, the largest first, from their photos, masks and maps."""
    for stem in sorted(images, key=lambda stem: images[stem]["MAE"], reverse=True)[:SHEET_ROWS]:
        photo_file, mask_file, map_file = places[stem]
        photo, mask = read_image(photo_file), read_saliency_mask(mask_file)
        check_size(mask_file, mask.shape, photo_file, photo.shape[:2])
        saliency = resized(read_grey(map_file, "map", _REMEDY), mask).astype(np.float32)
        low, high = (saliency.min(), saliency.max()) if rescale else (0, 255)
        scaled = (saliency - low) / (high - low) if low < high else saliency / 255
        caption = "{}   MAE {MAE:.4f}   max F {max_F:.4f}   {}".format(stem, method, **images[stem])
        yield SheetRow(photo, mask, scaled, caption)


def table(metrics: dict[str, dict[str, float]]) -> str:
    """One column per method and one line per metric, the best of each line marked; below, the protocols."""
    rows = [["", *(f"{name} " for name in metrics)]]
    for metric in METRICS:
        shown = [show(scores[metric], 4) for scores in metrics.values()]
        best = min(shown) if metric == "MAE" else max(shown)
        rows.append([metric, *(text + ("*" if text == best and len(shown) > 1 else " ") for text in shown)])
    note = "* the best of its line\n" if len(metrics) > 1 else ""
    return f"{align(rows)}\n{note}\n{describe_protocols(METRICS)}"
