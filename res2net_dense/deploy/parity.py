"""Whether an exported file computes what the network computes; one that does not is deleted.

Images of several sizes, in batches of one and two if the file takes them, go through both. The outputs
themselves are compared, and the file's predictions with what `model(batch)` returns.
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
    difference,
    rows_of,
)
from res2net_dense.deploy.exported import Decoder, ExportedModel, open_exported
from res2net_dense.errors import ExportError
from res2net_dense.models.graphs import Graph
from res2net_dense.types import Prediction, Sample

_SHORT_EDGE, _LEAST_STEP, _LEAST_EDGE = 224, 32, 64
_SEARCHED = 8
"""Images in which detections are looked for."""


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was compared, with the results."""

    tolerance: Tolerance
    rows: list[Row]
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether the file does what the network does."""
        return all(row.passed for row in self.rows)

    def failures(self) -> list[str]:
        """The rows that failed, in words with their numbers."""
        return [
            "{} at {}x{}, batch {} {}".format(row.output, *row.size, row.batch, row.note)
            for row in self.rows
            if not row.passed
        ]

    def table(self) -> str:
        """All rows as text, followed by the notes."""
        cells = [("size", "batch", "output", "max difference", "agreement", "verdict")]
        for row in self.rows:
            worst = "" if math.isnan(row.max_abs) else f"{row.max_abs:.2g}"
            agreement = "" if math.isnan(row.agreement) else f"{100 * row.agreement:.3f} %"
            verdict = ("good" if row.passed else "DIFFERS") + (f", {row.note}" if row.note else "")
            cells.append(("{}x{}".format(*row.size), str(row.batch), row.output, worst, agreement, verdict))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        if math.isfinite(self.tolerance.difference):
            lines.append(
                f"at most {self.tolerance.difference:g} (boxes: {self.tolerance.boxes:g} pixels), at least "
                f"{100 * self.tolerance.agreement:g} % of labels equal"
            )
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON: NaN becomes null, infinity text."""

        def plain(part: Tolerance | Row) -> dict[str, Any]:
            return {name: _plain(value) for name, value in part._asdict().items()}

        rows = [plain(row) for row in self.rows]
        return {"passed": self.passed, "tolerance": plain(self.tolerance), "rows": rows, "notes": self.notes}


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def compare(
    graph: Graph,
    exported: ExportedModel,
    images: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
) -> ParityReport:
    """Run both on the same images.

    Args:
        graph: what was exported.
        exported: the file.
        images: each `(C, H, W)` as the file takes them, such as the evaluation's, resized to the sizes that
            are tried; synthetic ones if there are none.
        model: the network itself, seeing each image once and whole. The file's predictions must equal its
            predictions too. None leaves that out.

    Raises:
        ExportError: the file cannot be run.
    """
    description = exported.description
    tolerance, cut = TOLERANCES[description.precision], Cut.of(description.config)
    notes = [] if images else ["the images are synthetic: there was no evaluation set"]
    if description.precision == "int8":
        notes.append("int8 is another network: --eval measures it on the evaluation set")
    images = list(images) or synthetic_images(channels=description.channels, dtype=description.dtype)
    height, width = images[0].shape[-2:]
    detects = "boxes" in graph.outputs
    if detects:
        images = _with_detections(graph, images, description.size)
        height, width = images[0].shape[-2:]
    else:  # a smaller image may lose its objects, but not dense outputs
        factor = min(1.0, _SHORT_EDGE / min(height, width))
        height, width = round(height * factor), round(width * factor)
    sizes = [description.size] if description.size else sizes_to_try(height, width, graph.divisor)
    rows: list[Row] = []
    for size in sizes:
        for batch in [description.batch] if description.batch else [1, 2]:
            inputs = torch.stack([_resized(images[n % len(images)], size) for n in range(batch)])
            found = rows_of(_run(graph, inputs), exported.run(inputs), tolerance, cut)
            rows += (row._replace(size=size, batch=batch) for row in found)
        if model is not None:
            found = _prediction_rows(model, graph, exported, _resized(images[0], size), tolerance, cut)
            rows += (row._replace(size=size, output=f"predicted {row.output}") for row in found)
    labels = [row for row in rows if row.output == "labels"]
    if detects and all(row.passed and math.isnan(row.agreement) for row in labels):
        notes.append(
            "no detection is on both sides beyond doubt, so boxes, labels and masks were not compared: give "
            "images on which the model finds something (data.val)"
        )
    return ParityReport(tolerance, rows, notes)


