"""What `res2net-dense score-saliency` does."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from res2net_dense.cli.score_saliency import SHEET_ROWS
from res2net_dense.data.images import IMAGE_SUFFIXES, read_image
from res2net_dense.data.layouts.image_masks import SHARED_SUFFIXES
from res2net_dense.data.layouts.listing import check_present, check_size, index_files
from res2net_dense.data.layouts.saliency_sets import count_warning, known_name, set_name
from res2net_dense.data.masks import RULE, read_grey, read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.evaluation.saliency import (
    METRICS,
    PROTOCOLS,
    RESCALE_NOTES,
    SaliencyScores,
    describe_protocols,
)
from res2net_dense.evaluation.saliency_measures import ImageScores, score_map
from res2net_dense.evaluation.tables import align, show, show_size
from res2net_dense.files import write_atomically
from res2net_dense.report.saliency import SheetRow, saliency_sheet
from res2net_dense.report.saliency_curves import plot_curves

_REPORT_EVERY = 500
_OUTPUTS = {"json": (".json",), "plot": (".png", ".pdf", ".svg"), "sheet": (".png",)}
_SHEET_SIDE = 960
_REMEDY = "save maps as 8-bit grey images, round(255 * probability)"

Scored = list[tuple[ImageScores, bool]]
"""Of one mask, the scores of each method's map, and whether the map was scaled."""


@dataclass
class Method:
    """The maps of one program, and their scores so far."""

    name: str
    folder: Path
    maps: list[Path]
    """One for each mask, in the order of the masks."""
    total: SaliencyScores = field(default_factory=SaliencyScores)
    images: dict[str, dict[str, float]] = field(default_factory=dict)
    resized: int = 0

    def add(self, stem: str, scores: ImageScores, was_resized: bool) -> None:
        alone = SaliencyScores()
        alone.add(scores)
        self.total.merge(alone)
        self.images[stem] = alone.metrics()
        self.resized += was_resized


def score_folders(args: argparse.Namespace) -> None:
    """Score the maps that the arguments name, print the table, and write what was asked for."""
    folder = Path(args.masks)
    named = name_methods(args.predictions)
    check_arguments(args, [folder, *named.values()])
    masks = find_masks(folder)
    known = known_name(set_name(folder.resolve().parent, folder.name))
    if remark := count_warning(known, len(masks)) if known else None:
        print(f"warning: {remark}", file=sys.stderr)
    photos = find_photos(Path(args.images), list(masks)) if args.images else {}
    methods = [
        Method(name, place, find_maps(name, place, folder, list(masks))) for name, place in named.items()
    ]
    if args.plot:
        # without matplotlib this fails now, and not after the long work
        plot_curves({"": dict.fromkeys(("precision", "recall", "f"), np.zeros(256))})

    with closing(score_all(masks.values(), [method.maps for method in methods], args)) as scores:
        for stem, scored in zip(masks, progress(scores, len(masks)), strict=True):
            for method, one in zip(methods, scored, strict=True):
                method.add(stem, *one)

    if args.json:
        document = json.dumps(to_document(methods, folder, args.rescale), indent=1)
        write_atomically(Path(args.json), lambda file: file.write(document.encode()))
    if args.plot:
        figure = plot_curves({method.name: method.total.curves() for method in methods})
        kind = Path(args.plot).suffix[1:].lower()
        write_atomically(Path(args.plot), lambda file: figure.savefig(file, format=kind))
    if args.sheet:
        sheet = draw_worst(methods[0], masks, photos, rescale=args.rescale)
        write_atomically(Path(args.sheet), lambda file: sheet.save(file, format="PNG"))
    metrics = {method.name: method.total.metrics() for method in methods}
    print(f"{len(masks)} masks in {folder}: {RULE}\n\n{table(metrics)}")
    print(RESCALE_NOTES[args.rescale] + "; --no-rescale takes maps as they are" * args.rescale)
    for method in methods:
        if method.resized:
            print(
                f"{method.name}: {method.resized} of {len(masks)} maps were scaled to their masks, bilinear"
            )


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


