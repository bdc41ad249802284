"""What `res2net-dense score-saliency` does."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from res2net_dense.cli.score_saliency import SHEET_ROWS
from res2net_dense.data.images import IMAGE_SUFFIXES, read_image
from res2net_dense.data.layouts.image_mask_files import PICTURES_BESIDE_MASKS
from res2net_dense.data.layouts.listing import check_present, check_size, index_once
from res2net_dense.data.layouts.saliency_sets import count_warning, known_name, set_name
from res2net_dense.data.saliency_masks import RULE, read_grey, read_saliency_mask
from res2net_dense.errors import ConfigError, DatasetError, first_few
from res2net_dense.evaluation.saliency import METRICS, PROTOCOLS, SaliencyScores
from res2net_dense.evaluation.saliency_measures import ImageScores, score_map
from res2net_dense.evaluation.tables import align, show
from res2net_dense.files import write_atomically
from res2net_dense.report.saliency import SheetRow, saliency_sheet
from res2net_dense.report.saliency_curves import plot_curves

_SAY_EVERY = 500
_PLOTS = (".png", ".pdf", ".svg")
_SHEET_SIDE = 960
_RESCALED = "each map is stretched to its own minimum and maximum first; --no-rescale takes maps as they are"
_AS_THEY_ARE = "maps are taken as they are, not stretched to their own minimum and maximum"
_REMEDY = "save maps as 8-bit grey pictures, round(255 * probability)"


class Method(NamedTuple):
    """Maps to score."""

    name: str
    folder: Path
    maps: list[Path]
    """One for each mask, in the order of the masks."""


class Scored(NamedTuple):
    """One map."""

    scores: ImageScores
    resized: bool


class Scoring(Dataset[list[Scored] | DatasetError]):
    """The scores of all methods' maps of one mask, which is read once.

    Errors are values, so that one in a worker is read as a line and not as the worker's traceback.
    """

    def __init__(
        self, masks: Sequence[Path], methods: Sequence[Method], *, rescale: bool, resize: bool
    ) -> None:
        self.masks = masks
        self.methods = methods
        self.rescale = rescale
        self.resize = resize

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> list[Scored] | DatasetError:
        try:
            mask = read_saliency_mask(self.masks[index])
            return [self._score(method.maps[index], mask, self.masks[index]) for method in self.methods]
        except DatasetError as error:
            return error

    def _score(self, path: Path, mask: np.ndarray, mask_path: Path) -> Scored:
        saliency = read_grey(path, "map", _REMEDY)
        differs = saliency.shape != mask.shape
        if differs and not self.resize:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (saliency, mask)]
            raise DatasetError(
                f"{path}: the map is {sizes[0]}, but its mask {mask_path} is {sizes[1]}; make maps of the "
                "pictures' sizes, or let --resize scale them"
            )
        return Scored(score_map(resized(saliency, mask.shape), mask, rescale=self.rescale), differs)


def score_folders(args: argparse.Namespace) -> None:
    """Score the maps that the arguments name, print the table, and write what was asked for."""
    folder = Path(args.masks)
    named = name_methods(args.predictions)
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers} must be at least 0")
    if bool(args.sheet) != bool(args.images):
        raise ConfigError("--sheet and --images go together: the sheet shows the pictures beside their maps")
    inputs = [folder, *named.values(), *([Path(args.images)] if args.images else [])]
    for option, file, suffixes in (
        ("--json", args.json, (".json",)),
        ("--plot", args.plot, _PLOTS),
        ("--sheet", args.sheet, (".png",)),
    ):
        if file:
            check_output(option, Path(file), suffixes, inputs)
    masks = find_masks(folder)
    known = known_name(set_name(folder.resolve().parent, folder.name))
    if remark := count_warning(known, len(masks)) if known else None:
        print(f"warning: {remark}", file=sys.stderr)
    pictures = find_pictures(Path(args.images), list(masks)) if args.images else {}
    methods = [
        Method(name, place, find_maps(name, place, folder, list(masks))) for name, place in named.items()
    ]
    if args.plot:
        # without matplotlib this fails now, and not after the long work
        plot_curves({"": dict.fromkeys(("precision", "recall", "f"), np.zeros(256))})

    totals = [SaliencyScores() for _ in methods]
    resized = [0] * len(methods)
    images: list[dict[str, dict[str, float]]] = [{} for _ in methods]
    scoring = Scoring(list(masks.values()), methods, rescale=args.rescale, resize=args.resize)
    for stem, scored in zip(masks, progress(score_all(scoring, args.workers), len(masks)), strict=True):
        for number, (scores, was_resized) in enumerate(scored):
            totals[number].add(scores)
            resized[number] += was_resized
            alone = SaliencyScores()
            alone.add(scores)
            images[number][stem] = alone.metrics()
    metrics = {method.name: total.metrics() for method, total in zip(methods, totals, strict=True)}
    curves = {method.name: total.curves() for method, total in zip(methods, totals, strict=True)}

    if args.json:
        document = {
            "protocols": dict(PROTOCOLS),
            "rescale": args.rescale,
            "masks": str(folder),
            "methods": {
                method.name: {
                    "predictions": str(method.folder),
                    "resized": count,
                    "metrics": metrics[method.name],
                    "curves": {key: curve.tolist() for key, curve in curves[method.name].items()},
                    "images": each,
                }
                for method, count, each in zip(methods, resized, images, strict=True)
            },
        }
        write_atomically(Path(args.json), lambda file: file.write(json.dumps(document, indent=1).encode()))
    if args.plot:
        figure, kind = plot_curves(curves), Path(args.plot).suffix[1:].lower()
        write_atomically(Path(args.plot), lambda file: figure.savefig(file, format=kind))
    if args.sheet:
        sheet = worst(methods[0], masks, pictures, images[0], rescale=args.rescale)
        write_atomically(Path(args.sheet), lambda file: sheet.save(file, format="PNG"))
    print(f"{len(masks)} masks in {folder}: {RULE}\n\n{table(metrics)}")
    print(_RESCALED if args.rescale else _AS_THEY_ARE)
    for method, count in zip(methods, resized, strict=True):
        if count:
            print(f"{method.name}: {count} of {len(masks)} maps were scaled to their masks, bilinear")


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


def check_output(option: str, file: Path, suffixes: Sequence[str], inputs: Sequence[Path]) -> None:
    """Check, before the long work, that a file can be written and is none of the user's data."""
    if file.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {file} must end in {' or '.join(suffixes)}")
    if not file.parent.is_dir():
        raise ConfigError(f"{option} {file}: there is no folder {file.parent}; make it first")
    for folder in inputs:
        if file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{option} {file} is in {folder}, whose files are scored; choose a place outside"
            )


