"""What was found in data sets as one HTML page: a table, then each kind with images of it.

The page needs nothing from elsewhere: images are in it. Its size is bounded by the constants below.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from PIL import Image

from res2net_dense.errors import printable
from res2net_dense.findings import KINDS, REMEDIES, Finding, Findings, Severity
from res2net_dense.report.marked import Annotated, draw_file, draw_marked
from res2net_dense.version import __version__

MARK = "res2net-dense check"
"""What a file of this command says of itself, so that it may be written again."""

_SHOWN = 12  # images of each code
_LISTED = 200  # findings of each code
_FIRST_ROWS = 5  # of a code without images; the others are folded
_BYTES = 9_000_000  # of all images
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Checked(NamedTuple):
    """A data set and what was found in it."""

    title: str
    """Such as `data.train`."""
    name: str
    images: int
    findings: Findings
    show: Callable[[Finding], tuple[Annotated | None, Any]]
    """Returns the image of a finding, and its mask file as (H, W, 3) uint8; None for what cannot be shown."""


class ClassRow(NamedTuple):
    """One class of the class-id map."""

    label: int
    category_id: int | str
    """Empty where the layout has none."""
    name: str
    counts: Sequence[int | None]
    """In each set; None where they are unknown."""


def codes_of(sets: Sequence[Checked], *, notes: bool) -> list[str]:
    """The codes that were found, errors first, each severity in the order of the table."""
    found = {code for one in sets for code, count in one.findings.counts.items() if count}
    levels = _SEVERITIES if notes else _SEVERITIES[:2]
    return [code for level in levels for code in KINDS if code in found and KINDS[code].severity == level]


def by_code(sets: Sequence[Checked]) -> Mapping[str, Sequence[tuple[Checked, Finding]]]:
    """The findings of each code, with the set that they are in."""
    found: dict[str, list[tuple[Checked, Finding]]] = {}
    for one in sets:
        for finding in one.findings:
            found.setdefault(finding.code, []).append((one, finding))
    return found


def totals_of(sets: Sequence[Checked]) -> dict[Severity, int]:
    """How many findings of each severity all sets have."""
    return {level: sum(one.findings.number(level) for one in sets) for level in _SEVERITIES}


def page(sets: Sequence[Checked], classes: Sequence[ClassRow], *, notes: bool = False) -> str:
    """The page; with `notes` those are shown too."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = _common_folder(sets)
    environment.filters["printable"] = lambda value: printable(str(value))
    environment.filters["short"] = lambda file: printable(file.removeprefix(f"{folder}/") if folder else file)
    environment.filters["name"] = lambda file: printable(os.path.basename(file))
    source = resources.files("res2net_dense.report").joinpath("findings.html").read_text(encoding="utf-8")
    totals = totals_of(sets)
    most = max((count or 0 for row in classes for count in row.counts), default=0)
    return environment.from_string(source).render(
        mark=MARK,
        version=__version__,
        sets=sets,
        totals=totals,
        classes=classes,
        most=max(most, 1),
        sections=_sections(sets, codes_of(sets, notes=notes)),
        left_out=0 if notes else totals["note"],
        folder=folder,
        first_rows=_FIRST_ROWS,
        most_images=_SHOWN,
        most_rows=_LISTED,
    )


def _common_folder(sets: Sequence[Checked]) -> str:
    """The folder that all files of findings are in, empty if there is none."""
    folders = {os.path.dirname(finding.file) for one in sets for finding in one.findings}
    try:
        return os.path.commonpath(folders).rstrip("/") if folders else ""
    except ValueError:  # relative and absolute ones
        return ""


def _sections(sets: Sequence[Checked], codes: Sequence[str]) -> list[Mapping[str, Any]]:
    """One of each code, errors first, which also get the space for images first."""
    left, sections, found = _BYTES, list[Mapping[str, Any]](), by_code(sets)
    for code in codes:
        pairs = found[code]
        figures: list[Mapping[str, Any]] = []
        for one, finding in _spread(pairs):
            if len(figures) == _SHOWN or left <= 0:
                break
            images = [_data_uri(image) for image in _drawn(one, finding)]
            left -= sum(map(len, images))
            if images and left > 0:
                figures.append({"set": one.title, "finding": finding, "images": images})
        sections.append(
            {
                "code": code,
                "kind": KINDS[code],
                "remedy": REMEDIES[code],
                "counts": [one.findings.counts[code] for one in sets],
                "count": sum(one.findings.counts[code] for one in sets),
                "figures": figures,
                "rows": [(one.title, finding) for one, finding in pairs[:_LISTED]],
            }
        )
    return sections


def _spread(pairs: Sequence[tuple[Checked, Finding]]) -> list[tuple[Checked, Finding]]:
    """Those that can be shown: of every image one, then the others."""
    first: dict[tuple[str, str], tuple[Checked, Finding]] = {}
    others = []
    for pair in pairs:
        one, finding = pair
        if first.setdefault((one.title, finding.image or finding.file), pair) is not pair:
            others.append(pair)
    return [*first.values(), *others][: 2 * _SHOWN]  # some cannot be read


def _drawn(one: Checked, finding: Finding) -> list[Image.Image]:
    annotated, mask = one.show(finding)
    images = [] if annotated is None else [draw_marked(annotated, finding.box)]
    return images if mask is None else [*images, draw_file(mask)]


def _data_uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=82, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