def check_arguments(args: argparse.Namespace, inputs: list[Path]) -> None:
    """Check, before the long work, that the files can be written and are not among the user's data."""
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers} must be at least 0")
    if bool(args.sheet) != bool(args.images):
        raise ConfigError("--sheet and --images go together: the sheet shows the images next to their maps")
    inputs = [*inputs, Path(args.images)] if args.images else inputs
    for option, suffixes in _OUTPUTS.items():
        if not (value := getattr(args, option)):
            continue
        file = Path(value)
        if file.suffix.lower() not in suffixes:
            raise ConfigError(f"--{option} {file} must end in {' or '.join(suffixes)}")
        if not file.parent.is_dir():
            raise ConfigError(f"--{option} {file}: there is no folder {file.parent}; make it first")
        for folder in inputs:
            if file.resolve().is_relative_to(folder.resolve()):
                raise ConfigError(
                    f"--{option} {file} is in {folder}, whose files are scored; choose a place outside"
                )


def find_masks(folder: Path) -> dict[str, Path]:
    """All masks by their names, in the order of the names; JPEGs next to masks of their names are images."""
    files = index_files(folder, "folder of masks", IMAGE_SUFFIXES)
    if files.clashes:
        masks = index_files(folder, "folder of masks", IMAGE_SUFFIXES - set(SHARED_SUFFIXES[0]))
        if masks.clashes or masks.by_stem.keys() != files.by_stem.keys():
            raise DatasetError(
                f"{folder}: {len(files.clashes)} files have the name of another but for the suffix "
                f"({first_few(files.clashes)}); leave one mask of each name"
            )
        files = masks
    return {stem: folder / file for stem, file in sorted(files.by_stem.items())}


def find_photos(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The image of each mask; raises `DatasetError` where there is none."""
    files = index_files(folder, "folder of images", IMAGE_SUFFIXES)
    if files.clashes:  # masks next to their images
        files = index_files(folder, "folder of images", SHARED_SUFFIXES[0])
    check_present(stems, files.by_stem, "images", folder, "--images")
    return {stem: folder / files.by_stem[stem] for stem in stems}


def find_maps(name: str, folder: Path, masks: Path, stems: Sequence[str]) -> list[Path]:
    """The map of each mask; raises `DatasetError` where there is none or more than one."""
    files = index_files(folder, "folder of maps", IMAGE_SUFFIXES)
    missing = [stem for stem in stems if stem not in files.by_stem]
    extra = sorted(files.by_stem.keys() - set(stems))
    if missing:
        others = f"; maps there without a mask: {first_few(extra)}" if extra else ""
        raise DatasetError(
            f"{folder}: {len(missing)} of {len(stems)} masks in {masks} have no map: {first_few(missing)}"
            f"{others}; all masks are scored or none: add the missing maps under their masks' names"
        )
    if files.clashes:
        raise DatasetError(
            f"{folder}: {len(files.clashes)} maps have the name of another but for the suffix "
            f"({first_few(files.clashes)}); leave one of each"
        )
    if extra:
        print(
            f"warning: {name}: {len(extra)} of {len(files.by_stem)} maps in {folder} have no mask and are "
            f"left out: {first_few(extra)}",
            file=sys.stderr,
        )
    return [folder / files.by_stem[stem] for stem in stems]


def to_document(methods: Sequence[Method], masks: Path, rescale: bool) -> dict[str, object]:
    """What `--json` writes."""
    return {
        "protocols": PROTOCOLS,
        "rescale": rescale,
        "masks": str(masks),
        "methods": {
            method.name: {
                "predictions": str(method.folder),
                "resized": method.resized,
                "metrics": method.total.metrics(),
                "curves": {key: curve.tolist() for key, curve in method.total.curves().items()},
                "images": method.images,
            }
            for method in methods
        },
    }


def draw_worst(
    method: Method, masks: dict[str, Path], photos: dict[str, Path], *, rescale: bool
) -> Image.Image:
    """A contact sheet of the images with the largest error, the largest first; maps as they were scored."""
    maps = dict(zip(masks, method.maps, strict=True))
    rows = []
    for stem in sorted(masks, key=lambda stem: method.images[stem]["MAE"], reverse=True)[:SHEET_ROWS]:
        photo, mask = read_image(photos[stem]), read_saliency_mask(masks[stem])
        check_size(masks[stem], mask.shape, photos[stem], photo.shape[:2])
        shrink = min(1, _SHEET_SIDE / max(mask.shape))
        height, width = (max(1, round(shrink * side)) for side in mask.shape)
        saliency = resized(read_grey(maps[stem], "map", _REMEDY), (height, width)).astype(np.float32)
        low, high = (saliency.min(), saliency.max()) if rescale else (0, 255)
        scaled = (saliency - low) / (high - low) if low < high else saliency / 255
        shown = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC))
        inside = resized(np.where(mask, np.uint8(255), np.uint8(0)), (height, width)) > 127
        mae, max_f = (method.images[stem][metric] for metric in ("MAE", "max_F"))
        caption = f"{stem}   MAE {mae:.4f}   max F {max_f:.4f}   {method.name}"
        rows.append(SheetRow(shown, inside, scaled, caption))
    return saliency_sheet(rows)


def resized(saliency: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map scaled to (H, W), bilinear."""
    if saliency.shape == shape:
        return saliency
    height, width = shape
    return np.asarray(Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR))