def find_masks(folder: Path) -> dict[str, Path]:
    """All masks by their names, in the order of the names; JPEGs beside masks of their names are pictures."""
    files = index_once(folder, "folder of masks", IMAGE_SUFFIXES)
    if files.clashes:
        masks = index_once(folder, "folder of masks", IMAGE_SUFFIXES - set(PICTURES_BESIDE_MASKS))
        if masks.clashes or masks.by_stem.keys() != files.by_stem.keys():
            raise DatasetError(
                f"{folder}: {len(files.clashes)} files have the name of another but for the suffix "
                f"({first_few(files.clashes)}); leave one mask of each name"
            )
        files = masks
    return {stem: folder / file for stem, file in sorted(files.by_stem.items())}


def find_pictures(folder: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The picture of each mask; raises `DatasetError` where there is none."""
    files = index_once(folder, "folder of pictures", IMAGE_SUFFIXES)
    if files.clashes:  # masks beside their pictures
        files = index_once(folder, "folder of pictures", PICTURES_BESIDE_MASKS)
    check_present(stems, files.by_stem, "pictures", folder, "--images")
    return {stem: folder / files.by_stem[stem] for stem in stems}


def find_maps(name: str, folder: Path, masks: Path, stems: Sequence[str]) -> list[Path]:
    """The map of each mask; raises `DatasetError` where there is none or more than one."""
    files = index_once(folder, "folder of maps", IMAGE_SUFFIXES)
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


def worst(
    method: Method,
    masks: dict[str, Path],
    pictures: dict[str, Path],
    scores: dict[str, dict[str, float]],
    *,
    rescale: bool,
) -> Image.Image:
    """A contact sheet of the pictures with the largest error, the largest first; maps as they were scored."""
    maps = dict(zip(masks, method.maps, strict=True))
    rows = []
    for stem in sorted(masks, key=lambda stem: scores[stem]["MAE"], reverse=True)[:SHEET_ROWS]:
        picture, mask = read_image(pictures[stem]), read_saliency_mask(masks[stem])
        check_size(masks[stem], mask.shape, pictures[stem], picture.shape[:2])
        shrink = min(1, _SHEET_SIDE / max(mask.shape))
        height, width = (max(1, round(shrink * side)) for side in mask.shape)
        saliency = resized(read_grey(maps[stem], "map", _REMEDY), (height, width)).astype(np.float32)
        low, high = (saliency.min(), saliency.max()) if rescale else (0, 255)
        scaled = (saliency - low) / (high - low) if low < high else saliency / 255
        shown = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        inside = resized(np.where(mask, np.uint8(255), np.uint8(0)), (height, width)) > 127
        caption = (
            f"{stem}   MAE {scores[stem]['MAE']:.4f}   max F {scores[stem]['max_F']:.4f}   {method.name}"
        )
        rows.append(SheetRow(shown, inside, scaled, caption))
    return saliency_sheet(rows)


def resized(saliency: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map scaled to (H, W), bilinear."""
    if saliency.shape == shape:
        return saliency
    height, width = shape
    return np.asarray(Image.fromarray(saliency).resize((width, height), Image.Resampling.BILINEAR))


def score_all(scoring: Scoring, workers: int) -> Iterator[list[Scored]]:
    """The scores in the order of the masks; raises the first error met."""
    workers = min(workers, len(scoring))
    warnings.filterwarnings("ignore", "This DataLoader will create")  # --workers may be above the processors
    loader = DataLoader(
        scoring, batch_size=None, num_workers=workers if workers > 1 else 0,
        collate_fn=as_it_is, worker_init_fn=init_worker,
    )  # fmt: skip
    # An interrupt while the workers start would be lost, or taken for their end: it is kept for afterwards.
    interrupts: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    try:
        scores = iter(loader)
    finally:
        signal.signal(signal.SIGINT, usual)
    if interrupts:
        raise KeyboardInterrupt
    try:
        for scored in scores:
            if isinstance(scored, DatasetError):
                raise scored
            yield scored
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DatasetError(
            "a scoring process was ended from outside, perhaps for want of memory; use fewer --workers"
        ) from error
    finally:
        del scores  # ends the processes now, and not when the traceback goes


def as_it_is(scored: list[Scored]) -> list[Scored]:
    """Where DataLoader would turn arrays into tensors."""
    return scored


def init_worker(worker: int) -> None:
    """One thread each; Ctrl-C is for the main process, which ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if cv2 := sys.modules.get("cv2"):
        cv2.setNumThreads(0)


def progress(results: Iterator[list[Scored]], total: int) -> Iterator[list[Scored]]:
    """Show how far it is: a bar, or lines where there is no terminal."""
    bar = tqdm(results, total=total, desc="score", unit="img", disable=None)
    for number, result in enumerate(bar, start=1):
        yield result
        if bar.disable and number % _SAY_EVERY == 0:
            print(f"{number} of {total} images scored", file=sys.stderr, flush=True)


def table(metrics: dict[str, dict[str, float]]) -> str:
    """A column a method and a line a metric, the best of each line marked; below, what the metrics are."""
    rows = [["", *(f"{name} " for name in metrics)]]
    for metric in METRICS:
        shown = [show(scores[metric], 4) for scores in metrics.values()]
        best = min(shown) if metric == "MAE" else max(shown)
        rows.append([metric, *(text + ("*" if text == best and len(shown) > 1 else " ") for text in shown)])
    note = "* the best of its line\n" if len(metrics) > 1 else ""
    width = max(map(len, METRICS))
    protocols = "\n".join(f"{metric:{width}}  {PROTOCOLS[metric]}" for metric in METRICS)
    return f"{align(rows)}\n{note}\n{protocols}"
