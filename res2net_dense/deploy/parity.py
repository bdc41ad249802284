"""Whether an exported file computes what the network computes; one that does not is deleted.

Pictures of several sizes, in batches of one and two where the file takes them, go through both. What is
compared are the outputs themselves, and of the network as a whole what `model(batch)` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.deploy.differences import (
    TOLERANCES,
    Cut,
    Row,
    Tolerance,
    batch_rows,
    detection_rows,
    difference,
    within,
)
from res2net_dense.deploy.exported import Decoder, ExportedModel, open_exported
from res2net_dense.errors import ExportError
from res2net_dense.models.graphs import Graph
from res2net_dense.types import Prediction, Sample

_SHORT_EDGE, _LEAST_STEP, _LEAST_EDGE = 224, 32, 64
_LOOKED_AT = 8
"""Pictures in which detections are looked for."""


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was compared, and how it came out."""

    tolerance: Tolerance
    rows: list[Row]
    notes: list[str]
    """What a reader should know of the whole."""

    @property
    def passed(self) -> bool:
        """Whether the file does what the network does."""
        return all(row.passed for row in self.rows)

    def failures(self) -> list[str]:
        """The rows that failed, in words with their numbers."""
        return [self._in_words(row) for row in self.rows if not row.passed]

    def table(self) -> str:
        """All rows as text, and the notes below."""
        cells = [("size", "batch", "output", "max difference", "agreement", "verdict")]
        for row in self.rows:
            agreement = "" if math.isnan(row.agreement) else f"{100 * row.agreement:.3f} %"
            verdict = ("good" if row.passed else "DIFFERS") + (f", {row.note}" if row.note else "")
            cells.append(
                (_size(row.size), str(row.batch), row.output, _number(row.max_abs), agreement, verdict)
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        if math.isfinite(self.tolerance.difference):
            lines.append(
                f"at most {self.tolerance.difference:g} (boxes: {self.tolerance.boxes:g} pixels), at least "
                f"{100 * self.tolerance.agreement:g} % of labels equal"
            )
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON: null for NaN, and what is infinite is text."""
        rows = [{name: _plain(value) for name, value in row._asdict().items()} for row in self.rows]
        tolerance = {name: _plain(value) for name, value in self.tolerance._asdict().items()}
        return {"passed": self.passed, "tolerance": tolerance, "rows": rows, "notes": self.notes}

    def _in_words(self, row: Row) -> str:
        words = f"{row.output} at {_size(row.size)}, batch {row.batch}"
        if math.isnan(row.max_abs) and math.isnan(row.agreement):
            return f"{words}: {row.note}"
        limit = self.tolerance.boxes if row.output.endswith("boxes") else self.tolerance.difference
        if not math.isnan(row.max_abs) and not within(row.max_abs, limit):
            return f"{words} by {_number(row.max_abs)} (at most {limit:g})"
        return f"{words} in {100 * (1 - row.agreement):.3g} % of the labels"


def compare(
    graph: Graph,
    exported: ExportedModel,
    pictures: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
) -> ParityReport:
    """Run both on the same pictures.

    Args:
        graph: what was exported.
        exported: the file.
        pictures: each `(3, H, W)` uint8, RGB, such as the evaluation's; where there are none they are made
            up. They are resized to the sizes that are tried.
        model: the network itself, seeing pictures whole and once, whose predictions the file's must equal
            too. None leaves that out.

    Raises:
        ExportError: The file cannot be run.
    """
    description = exported.description
    tolerance, cut = TOLERANCES[description.precision], Cut.of(description.config)
    notes = [] if pictures else ["the pictures are made up: there was no evaluation set"]
    if description.precision == "int8":
        notes.append("int8 is another network: the evaluation set says what it is worth (--eval)")
    finds_objects = "boxes" in graph.outputs
    pictures = list(pictures) or made_pictures()
    if finds_objects:
        pictures = _with_detections(graph, pictures, description.size)
    height, width = pictures[0].shape[-2:]
    if not finds_objects:  # objects may be lost with their size, dense outputs are not
        factor = min(1.0, _SHORT_EDGE / min(height, width))
        height, width = round(height * factor), round(width * factor)
    sizes = [description.size] if description.size else sizes_to_try(height, width, graph.divisor)
    batches = [description.batch] if description.batch else [1, 2]
    rows: list[Row] = []
    for size in sizes:
        for batch in batches:
            images = torch.stack([_resized(pictures[n % len(pictures)], size) for n in range(batch)])
            with torch.no_grad():
                expected = dict(zip(graph.outputs, graph(images), strict=True))
            rows += batch_rows(expected, exported.run(images), size, batch, tolerance, cut)
        if model is not None:
            rows += _prediction_rows(model, graph, exported, _resized(pictures[0], size), tolerance, cut)
    if finds_objects and all(
        row.passed and math.isnan(row.agreement) for row in rows if row.output == "labels"
    ):
        notes.append(
            "no detection is on both sides beyond doubt, so boxes, labels and masks were not compared: give "
            "pictures on which the model finds something (data.val)"
        )
    return ParityReport(tolerance, rows, notes)


def gate(
    graph: Graph,
    path: str | Path,
    decoder: Decoder,
    pictures: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
    name: str | Path | None = None,
) -> ParityReport:
    """Compare a file with what it was exported from, and delete it if it differs.

    Args:
        graph, pictures, model: see `compare`.
        path: the file.
        decoder: reads the outputs of the file, see `ExportedModel`.
        name: what to call it in messages, where `path` is a temporary one.

    Raises:
        ExportError: It differs or does not run; the message has the numbers, and the file is gone with those
            beside it.
    """
    path = Path(path)
    try:
        report = compare(graph, open_exported(path, lambda _: decoder), pictures, model=model)
        failures = report.failures()
    except ExportError as error:
        delete_export(path)
        reason = str(error).replace(str(path), str(name or path))
        raise ExportError(f"{name or path} is not kept, it does not run: {reason}") from error
    if failures:
        delete_export(path)
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise ExportError(
            f"{name or path} is not kept, it differs from the model: {'; '.join(failures[:3])}{more}; try "
            "another --format, or without --dynamic"
        )
    return report


def delete_export(path: Path) -> None:
    """Delete an exported file and what belongs to it: OpenVINO's weights, the JSON."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    for file in (path, path.with_name(f"{path.name}.json"), *beside):
        file.unlink(missing_ok=True)


def sizes_to_try(height: int, width: int, divisor: int) -> list[tuple[int, int]]:
    """Four sizes near the given one: a square and a wide one of multiples of the divisor, a large and an
    upright one that are none.
    """
    step = max(divisor, _LEAST_STEP)
    edge = max(round(min(height, width) / step) * step, _LEAST_EDGE, step)
    longer = max(round(max(height, width) / step) * step, edge + step)
    return [
        (edge, edge),
        (edge, longer),
        (edge + step // 3, longer - 1),
        (edge + step // 2 + 1, edge // 2 + 1),
    ]


def made_pictures(
    count: int = 2, size: tuple[int, int] = (_SHORT_EDGE, _SHORT_EDGE * 3 // 2)
) -> list[Tensor]:
    """Pictures of coloured blobs and some noise, `(3, H, W)` uint8, always the same."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(count, 3, 7, 9, generator=generator) * 1.6 - 0.3
    pictures = F.interpolate(blobs, size, mode="bicubic", align_corners=False)
    pictures += 0.05 * torch.randn(pictures.shape, generator=generator)
    return list((pictures * 255).clamp(0, 255).to(torch.uint8))


def _with_detections(
    graph: Graph, pictures: Sequence[Tensor], size: tuple[int, int] | None
) -> Sequence[Tensor]:
    """Those of the first pictures in which the network finds something; all if there are none."""
    found = []
    for picture in pictures[:_LOOKED_AT]:
        with torch.no_grad():
            outputs = graph(_resized(picture, size or (picture.shape[-2], picture.shape[-1]))[None])
        if len(outputs[graph.outputs.index("boxes")]):
            found.append(picture)
    return found or pictures


def _prediction_rows(
    model: nn.Module, graph: Graph, exported: ExportedModel, picture: Tensor, tolerance: Tolerance, cut: Cut
) -> Iterator[Row]:
    """Compare what both say of one picture that was twice as small before."""
    size = picture.shape[-2], picture.shape[-1]
    original = size[0] * 2 + 1, size[1] * 2
    batch: list[Sample] = [{"image": picture, "original_height": original[0], "original_width": original[1]}]
    with torch.no_grad():
        expected: Prediction = model(batch)[0]
    got = exported(batch)[0]
    tensors: list[dict[str, Tensor]] = [
        {name: value.cpu() for name, value in one.items() if isinstance(value, Tensor)}
        for one in (expected, got)
    ]
    if "boxes" in expected:
        rows: Iterator[Row] = detection_rows(tensors[0], tensors[1], original, tolerance, cut)
        yield from (row._replace(size=size, output=f"predicted {row.output}") for row in rows)
        return
    for name, value in tensors[0].items():
        other = tensors[1][name]
        if name == "sem_seg":
            same = value == other if value.shape == other.shape else torch.zeros_like(value)
            share = float(same.double().mean())
            good = share >= tolerance.agreement or (
                value.shape == other.shape and _between_classes(graph, exported, picture, value, other)
            )
            yield Row(size, 1, f"predicted {name}", math.nan, share, good)
        else:
            worst = difference(value, other)
            yield Row(size, 1, f"predicted {name}", worst, math.nan, within(worst, tolerance.difference))


def _between_classes(
    graph: Graph, exported: ExportedModel, picture: Tensor, labels: Tensor, others: Tensor
) -> bool:
    """Whether two maps of labels differ only where both classes are as likely as each other, as near as graph
    and file are to each other.
    """
    images = torch.stack([picture] * (exported.description.batch or 1))
    with torch.no_grad():
        logits = (
            dict(zip(graph.outputs, graph(images), strict=True))["logits"],
            exported.run(images)["logits"],
        )
    mine, theirs = (one[:1].cpu().softmax(1) for one in logits)
    likely = F.interpolate(mine, labels.shape, mode="bilinear", align_corners=False)[0]
    gaps = (likely.gather(0, labels[None]) - likely.gather(0, others[None]))[0].abs()
    rounding = 1e-6
    return bool((gaps[labels != others] <= 2 * difference(mine, theirs) + rounding).all())


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[-2:] == size:
        return picture
    resized = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return list(value) if isinstance(value, tuple) else value
