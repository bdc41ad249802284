"""What `res2net-dense check` does."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from res2net_dense import findings as kinds
from res2net_dense.cli._check_classes import class_rows
from res2net_dense.cli._check_parts import Opened, of_config, of_layout
from res2net_dense.cli._shared import say
from res2net_dense.data.check import check_sources
from res2net_dense.data.images import IMAGE_SUFFIXES, image_size, read_for_display
from res2net_dense.data.pixels import to_display
from res2net_dense.data.statistics import describe_statistics
from res2net_dense.errors import ConfigError, DatasetError, counted, printable
from res2net_dense.findings import KINDS, REMEDIES, Finding
from res2net_dense.outputs import Outputs, files_in, output_file
from res2net_dense.report.findings import MARK, Checked, ClassRow, by_code, codes_of, page, totals_of
from res2net_dense.report.marked import Annotated
from res2net_dense.types import Source
from res2net_dense.version import __version__

_image_size = functools.lru_cache(maxsize=1024)(image_size)

_WIDTH = 110
"""Letters of a line where the output is not a terminal."""


def check(args: argparse.Namespace) -> int:
    """Check and print; returns the exit code.

    Raises:
        ConfigError: the arguments do not fit each other, or an output is in the data or is another's file.
        DatasetError: a data set is missing.
        OSError: an output cannot be written.
    """
    if args.json or args.fix_list:
        kinds.keep_all()
    if args.config is not None:
        opened = of_config(args.config, args.arguments)
    else:
        opened = of_layout(args.layout, args.arguments)
    outputs = {}
    for option, file in (("--json", args.json), ("--html", args.html)):
        if file is not None:
            _check_place(option, file, opened)
            inputs = [args.config, *files_in(place for one in opened.values() for place in one.places)]
            outputs[file] = output_file(option, file, inputs=inputs, overwrite=args.overwrite)
    sources = {title: one.source for title, one in opened.items() if one.source is not None}
    found = check_sources(sources, thorough=True, workers=args.workers)
    sets = [_checked(title, one, found) for title, one in opened.items()]
    found_in = [one.findings for one in sets]
    classes = class_rows([one.source for one in opened.values()], found_in, workers=args.workers)
    _print_sets(sets)
    _print_table(sets, notes=args.notes)
    for title, source in sources.items() if args.statistics else ():
        say(f"{title}: {describe_statistics(source)}")
    if args.fix_list:
        say(*_fix_list(sets))
    _print_classes(sets, classes)
    if args.json:
        _write(outputs[args.json], args.json, json.dumps(_document(sets, classes), indent=1) + "\n")
    if args.html:
        _write(outputs[args.html], args.html, page(sets, classes, notes=args.notes))
    return 1 if totals_of(sets)["error"] else 0


def _checked(title: str, opened: Opened, found: Mapping[str, kinds.Findings]) -> Checked:
    if opened.source is None:
        name = " + ".join(map(str, opened.places))
        return Checked(title, name, 0, opened.findings, lambda finding: _show(None, finding))
    source = opened.source
    return Checked(title, source.name, len(source), found[title], lambda finding: _show(source, finding))


def _show(source: Source | None, finding: Finding) -> tuple[Annotated | None, Any]:
    """The image of a finding with its annotations, and its mask file; None for what cannot be read."""
    file = finding.image or (finding.file if _is_image(finding.file) else "")
    if not file or finding.code == "path-outside":
        return None, None
    mask = None
    if finding.file != file and _is_image(finding.file):
        mask = _read(finding.file)
    if source is not None and finding.place is not None:
        try:
            sample: Mapping[str, Any] = source.sample(finding.place)
        except (DatasetError, IndexError):
            pass
        else:
            if os.path.basename(sample["file_name"]) == os.path.basename(file):
                return _annotated(sample), mask
    image = _read(file)
    return None if image is None else Annotated(image), mask


def _annotated(sample: Mapping[str, Any]) -> Annotated:
    image = to_display(sample["image"].permute(1, 2, 0).numpy())
    boxes = sample["boxes"].tolist() if "boxes" in sample else []
    polygons: list[np.ndarray] = []
    masks = labels = None
    if isinstance(sample.get("masks"), list):
        polygons = [polygon for one in sample["masks"] for polygon in one]
    elif "masks" in sample:
        masks = sample["masks"].numpy()
    if "saliency" in sample:
        masks = sample["saliency"].numpy()[None] > 0
    if "sem_seg" in sample:
        labels = sample["sem_seg"].numpy().astype(np.uint8)
    return Annotated(image, boxes, polygons, masks, labels)


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES


def _read(file: str) -> np.ndarray | None:
    try:
        return read_for_display(file)
    except DatasetError:
        return None


def _print_sets(sets: Sequence[Checked]) -> None:
    width = max(len(one.title) for one in sets)
    for one in sets:
        say(f"{one.title:{width}}  {counted(one.images, 'image')} of {one.name}")


def _print_table(sets: Sequence[Checked], *, notes: bool) -> None:
    """A row for each code with its first example, and below it what to do."""
    width = max(60, shutil.get_terminal_size((_WIDTH, 24)).columns)
    codes = codes_of(sets, notes=notes)
    column, found = max(map(len, codes), default=4), by_code(sets)
    if codes:
        say("", f"{'code':{column}}  severity   count")
    for code in codes:
        number = sum(one.findings.counts[code] for one in sets)
        _, example = found[code][0]
        say(f"{code:{column}}  {KINDS[code].severity:8}  {number:6}  {KINDS[code].meaning}")
        for label, text in (
            ("first", printable(str(example))),
            ("to do", REMEDIES[code]),
        ):
            lead = " " * 4 + f"{label}: "
            say(*_wrapped(text, width, lead))
    totals = {
        level: sum(one.findings.number(level) for one in sets) for level in ("error", "warning", "note")
    }
    hidden = totals["note"] and not notes
    hint = " (--notes shows them)" if hidden else ""
    say("", f"{', '.join(counted(count, level) for level, count in totals.items())}{hint}")


def _wrapped(text: str, width: int, lead: str) -> list[str]:
    wrapper = textwrap.TextWrapper(width, lead, " " * len(lead), break_on_hyphens=False)
    wrapper.break_long_words = False
    return wrapper.wrap(text)


def _print_classes(sets: Sequence[Checked], classes: Sequence[ClassRow]) -> None:
    if not classes:
        return
    titles = [one.title for one in sets]
    rows = [["label", *(["id"] if classes[0].category_id != "" else []), *titles, "class"]]
    for row in classes:
        counts = ["?" if count is None else str(count) for count in row.counts]
        own = [] if classes[0].category_id == "" else [printable(str(row.category_id))]
        rows.append([str(row.label), *own, *counts, printable(row.name)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say("", f"{counted(len(classes), 'class')}")
    for cells in rows:
        *numbers, name = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        say("  ".join([*numbers, name.strip()]))


def _fix_list(sets: Sequence[Checked]) -> Iterator[str]:
    """What reading leaves out or clips, a line each: file, object, drop or clip, code, from -> to."""
    yield ""
    yield "file\tobject\tfix\tcode\tbox (x1 y1 x2 y2)"
    for one in sets:
        for finding in one.findings:
            if not finding.fix:
                continue
            change = "" if finding.box is None else _corners(finding.box)
            if finding.fix == "clip" and finding.box is not None:
                change += f" -> {_clipped(finding.box, finding.image)}"
            where = finding.text.partition(":")[0]
            yield "\t".join(map(printable, (finding.file, where, finding.fix, finding.code, change)))


def _clipped(box: Sequence[float], image: str) -> str:
    """The box inside its image."""
    try:
        height, width = _image_size(image)
    except DatasetError:
        return "unknown"
    x1, y1, x2, y2 = box
    return _corners((max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)))


def _corners(box: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in box)


def _document(sets: Sequence[Checked], classes: Sequence[ClassRow]) -> dict[str, Any]:
    """The content of `--json`; `docs/data.md` describes it."""
    return {
        "generator": MARK,
        "format": 1,
        "version": __version__,
        "totals": totals_of(sets),
        "sets": {
            one.title: {"name": one.name, "images": one.images, "counts": dict(one.findings.counts)}
            for one in sets
        },
        "classes": [
            {
                "label": row.label,
                "id": None if row.category_id == "" else row.category_id,
                "name": row.name,
                "counts": {one.title: count for one, count in zip(sets, row.counts, strict=True)},
            }
            for row in classes
        ],
        "findings": [
            {"set": one.title, "severity": finding.severity, **finding._asdict()}
            for one in sets
            for finding in one.findings
        ],
    }


def _check_place(option: str, file: Path, opened: Mapping[str, Opened]) -> None:
    """Raise a `ConfigError` where a file lies in the data."""
    place = file.resolve()
    for one in opened.values():
        for data in one.places:
            folder = data.resolve() if data.is_dir() else data.resolve().parent
            if place.is_relative_to(folder):
                raise ConfigError(
                    f"{option} {file}: lies in the data set's folder {folder}, into which nothing is "
                    "written; choose a place outside"
                )


def _write(outputs: Outputs, file: Path, text: str) -> None:
    outputs.write(file, text.encode("utf-8", "backslashreplace"))
    say(f"{file}: written")