def gate(
    graph: Graph,
    path: str | Path,
    decoder: Decoder,
    images: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
    name: str | Path | None = None,
) -> ParityReport:
    """Compare a file with what it was exported from, and delete it if it differs.

    Args:
        graph, images, model: see `compare`.
        path: the file.
        decoder: reads the outputs of the file, see `ExportedModel`.
        name: what messages call the file if `path` is temporary.

    Raises:
        ExportError: it differs or does not run; the message has the numbers, and the file is deleted with
            those that belong to it.
    """
    path = Path(path)
    try:
        written = open_exported(path, lambda _: decoder, verify=False)
        report = compare(graph, written, images, model=model)
    except ExportError as error:
        delete_export(path)
        reason = str(error).replace(str(path), str(name or path))
        raise ExportError(f"{name or path} is not kept, it does not run: {reason}") from error
    if failures := report.failures():
        delete_export(path)
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise ExportError(
            f"{name or path} is not kept, it differs from the model: {'; '.join(failures[:3])}{more}; try "
            "another --format, or without --dynamic"
        )
    return report


def delete_export(path: Path) -> None:
    """Delete an exported file and what belongs to it: OpenVINO's weights, the JSON."""
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    for file in (path, path.with_name(f"{path.name}.json"), *weights):
        file.unlink(missing_ok=True)


def sizes_to_try(height: int, width: int, divisor: int) -> list[tuple[int, int]]:
    """Four sizes near the given one: square and wide with multiples of the divisor, large and upright
    without.
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


def synthetic_images(
    count: int = 2,
    size: tuple[int, int] = (_SHORT_EDGE, _SHORT_EDGE * 3 // 2),
    *,
    channels: int = 3,
    dtype: torch.dtype = torch.uint8,
) -> list[Tensor]:
    """Images of coloured blobs and some noise, `(channels, H, W)` from 0 to 255, always the same."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(count, channels, 7, 9, generator=generator) * 1.6 - 0.3
    images = F.interpolate(blobs, size, mode="bicubic", align_corners=False)
    images += 0.05 * torch.randn(images.shape, generator=generator)
    return list((images * 255).clamp(0, 255).to(dtype))


@torch.no_grad()
def _run(graph: Graph, images: Tensor) -> dict[str, Tensor]:
    return dict(zip(graph.outputs, graph(images), strict=True))


def _with_detections(
    graph: Graph, images: Sequence[Tensor], size: tuple[int, int] | None
) -> Sequence[Tensor]:
    """The first images in which the network finds something; all if there are none."""
    found = [image for image in images[:_SEARCHED] if len(_run(graph, _resized(image, size)[None])["boxes"])]
    return found or images


def _prediction_rows(
    model: nn.Module, graph: Graph, exported: ExportedModel, image: Tensor, tolerance: Tolerance, cut: Cut
) -> Iterator[Row]:
    """Compare both predictions on one image whose original was about twice as large."""
    height, width = image.shape[-2] * 2 + 1, image.shape[-1] * 2
    batch: list[Sample] = [{"image": image, "original_height": height, "original_width": width}]
    with torch.no_grad():
        predictions: tuple[Prediction, Prediction] = model(batch)[0], exported(batch)[0]
    expected, got = (
        {name: value.cpu() for name, value in one.items() if isinstance(value, Tensor)} for one in predictions
    )

    def class_scores() -> tuple[Tensor, float]:
        images = torch.stack([image] * (exported.description.batch or 1))
        mine, theirs = (
            outputs["logits"][:1].cpu().softmax(1) for outputs in (_run(graph, images), exported.run(images))
        )
        rounding = 1e-6
        likely = F.interpolate(mine, (height, width), mode="bilinear", align_corners=False)
        return likely[0], 2 * difference(mine, theirs) + rounding

    return rows_of(expected, got, tolerance, cut, class_scores)


def _resized(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is None or image.shape[-2:] == size:
        return image
    resized = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)
    if image.is_floating_point():
        return resized[0].clamp(0, 255)
    return resized[0].round().clamp(0, 255).to(image.dtype)