def score_all(
    masks: Iterable[Path], maps: Sequence[Sequence[Path]], args: argparse.Namespace
) -> Generator[Scored, None, None]:
    """The scores in the order of the masks; raises the first error met."""
    score = partial(score_mask, rescale=args.rescale, resize=args.resize)
    tasks = list(zip(masks, zip(*maps, strict=True), strict=True))
    if min(args.workers, len(tasks)) < 2:
        yield from map(score, tasks)
        return
    # Ctrl-C is for this process, which ends the workers: they inherit that it is ignored.
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pool = ProcessPoolExecutor(min(args.workers, len(tasks)), initializer=init_worker)
        results = pool.map(score, tasks)
    finally:
        signal.signal(signal.SIGINT, usual)
    try:
        yield from results
    except BrokenProcessPool as error:
        raise DatasetError(
            "a scoring process was ended from outside, perhaps for lack of memory; use fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def init_worker() -> None:
    """One thread each, and no interrupts where they are not inherited."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.modules["cv2"].setNumThreads(0)


def score_mask(task: tuple[Path, Sequence[Path]], *, rescale: bool, resize: bool) -> Scored:
    """Score the maps of all methods of one mask, which is read once."""
    mask_path, maps = task
    mask = read_saliency_mask(mask_path)
    scored = []
    for path in maps:
        saliency = read_grey(path, "map", _REMEDY)
        differs = saliency.shape != mask.shape
        if differs and not resize:
            raise DatasetError(
                f"{path}: the map is {show_size(saliency)}, but its mask {mask_path} is {show_size(mask)}; "
                "make maps of the images' sizes, or let --resize scale them"
            )
        scored.append((score_map(resized(saliency, mask.shape), mask, rescale=rescale), differs))
    return scored


def progress(results: Iterator[Scored], total: int) -> Iterator[Scored]:
    """Show the progress: a bar, or lines where there is no terminal."""
    bar = tqdm(results, total=total, desc="score", unit="img", disable=None)
    for number, result in enumerate(bar, start=1):
        yield result
        if bar.disable and number % _REPORT_EVERY == 0:
            print(f"{number} of {total} images scored", file=sys.stderr, flush=True)


def table(metrics: dict[str, dict[str, float]]) -> str:
    """One column per method and one line per metric, the best of each line marked; below, the protocols."""
    rows = [["", *(f"{name} " for name in metrics)]]
    for metric in METRICS:
        shown = [show(scores[metric], 4) for scores in metrics.values()]
        best = min(shown) if metric == "MAE" else max(shown)
        rows.append([metric, *(text + ("*" if text == best and len(shown) > 1 else " ") for text in shown)])
    note = "* the best of its line\n" if len(metrics) > 1 else ""
    return f"{align(rows)}\n{note}\n{describe_protocols(METRICS)}"
